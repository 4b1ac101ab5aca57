"""Bring the rows of a selection to a head as numpy batches, read by memory map.

Every row of a split comes exactly once per epoch, in an order that the seed decides (``sampler``); a run that stopped
goes on at the exact row. The catalog is read once, when a loader is made; batches touch mapped files only, so a loader
may be forked, or pickled to another process, where it opens the files again at the first batch. What a split needs can
be read into memory as a whole (`Resident`), and rows may come from either strand where the store has both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from tfbind_store.arrays.sharded import ShardedArray, Verify
from tfbind_store.arrays.spaces import Located, Runs
from tfbind_store.batch import Batch
from tfbind_store.errors import CheckpointError, MissingWindow, SelectionError
from tfbind_store.query import draws
from tfbind_store.query.copying import Announcer, Reading
from tfbind_store.query.legs import Buffers, Leg, batches_per_leg, row_table
from tfbind_store.query.sampler import RowWindows, balanced_rows, batches_of, epoch_order
from tfbind_store.query.selection import Selection
from tfbind_store.query.stretches import distinct
from tfbind_store.store.folder import Store
from tfbind_store.store.residues import FactorBatch, FactorProteins, Subunits

ANNOUNCE_ABOVE = 0.25
"""Announce whole windows to the system ahead of reading if at least this share of their bins is wanted."""
ANNOUNCED_AT_ONCE = 2
"""Batches."""
LOOKED_AT = 64
"""Rows of which it is looked up whether they are in memory, before an epoch begins."""
CHECKED_AT_ONCE = 16
"""Batches whose windows are looked up together, and checked where that is still to be done."""
_BINS_AT_ONCE = 4096
Balance = Literal["none", "factor", "biotype"]
_log = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """Names of the arrays that batches are read from, as ``tfbind info`` lists them."""

    windows: str
    proteins: str
    contexts: str


class Cursor(NamedTuple):
    """Where reading stands: rows of the epoch's order that have been given."""

    epoch: int
    row: int


