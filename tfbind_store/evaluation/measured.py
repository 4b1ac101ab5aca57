"""What was measured at a bin, as scores: binding of other factors, composition, accessibility.

Binding measured by experiments that the run was trained on, on places that it was trained on, is something the model
has seen: for a held-out factor or biotype there it is an admissible baseline, and a strong one. Everywhere else the
binding of other factors is an *oracle*: nobody has it for a new genome.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tfbind_store.feeding.feed import Experiments
from tfbind_store.query import reads
from tfbind_store.query.labels import Truth
from tfbind_store.scoring.signals import Signals
from tfbind_store.store.folder import Store

GC_LEVELS = 26
"""Places at which the share of bound bins is measured against the share of G and C."""
PRIOR_BINS = 100.0
"""A level counts as if so many bins of the average share were in it: few bins say little."""


class Bound:
    """How many of some experiments bind each bin, without those that are the asked factor's own thing.

    All experiments of a biotype are counted once; an experiment's own kin are then taken away from that.

    Parameters
    ----------
    places
        The experiments that count, as places in `experiments`.
    kin
        Genes of each factor; factors that share one are kin.
    """

    def __init__(
        self,
        truth: Truth,
        experiments: Experiments,
        places: Int64[np.ndarray, " n"],
        kin: Mapping[int, frozenset[str]],
    ) -> None:
        self.truth, self.experiments, self.kin = truth, experiments, kin
        self.counts = np.zeros(len(experiments.factor_id), dtype=bool)
        self.counts[places] = True
        self._total = lru_cache(maxsize=2)(self._count_all)  # a biotype at a time is asked for, and all of them

    def by_others(self, target: int, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, " k"] | None:
        """Return how many other factors bind each bin: in the target's biotype, or in any if there are none.

        Returns
        -------
        None where no other factor counts.
        """
        is_kin = self._is_kin(target)
        biotype = int(self.experiments.biotype_id[target])
        same = self.counts & (self.experiments.biotype_id == biotype)
        if (same & ~is_kin).any():
            return self._without(self._total(biotype), np.flatnonzero(same & is_kin), bins)
        if (self.counts & ~is_kin).any():
            return self._without(self._total(None), np.flatnonzero(self.counts & is_kin), bins)
        return None

    def in_training(self, target: int, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, " k"] | None:
        """Return how many experiments of the same factor bind each bin, or, if none counts, of other factors.

        To be asked only for bins of places where the counted experiments were trained on.
        """
        own = self.counts & (self.experiments.factor_id == self.experiments.factor_id[target])
        own[target] = False
        if own.any():
            return np.asarray(self._count(np.flatnonzero(own))[bins])
        return self.by_others(target, bins)

    def _is_kin(self, target: int) -> np.ndarray:
        own_factor = int(self.experiments.factor_id[target])
        genes = self.kin.get(own_factor, frozenset())
        factors = self.experiments.factor_id.tolist()
        alike = {f: f == own_factor or bool(genes & self.kin.get(f, frozenset())) for f in set(factors)}
        return np.array([alike[factor] for factor in factors], dtype=bool)

    def _count_all(self, biotype: int | None) -> Float32[np.ndarray, " bins"]:
        chosen = self.counts if biotype is None else self.counts & (self.experiments.biotype_id == biotype)
        return self._count(np.flatnonzero(chosen))

    def _count(self, places: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " bins"]:
        total = np.zeros(self.truth.tiling.n_bins, dtype=np.float32)
        for place in places.tolist():
            total[self.truth.positives(int(self.experiments.experiment_id[place]))] += 1
        return total

    def _without(
        self, total: Float32[np.ndarray, " bins"], places: Int64[np.ndarray, " n"], bins: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, " k"]:
        return np.asarray(total[bins] - self._count(places)[bins])

    def all(self, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
        """Return how many of all counted experiments bind each bin."""
        return np.asarray(self._total(None)[bins])


def gc_share(store: Store) -> Float32[np.ndarray, " bins"]:
    """Return the share of G and C among the bases of every bin of the genome; NaN where all are N."""
    with store.reader() as catalog:
        known = reads.acgt_per_bin(store, catalog)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(reads.gc_per_bin(store) / known, dtype=np.float32)


class GcCurve:
    """The share of cells that training experiments bind, by the GC content of the bin: all that composition knows.

    Parameters
    ----------
    gc
        Share of G and C of some training bins.
    bound
        How many training experiments bind each.
    """

    def __init__(self, gc: Float32[np.ndarray, " n"], bound: Float32[np.ndarray, " n"]) -> None:
        known = ~np.isnan(gc)
        levels = np.linspace(0, 1, GC_LEVELS)
        place = np.rint(gc[known] * (GC_LEVELS - 1)).astype(np.int64)
        n = np.bincount(place, minlength=GC_LEVELS)
        total = np.bincount(place, weights=bound[known], minlength=GC_LEVELS)
        average = float(total.sum() / max(1, n.sum()))
        self.levels: Float64[np.ndarray, " levels"] = levels
        self.shares: Float64[np.ndarray, " levels"] = (total + PRIOR_BINS * average) / (n + PRIOR_BINS)

    def __call__(self, gc: Float32[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
        """Return the score of bins; what has no base at all scores lowest."""
        found = np.interp(np.nan_to_num(gc), self.levels, self.shares)
        return np.where(np.isnan(gc), 0, found).astype(np.float32)


def open_signals(store: Store) -> list[Signals]:
    """Return the store's arrays of signals that hold any, by name."""
    folder = store.array_name_for("signals", "x").partition("/")[0]
    names = sorted(name for name in store.array_names() if name.startswith(f"{folder}/"))
    with store.reader() as catalog:
        filled = {str(name) for (name,) in catalog.rows("SELECT DISTINCT array_name FROM data.tracks")}
    return [Signals(store, name) for name in names if name in filled]


