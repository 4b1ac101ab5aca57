"""What one store's tracks ask of a module: rates and labels of windows, all bins of each, for many tracks at once.

Two kinds. `FactorTracks` are each of a factor in a biotype: a head is asked with the protein and the context, and its
logits become rates by softplus. `PlainStream` is of tracks that DNA alone gives, whatever they are of. One read of a
window serves all tracks that are asked for.
"""

# w windows · n bins · t tracks · d trunk dim

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.feeding.feed import Experiments, PairSource
from tfbind_store.heads import Head, Scaling
from tfbind_store.heads.base import Pairs
from tfbind_store.query.loader import Arrays
from tfbind_store.store.folder import Store
from tfbind_store.training.track_windows import WindowSplit

SCALING_BINS = 20_000


class Compared(NamedTuple):
    """What is said and what was measured; NaN where nothing was."""

    rates: Float[Tensor, "w n t"]
    labels: Float[Tensor, "w n t"]


class Stream(Protocol):
    """Windows of one store, and what is predicted of them."""

    name: str
    """Of the species, and what is asked: ``human``, ``human_head``."""
    store: Store
    split: WindowSplit
    n_tracks: int
    """That train."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def labels(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Float[Tensor, "w n t"]:
        """Return what was measured, of training tracks given by place."""

    def compared(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Compared:
        """Return rates with a gradient, and labels, of training tracks given by place."""

    def judged(self) -> Callable[[Int64[np.ndarray, " w"]], Compared]:
        """Return what compares windows over all tracks that validate, without a gradient."""


class _Windows:
    """Reads embeddings and labels of whole windows."""

    def __init__(self, store: Store, windows_array: str, tracks_array: str, device: torch.device) -> None:
        self.store, self.n_bins = store, store.grid.n_bins
        self._read = BinReader(store.array(windows_array), device)
        self._tracks = store.array(tracks_array)

    def dna(self, windows: Int64[np.ndarray, " w"]) -> Float[Tensor, "bins d"]:
        return self._read((windows[:, None] * self.n_bins + np.arange(self.n_bins)).reshape(-1))

    def labels(self, windows: Int64[np.ndarray, " w"], rows: Int64[np.ndarray, " t"]) -> Float[Tensor, "w n t"]:
        found = np.stack([np.asarray(self._tracks.row(int(row))[windows]) for row in rows], axis=-1)
        return torch.from_numpy(found).to(self._read.device)


class Tracks(NamedTuple):
    """Tracks by row of the array, and what each is of."""

    rows: Int64[np.ndarray, " t"]
    pairs: Experiments

    def take(self, places: np.ndarray) -> Tracks:
        """Return some of them."""
        return Tracks(self.rows[places], self.pairs.take(places))


class FactorTracks:
    """Tracks that are each of a factor in a biotype.

    Parameters
    ----------
    name
        Of the species.
    store, arrays, tracks_array
        Where embeddings and tracks are.
    split
        Windows that train and that validate.
    held_out, held_out_biotypes
        Factors, in any complex, and biotypes, under any treatment: in no training step; where given, they alone
        validate.
    device
        Where the head runs.

    Raises
    ------
    SelectionError
        If no track is left to train on.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        arrays: Arrays,
        tracks_array: str,
        split: WindowSplit,
        *,
        held_out: Collection[str] = (),
        held_out_biotypes: Collection[str] = (),
        device: torch.device | None = None,
    ) -> None:
        self.name, self.store, self.arrays = name, store, arrays
        self.split = _embedded(store, arrays.windows, split, name)
        self.source = PairSource(store, arrays, device)
        self.train_tracks, self.valid_tracks = _divided(store, tracks_array, held_out, held_out_biotypes)
        self.n_tracks = len(self.train_tracks.rows)
        self._windows = _Windows(store, arrays.windows, tracks_array, self.source.device)

    @property
    def module(self) -> nn.Module:
        """The head."""
        return self.head

    @property
    def head(self) -> Head:
        """Set by `of`, once there is one."""
        return self._head

    def of(self, head: Head) -> FactorTracks:
        """Ask this head from now on.

        Raises
        ------
        ConfigError
            If it reads embeddings of other widths.
        """
        stored = tuple(self.store.array(array).shape[-1] for array in self.arrays)
        if tuple(head.geometry) != stored:
            what = f"the head reads DNA, proteins and contexts of {tuple(head.geometry)}, {self.name} has {stored}"
            raise ConfigError(what, where="head", fix="embed all species with the same trunk and encoders")
        self._head = head.to(self.source.device)
        return self

    def labels(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Float[Tensor, "w n t"]:
        """Return what was measured, of training tracks given by place."""
        return self._windows.labels(windows, self.train_tracks.rows[tracks])

    def compared(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Compared:
        """Return rates with a gradient, and labels, of training tracks given by place."""
        asked = self.train_tracks.take(tracks).pairs
        pairs = self.head.encode(self.source.inputs(asked.factor_id, asked.biotype_id))
        labels = self.labels(windows, tracks)
        return Compared(self._rates(windows, pairs, max_cells=labels.numel()), labels)

    def judged(self) -> Callable[[Int64[np.ndarray, " w"]], Compared]:
        """Return what compares windows over all tracks that validate; proteins are read once for all windows."""
        tracks = self.valid_tracks
        pairs = self.source.encode(self.head, tracks.pairs.factor_id, tracks.pairs.biotype_id)

        def compare(windows: Int64[np.ndarray, " w"]) -> Compared:
            with torch.inference_mode():
                return Compared(self._rates(windows, pairs), self._windows.labels(windows, tracks.rows))

        return compare

    def scaling(self) -> Scaling:
        """Return the channels' mean and deviation over training windows and the first training proteins."""
        n_bins, train = self._windows.n_bins, self.split.train
        dna = self._windows.dna(train[:: max(1, len(train) * n_bins // SCALING_BINS)]).double().cpu()
        pairs = self.train_tracks.pairs
        batch = self.source.inputs(pairs.factor_id[:64], pairs.biotype_id[:64])
        residues = batch.protein[batch.mask].double().cpu()
        moments = [(x.mean(0).float(), x.std(0, correction=0).float()) for x in (dna, residues)]
        return Scaling(*moments[0], *moments[1])

    def _rates(self, windows: Int64[np.ndarray, " w"], pairs: Pairs, *, max_cells: int = 20_000) -> Tensor:
        logits = self.head.score_pairs(self._windows.dna(windows), pairs, max_cells=max_cells)
        return F.softplus(logits.float()).view(len(windows), self._windows.n_bins, -1)


class PlainStream:
    """Tracks of a species that DNA alone gives.

    Parameters
    ----------
    rate
        From bins [w, n, d] to rates [w, n, t] of all tracks of the array, in the order of their rows.
    module
        What of it is trained.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        windows_array: str,
        tracks_array: str,
        split: WindowSplit,
        *,
        rate: Callable[[Tensor], Tensor],
        module: nn.Module,
        device: torch.device,
    ) -> None:
        self.name, self.store, self.module, self._rate = name, store, module, rate
        self.split = _embedded(store, windows_array, split, name)
        self.rows = np.array([row for row, _ in track_names(store, tracks_array)], dtype=np.int64)
        self.n_tracks = len(self.rows)
        self._windows = _Windows(store, windows_array, tracks_array, device)

    def labels(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Float[Tensor, "w n t"]:
        """Return what was measured, of tracks given by place."""
        return self._windows.labels(windows, self.rows[tracks])

    def compared(self, windows: Int64[np.ndarray, " w"], tracks: Int64[np.ndarray, " t"]) -> Compared:
        """Return rates with a gradient, and labels, of tracks given by place."""
        dna = self._windows.dna(windows).view(len(windows), self._windows.n_bins, -1)
        return Compared(self._rate(dna)[..., torch.from_numpy(tracks)], self.labels(windows, tracks))

    def judged(self) -> Callable[[Int64[np.ndarray, " w"]], Compared]:
        """Return what compares windows over all tracks."""
        every = np.arange(self.n_tracks)

        def compare(windows: Int64[np.ndarray, " w"]) -> Compared:
            with torch.inference_mode():
                return self.compared(windows, every)

        return compare


def track_names(store: Store, tracks_array: str) -> list[tuple[int, str]]:
    """Return row and name of each track of an array."""
    with store.reader() as catalog:
        sql = "SELECT row_index, track FROM data.tracks WHERE array_name = ? ORDER BY row_index"
        return [(int(row), str(track)) for row, track in catalog.rows(sql, [tracks_array])]


def _embedded(store: Store, windows_array: str, split: WindowSplit, name: str) -> WindowSplit:
    every = np.arange(store.tiling.n_windows, dtype=np.int64)
    found = split.only(store.array(windows_array).is_ok(every))
    if not len(found.train):
        fix = f"tfbind embed {store.path} windows"
        raise SelectionError(f"{name} has no embedded training windows", where=str(store.path), fix=fix)
    return found


def _divided(
    store: Store, tracks_array: str, factors: Collection[str], biotypes: Collection[str]
) -> tuple[Tracks, Tracks]:
    """Return the tracks that train, and those that validate: the held-out ones, or all where nothing is held out."""
    with store.reader() as catalog:
        rows = catalog.rows(
            "SELECT t.row_index, e.experiment_id, e.factor_id, e.biotype_id, f.genes, b.biotype, b.base_biotype "
            "FROM data.tracks t JOIN data.experiments e USING (experiment_id) JOIN data.factors f USING (factor_id) "
            "JOIN data.biotypes b ON b.biotype_id = e.biotype_id WHERE t.array_name = ? AND f.has_protein "
            "ORDER BY t.row_index",
            [tracks_array],
        )
    unseen = {gene.upper() for name in factors for gene in store.proteins.genes(name)}
    is_out = np.array(
        [
            bool({str(gene).upper() for gene in genes} & unseen or {biotype, base} & set(biotypes))
            for *_, genes, biotype, base in rows
        ],
        dtype=bool,
    )
    numbers = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    every = Tracks(numbers[:, 0], Experiments(numbers[:, 1], numbers[:, 2], numbers[:, 3]))
    if not len(rows) or is_out.all():
        what = f"{len(rows)} tracks are of a factor with a protein, {int(is_out.sum())} of them held out"
        fix = "hold out fewer, or give proteins of the tracks' factors"
        raise SelectionError(what, where=f"{store.path}: {tracks_array}", fix=fix)
    valid = every.take(np.flatnonzero(is_out)) if is_out.any() else every
    return every.take(np.flatnonzero(~is_out)), valid
