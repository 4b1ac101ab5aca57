"""Train one head on tracks that are each of a factor in a biotype, of one store or of several, such as two species'.

The head is one of ``heads.HEADS``; softplus of its logit is a bin's rate. Each step reads whole windows of every store
and holds each against many tracks. Stopped, the same call goes on where the last state stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tfbind_store.config import to_mapping
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.heads import Geometry, Head, header_for, make_head, save_checkpoint
from tfbind_store.heads.track_losses import LossKind
from tfbind_store.precompute.weights import pick_device
from tfbind_store.store.folder import Store
from tfbind_store.training.track_steps import TrackRun, TrackSteps
from tfbind_store.training.track_streams import FactorTracks
from tfbind_store.training.track_windows import split_windows


@dataclass(frozen=True, kw_only=True)
class FactorTrackConfig:
    """How a head is trained on tracks of factors."""

    head: str = "adapter"
    """Its name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings, see each head."""
    steps: int = 500
    windows_per_step: int = 4
    """Of each store."""
    tracks_per_step: int = 16
    """Of each store: a window that is read is held against all of them."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: LossKind = "poisson"
    valid_chroms: tuple[str, ...] = ()
    """Chromosomes, of any of the stores, that validate and are not trained on."""
    loci: str | None = None
    """A set of imported loci with the split column train, valid; decides instead of chromosomes."""
    hold_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``factor`` and ``biotype``: names in no training step; where given, they alone validate."""
    device: str = "auto"
    seed: int = 0
    save_every: int = 100
    """Steps after which a state is written beside the head."""

    def __post_init__(self) -> None:
        if min(self.steps, self.save_every) < 1:
            raise ConfigError("steps and save_every must be above 0", where="tracks of factors")
        if odd := sorted(set(self.hold_out) - {"factor", "biotype"}):
            raise ConfigError(f"hold_out knows factor and biotype, not {odd[0]!r}", where="tracks of factors")

    def step(self) -> TrackSteps:
        """Return how one step is made."""
        return TrackSteps(
            loss=self.loss, windows=self.windows_per_step, tracks=self.tracks_per_step, lr=self.lr,
            weight_decay=self.weight_decay, clip=self.clip, seed=self.seed,
        )  # fmt: skip


class FactorSource(NamedTuple):
    """Where one store's numbers are; names of arrays, None for the only one of its kind."""

    store: Store
    tracks: str = "tracks/tracks"
    windows: str | None = None
    proteins: str | None = None
    contexts: str | None = None


class FactorTrackResult(NamedTuple):
    """What came of it."""

    path: Path
    losses: list[float]
    """Of the steps that this call made."""
    scores: dict[str, float]
    """Validation; empty where no window validates."""
    n_in_neither: int
    """Windows that touch training and validation loci."""
    was_resumed: bool


def train_factor_tracks(
    sources: Mapping[str, FactorSource], out: Path, config: FactorTrackConfig | None = None
) -> FactorTrackResult:
    """Train one head on the tracks of all stores, and write it to `out` as safetensors.

    Raises
    ------
    ConfigError
        If the stores' embeddings are of different widths.
    CheckpointError
        If a state of other choices or data lies beside `out`.
    SelectionError
        If a store has no training window or track.
    TrainingError
        If a loss is not finite.
    """
    config = config or FactorTrackConfig()
    streams = [_stream(name, source, config) for name, source in sources.items()]
    torch.manual_seed(config.seed)
    head = _head(streams, config)
    about = {stream.name: _about(stream) for stream in streams}
    run = TrackRun(streams, config.step(), about={"config": to_mapping(config), "species": about})
    state = out.with_name(f".{out.name}.state")
    was_resumed = state.exists()
    if was_resumed:
        run.load(state)
    losses = []
    for _ in tqdm(range(run.steps, config.steps), desc="train", unit="step", disable=None):
        losses.append(run.step()["loss"])
        if run.steps % config.save_every == 0 and run.steps < config.steps:
            run.save(state)
    scores = run.validate()
    _write(out, head.eval(), streams, about, config, scores)
    state.unlink(missing_ok=True)
    return FactorTrackResult(out, losses, scores, sum(one.split.n_in_neither for one in streams), was_resumed)


