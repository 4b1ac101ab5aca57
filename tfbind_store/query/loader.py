"""Bring the rows of a selection to a head as numpy batches, read by memory map.

Every row of a split comes exactly once per epoch, in an order that the seed decides (``sampler``); a run that stopped
goes on at the exact batch. The catalog is read once, when a loader is made; batches touch mapped files only, so a
loader may be forked, or pickled to another process, where it opens the files again at the first batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.arrays import ShardedArray, Verify
from tfbind_store.batch import Batch
from tfbind_store.errors import CheckpointError, MissingWindow, SelectionError
from tfbind_store.query.labels import as_labels
from tfbind_store.query.sampler import balanced_rows, batches_of, epoch_order
from tfbind_store.query.selection import Selection
from tfbind_store.residues import FactorProteins
from tfbind_store.store import Store

ANNOUNCE_ABOVE = 0.25
"""Announce whole windows to the system ahead of reading if at least this share of their bins is wanted."""
BATCHES_AHEAD = 2
Balance = Literal["none", "factor", "biotype"]
_log = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """Names of the arrays that batches are read from, as ``tfbind info`` lists them."""

    windows: str
    proteins: str
    contexts: str


class Cursor(NamedTuple):
    """The next batch to be read."""

    epoch: int
    batch: int


class Loader:
    """The rows of one split of a selection as batches.

    Parameters
    ----------
    store, selection
        An open store, and one of its selections or its name.
    split
        train, valid or test.
    arrays
        Where the embeddings are.
    batch_size
        Rows per batch; the last batch of an epoch may be shorter.
    seed, block_windows
        See ``sampler.epoch_order``.
    shuffle
        False reads in file order: for validation.
    part, n_parts
        Which of several loaders over the same rows this is; together they see every row once.
    balance
        ``factor`` or ``biotype``: each comes equally often (``sampler.balanced_rows``); an epoch then leaves rows out
        and repeats others.
    verify
        ``first-touch`` checks the hash of each window when it is first read; None does as the store does.

    Raises
    ------
    SelectionError
        If the split has no rows.
    MissingWindow
        If rows need windows that are not embedded, counted.
    """

    def __init__(
        self,
        store: Store,
        selection: Selection | str,
        split: str,
        *,
        arrays: Arrays,
        batch_size: int = 256,
        seed: int = 0,
        block_windows: int = 64,
        shuffle: bool = True,
        part: int = 0,
        n_parts: int = 1,
        balance: Balance = "none",
        verify: Verify | None = None,
    ) -> None:
        selection = Selection.open(store, selection) if isinstance(selection, str) else selection
        table = selection.columns(split, names=("row", "window", "bin", "factor", "context", "label", "weight"))
        if not table.n:
            raise SelectionError(f"split {split} has no rows", where=f"selection {selection.name}")
        self.split, self.arrays = split, arrays
        self.batch_size, self.seed, self.block_windows = batch_size, seed, block_windows
        self.shuffle, self.part, self.n_parts, self.balance = shuffle, part, n_parts, balance
        self.n_bins = selection.n_bins
        self.cursor = Cursor(0, 0)
        self._path, self._verify, self._window_bins = store.path, verify or store.verify, store.grid.n_bins
        self._rows_sha256 = str(selection.info["rows_sha256"])
        self._window = table["window"].astype(np.int64)
        self._first_bin = self._window * store.grid.n_bins + table["bin"]
        self._row = table["row"].astype(np.int64)
        self._factor = table["factor"].astype(np.int64)
        self._codes, self._weight = table["label"], table["weight"].astype(np.float32)
        self._contexts, self._context = np.unique(table["context"].astype(np.int64), return_inverse=True)
        self._context_values = np.asarray(store.contexts(arrays.contexts, self._contexts), dtype=np.float32)
        self._store: Store | None = store
        self._dna: ShardedArray | None = None
        self._proteins: FactorProteins | None = None
        self._require_embedded()
        self.proteins.get(np.unique(self._factor)[:1])

    @property
    def n_rows(self) -> int:
        """Rows in the split, all parts together."""
        return len(self._row)

    def __len__(self) -> int:
        """Return the batches of one epoch of this part."""
        n_batches = -(-self.n_rows // self.batch_size)
        return len(range(self.part, n_batches, self.n_parts))

    def __iter__(self) -> Iterator[Batch[np.ndarray]]:
        """Yield what is left of the current epoch, then stand at the next one's beginning."""
        epoch = self.cursor.epoch
        for number, batch in self.epoch(epoch, first_batch=self.cursor.batch):
            self.cursor = Cursor(epoch, number + 1)
            yield batch
        self.cursor = Cursor(epoch + 1, 0)

    def epoch(
        self, epoch: int, *, first_batch: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[int, Batch[np.ndarray]]]:
        """Yield (number of the batch, batch) of one epoch, from batch `first_batch` on.

        Parameters
        ----------
        share
            ``(i, n)`` reads row i, i + n, … of each batch: processes that make one step together. Where a batch has
            fewer rows than processes, one of its rows comes again with weight 0.
        """
        places = list(
            batches_of(
                self.order(epoch),
                batch_size=self.batch_size,
                first_batch=first_batch,
                part=self.part,
                n_parts=self.n_parts,
            )
        )
        announce = self._wants_announcing()
        for index, (number, rows) in enumerate(places):
            if announce and index % BATCHES_AHEAD == 0:
                ahead = [rows for _, rows in places[index + BATCHES_AHEAD : index + 2 * BATCHES_AHEAD]]
                self.dna.will_need(np.unique(self._window[np.concatenate(ahead)]) if ahead else ())
            yield number, self._read_share(rows, *share)

    def _read_share(self, rows: Int64[np.ndarray, " b"], part: int, n_parts: int) -> Batch[np.ndarray]:
        own = rows[part::n_parts]
        if len(own):
            return self.read(own)
        batch = self.read(rows[:1])
        return batch._replace(weights=np.zeros_like(batch.weights))

    def order(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        """Return the places of the rows in the order in which an epoch visits them."""
        if self.balance != "none":
            groups = self._factor if self.balance == "factor" else self._context
            rows = balanced_rows(groups, seed=self.seed, epoch=epoch)
            order = epoch_order(self._window[rows], block_windows=self.block_windows, seed=self.seed, epoch=epoch)
            return np.asarray(rows[order])
        if not self.shuffle:
            return np.arange(self.n_rows, dtype=np.int64)
        return epoch_order(self._window, block_windows=self.block_windows, seed=self.seed, epoch=epoch)

    def read(self, places: Int64[np.ndarray, " b"]) -> Batch[np.ndarray]:
        """Read the rows at some places of the split as one batch."""
        factors, factor_index = np.unique(self._factor[places], return_inverse=True)
        contexts, context_index = np.unique(self._context[places], return_inverse=True)
        protein, mask, subunit = self.proteins.get(factors)
        return Batch(
            dna=self.dna.gather_bins(self._first_bin[places], self.n_bins),
            protein=protein,
            mask=mask,
            subunit=subunit,
            factor_index=factor_index.astype(np.int64),
            context=self._context_values[contexts],
            context_index=context_index.astype(np.int64),
            signal=None,
            labels=as_labels(self._codes[places]),
            weights=self._weight[places],
            rows=self._row[places],
        )

    @property
    def dna(self) -> ShardedArray:
        """The windows' array, opened when it is first needed in this process."""
        if self._dna is None:
            self._dna = self._opened().array(self.arrays.windows)
        return self._dna

    @property
    def proteins(self) -> FactorProteins:
        """The factors' residues, opened when they are first needed in this process."""
        if self._proteins is None:
            self._proteins = FactorProteins(self._opened(), self.arrays.proteins)
        return self._proteins

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._path, verify=self._verify)
        return self._store

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs, as JSON values."""
        return {**self._identity(), "epoch": self.cursor.epoch, "batch": self.cursor.batch}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same rows, order and batches stood.

        Raises
        ------
        CheckpointError
            If the rows, the order or the batches would be others.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise CheckpointError(
                    f"the stopped run read with {key} = {state.get(key)!r}, this one with {mine!r}",
                    where="loader state",
                    fix="resume with the settings of the stopped run, or start a new one",
                )
        self.cursor = Cursor(int(state["epoch"]), int(state["batch"]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped files behind when sent to another process."""
        return {**self.__dict__, "_store": None, "_dna": None, "_proteins": None}

    def _identity(self) -> dict[str, Any]:
        return {
            "rows_sha256": self._rows_sha256,
            "split": self.split,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "block_windows": self.block_windows,
            "shuffle": self.shuffle,
            "balance": self.balance,
            "part": self.part,
            "n_parts": self.n_parts,
        }

    def _wants_announcing(self) -> bool:
        bins_of_windows = len(np.unique(self._window)) * self._window_bins
        return self.n_rows * self.n_bins >= ANNOUNCE_ABOVE * bins_of_windows

    def _require_embedded(self) -> None:
        last_window = (self._first_bin + self.n_bins - 1) // self._window_bins
        missing = ~(self.dna.is_ok(self._window) & self.dna.is_ok(last_window))
        if missing.any():
            windows = np.unique(np.concatenate([self._window[missing], last_window[missing]]))
            windows = windows[~self.dna.is_ok(windows)]
            raise MissingWindow(
                f"{int(missing.sum()):,} of {self.n_rows:,} rows need {len(windows):,} windows that are not embedded "
                f"(first: {int(windows[0])})",
                where=self.arrays.windows,
                fix=f"embed them: tfbind embed {self._path} windows",
            )
