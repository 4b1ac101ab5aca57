"""What every head must do; a test class per head subclasses `HeadContract`."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tfbind_store.batch import Batch
from tfbind_store.heads import Geometry, Head, header_for, load_checkpoint, make_head, save_checkpoint

GEOMETRY = Geometry(dna_dim=12, protein_dim=6, context_dim=5)


def make_batch(*, seed: int = 0, n_rows: int = 6, n_bins: int = 4, lengths: tuple[int, ...] = (7, 3, 5)) -> Batch[Any]:
    """Random rows over three factors and two contexts; the first factor is a complex of two subunits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    subunit = torch.where(mask, 0, -1).to(torch.int16)
    subunit[0, 4 : lengths[0]] = 1
    return Batch(
        dna=normal(n_rows, n_bins, GEOMETRY.dna_dim).half(),
        protein=(normal(len(lengths), max(lengths), GEOMETRY.protein_dim) * mask.unsqueeze(-1)).half(),
        mask=mask,
        subunit=subunit,
        factor_index=torch.arange(n_rows) % len(lengths),
        context=normal(2, GEOMETRY.context_dim),
        context_index=torch.arange(n_rows) // 2 % 2,
        signal=None,
        labels=torch.randint(0, 2, (n_rows, n_bins), generator=generator).float(),
        weights=torch.ones(n_rows),
        rows=torch.arange(n_rows),
    )


def shaken_head(name: str, options: dict[str, Any], *, seed: int = 0) -> Head:
    """A head whose parameters are all away from zero: zero-initialised parts would hide what they do."""
    torch.manual_seed(seed)
    head = make_head(name, GEOMETRY, options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.eval()


class HeadContract:
    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def head(self) -> Head:
        return shaken_head(self.name, self.options)

    def test_gives_one_finite_logit_per_bin(self, head):
        logits = head(make_batch())
        assert logits.shape == (6, 4)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()

    def test_gradient_reaches_every_parameter(self, head):
        head(make_batch()).square().sum().backward()
        idle = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    def test_padding_does_not_change_the_answer(self, head):
        batch = make_batch()
        garbage = torch.full((3, 4, GEOMETRY.protein_dim), 9.0).half()
        longer = batch._replace(
            protein=torch.cat([batch.protein, garbage], dim=1),
            mask=torch.cat([batch.mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1),
            subunit=torch.cat([batch.subunit, torch.full((3, 4), -1, dtype=torch.int16)], dim=1),
        )
        torch.testing.assert_close(head(longer), head(batch))

    def test_a_factor_without_residues_is_not_scored_by_its_padding(self, head):
        batch = make_batch()
        empty = batch._replace(mask=batch.mask & torch.tensor([[True], [False], [True]]))
        other = empty._replace(protein=torch.where(empty.mask.unsqueeze(-1), batch.protein, 5 - batch.protein))
        assert head(empty).isfinite().all()
        torch.testing.assert_close(head(other), head(empty))

    def test_rows_do_not_see_each_other(self, head):
        batch = make_batch()
        alone = batch._replace(
            dna=batch.dna[2:3, 1:2], factor_index=batch.factor_index[2:3], context_index=batch.context_index[2:3]
        )
        torch.testing.assert_close(head(alone)[0, 0], head(batch)[2, 1])

    def test_factor_reaches_the_logits(self, head):
        batch = make_batch()
        other = head(batch._replace(factor_index=(batch.factor_index + 1) % 3))
        assert (other - head(batch)).abs().min() > 1e-6

    def test_context_reaches_the_logits(self, head):
        batch = make_batch()
        other = head(batch._replace(context_index=1 - batch.context_index))
        assert (other - head(batch)).abs().min() > 1e-6

    def test_order_of_distinct_factors_and_contexts_means_nothing(self, head):
        batch, order = make_batch(), torch.tensor([2, 0, 1])
        shuffled = batch._replace(
            protein=batch.protein[order],
            mask=batch.mask[order],
            subunit=batch.subunit[order],
            factor_index=order.argsort()[batch.factor_index],
            context=batch.context.flip(0),
            context_index=1 - batch.context_index,
        )
        torch.testing.assert_close(head(shuffled), head(batch))

    def test_permuting_pairs_permutes_dense_scores(self, head):
        batch, order = make_batch(), torch.tensor([3, 5, 0, 1, 4, 2])
        dna = batch.dna.flatten(0, 1)
        scores = head.score_pairs(dna, head.encode(batch))
        permuted = batch._replace(factor_index=batch.factor_index[order], context_index=batch.context_index[order])
        assert scores.shape == (24, 6)
        torch.testing.assert_close(head.score_pairs(dna, head.encode(permuted)), scores[:, order])

    @pytest.mark.parametrize("max_cells", [1, 13, 10_000])
    def test_dense_scores_equal_rows(self, head, max_cells):
        batch = make_batch()
        dense = head.score_pairs(batch.dna.flatten(0, 1), head.encode(batch), max_cells=max_cells)
        rows = head(batch)
        torch.testing.assert_close(torch.stack([dense[4 * i : 4 * i + 4, i] for i in range(6)]), rows)

    def test_no_bins_give_no_scores(self, head):
        batch = make_batch()
        assert head.score_pairs(batch.dna.flatten(0, 1)[:0], head.encode(batch)).shape == (0, 6)

    def test_checkpoint_round_trip(self, head, tmp_path):
        batch = make_batch()
        head.dna_scale.fit(torch.arange(12.0), torch.arange(12.0))
        save_checkpoint(tmp_path / "head.safetensors", head, header_for(head, genome="abc"))
        loaded, header = load_checkpoint(tmp_path / "head.safetensors")
        assert header.genome == "abc"
        assert torch.equal(loaded(batch), head(batch))

    def test_unknown_option_names_the_nearest(self):
        with pytest.raises(TypeError, match=r"no option 'dropuot'; did you mean 'dropout'\?"):
            make_head(self.name, GEOMETRY, {**self.options, "dropuot": 0.1})

    def test_scaling_and_prevalence_are_where_training_starts(self, head):
        from tfbind_store.heads import Scaling

        ones = torch.ones(GEOMETRY.dna_dim), torch.ones(GEOMETRY.protein_dim)
        head.fit_scaling(Scaling(ones[0], 2 * ones[0], ones[1], 2 * ones[1]), prevalence=0.25)
        assert head.logit_bias.item() == pytest.approx(-1.0986123)
        assert head.dna_scale(torch.full((12,), 5.0)).tolist() == [2.0] * 12
