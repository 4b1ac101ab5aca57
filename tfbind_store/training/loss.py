"""From a batch to the loss of each of its cells, as one module: what is compiled, checkpointed and run in processes.

Whatever the autocast, losses are fp32 (``heads.losses``). Checkpointing keeps no activations of the head: they are
computed once more on the way back, block by block, with the same dropout.
"""

# b rows · n bins of a row · k bins · p pairs

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfbind_store.batch import Batch
from tfbind_store.feeding.feed import DenseBatch
from tfbind_store.heads import Head, LossConfig, cell_losses
from tfbind_store.heads.base import Pairs
from tfbind_store.heads.filip import FilipHead
from tfbind_store.heads.signal import Signal
from tfbind_store.training.batches import AnyBatch, pieces
from tfbind_store.training.strengths import Strengths

CELLS_AT_ONCE = 20_000
"""Bins times pairs, or rows times bins, whose activations exist at once under checkpointing."""


class HeadLoss(nn.Module):
    """A head with its loss.

    Parameters
    ----------
    checkpointing
        Compute activations twice instead of keeping them.
    strengths
        Of rows, for a head that learns read values beside labels; rows only.
    """

    def __init__(
        self, head: Head, config: LossConfig, *, checkpointing: bool = False, strengths: Strengths | None = None
    ) -> None:
        super().__init__()
        self.head, self.config, self.checkpointing, self.strengths = head, config, checkpointing, strengths

    def forward(self, batch: AnyBatch) -> Float[Tensor, "rows columns"]:
        """Return the loss of each cell times its row's weight; 0 where there is no label."""
        if isinstance(batch, DenseBatch):
            return cell_losses(self.config, self._dense_logits(batch), batch.labels)
        return self._row_losses(batch) * batch.weights.unsqueeze(-1)

    def _dense_logits(self, batch: DenseBatch) -> Float[Tensor, "k p"]:
        if not self.checkpointing:
            pairs, cells = self.head.encode(batch.pairs), batch.labels.numel()
            return self.head.score_pairs(batch.dna, pairs, max_cells=cells, signal=batch.signal)
        pairs = self._twice(self.head.encode, batch.pairs)
        parts = pieces(batch, -(-batch.labels.numel() // CELLS_AT_ONCE))
        logits = batch.labels.new_zeros(batch.labels.shape)
        for place, part in enumerate(parts):
            assert isinstance(part, DenseBatch)
            logits[place :: len(parts)] = self._twice(self._meet, part.dna, pairs, part.signal).float()
        return logits

    def _meet(self, dna: Float[Tensor, "k d"], pairs: Pairs, signal: Signal | None) -> Float[Tensor, "k p"]:
        return self.head.score_pairs(dna, pairs, max_cells=len(dna) * len(pairs[0]), signal=signal)

    def _row_losses(self, batch: Batch[Tensor]) -> Float[Tensor, "b n"]:
        if not self.checkpointing:
            return self._losses_of(batch)
        n = -(-batch.labels.numel() // CELLS_AT_ONCE)
        losses = batch.labels.new_zeros(batch.labels.shape)
        for part, piece in enumerate(pieces(batch, n)):
            losses[part::n] = self._twice(self._losses_of, piece).float()
        return losses

    def _losses_of(self, batch: Batch[Tensor]) -> Float[Tensor, "b n"]:
        """Return the loss of each bin of each row; a row's read value is shared by its labelled bins."""
        if self.strengths is None:
            return cell_losses(self.config, self.head(batch), batch.labels)
        assert isinstance(self.head, FilipHead)
        assert self.head.read_values is not None
        mixed = self.head.mixed_rows(batch)
        labelled = ~batch.labels.isnan()
        strength = self.head.options.read_values * self.head.read_values.cells(mixed, *self.strengths.of(batch.rows))
        return cell_losses(self.config, self.head.logit(mixed), batch.labels) + strength.unsqueeze(-1) * labelled

    def _twice(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(function, *inputs, use_reentrant=False)


def labelled_weight(batch: AnyBatch) -> Tensor:
    """Return what the sum of a batch's cell losses is divided by: its labelled cells, by their rows' weight."""
    labelled = ~batch.labels.isnan()
    if isinstance(batch, DenseBatch):
        return labelled.sum().float()
    return (labelled * batch.weights.unsqueeze(-1)).sum()