def _stream(name: str, source: FactorSource, config: FactorTrackConfig) -> FactorTracks:
    store = source.store
    arrays = choose_arrays(store, windows=source.windows, proteins=source.proteins, contexts=source.contexts)
    chroms = [store.meta.aliases.get(chrom, chrom) for chrom in config.valid_chroms]
    held = [chrom for chrom in chroms if chrom in store.tiling.chrom_index]
    split = split_windows(store, valid_chroms=() if config.loci else held, loci=config.loci)
    return FactorTracks(
        name, store, arrays, source.tracks, split, held_out=config.hold_out.get("factor", ()),
        held_out_biotypes=config.hold_out.get("biotype", ()), device=pick_device(config.device),
    )  # fmt: skip


def _head(streams: Sequence[FactorTracks], config: FactorTrackConfig) -> Head:
    first = streams[0]
    geometry = Geometry(*(first.store.array(array).shape[-1] for array in first.arrays))
    try:
        head = make_head(config.head, geometry, config.options)
    except TypeError as error:  # an unknown option, with the nearest known one
        raise ConfigError(str(error), where="options") from error
    head.fit_scaling(first.scaling(), prevalence=0.5)
    for stream in streams:
        stream.of(head)
    return head


def _about(stream: FactorTracks) -> dict[str, Any]:
    """Return what a head says of one store that it was trained on."""
    store, train = stream.store, stream.split.train
    specs = {kind: store.array(name).spec.fingerprint for kind, name in stream.arrays._asdict().items()}
    return {
        "genome": store.meta.genome,
        "arrays": specs,
        "n_train": len(train),
        "train_windows_sha256": hashlib.sha256(train.tobytes()).hexdigest(),
        "tracks_sha256": hashlib.sha256(stream.train_tracks.rows.tobytes()).hexdigest(),
    }


def _write(
    out: Path,
    head: Head,
    streams: Sequence[FactorTracks],
    about: Mapping[str, Any],
    config: FactorTrackConfig,
    scores: Mapping[str, float],
) -> None:
    first = streams[0]
    arrays = {
        kind: {"name": name, "fingerprint": first.store.array(name).spec.fingerprint}
        for kind, name in first.arrays._asdict().items()
    }
    header = header_for(
        head,
        arrays=arrays,
        genome=first.store.meta.genome,
        trained_on=_trained_on(streams),
        trunk_trained_on=first.store.array(first.arrays.windows).spec.identity.get("trained_on"),
        train={"tracks": {"species": about, "config": to_mapping(config)}},
        metrics={name: value if np.isfinite(value) else None for name, value in scores.items()},
    )
    save_checkpoint(out, head, header)


def _trained_on(streams: Sequence[FactorTracks]) -> dict[str, list[str]]:
    """Return the names in training steps, of all stores."""
    found: dict[str, set[str]] = {"factors": set(), "biotypes": set(), "chromosomes": set()}
    for stream in streams:
        pairs, tiling = stream.train_tracks.pairs, stream.store.tiling
        with stream.store.reader() as catalog:
            for kind, table, ids in (("factor", "factors", pairs.factor_id), ("biotype", "biotypes", pairs.biotype_id)):
                named = dict(catalog.rows(f"SELECT {kind}_id, {kind} FROM data.{table}"))
                found[table] |= {str(named[int(key)]) for key in np.unique(ids)}
        found["chromosomes"] |= {tiling.chroms[n] for n in np.unique(tiling.window_chrom(stream.split.train))}
    return {kind: sorted(names) for kind, names in found.items()}
