"""Signals within heads: nothing at the start, absent ones learned, dense scores as rows, a genome as one product."""

from __future__ import annotations

import pytest
import torch

from tests.head_contract import make_batch, shaken_head
from tfbind_store.heads import Geometry, make_head
from tfbind_store.heads.base import reads_signals
from tfbind_store.heads.signal import Signal, SignalEncoder

OPTIONS = {
    "adapter": {"width": 8, "n_queries": 2, "filip_heads": 4, "filip_dim": 3, "tower_dim": 6, "attention_heads": 2},
    "two_tower": {"width": 8, "n_queries": 2, "latents": 3, "latent_dim": 4},
}
NAMES = list(OPTIONS)


def signalled(name: str, **more: object) -> torch.nn.Module:
    return shaken_head(name, {**OPTIONS[name], "signal_scales": 3, **more})


def test_which_heads_read_signals_is_known() -> None:
    assert [reads_signals(name) for name in ("adapter", "two_tower", "filip", "linear")] == [True, True, False, False]


@pytest.mark.parametrize("name", NAMES)
class TestInHeads:
    def test_an_untrained_encoder_says_nothing(self, name):
        geometry = Geometry(12, 6, 5)
        torch.manual_seed(0)
        plain = make_head(name, geometry, OPTIONS[name]).eval()
        head = make_head(name, geometry, {**OPTIONS[name], "signal_scales": 3}).eval()
        head.load_state_dict(plain.state_dict(), strict=False)
        batch = make_batch()
        torch.testing.assert_close(head(batch._replace(signal=torch.randn(6, 4, 3))), plain(batch))

    def test_signals_reach_the_logits_and_gradients_every_parameter(self, name):
        head, batch = signalled(name), make_batch()
        signal = torch.randn(6, 4, 3)
        signal[2] = torch.nan
        logits = head(batch._replace(signal=signal))
        assert logits.isfinite().all()
        assert (logits - head(batch._replace(signal=signal + 1)))[[0, 1, 3, 4, 5]].abs().min() > 1e-6
        logits.square().sum().backward()
        idle = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []
        assert all(p.grad.isfinite().all() for p in head.parameters())

    def test_no_signal_is_one_that_is_absent_in_every_scale_or_in_one(self, name):
        head, batch = signalled(name), make_batch()
        gone = torch.full((6, 4, 3), torch.nan)
        torch.testing.assert_close(head(batch), head(batch._replace(signal=gone)))
        gone[..., :2] = 1.0
        torch.testing.assert_close(head(batch), head(batch._replace(signal=gone)))

    @pytest.mark.parametrize("max_cells", [1, 13, 10_000])
    def test_dense_scores_are_those_of_rows(self, name, max_cells):
        head, batch = signalled(name), make_batch()
        dna = batch.dna.flatten(0, 1)
        values = torch.randn(24, 2, 3)  # of two biotypes
        values[5, 1, 0] = torch.nan
        signal = Signal(values, batch.context_index)
        dense = head.score_pairs(dna, head.encode(batch), max_cells=max_cells, signal=signal)
        assert dense.shape == (24, 6)
        for row in range(6):
            own = values[4 * row : 4 * row + 4, batch.context_index[row]].unsqueeze(0)
            alone = batch._replace(
                dna=batch.dna[row : row + 1], signal=own, factor_index=batch.factor_index[row : row + 1],
                context_index=batch.context_index[row : row + 1],
            )  # fmt: skip
            torch.testing.assert_close(dense[4 * row : 4 * row + 4, row], head(alone)[0])

    def test_training_takes_signals_away_now_and_then(self, name):
        head, batch = signalled(name, dropout=0.0, signal_drop=0.5), make_batch()
        given = batch._replace(signal=torch.randn(6, 4, 3))
        with_it, without = head(given), head(batch)
        torch.manual_seed(0)
        trained = head.train()(given)
        is_gone = torch.isclose(trained, without).all(dim=1)
        assert 0 < int(is_gone.sum()) < 6
        torch.testing.assert_close(trained[~is_gone], with_it[~is_gone])


def test_a_genome_is_still_one_product_for_each_biotype() -> None:
    head, batch = signalled("two_tower"), make_batch()
    dna, values = batch.dna.flatten(0, 1), torch.randn(24, 1, 3)
    bias, vectors = head.encode(batch)
    bins = head.finish(head.stem(dna).unsqueeze(0), values.transpose(0, 1))[0]
    product = bins @ vectors.T + bias + head.logit_bias
    found = head.score_pairs(dna, (bias, vectors), signal=Signal(values, torch.zeros(6, dtype=torch.int64)))
    torch.testing.assert_close(found, product)


def test_the_encoder_begins_at_zero_and_is_finite_everywhere() -> None:
    encoder = SignalEncoder(2, 5)
    signal = torch.tensor([[[1.0, torch.nan], [2.0, 3.0]]])
    assert (encoder(signal) == 0).all()
    encoder(signal).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
