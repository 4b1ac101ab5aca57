from typing import ClassVar

import pytest
import torch

from tests.head_contract import GEOMETRY, HeadContract, make_batch, shaken_head
from tfbind_store.errors import ConfigError
from tfbind_store.heads import make_head

SMALL = {"width": 8, "n_queries": 2, "latents": 3, "latent_dim": 4}


class TestTwoTower(HeadContract):
    name = "two_tower"
    options: ClassVar = SMALL


def test_scores_are_one_matrix_product():
    head, batch = shaken_head("two_tower", SMALL), make_batch()
    dna, pairs = batch.dna.flatten(0, 1), head.encode(batch)
    bias, vectors = pairs
    assert vectors.shape == (6, 12)
    by_hand = head.logit_bias + bias + head.encode_dna(dna) @ vectors.T
    torch.testing.assert_close(head.score_pairs(dna, pairs), by_hand)


def test_each_latent_of_a_bin_is_a_unit_vector():
    head, batch = shaken_head("two_tower", SMALL), make_batch()
    lengths = head.encode_dna(batch.dna).unflatten(-1, (3, 4)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(6, 4, 3))


def test_intermediates_add_up_to_the_logits():
    head, batch = shaken_head("two_tower", SMALL), make_batch()
    found = head.intermediates(batch)
    bias = head.encode(batch)[0].unsqueeze(-1)
    torch.testing.assert_close(head.logit_bias + bias + found.interactions.sum(-1), found.logits)
    torch.testing.assert_close(found.token_residues.sum(-1), torch.ones(6, 2))


def test_sizes_below_one_are_refused():
    with pytest.raises(ConfigError, match="below 1"):
        make_head("two_tower", GEOMETRY, {"latents": 0})
