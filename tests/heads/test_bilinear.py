from typing import ClassVar

import pytest
import torch

from tests.head_contract import GEOMETRY, HeadContract, make_batch, shaken_head
from tfbind_store.errors import ConfigError
from tfbind_store.heads import make_head

SMALL = {"rank": 4, "n_queries": 2, "token_dim": 3}


class TestBilinear(HeadContract):
    name = "bilinear"
    options: ClassVar = SMALL


def test_is_linear_in_the_dna():
    head, batch = shaken_head("bilinear", SMALL), make_batch()
    zero = head(batch._replace(dna=batch.dna * 0))
    torch.testing.assert_close(head(batch._replace(dna=batch.dna * 2)) - zero, 2 * (head(batch) - zero))


def test_the_context_gates_what_is_read_from_the_residues():
    head, batch = shaken_head("bilinear", SMALL), make_batch()
    with torch.no_grad():
        for parameter in head.gate.parameters():
            parameter.zero_()
    torch.testing.assert_close(head(batch._replace(context_index=1 - batch.context_index)), head(batch))


def test_intermediates_have_the_weights_of_residues():
    head, batch = shaken_head("bilinear", SMALL), make_batch()
    shares = head.intermediates(batch).token_residues
    assert shares.masked_select(~batch.mask[batch.factor_index].unsqueeze(1)).eq(0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(6, 2))


def test_sizes_below_one_are_refused():
    with pytest.raises(ConfigError, match="below 1"):
        make_head("bilinear", GEOMETRY, {"rank": 0})
