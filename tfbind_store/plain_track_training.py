"""Train plain track heads: tracks of one or several species from stored embeddings, without protein or context.

Each species has a store of its own, with an array of windows of one width and an array of tracks. One read of a window
serves all its tracks. Windows are split by chromosome, or by an imported set of loci with a split column; a window
that touches loci of both parts is in neither, and counted.
"""

# b windows · n bins · d trunk dim · t tracks

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from tfbind_store.arrays import ShardedArray
from tfbind_store.bin_reader import BinReader
from tfbind_store.errors import ConfigError, SelectionError, TrainingError
from tfbind_store.heads.plain_tracks import PlainTracks, TrackLoss, save_tracks, track_loss
from tfbind_store.store import Store
from tfbind_store.track_metrics import TrackScores, score_tracks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlainTrackConfig:
    """How plain track heads are trained."""

    steps: int = 500
    """Each reads windows of one species; species take turns."""
    windows_per_step: int = 4
    lr: float = 1e-3
    weight_decay: float = 0.01
    width: int = 64
    """Of the layer that species share; 0 for none."""
    loss: TrackLoss = "poisson"
    valid_chroms: tuple[str, ...] = ()
    """Chromosomes, of any of the species, that validate and are not trained on."""
    loci: str | None = None
    """A set of imported loci with the split column train, valid; decides instead of chromosomes."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.windows_per_step < 1 or not self.lr > 0:
            raise ConfigError("steps, windows_per_step and lr must be above 0", where="plain tracks")


class SpeciesTracks(NamedTuple):
    """Where one species' numbers are."""

    store: Store
    windows: str = "embeddings/windows"
    tracks: str = "tracks/tracks"


class PlainTrackResult(NamedTuple):
    """What came of it."""

    path: Path
    losses: list[float]
    scores: dict[str, TrackScores]
    """On each species' validation windows; absent where it has none."""
    n_in_neither: int
    """Windows that touch training and validation loci."""


