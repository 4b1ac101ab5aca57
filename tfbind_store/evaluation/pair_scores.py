"""What a head says of a group's experiments, and of the training factors that it is compared with, in bounded memory.

Scores lie pair by pair, each over all bins. Where all pairs fit into the memory allowed, the bins are read once; where
not, biotype after biotype comes in blocks of experiments, after one pass that only sums its training factors up.
"""

# k bins · p pairs of factor and biotype · c experiments of a block

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tfbind_store.evaluation import baselines
from tfbind_store.evaluation.holdouts import World
from tfbind_store.scoring.bins import LoadedRun, score_bins
from tfbind_store.scoring.gate import Gate

Pair = tuple[int, int]
"""Factor id and biotype id."""


class Predicted(NamedTuple):
    """Scores of some experiments, a row each, and of what stands beside them."""

    places: Int64[np.ndarray, " c"]
    """Of the experiments in the world's table."""
    model: Float32[np.ndarray, "c k"]
    nearest: Float32[np.ndarray, "c k"]
    """NaN in a row without a nearest factor."""
    training_mean: Float32[np.ndarray, "c k"]
    """NaN in a row without another training factor."""
    nearest_factor: Int64[np.ndarray, " c"]
    """Its id, -1 without one."""
    similarity: Float32[np.ndarray, " c"]


class _Scorer(NamedTuple):
    """A run over a group's bins."""

    run: LoadedRun
    gate: Gate | None
    bins: Int64[np.ndarray, " k"]

    def blocks(self, pairs: Sequence[Pair]) -> Iterator[tuple[slice, Float32[np.ndarray, "n p"]]]:
        """Yield the scores of some of the bins, and which these are."""
        ids = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        at = 0
        for block in score_bins(self.run.head, self.run.source, ids[:, 0], ids[:, 1], self.bins):
            scores = block.scores
            if self.gate is not None:
                scores = self.gate.apply(scores, ids[:, 1], block.global_bins)
            yield slice(at, at + len(scores)), scores
            at += len(scores)

    def score(self, pairs: Sequence[Pair]) -> Float32[np.ndarray, "p k"]:
        """Return the scores of all bins, pair by pair."""
        out = np.empty((len(pairs), len(self.bins)), dtype=np.float32)
        for where, scores in self.blocks(pairs):
            out[:, where] = scores.T
        return out

    def total(self, pairs: Sequence[Pair]) -> Float64[np.ndarray, " k"]:
        """Return the sum over some pairs, none of them kept."""
        out = np.zeros(len(self.bins))
        for where, scores in self.blocks(pairs):
            out[where] = scores.sum(axis=1, dtype=np.float64)
        return out


class _Beside(NamedTuple):
    """The training pairs that stand beside the experiments of a group."""

    own: list[Pair]
    near: list[Pair | None]
    kin: list[list[Pair]]
    """Training pairs of the same biotype that are the experiment's own thing: in no mean beside it."""
    trained: list[int]
    """Training factors."""
    nearest: baselines.Nearest

    def training(self, biotype: int) -> list[Pair]:
        """Return all training factors in one biotype."""
        return [(factor, biotype) for factor in self.trained]


