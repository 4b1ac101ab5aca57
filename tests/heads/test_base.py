import pytest
import torch

from tests.head_contract import GEOMETRY
from tfbind_store.errors import ConfigError
from tfbind_store.heads import HEADS, make_head
from tfbind_store.heads.base import Standardise


def test_heads_of_this_package():
    assert {"adapter", "linear"} <= set(HEADS)


def test_unknown_head_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean adapter\?"):
        make_head("adaptor", GEOMETRY)


def test_option_of_the_wrong_type_is_refused():
    with pytest.raises(ConfigError, match="width"):
        make_head("adapter", GEOMETRY, {"width": "wide"})


def test_a_constant_channel_is_only_centred():
    scale = Standardise(2)
    scale.fit(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.5]))
    assert scale(torch.tensor([4.0, 2.0])).tolist() == [1.0, 2.0]
