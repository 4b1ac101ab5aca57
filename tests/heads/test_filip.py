import pytest
import torch

from tests.head_contract import GEOMETRY, HeadContract, make_batch, shaken_head
from tfbind_store.errors import ConfigError
from tfbind_store.heads import make_head

SMALL = {"latent_heads": 4, "latent_dim": 4, "attention_heads": 2, "attention_dim": 3}


class TestFilip(HeadContract):
    name = "filip"
    options = SMALL


class TestFilipOfTwoBlocksWithFilm(HeadContract):
    name = "filip"
    options = SMALL | {"joint_depth": 2, "film": True}


class TestFilipWithSqueezeExcite(HeadContract):
    name = "filip"
    options = SMALL | {"squeeze_excite": True}


class TestFilipWithFilmAlone(HeadContract):
    name = "filip"
    options = SMALL | {"joint_depth": 0, "hypergrid": False, "film": True}


@pytest.mark.parametrize(
    ("odd", "fix"),
    [
        ({"temperature": 0.001}, "temperature of at least 0.02"),
        ({"film": True, "squeeze_excite": True}, "film or squeeze_excite"),
        ({"latent_dim": 0}, "at least 1"),
        ({"joint_depth": -1}, "at least 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(odd, fix):
    with pytest.raises(ConfigError, match=fix):
        make_head("filip", GEOMETRY, SMALL | odd)


def test_without_hypergrid_the_heads_are_still_mixed_and_the_context_does_not_count():
    head, batch = shaken_head("filip", SMALL | {"hypergrid": False}), make_batch()
    assert torch.equal(head(batch._replace(context_index=1 - batch.context_index)), head(batch))


def test_pairs_of_different_length_are_joined_as_if_encoded_together():
    head, batch = shaken_head("filip", SMALL), make_batch()
    short = batch._replace(
        protein=batch.protein[1:2, :3], mask=batch.mask[1:2, :3], subunit=batch.subunit[1:2, :3],
        factor_index=torch.zeros(1, dtype=torch.long), context_index=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip
    joined = head.join([head.encode(batch), head.encode(short)])
    dna = batch.dna.flatten(0, 1)
    scores = head.score_pairs(dna, joined)
    assert scores.shape == (24, 7)
    torch.testing.assert_close(scores[:, :6], head.score_pairs(dna, head.encode(batch)))
    torch.testing.assert_close(scores[:, 6:], head.score_pairs(dna, head.encode(short)))


def test_training_drops_residues_but_never_all_that_a_bin_can_meet():
    torch.manual_seed(0)
    head, batch = make_head("filip", GEOMETRY, SMALL | {"dropout": 0.99, "joint_depth": 0}), make_batch()
    assert head.train()(batch).isfinite().all()
    assert (head.train()(batch) - head.eval()(batch)).abs().max() > 1e-4


def test_an_empty_factor_is_finite():
    head, batch = shaken_head("filip", SMALL), make_batch()
    assert head(batch._replace(mask=torch.zeros_like(batch.mask))).isfinite().all()


def test_intermediates_say_which_residue_each_bin_met():
    head, batch = shaken_head("filip", SMALL), make_batch()
    found = head.intermediates(batch)
    torch.testing.assert_close(found.logits, head(batch))
    (attention,) = found.attention
    assert attention.shape == (6, 2, 4, 7)
    torch.testing.assert_close(attention.sum(-1), torch.ones(6, 2, 4))
    absent = ~batch.mask[batch.factor_index]
    assert attention.masked_select(absent[:, None, None]).eq(0).all()
    assert found.interactions.shape == (6, 4, 4)
    assert found.strongest.min() >= -1
    assert (found.strongest < batch.mask.sum(1)[batch.factor_index][:, None, None]).all()
    assert found.gate.shape == (6, 4, 4)
    assert ((found.gate > 0) & (found.gate < 1)).all()
    mixed = torch.einsum("bni,bio->bno", found.interactions, found.gate * head.grid.weight)
    torch.testing.assert_close(head.logit_bias + head.to_logit(mixed).squeeze(-1), found.logits)


def test_one_block_follows_the_reference_residues_fed_forward_behind_the_attention():
    head, batch = shaken_head("filip", SMALL | {"norm_heads": False}), make_batch()
    row, factor = 1, 1
    residues = batch.protein[factor, :3].float().view(1, 1, 3, -1)
    bins = head.norm(batch.dna[row].float()).view(1, 4, 1, -1)
    block = head.joint[0]
    bins = head.feed_dna[0](block(bins, block.project(residues)))
    met = head.filip(bins, head.filip.project_tokens(head.feed_protein[0](residues)))[0, :, :, 0].T
    context = torch.nn.functional.normalize(batch.context[batch.context_index[row]], dim=-1)
    weight = head.grid.weight * head.grid.to_gate(context).sigmoid().view(4, 4)
    expected = head.logit_bias + (met @ weight) @ head.to_logit[1].weight[0] + head.to_logit[1].bias
    torch.testing.assert_close(head(batch)[row], expected)
