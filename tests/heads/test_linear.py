from typing import ClassVar

import pytest
import torch

from tests.head_contract import GEOMETRY, HeadContract, make_batch, shaken_head
from tfbind_store.errors import ConfigError
from tfbind_store.heads import make_head


class TestLinear(HeadContract):
    name = "linear"
    options: ClassVar = {"rank": 4}


def test_is_linear_in_the_dna():
    head, batch = shaken_head("linear", {}), make_batch()
    zero, one = batch._replace(dna=batch.dna * 0), batch._replace(dna=batch.dna)
    two = batch._replace(dna=batch.dna * 2)
    torch.testing.assert_close(head(two) - head(zero), 2 * (head(one) - head(zero)))


def test_rank_below_one_is_refused():
    with pytest.raises(ConfigError, match="rank is 0"):
        make_head("linear", GEOMETRY, {"rank": 0})