def accessibility(
    signals: list[Signals], biotype_id: int, bins: Int64[np.ndarray, " k"]
) -> Float32[np.ndarray, " k"] | None:
    """Return a biotype's own signal at each bin, of the first array that has one; None without any."""
    for one in signals:
        if biotype_id in one.rows:
            values = one.of(biotype_id).at(bins)[:, 0]
            lowest = np.nanmin(values, initial=0.0) - 1
            return np.asarray(np.where(np.isnan(values), lowest, values), dtype=np.float32)
    return None


class LabelTracks:
    """Measured tracks: what a prediction can be correlated with.

    Parameters
    ----------
    store
        Whose. Tracks that were made from peaks are left out: they say nothing beyond the peaks.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        sql = """
            SELECT t.array_name, t.row_index, t.experiment_id, e.factor_id, e.biotype_id
            FROM data.tracks t JOIN data.experiments e USING (experiment_id)
            WHERE t.role = 'label' ORDER BY t.array_name DESC, t.row_index DESC
        """
        with store.reader() as catalog:
            found = catalog.rows(sql)
        names = {str(row[0]) for row in found}
        measured = {name for name in names if store.array(name).spec.embedder != "peaks"}
        self._of_experiment: dict[int, tuple[str, int]] = {}
        self._of_pair: dict[tuple[int, int], tuple[str, int]] = {}
        for name, row, experiment, factor, biotype in found:
            if name in measured:
                self._of_experiment[int(experiment)] = self._of_pair[int(factor), int(biotype)] = (str(name), int(row))

    def at(
        self, experiments: Experiments, place: int, bins: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, " k"] | None:
        """Return the values of an experiment's own track, else of its factor in its biotype; NaN where unknown.

        Returns
        -------
        None where there is no track.
        """
        experiment, factor, biotype = (int(column[place]) for column in experiments)
        where = self._of_experiment.get(experiment) or self._of_pair.get((factor, biotype))
        if where is None:
            return None
        name, row = where
        values = np.asarray(self._store.array(name).row(row), dtype=np.float32).reshape(-1)
        return np.asarray(values[bins])
