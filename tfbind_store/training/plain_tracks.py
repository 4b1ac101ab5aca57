"""Train plain track heads: tracks of one or several species from stored embeddings, without protein or context.

Each species has a store of its own, with an array of windows of one width and an array of tracks. One read of a window
serves all its tracks. Windows are split by chromosome, or by an imported set of loci with a split column; a window
that touches loci of both parts is in neither, and counted.
"""

# b windows · n bins · d trunk dim · t tracks

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.config import to_mapping
from tfbind_store.errors import ConfigError, SelectionError, TrainingError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.heads.plain_tracks import PlainTracks, save_tracks
from tfbind_store.heads.track_losses import LossKind, mean_loss
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state
from tfbind_store.metrics.tracks import TrackJudge, TrackScores
from tfbind_store.spec import canonical_json
from tfbind_store.store.folder import Store
from tfbind_store.training.track_windows import WindowSplit, split_windows

SCALING_WINDOWS = 64


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
    loss: LossKind = "poisson"
    valid_chroms: tuple[str, ...] = ()
    """Chromosomes, of any of the species, that validate and are not trained on."""
    loci: str | None = None
    """A set of imported loci with the split column train, valid; decides instead of chromosomes."""
    seed: int = 0
    save_every: int = 100
    """Steps after which a state is written beside the head, from which a stopped training goes on."""

    def __post_init__(self) -> None:
        if min(self.steps, self.windows_per_step, self.save_every) < 1 or not self.lr > 0:
            what = "steps, windows_per_step, save_every and lr must be above 0"
            raise ConfigError(what, where="plain tracks")


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
    was_resumed: bool


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

    def about(self) -> dict[str, object]:
        """Return what a head trained on this says of it."""
        fingerprint, genome = self.array.spec.fingerprint, self.store.meta.genome
        n_train, digest = len(self.train), hashlib.sha256(self.train.tobytes()).hexdigest()
        return {"genome": genome, "fingerprint": fingerprint, "n_train": n_train, "train_windows_sha256": digest}

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

    def _split(self, config: PlainTrackConfig) -> WindowSplit:
        every = np.arange(self.store.tiling.n_windows, dtype=np.int64)
        known = self.array.is_ok(every) & np.any([~np.isnan(row).all(axis=1) for row in self._rows], axis=0)
        chroms = [self.store.meta.aliases.get(chrom, chrom) for chrom in config.valid_chroms]
        held = [chrom for chrom in chroms if chrom in self.store.tiling.chroms]
        return split_windows(self.store, valid_chroms=() if config.loci else held, loci=config.loci).only(known)


def train_plain_tracks(
    sources: Mapping[str, SpeciesTracks], out: Path, config: PlainTrackConfig | None = None
) -> PlainTrackResult:
    """Train one head on the tracks of all species, and write it to `out` as safetensors.

    Stopped, the same call goes on where the last state stood, on a CPU to the same bytes.

    Raises
    ------
    ConfigError
        If the species' embeddings are of different widths, labels are negative where a rate is asked for, or a state
        of other choices or data lies beside `out`.
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
    for one in species:
        _fit_scaling(head, one, config)
    about = {one.name: one.about() for one in species}
    said = {"config": to_mapping(config), "about": about, "tracks": [[one.name, one.tracks] for one in species]}
    losses, was_resumed = _train(head, species, config, _State(out, said))
    head.eval()
    scores = {one.name: _validate(head, one) for one in species if len(one.valid)}
    save_tracks(out, head, about)
    _State(out, said).remove()
    return PlainTrackResult(out, losses, scores, sum(one.n_in_neither for one in species), was_resumed)


class _State:
    """Where a training stands, in a file beside its head."""

    def __init__(self, out: Path, said: Mapping[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.state")
        self.digest = hashlib.sha256(canonical_json(said).encode()).hexdigest()
        """Of all that decides the numbers."""

    def read(self, head: PlainTracks, optimizer: torch.optim.Optimizer) -> list[float]:
        """Put head and optimizer where the state stood; return the losses so far, none where there is no state."""
        if not self.path.exists():
            return []
        counters, groups = read_state(self.path)
        if counters.get("digest") != self.digest:
            fix = "train as before to go on, delete this file to begin anew, or write to another file"
            what = "a stopped training of other choices or data lies here"
            raise ConfigError(what, where=str(self.path), fix=fix)
        put_back(self.path, head, groups["weights"])
        restore_optimizer(self.path, optimizer, list(head.named_parameters()), groups.get("optimizer", {}))
        return [float(loss) for loss in counters["losses"]]

    def write(self, head: PlainTracks, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """Write it, whole or not at all."""
        kept = optimizer_tensors(optimizer, list(head.named_parameters()))
        counters = {"digest": self.digest, "losses": losses}
        write_state(self.path, counters, {"weights": head.state_dict(), "optimizer": kept})

    def remove(self) -> None:
        """Remove it: the training is done."""
        self.path.unlink(missing_ok=True)


def _fit_scaling(head: PlainTracks, one: _Species, config: PlainTrackConfig) -> None:
    """Give a species' channels their statistics, and refuse labels that are no rates where rates are asked for."""
    rng = np.random.default_rng([config.seed, len(one.name)])
    dna, labels = one.batch(np.sort(rng.permutation(one.train)[:SCALING_WINDOWS]))
    if config.loss == "poisson" and bool((labels < 0).any()):
        fix = "train with loss pearson, or import the tracks otherwise"
        what = f"labels of {one.name} are below zero: no Poisson rate"
        raise ConfigError(what, where=str(one.store.path), fix=fix)
    flat = dna.float().reshape(-1, one.dim)
    head.fit_scaling(one.name, flat.mean(0), flat.std(0))


def _train(
    head: PlainTracks, species: list[_Species], config: PlainTrackConfig, state: _State
) -> tuple[list[float], bool]:
    """Return the loss of every step, and whether some came from a state; a step follows from seed and number."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    losses = state.read(head, optimizer)
    n_before = len(losses)
    head.train()
    for step in tqdm(range(n_before, config.steps), desc="train", unit="step", disable=None):
        rng = np.random.default_rng([config.seed, 1, step])
        torch.manual_seed((config.seed << 32) + step)  # dropout
        one = species[step % len(species)]
        size = min(config.windows_per_step, len(one.train))
        dna, labels = one.batch(np.sort(rng.choice(one.train, size, replace=False)))
        loss = mean_loss(config.loss, head(dna, one.name), labels)
        if not torch.isfinite(loss):
            raise TrainingError(f"loss is {loss.item()} at step {step}", where=one.name, fix="lower lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.item()))
        if len(losses) % config.save_every == 0 and len(losses) < config.steps:
            state.write(head, optimizer, losses)
    return losses, n_before > 0


def _validate(head: PlainTracks, one: _Species, *, at_once: int = 16) -> TrackScores:
    n_tracks = len(one.tracks)
    judge = TrackJudge(len(one.valid) * one.store.grid.n_bins, n_tracks)
    with torch.inference_mode():
        for at in range(0, len(one.valid), at_once):
            dna, labels = one.batch(one.valid[at : at + at_once])
            judge.add(*(part.reshape(-1, n_tracks).numpy() for part in (head(dna, one.name), labels)))
    return judge.scores()