def predict_group(
    run: LoadedRun,
    gate: Gate | None,
    world: World,
    places: Int64[np.ndarray, " e"],
    bins: Int64[np.ndarray, " k"],
    *,
    max_bytes: int,
) -> Iterator[Predicted]:
    """Yield a group's experiments in blocks whose scores fit into `max_bytes`; always one experiment at least."""
    beside = _pairs_beside(world, places)
    biotypes = sorted({biotype for _, biotype in beside.own})
    scorer = _Scorer(run, gate, bins)
    room = max(1, max_bytes // (4 * max(1, len(bins))))  # rows of fp32 that fit
    n_pairs = len(biotypes) * len(beside.trained) + len(places)
    if n_pairs + 3 * len(places) + 2 * len(biotypes) <= room:
        everything = sorted({*beside.own, *(pair for one in biotypes for pair in beside.training(one))})
        scores = scorer.score(everything)
        rows = {pair: row for row, pair in enumerate(everything)}
        totals = {one: _sum(scores, [rows[pair] for pair in beside.training(one)]) for one in biotypes}
        yield _block(places, beside, range(len(places)), scores, rows, totals)
        return
    for one in biotypes:
        totals = {one: scorer.total(beside.training(one))} if beside.trained else {one: np.zeros(len(bins))}
        mine = [at for at, (_, biotype) in enumerate(beside.own) if biotype == one]
        for chosen in _chunks(beside, mine, room - 2):
            wanted = _wanted(beside, chosen)
            rows = {pair: row for row, pair in enumerate(wanted)}
            yield _block(places, beside, chosen, scorer.score(wanted), rows, totals)


def _chunks(beside: _Beside, places: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield places in pieces whose scores fill `room` rows at most; one place at least."""
    chunk: list[int] = []
    for at in places:
        if chunk and len(_wanted(beside, [*chunk, at])) + 3 * (len(chunk) + 1) > room:
            yield chunk
            chunk = []
        chunk.append(at)
    if chunk:
        yield chunk


def _pairs_beside(world: World, places: Int64[np.ndarray, " e"]) -> _Beside:
    targets = world.experiments.take(places)
    names = dict(zip(world.experiments.factor_id.tolist(), world.table["factor"].tolist(), strict=True))
    trained = sorted(f for f, name in names.items() if name in world.trained["factors"] and f in world.proteins)
    own: list[Pair] = list(zip(targets.factor_id.tolist(), targets.biotype_id.tolist(), strict=True))
    nearest = baselines.nearest_training_factor(world.proteins, targets.factor_id.tolist(), trained)
    near = [(f, pair[1]) if f >= 0 else None for f, pair in zip(nearest.factor_id.tolist(), own, strict=True)]
    genes = {factor: world.proteins[factor].genes for factor in trained}
    kin = [
        [(other, pair[1]) for other in trained if other == pair[0] or genes[other] & world.proteins[pair[0]].genes]
        for pair in own
    ]
    return _Beside(own, near, kin, trained, nearest)


def _wanted(beside: _Beside, places: Sequence[int]) -> list[Pair]:
    """Return the pairs that some experiments of the group need scores of."""
    found = {pair for at in places for pair in (beside.own[at], *beside.kin[at])}
    return sorted(found | {pair for at in places if (pair := beside.near[at]) is not None})


def _sum(scores: Float32[np.ndarray, "p k"], rows: Sequence[int]) -> Float64[np.ndarray, " k"]:
    total = np.zeros(scores.shape[1])
    for row in rows:
        total += scores[row]
    return total


def _block(
    places: Int64[np.ndarray, " e"],
    beside: _Beside,
    chosen: Sequence[int],
    scores: Float32[np.ndarray, "p k"],
    rows: dict[Pair, int],
    totals: dict[int, Float64[np.ndarray, " k"]],
) -> Predicted:
    nearest, mean = (np.full((len(chosen), scores.shape[1]), np.nan, dtype=np.float32) for _ in range(2))
    for row, at in enumerate(chosen):
        near = beside.near[at]
        if near is not None:
            nearest[row] = scores[rows[near]]
        n = len(beside.trained) - len(beside.kin[at])
        if n:
            own = _sum(scores, [rows[pair] for pair in beside.kin[at]])
            mean[row] = (totals[beside.own[at][1]] - own) / n
    at_places = np.asarray(chosen, dtype=np.int64)
    return Predicted(
        places[at_places],
        scores[[rows[beside.own[at]] for at in chosen]],
        nearest,
        mean,
        beside.nearest.factor_id[at_places],
        beside.nearest.similarity[at_places],
    )
