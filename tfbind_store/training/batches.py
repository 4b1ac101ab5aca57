"""Where a training loop's batches come from, in which order, and how a batch is cut up.

Both sources give batch after batch from where a run stands, the same to every process that asks; each process then
reads its own share of the rows or bins. `piece` cuts a batch for accumulation. `culprits` says which rows, bins and
experiments of a batch gave a loss that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tfbind_store.batch import Batch
from tfbind_store.feeding.feed import DenseBatch, DenseFeed, SignalReader, to_torch
from tfbind_store.learning.processes import Processes
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store

AnyBatch = DenseBatch | Batch[Tensor]
NAMED_AT_MOST = 8


class Numbered(NamedTuple):
    """A batch, and the cursor that a run stands at once it is done."""

    after: dict[str, Any]
    batch: AnyBatch


class BatchSource(Protocol):
    """Batches from where a run stands."""

    def batches(self, step: int, cursor: Mapping[str, Any]) -> Iterator[Numbered]:
        """Yield batches without end, beginning with that of optimizer step `step`."""


class DenseSource:
    """Bins against experiments: batch number i is that of step i."""

    def __init__(self, feed: DenseFeed, processes: Processes) -> None:
        self.feed, self.processes = feed, processes

    def batches(self, step: int, cursor: Mapping[str, Any]) -> Iterator[Numbered]:
        """Yield batches without end; the cursor is not needed."""
        while True:
            yield Numbered({}, self.feed.batch(step, part=self.processes.rank, n_parts=self.processes.world))
            step += 1


class RowSignals:
    """The signal of each row's biotype in its bins, for the training rows of a selection."""

    def __init__(self, store: Store, selection: Selection, signals: SignalReader) -> None:
        table = selection.columns("train", names=("row", "window", "bin", "context", "label"))
        row, self._n_bins, self._signals = table["row"].astype(np.int64), table["label"].shape[1], signals
        n_rows = int(row.max()) + 1 if len(row) else 0
        self._first, self._biotype = np.zeros((2, n_rows), dtype=np.int64)
        self._first[row] = table["window"].astype(np.int64) * store.grid.n_bins + table["bin"]
        self._biotype[row] = table["context"]

    def of(self, rows: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "b n s"]:
        """Return the signal of rows; NaN where there is none."""
        bins = self._first[rows][:, None] + np.arange(self._n_bins)
        parts: dict[int, np.ndarray] = {
            int(biotype): np.flatnonzero(self._biotype[rows] == biotype) for biotype in np.unique(self._biotype[rows])
        }
        found = {one: self._signals.at([one], bins[own].reshape(-1))[:, 0] for one, own in parts.items()}
        out = np.empty((*bins.shape, next(iter(found.values())).shape[-1]), dtype=np.float32)
        for one, own in parts.items():
            out[own] = found[one].reshape(len(own), self._n_bins, -1)
        return out


class RowSource:
    """The selection's rows, epoch after epoch."""

    def __init__(
        self, loader: Loader, device: torch.device, processes: Processes, signals: RowSignals | None = None
    ) -> None:
        self.loader, self.device, self.processes, self.signals = loader, device, processes, signals

    def batches(self, step: int, cursor: Mapping[str, Any]) -> Iterator[Numbered]:
        """Yield batches without end, beginning at the cursor.

        Raises
        ------
        CheckpointError
            If the cursor is of other rows or another order.
        """
        if cursor:
            self.loader.resume(cursor)
        identity = self.loader.state()
        epoch, first = self.loader.cursor
        share = (self.processes.rank, self.processes.world)
        while True:
            for seen, batch in self.loader.epoch(epoch, first_row=first, share=share):
                if self.signals is not None:
                    batch = batch._replace(signal=self.signals.of(batch.rows))
                yield Numbered({**identity, "epoch": epoch, "row": seen}, to_torch(batch, self.device))
            epoch, first = epoch + 1, 0


def pieces(batch: AnyBatch, n: int) -> list[AnyBatch]:
    """Cut a batch into at most `n` pieces of about the same size, none of them empty."""
    size = len(batch.labels)
    return [_piece(batch, slice(part, None, n)) for part in range(min(n, max(size, 1)))] if n > 1 else [batch]


def _piece(batch: AnyBatch, part: slice) -> AnyBatch:
    if isinstance(batch, DenseBatch):
        signal = None if batch.signal is None else batch.signal._replace(values=batch.signal.values[part])
        return batch._replace(dna=batch.dna[part], labels=batch.labels[part], bins=batch.bins[part], signal=signal)
    return batch._replace(
        dna=batch.dna[part],
        factor_index=batch.factor_index[part],
        context_index=batch.context_index[part],
        signal=None if batch.signal is None else batch.signal[part],
        labels=batch.labels[part],
        weights=batch.weights[part],
        rows=batch.rows[part],
    )


def culprits(store: Store, batch: AnyBatch, is_bad: Bool[Tensor, "b n"]) -> str:
    """Say which rows, or which bins and experiments, of a batch hold the bad cells."""
    bad = is_bad.cpu().numpy()
    first = np.flatnonzero(bad.any(1))
    if not isinstance(batch, DenseBatch):
        return f"{len(first)} of {len(bad)} rows: {_listed(batch.rows.cpu().numpy()[first].tolist())}"
    experiments = batch.experiments[np.flatnonzero(bad.any(0))]
    with store.reader() as catalog:
        named = dict(catalog.rows("SELECT experiment_id, experiment FROM data.experiments"))
    names = _listed([named[int(experiment)] for experiment in experiments])
    return f"{len(first)} of {len(bad)} bins: {_listed(batch.bins[first].tolist())}; experiments: {names}"


def _listed(items: list[Any]) -> str:
    more = ", …" if len(items) > NAMED_AT_MOST else ""
    return ", ".join(map(str, items[:NAMED_AT_MOST])) + more
