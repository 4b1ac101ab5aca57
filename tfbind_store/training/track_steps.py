"""One optimizer step on the tracks of one store or several, validation over whole windows, and where a run stands.

Each stream brings its own windows to every step; a step's loss is the mean over streams. Micro-batches are parts of one
step: bins without a number count for nothing, wherever they fall.
"""

# w windows · n bins · t tracks

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tfbind_store.errors import CheckpointError, ConfigError, TrainingError
from tfbind_store.heads.track_losses import LossKind, n_counted, pearson, summed_loss
from tfbind_store.learning.optimiser import adamw, clip, trainable
from tfbind_store.learning.passes import Place, endless
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state
from tfbind_store.metrics.tracks import TrackJudge
from tfbind_store.spec import canonical_json
from tfbind_store.training.track_streams import Stream


@dataclass(frozen=True, kw_only=True)
class TrackSteps:
    """How tracks are trained on."""

    loss: LossKind = "poisson"
    windows: int = 4
    """Of each stream in a micro-batch."""
    pieces: int = 1
    """Micro-batches of a step."""
    tracks: int = 16
    """Against which each window of a step is held."""
    lr: float = 3e-4
    weight_decay: float = 0.1
    clip: float = 0.0
    """Largest norm of a step's gradient; 0 never clips."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.windows, self.pieces, self.tracks) < 1 or not self.lr > 0 or min(self.weight_decay, self.clip) < 0:
            what = "windows and tracks of a step and micro-batches are 1 or more, lr above 0, the rest not negative"
            raise ConfigError(what, where="tracks")


class _Part(NamedTuple):
    stream: Stream
    windows: list[int]
    tracks: np.ndarray


class TrackRun:
    """Streams, the modules that they ask, an optimizer, and where it stands.

    Parameters
    ----------
    about
        Choices and data that a saved state must be of, beside windows and tracks.
    """

    def __init__(
        self, streams: Sequence[Stream], config: TrackSteps, *, about: Mapping[str, Any] | None = None
    ) -> None:
        self.streams, self.config = list(streams), config
        self._about = hashlib.sha256(canonical_json(about or {}).encode()).hexdigest()
        # several streams may ask one module
        self.modules = nn.ModuleList({id(stream.module): stream.module for stream in streams}.values())
        self._named = trainable(self.modules)
        self._optimizer = adamw(self.modules, self._named, lr=config.lr, weight_decay=config.weight_decay)
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr
        self.steps = 0
        self._places = {stream.name: Place() for stream in streams}
        self._batches: dict[str, Iterator[tuple[Place, list[int]]]] = {}

    def step(self) -> dict[str, float]:
        """Make one optimizer step; return ``step``, ``loss``, and with several streams the loss of each."""
        parts = [self._next(number) for number in range(len(self.streams))]
        torch.manual_seed((self.config.seed << 32) + self.steps)
        self.modules.train()
        self._optimizer.zero_grad(set_to_none=True)
        losses = {part.stream.name: self._backward(part) for part in parts}
        total = float(np.mean(list(losses.values())))
        norm = clip((parameter for _, parameter in self._named), self.config.clip)
        if not np.isfinite(total + norm):
            where = "; ".join(f"{part.stream.name}: windows {', '.join(map(str, part.windows[:8]))}" for part in parts)
            raise TrainingError(f"loss is {total}, gradient {norm}, at step {self.steps}", where=where, fix="lower lr")
        self._optimizer.step()
        self.steps += 1
        each = {f"{name}_loss": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        return {"step": float(self.steps), "loss": total, **each}

    def validate(self) -> dict[str, float]:
        """Return what `validated` says of each stream, by its name where there are several, and the means."""
        self.modules.eval()
        found = {stream.name: validated(stream, self.config.loss) for stream in self.streams if len(stream.split.valid)}
        keys = list(next(iter(found.values()), {}))
        means = {f"valid_{key}": _mean([scores[key] for scores in found.values()]) for key in keys}
        if len(self.streams) == 1:
            return means
        own = {f"{name}_valid_{key}": value for name, scores in found.items() for key, value in scores.items()}
        return {**means, **own}

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        groups = {"weights": self.modules.state_dict(), "optimizer": optimizer_tensors(self._optimizer, self._named)}
        write_state(path, self._said(), groups)

    def load(self, path: Path) -> None:
        """Go on where `save` stood: on a CPU, to the same bytes.

        Raises
        ------
        CheckpointError
            If the file is of other modules, or other windows or tracks.
        """
        counters, groups = read_state(path)
        own = self._said()["streams"]
        fix = "give the same files and choices as before, delete this file to begin anew, or write to another"
        if counters.get("streams") != own:
            what = f"the state is of {_words(counters.get('streams'))}, here are {_words(own)}"
            raise CheckpointError(what, where=str(path), fix=fix)
        if counters.get("about") != self._about:
            raise CheckpointError("the state is of other choices or data", where=str(path), fix=fix)
        put_back(path, self.modules, groups["weights"])
        restore_optimizer(path, self._optimizer, self._named, groups.get("optimizer", {}))
        self.steps, self._batches = counters["step"], {}
        self._places = {name: Place(*place) for name, place in counters["places"].items()}

    def _said(self) -> dict[str, Any]:
        streams = {one.name: [len(one.split.train), one.n_tracks] for one in self.streams}
        places = {name: list(place) for name, place in self._places.items()}
        return {"step": self.steps, "places": places, "streams": streams, "about": self._about}

    def _next(self, number: int) -> _Part:
        """Return a stream's windows and tracks of this step; they follow from seed, step and the stream's place."""
        stream, config = self.streams[number], self.config
        if stream.name not in self._batches:
            one_pass = self._pass(stream, number)
            size = config.windows * config.pieces
            self._batches[stream.name] = endless(one_pass, size, self._places[stream.name])
        self._places[stream.name], windows = next(self._batches[stream.name])
        rng = np.random.default_rng([config.seed, 1, self.steps, number])
        tracks = np.sort(rng.choice(stream.n_tracks, min(config.tracks, stream.n_tracks), replace=False))
        return _Part(stream, windows, tracks)

    def _pass(self, stream: Stream, number: int) -> Any:
        def one_pass(passed: int) -> list[int]:
            order = np.random.default_rng([self.config.seed, 0, passed, number]).permutation(stream.split.train)
            return [int(window) for window in order]

        return one_pass

    def _backward(self, part: _Part) -> float:
        """Leave the gradient of a stream's share of the step, and return its loss."""
        kind, size = self.config.loss, self.config.windows
        stream, windows = part.stream, np.array(part.windows, dtype=np.int64)
        pieces = [windows[at : at + size] for at in range(0, len(windows), size)]
        # of the whole step, so that micro-batches with more missing bins do not count for more
        n_known = sum(n_counted(kind, stream.labels(piece, part.tracks)) for piece in pieces)
        total = 0.0
        for piece in pieces:
            loss = summed_loss(kind, *stream.compared(piece, part.tracks)) / max(1, n_known)
            (loss / len(self.streams)).backward()
            total += float(loss.item())
        return total