class Resident(NamedTuple):
    """All bins that some rows need, in memory."""

    bins: Int64[np.ndarray, " n"]
    """Global bins, ascending."""
    values: Float16[np.ndarray, "n d"]

    def places(self, first_bin: Int64[np.ndarray, " b"], n_bins: int) -> Int64[np.ndarray, "b n"]:
        """Return where the bins of rows lie in `values`: the bins of a row lie together."""
        return np.searchsorted(self.bins, first_bin)[:, None] + np.arange(n_bins)


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
    reverse
        The windows' array of the other strand (``strands.other_strand`` finds it): each row of an epoch is read from
        one of the two, as the seed decides. Both lie in genome order, so labels stay as they are.
    resident
        Read all that the split needs into memory at the first batch.
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
        reverse: str = "",
        resident: bool = False,
        verify: Verify | None = None,
    ) -> None:
        selection = Selection.open(store, selection) if isinstance(selection, str) else selection
        table = selection.columns(split, names=("row", "window", "bin", "factor", "context", "label", "weight"))
        if not table.n:
            raise SelectionError(f"split {split} has no rows", where=f"selection {selection.name}")
        self.split, self.arrays = split, arrays
        self.batch_size, self.seed, self.block_windows = batch_size, seed, block_windows
        self.shuffle, self.part, self.n_parts, self.balance = shuffle, part, n_parts, balance
        self.reverse, self.resident = reverse, resident
        self.n_bins = selection.n_bins
        self.cursor = Cursor(0, 0)
        self._path, self._verify, self._window_bins = store.path, verify or store.verify, store.grid.n_bins
        self._rows_sha256 = str(selection.info["rows_sha256"])
        self._window = table["window"].astype(np.int64)
        self._row_windows = RowWindows.of(self._window)
        self._factors, factor = np.unique(table["factor"].astype(np.int64), return_inverse=True)
        self._contexts, context = np.unique(table["context"].astype(np.int64), return_inverse=True)
        self.table = row_table(
            row=table["row"].astype(np.int64),
            first_bin=self._window * store.grid.n_bins + table["bin"],
            factor=factor,
            context=context,
            codes=table["label"],
            weight=table["weight"].astype(np.float32),
        )
        self._context_values = np.asarray(store.contexts(arrays.contexts, self._contexts), dtype=np.float32)
        self._store: Store | None = store
        self._opened_arrays: dict[str, ShardedArray] = {}
        self._residents: dict[str, Resident] = {}
        self._buffers: dict[int, Buffers] = {}
        self._proteins: FactorProteins | None = None
        self._subunits: Subunits | None = None
        self._last_proteins: tuple[bytes, FactorBatch] | None = None
        self._last_contexts: tuple[bytes, Float32[np.ndarray, "c t"]] | None = None
        for name in self.window_arrays:
            self.array(name)
        self.proteins.get(self._factors[:1])

    @property
    def window_arrays(self) -> tuple[str, ...]:
        """The arrays that rows are read from: forward, and reverse where there is one."""
        return (self.arrays.windows, self.reverse) if self.reverse else (self.arrays.windows,)

    @property
    def n_rows(self) -> int:
        """Rows in the split, all parts together."""
        return len(self.table["row"])

    def __len__(self) -> int:
        """Return the batches of one epoch of this part."""
        n_batches = -(-self.n_rows // self.batch_size)
        return len(range(self.part, n_batches, self.n_parts))

    def __iter__(self) -> Iterator[Batch[np.ndarray]]:
        """Yield what is left of the current epoch, then stand at the next one's beginning."""
        epoch = self.cursor.epoch
        for seen, batch in self.epoch(epoch, first_row=self.cursor.row):
            self.cursor = Cursor(epoch, seen)
            yield batch
        self.cursor = Cursor(epoch + 1, 0)

    def epoch(
        self, epoch: int, *, first_row: int = 0, share: tuple[int, int] = (0, 1), turn: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[int, Batch[np.ndarray]]]:
        """Yield (rows of the epoch up to the end of the batch, batch) of one epoch, from row `first_row` of it on.

        What a batch holds of proteins and contexts may be lent to several: do not write. The rest is the batch's own
        for as long as anything refers to it.

        Parameters
        ----------
        share
            ``(i, n)`` reads row i, i + n, … of each batch: processes that make one step together. Where a batch has
            fewer rows than processes, one of its rows comes again with weight 0.
        turn
            ``(i, n)`` reads batch i, i + n, …: processes that read in turns.
        """
        n_rows = -(-min(self.batch_size, self.n_rows) // share[1])
        buffers = self._buffers.pop(n_rows, None) or Buffers(self._empty, n_rows)  # nobody else's until this epoch ends
        try:
            cut = list(self.batches(epoch, first_row=first_row))[turn[0] :: turn[1]]
            yield from self._read_all(cut, epoch, share, buffers)
        finally:
            self._buffers[n_rows] = buffers

    def _read_all(
        self,
        cut: Sequence[tuple[int, Int64[np.ndarray, " b"]]],
        epoch: int,
        share: tuple[int, int],
        buffers: Buffers,
    ) -> Iterator[tuple[int, Batch[np.ndarray]]]:
        announcer = None if self.resident else self._announcer([rows for _, rows in cut])
        at_once = batches_per_leg(buffers.n_rows, max(len(self._factors), len(self._contexts)))
        for begin in range(0, len(cut), at_once):
            own = [rows[share[0] :: share[1]] for _, rows in cut[begin : begin + at_once]]
            leg = self._leg([mine if len(mine) else cut[begin + n][1][:1] for n, mine in enumerate(own)])
            for number, mine in enumerate(leg.slices):
                at = begin + number
                if announcer and at % ANNOUNCED_AT_ONCE == 0:
                    announcer.before(at)
                if number % CHECKED_AT_ONCE == 0:
                    read = self._reading(leg, slice(number, number + CHECKED_AT_ONCE), epoch)
                batch = self._batch(leg, number, read(mine, buffers.get(mine.stop - mine.start)))
                if not len(own[number]):
                    batch = batch._replace(weights=np.zeros_like(batch.weights))
                yield cut[at][0], batch

    def batches(self, epoch: int, *, first_row: int = 0) -> Iterator[tuple[int, Int64[np.ndarray, " b"]]]:
        """Yield (rows of the epoch up to the end of the batch, places of its rows)."""
        return batches_of(
            self.order(epoch),
            batch_size=self.batch_size,
            first_row=first_row,
            part=self.part,
            n_parts=self.n_parts,
        )

    def _announcer(self, batches: Sequence[Int64[np.ndarray, " b"]]) -> Announcer:
        """Return what tells the system of an epoch's rows, as far ahead as the blocks are long in which they come.

        Whole windows are announced where much of them is wanted, each once; else the rows' own bins.
        """
        told: set[int] = set()

        def announce(rows: Int64[np.ndarray, " b"]) -> None:
            arrays = [self.array(name) for name in self.window_arrays]
            if not self.wants_windows:
                for array in arrays:
                    array.will_need_bins(self.table["first_bin"][rows], self.n_bins)
                return
            new = [window for window in np.unique(self._window[rows]).tolist() if window not in told]
            told.update(new)
            for array in arrays:
                array.will_need(new)

        rows_of_a_block = self.n_rows * self.block_windows // len(self._row_windows.distinct)
        n_ahead = ANNOUNCED_AT_ONCE + -(-rows_of_a_block // self.batch_size)
        first = np.concatenate([np.empty(0, dtype=np.int64), *batches[:n_ahead]])
        bins = self.table["first_bin"][first[:: 1 + len(first) // LOOKED_AT]]
        is_cold = not all(self.array(name).are_in_memory(bins) for name in self.window_arrays)
        return Announcer(announce, batches, n_ahead, is_cold=is_cold)

    def order(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        """Return the places of the rows in the order in which an epoch visits them."""
        if self.balance != "none":
            groups = self.table["factor"] if self.balance == "factor" else self.table["context"]
            rows = balanced_rows(groups, seed=self.seed, epoch=epoch)
            windows = RowWindows.of(self._window[rows])
            order = epoch_order(windows, block_windows=self.block_windows, seed=self.seed, epoch=epoch)
            return np.asarray(rows[order])
        if not self.shuffle:
            return np.arange(self.n_rows, dtype=np.int64)
        return epoch_order(self._row_windows, block_windows=self.block_windows, seed=self.seed, epoch=epoch)

    def read(self, places: Int64[np.ndarray, " b"], *, epoch: int = 0) -> Batch[np.ndarray]:
        """Read the rows at some places of the split as one batch; `epoch` decides strands where there are two."""
        leg = self._leg([places])
        dna = self._reading(leg, slice(0, 1), epoch)(leg.slices[0], self._empty(len(places)))
        return self._batch(leg, 0, dna)

    def around(self, places: Int64[np.ndarray, " b"]) -> Batch[np.ndarray]:
        """Return all of a batch but its `dna`, which is empty."""
        return self._batch(self._leg([places]), 0, np.empty((0, self.n_bins, 0), dtype=np.float16))

    def _leg(self, batches: Sequence[Int64[np.ndarray, " b"]]) -> Leg:
        return Leg(self.table, batches, n_factors=len(self._factors), n_contexts=len(self._contexts))

    def _batch(self, leg: Leg, number: int, dna: Float16[np.ndarray, "b n d"]) -> Batch[np.ndarray]:
        mine = leg.slices[number]
        protein, mask, subunit = self._proteins_of(leg.factors[number])
        return Batch(
            dna=dna,
            protein=protein,
            mask=mask,
            subunit=subunit,
            factor_index=leg.factor_index[mine],
            context=self._contexts_of(leg.contexts[number]),
            context_index=leg.context_index[mine],
            signal=None,
            labels=leg.labels[mine],
            weights=leg.weights[mine],
            rows=leg.rows[mine],
        )

    def _empty(self, n_rows: int) -> Float16[np.ndarray, "b n d"]:
        return np.empty((n_rows, self.n_bins, self.dna.shape[-1]), dtype=self.dna.dtype)

    def strands(self, places: Int64[np.ndarray, " b"], epoch: int) -> Bool[np.ndarray, " b"]:
        """Return which rows are read from the other strand in an epoch."""
        if not self.reverse:
            return np.zeros(len(places), dtype=bool)
        return np.asarray(draws.draw(self.seed, "strand", epoch, self.table["row"][places]) & np.uint64(1), dtype=bool)

    def resident_places(self, places: Int64[np.ndarray, " b"], name: str) -> Int64[np.ndarray, "b n"]:
        """Return where the bins of rows lie in what `in_memory` gives for an array."""
        return self.in_memory(name).places(self.table["first_bin"][places], self.n_bins)

    def in_memory(self, name: str) -> Resident:
        """Return all bins that the split needs of an array of windows, read when first asked for."""
        if name not in self._residents:
            bins = distinct(*(self.table["first_bin"] + offset for offset in range(self.n_bins)))
            values = np.empty((len(bins), self.array(name).shape[-1]), dtype=self.array(name).dtype)
            for begin in range(0, len(bins), _BINS_AT_ONCE):
                part = slice(begin, begin + _BINS_AT_ONCE)
                values[part] = self.array(name).gather_bins(bins[part])[:, 0]
            self._residents[name] = Resident(bins, values)
        return self._residents[name]

    def _reading(self, leg: Leg, batches: slice, epoch: int) -> Reading:
        """Return what copies the embeddings of some batches of a leg, all of whose windows are checked here."""
        slices = leg.slices[batches]
        mine = slice(slices[0].start, slices[-1].stop)
        first_bin = leg.first_bin[mine]
        if not self.reverse:
            return Reading(mine.start, [self._runs(self.arrays.windows, first_bin)], None)
        strand = self.strands(leg.places[mine], epoch)
        parts = zip(self.window_arrays, (first_bin[~strand], first_bin[strand]), strict=True)
        return Reading(mine.start, [self._runs(name, bins) for name, bins in parts], strand)

    def _runs(self, name: str, first_bin: Int64[np.ndarray, " r"]) -> Runs:
        if not self.resident:
            return self.array(name).runs(first_bin, self.n_bins, is_checked=True)
        held = self.in_memory(name)
        return Located([held.values], held.places(first_bin, self.n_bins), None)

    def _proteins_of(self, factors: Int64[np.ndarray, " f"]) -> FactorBatch:
        """Return the residues of factors; batches of the same factors, one after the other, share them."""
        key = factors.tobytes()
        if self._last_proteins is None or self._last_proteins[0] != key:
            self._last_proteins = (key, self.proteins.get(self._factors[factors]))
        return self._last_proteins[1]

    def _contexts_of(self, contexts: Int64[np.ndarray, " c"]) -> Float32[np.ndarray, "c t"]:
        """Return the embeddings of contexts; batches of the same ones, one after the other, share them."""
        key = contexts.tobytes()
        if self._last_contexts is None or self._last_contexts[0] != key:
            self._last_contexts = (key, self._context_values[contexts])
        return self._last_contexts[1]

    @property
    def dna(self) -> ShardedArray:
        """The windows' array."""
        return self.array(self.arrays.windows)

    def array(self, name: str) -> ShardedArray:
        """Return an array, opened when it is first needed in this process; it has all windows that the split needs."""
        if name not in self._opened_arrays:
            array = self._opened().array(name)
            self._require_embedded(array, name)
            self._opened_arrays[name] = array
        return self._opened_arrays[name]

    @property
    def proteins(self) -> FactorProteins:
        """The factors' residues, opened when they are first needed in this process."""
        if self._proteins is None:
            if self._subunits is None:
                self._proteins = FactorProteins(self._opened(), self.arrays.proteins)
                self._subunits = self._proteins.subunits
            else:  # in another process, which is not to open the catalog
                array = self._opened().array(self.arrays.proteins)
                self._proteins = FactorProteins.over(array, self._subunits)
        return self._proteins

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._path, verify=self._verify)
        return self._store

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs, as JSON values."""
        return {**self._identity(), "epoch": self.cursor.epoch, "row": self.cursor.row}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same rows and order stood, at the exact row.

        Batches may be of another size, unless several loaders share the rows.

        Raises
        ------
        CheckpointError
            If the rows or their order would be others.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise CheckpointError(
                    f"the stopped run read with {key} = {state.get(key)!r}, this one with {mine!r}",
                    where="loader state",
                    fix="resume with the settings of the stopped run, or start a new one",
                )
        self.cursor = Cursor(int(state["epoch"]), int(state["row"]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped files behind when sent to another process."""
        empty: dict[str, Any] = {"_opened_arrays": {}, "_residents": {}, "_buffers": {}}
        return {
            **self.__dict__,
            **empty,
            "_store": None,
            "_proteins": None,
            "_last_proteins": None,
            "_last_contexts": None,
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "rows_sha256": self._rows_sha256,
            "split": self.split,
            "batch_size": self.batch_size if self.n_parts > 1 else None,
            "seed": self.seed,
            "block_windows": self.block_windows,
            "shuffle": self.shuffle,
            "balance": self.balance,
            "reverse": self.reverse,
            "part": self.part,
            "n_parts": self.n_parts,
        }

    @cached_property
    def wants_windows(self) -> bool:
        """Whether the rows want so much of their windows that these are best read as a whole."""
        bins_of_windows = len(self._row_windows.distinct) * self._window_bins
        return self.n_rows * self.n_bins >= ANNOUNCE_ABOVE * bins_of_windows

    def _require_embedded(self, array: ShardedArray, name: str) -> None:
        first_window = self.table["first_bin"] // self._window_bins
        last_window = (self.table["first_bin"] + self.n_bins - 1) // self._window_bins
        missing = ~array.is_ok(first_window)
        for offset in range(1, int((last_window - first_window).max()) + 1):
            missing |= ~array.is_ok(np.minimum(first_window + offset, last_window))
        if missing.any():
            windows = np.unique(np.concatenate([first_window[missing], last_window[missing]]))
            windows = windows[~array.is_ok(windows)]
            raise MissingWindow(
                f"{int(missing.sum()):,} of {self.n_rows:,} rows need {len(windows):,} windows that are not embedded "
                f"(first: {int(windows[0])})",
                where=name,
                fix=f"embed them: tfbind embed {self._path} windows",
            )