class _Species:
    """One species' windows and labels."""

    def __init__(self, name: str, source: SpeciesTracks, config: PlainTrackConfig) -> None:
        self.name, self.store = name, source.store
        self.array = self.store.array(source.windows)
        self.labels: ShardedArray = self.store.array(source.tracks)
        with self.store.reader() as catalog:
            sql = "SELECT track, row_index FROM data.tracks WHERE array_name = ? ORDER BY row_index"
            found = catalog.rows(sql, [source.tracks])
        if not found:
            raise SelectionError(f"{source.tracks} of {name} has no tracks", where=str(self.store.path))
        self.tracks = [str(track) for track, _ in found]
        self._rows = [self.labels.row(int(row)) for _, row in found]
        self.train, self.valid, self.n_in_neither = self._split(config)
        if not len(self.train):
            raise SelectionError(f"{name} has no embedded training windows with a label", where=str(self.store.path))
        self._read = BinReader(self.array, torch.device("cpu"))

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.array.shape[-1])

    def batch(self, windows: Int64[np.ndarray, " b"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n t"]]:
        """Read windows once, with the labels of all tracks."""
        n_bins = self.store.grid.n_bins
        bins = (windows[:, None] * n_bins + np.arange(n_bins)).reshape(-1)
        dna = self._read(bins).reshape(len(windows), n_bins, -1)
        labels = np.stack([np.asarray(row[windows]) for row in self._rows], axis=-1)
        return dna, torch.from_numpy(labels)

    def _split(self, config: PlainTrackConfig) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"], int]:
        tiling = self.store.tiling
        every = np.arange(tiling.n_windows, dtype=np.int64)
        known = self.array.is_ok(every) & np.any([~np.isnan(row).all(axis=1) for row in self._rows], axis=0)
        if config.loci is None:
            held = [tiling.chrom_index[c] for c in self._own(config.valid_chroms)]
            is_valid = np.isin(tiling.window_chrom(every), held)
            return every[known & ~is_valid], every[known & is_valid], 0
        train, valid = (self._touched(config.loci, part) for part in ("train", "valid"))
        if not len(train):
            fix = "import it: tfbind import loci, with train or valid in its fourth column"
            raise SelectionError(f"no training loci in the set {config.loci!r}", where=str(self.store.path), fix=fix)
        both = np.intersect1d(train, valid)
        if len(both):
            _log.warning("%s: %d windows touch training and validation loci and are in neither", self.name, len(both))
        train, valid = (np.setdiff1d(part[known[part]], both) for part in (train, valid))
        return train, valid, len(both)

    def _own(self, chroms: tuple[str, ...]) -> list[str]:
        names = [self.store.meta.aliases.get(chrom, chrom) for chrom in chroms]
        return [chrom for chrom in names if chrom in self.store.tiling.chroms]

    def _touched(self, loci: str, split: str) -> Int64[np.ndarray, " w"]:
        sql = """
            SELECT DISTINCT c.first_window + unnest(range(l.start_bp // $stride, (l.end_bp - 1) // $stride + 1)) AS w
            FROM data.loci l JOIN data.chromosomes c USING (chrom_id)
            WHERE l.set_name = $name AND l.split = $split ORDER BY w
        """
        params = {"stride": self.store.grid.stride_bp, "name": loci, "split": split}
        with self.store.reader() as catalog:
            return np.asarray(catalog.columns(sql, params)["w"], dtype=np.int64)


def train_plain_tracks(
    sources: Mapping[str, SpeciesTracks], out: Path, config: PlainTrackConfig | None = None
) -> PlainTrackResult:
    """Train one head on the tracks of all species, and write it to `out` as safetensors.

    Raises
    ------
    ConfigError
        If the species' embeddings are of different widths, or labels are negative where a rate is asked for.
    SelectionError
        If a species has no training window.
    TrainingError
        If a loss is not finite.
    """
    config = config or PlainTrackConfig()
    species = [_Species(name, source, config) for name, source in sources.items()]
    dims = {one.name: one.dim for one in species}
    if len(set(dims.values())) != 1:
        raise ConfigError(f"embeddings of different widths: {dims}", where="plain tracks", fix="use one trunk for all")
    torch.manual_seed(config.seed)
    head = PlainTracks(species[0].dim, {one.name: one.tracks for one in species}, width=config.width)
    rng = np.random.default_rng(config.seed)
    for one in species:
        dna, labels = one.batch(np.sort(rng.permutation(one.train)[:64]))
        if config.loss == "poisson" and bool((labels < 0).any()):
            fix = "train with loss pearson, or import the tracks otherwise"
            what = f"labels of {one.name} are below zero: no Poisson rate"
            raise ConfigError(what, where=str(one.store.path), fix=fix)
        flat = dna.float().reshape(-1, one.dim)
        head.fit_scaling(one.name, flat.mean(0), flat.std(0))
    losses = _train(head, species, config, rng)
    head.eval()
    scores = {one.name: _validate(head, one) for one in species if len(one.valid)}
    about = {
        one.name: {
            "genome": one.store.meta.genome, "fingerprint": one.array.spec.fingerprint, "n_train": len(one.train)
        }
        for one in species
    }
    save_tracks(out, head, about)
    return PlainTrackResult(out, losses, scores, sum(one.n_in_neither for one in species))


def _train(
    head: PlainTracks, species: list[_Species], config: PlainTrackConfig, rng: np.random.Generator
) -> list[float]:
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    head.train()
    losses = []
    for step in tqdm(range(config.steps), desc="train", unit="step", disable=None):
        one = species[step % len(species)]
        size = min(config.windows_per_step, len(one.train))
        dna, labels = one.batch(np.sort(rng.choice(one.train, size, replace=False)))
        loss = track_loss(config.loss, head(dna, one.name), labels)
        if not torch.isfinite(loss):
            raise TrainingError(f"loss is {loss.item()} at step {step}", where=one.name, fix="lower lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.item()))
    return losses


def _validate(head: PlainTracks, one: _Species, *, at_once: int = 16) -> TrackScores:
    predicted, measured = [], []
    with torch.inference_mode():
        for at in range(0, len(one.valid), at_once):
            dna, labels = one.batch(one.valid[at : at + at_once])
            predicted.append(head(dna, one.name).reshape(-1, len(one.tracks)).numpy())
            measured.append(labels.reshape(-1, len(one.tracks)).numpy())
    return score_tracks(np.concatenate(predicted), np.concatenate(measured))