def validated(stream: Stream, kind: LossKind) -> dict[str, float]:
    """Score a stream on all its validation windows.

    Returns
    -------
    ``loss``; ``corr_coef``: mean over windows and tracks of Pearson along the window; ``pearson``, ``spearman``: mean
    over tracks, along all bins; ``pearson_over_tracks``: what is specific to a track at a bin. NaN: nothing varies.
    """
    compare, judge = stream.judged(), None
    loss, n_known, correlations = 0.0, 0, []
    for window in stream.split.valid:
        rates, labels = compare(np.array([window]))
        judge = judge or TrackJudge(len(stream.split.valid) * rates.shape[1], rates.shape[2])
        judge.add(*(side.flatten(0, 1).cpu().numpy() for side in (rates, labels)))
        loss += float(summed_loss(kind, rates, labels))
        n_known += n_counted(kind, labels)
        correlations.append(pearson(rates, labels).flatten())
    assert judge is not None, "no windows validate"
    scores, found = judge.scores(), torch.cat(correlations)
    return {
        "loss": loss / max(1, n_known),
        "corr_coef": _mean(found.tolist()),
        "pearson": _mean(scores.pearson_over_bins.tolist()),
        "spearman": _mean(scores.spearman_over_bins.tolist()),
        "pearson_over_tracks": scores.pearson_over_tracks,
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _words(streams: Any) -> str:
    if not isinstance(streams, dict):
        return "something else"
    return ", ".join(f"{name} ({windows} windows, {tracks} tracks)" for name, (windows, tracks) in streams.items())
