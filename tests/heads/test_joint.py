"""The coupled model against its formulas, written out for one sequence and one factor at a time."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.head_contract import GEOMETRY
from tfbind_store.heads.blocks import log_average_exp
from tfbind_store.heads.filip import FilipConfig, FilipHead
from tfbind_store.heads.joint import BackAttention, Joint

SMALL = {"latent_heads": 4, "latent_dim": 4, "attention_heads": 2, "attention_dim": 3}
LENGTHS = (7, 3, 5)


def make(*, among=1, shaken=True, **options):
    torch.manual_seed(0)
    joint = Joint(FilipHead(FilipConfig(**SMALL, **{"dropout": 0.0, **options}), GEOMETRY), self_attention_depth=among)
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * shaken)
    return joint.eval()


def inputs(n_sequences=3):
    generator = torch.Generator().manual_seed(1)
    dna = torch.randn(n_sequences, 4, GEOMETRY.dna_dim, generator=generator)
    residues = torch.randn(3, 7, GEOMETRY.protein_dim, generator=generator)
    mask = torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1)
    return dna, residues * mask.unsqueeze(-1), mask, torch.randn(3, GEOMETRY.context_dim, generator=generator)


def attention_parts(block, bins, residues):
    """Queries of bins, keys and values of residues, by head: lists of [n, v]."""
    queries = block.to_queries(block.norm_dna(bins)).chunk(block.heads, -1)
    keys, values = block.to_keys_values(block.norm_token(residues)).chunk(2, -1)
    return queries, keys.chunk(block.heads, -1), values.chunk(block.heads, -1)


def by_hand(joint, bins, residues, context):
    """The mixed FILIP heads of one sequence [n, d] and one factor [l, e] without padding."""
    head, width = joint.head, SMALL["attention_dim"]
    context, bins = F.normalize(context, dim=-1), head.norm(bins)
    for among in joint.among_bins:
        queries, keys, values = (part.chunk(among.heads, -1) for part in among.to_parts(among.norm(bins)).chunk(3, -1))
        attended = [(q @ k.T / width**0.5).softmax(-1) @ v for q, k, v in zip(queries, keys, values, strict=True)]
        bins = bins + among.out(torch.cat(attended, -1))
        bins = bins + among.feed.net(bins)
    if head.options.film:
        for name in ("dna", "protein"):
            gamma, beta = getattr(head, f"condition_{name}").to_gamma_beta(context).chunk(2, -1)
            bins, residues = (
                (bins * (1 + gamma) + beta, residues) if name == "dna" else (bins, residues * (1 + gamma) + beta)
            )
    if head.options.squeeze_excite:
        gates = [
            getattr(head, f"condition_{name}").to_gate(torch.cat([context, x.mean(0)])).sigmoid()
            for name, x in (("dna", bins), ("protein", residues))
        ]
        bins, residues = bins * gates[0], residues * gates[1]
    for block, back, feed, feed_protein in zip(head.joint, joint.back, head.feed_dna, head.feed_protein, strict=True):
        queries, keys, values = attention_parts(block, bins, residues)
        back_values = back.to_values(block.norm_dna(bins)).chunk(block.heads, -1)
        alike = [q @ k.T / width**0.5 for q, k in zip(queries, keys, strict=True)]
        own = torch.cat([s.softmax(1) @ v for s, v in zip(alike, values, strict=True)], -1)
        taken = torch.cat([s.softmax(0).T @ v for s, v in zip(alike, back_values, strict=True)], -1)
        bins, residues = bins + block.out(own), residues + back.out(taken)
        bins, residues = bins + feed.net(bins), residues + feed_protein.net(residues)
    x = F.normalize(head.filip.from_dna(bins).unflatten(-1, (4, 4)), dim=-1)
    y = F.normalize(head.filip.from_token(residues).unflatten(-1, (4, 4)), dim=-1)
    y = torch.cat([F.normalize(head.filip.null, dim=-1).unsqueeze(0), y])
    met = log_average_exp(torch.einsum("nhv,khv->nhk", x, y), temperature=head.options.temperature)
    if head.grid is None:
        return head.mix(met)
    return met @ (head.grid.weight * head.grid.to_gate(context).sigmoid().view(4, 4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"joint_depth": 2, "among": 2},
        {"joint_depth": 0, "among": 0},
        {"film": True},
        {"squeeze_excite": True, "among": 0},
        {"hypergrid": False},
    ],
)
class TestFormulas:
    def test_each_row_is_what_the_formulas_say(self, options):
        joint, (dna, residues, mask, context) = make(**options), inputs()
        mixed = joint(dna, residues, mask, context).mixed
        assert mixed.shape == (3, 4, 4)
        for row, length in enumerate(LENGTHS):
            expected = by_hand(joint, dna[row], residues[row, :length], context[row])
            torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-5)

    def test_one_sequence_meets_many_factors(self, options):
        joint, (dna, residues, mask, context) = make(**options), inputs(n_sequences=1)
        mixed = joint(dna, residues, mask, context).mixed
        repeated = joint(dna.expand(3, -1, -1), residues, mask, context).mixed
        torch.testing.assert_close(mixed, repeated, rtol=1e-4, atol=1e-5)

    def test_padding_may_hold_anything_finite(self, options):
        joint, (dna, residues, mask, context) = make(**options), inputs()
        spoilt = residues.masked_fill(~mask.unsqueeze(-1), 9.0)
        torch.testing.assert_close(
            joint(dna, spoilt, mask, context).mixed, joint(dna, residues, mask, context).mixed, rtol=1e-4, atol=1e-5
        )

    def test_gradient_reaches_every_parameter(self, options):
        joint, arguments = make(**options), inputs()
        joint.head.logit(joint(*arguments).mixed).square().sum().backward()
        idle = [name for name, p in joint.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []


def test_it_starts_where_a_head_trained_on_stored_bins_stands():
    from tests.head_contract import make_batch

    joint, batch = make(shaken=False, among=0), make_batch(n_rows=3)
    batch = batch._replace(factor_index=torch.arange(3), context_index=torch.tensor([0, 1, 0]))
    mixed = joint(batch.dna, batch.protein, batch.mask, batch.context[batch.context_index]).mixed
    torch.testing.assert_close(joint.head.logit(mixed), joint.head(batch))


def test_intermediates_are_those_of_the_same_pass():
    joint, (dna, residues, mask, context) = make(joint_depth=2), inputs()
    mixed, found = joint(dna, residues, mask, context, with_details=True)
    torch.testing.assert_close(found.logits, joint.head.logit(mixed))
    assert [own.shape for own in found.attention] == [(3, 2, 4, 7)] * 2
    for own, back in zip(found.attention, found.back_attention, strict=True):
        torch.testing.assert_close(own.sum(-1), torch.ones(3, 2, 4))
        torch.testing.assert_close(back.sum(-2), mask.float().unsqueeze(1).expand(-1, 2, -1))
    assert (found.strongest < mask.sum(1)[:, None, None]).all()
    assert found.strongest.min() >= -1
    assert found.gate.shape == (3, 4, 4)
    torch.testing.assert_close(
        torch.einsum("bni,bio->bno", found.interactions, found.gate * joint.head.grid.weight), mixed
    )


def test_both_directions_share_one_similarity():
    alike = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 1, 1, 2, 2)
    back = BackAttention.weights(alike, torch.tensor([[[True, False]]]))[0, 0, 0]
    torch.testing.assert_close(back[:, 0], torch.tensor([1.0, 3.0]).softmax(0))
    assert back[:, 1].tolist() == [0, 0]


def test_training_drops_and_evaluation_does_not():
    joint, arguments = make(dropout=0.5), inputs()
    assert torch.equal(joint(*arguments).mixed, joint(*arguments).mixed)
    joint.train()
    assert not torch.equal(joint(*arguments).mixed, joint(*arguments).mixed)
