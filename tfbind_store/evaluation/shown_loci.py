"""A few loci of the scored places, kept bin by bin so that people can look at them: prediction beside measurement.

Loci are chosen by what was *measured* there, never by how well it was predicted: of each kind of hold-out the busiest
stretch and one of middling business, or whatever a BED names. Of each locus the experiments that bind most of it
are kept.
"""

# k bins of a group

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tfbind_store.loci import Locus, Tiling

LOCUS_BINS = 80
MOST_EXPERIMENTS = 5
MOST_LOCI = 12


class Shown(NamedTuple):
    """One locus of a group: where its bins stand among the group's."""

    locus: Locus
    at: slice


class _Kept(NamedTuple):
    names: dict[str, str]
    n_bound: int
    n_positive: int
    probability: Float32[np.ndarray, " l"]
    labels: Float32[np.ndarray, " l"]
    signal: Float32[np.ndarray, " l"] | None


def choose_loci(tiling: Tiling, bins: Int64[np.ndarray, " k"], bound: Float32[np.ndarray, " k"]) -> list[Shown]:
    """Return the busiest stretch of bins and one of middling business; none where nothing is bound.

    Parameters
    ----------
    bound
        How many of the group's experiments bind each bin.
    """
    windows = bins // tiling.grid.n_bins
    chrom = tiling.window_chrom(windows)
    within = bins - tiling.first_window[chrom] * tiling.grid.n_bins
    key = chrom * tiling.n_bins + within // LOCUS_BINS
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, dtype=np.int64)
    ends = np.append(starts[1:], len(bins))
    total = np.add.reduceat(bound, starts) if len(starts) else np.empty(0)
    whole = bins[ends - 1] - bins[starts] == ends - starts - 1 if len(starts) else np.empty(0, bool)
    busy = np.flatnonzero((total > 0) & whole)
    if not len(busy):
        return []
    order = busy[np.argsort(-total[busy], kind="stable")]
    chosen = dict.fromkeys([int(order[0]), int(order[len(order) // 2])])
    return [
        Shown(_locus(tiling, bins[starts[one]], bins[ends[one] - 1]), slice(starts[one], ends[one])) for one in chosen
    ]


def named_loci(tiling: Tiling, bins: Int64[np.ndarray, " k"], loci: Sequence[Locus]) -> list[Shown]:
    """Return the asked loci that the group's bins cover without a gap, widened to whole bins."""
    found = []
    for locus in loci:
        first = tiling.first_window[tiling.chrom_index[locus.chrom]] * tiling.grid.n_bins
        low = first + locus.start // tiling.grid.bin_bp
        high = first + -(-locus.end // tiling.grid.bin_bp)
        at = slice(*np.searchsorted(bins, [low, high]).tolist())
        if at.stop - at.start == high - low:
            found.append(Shown(_locus(tiling, low, high - 1), at))
    return found


def _locus(tiling: Tiling, first_bin: int, last_bin: int) -> Locus:
    chrom = int(tiling.window_chrom(np.array([first_bin // tiling.grid.n_bins]))[0])
    zero = int(tiling.first_window[chrom]) * tiling.grid.n_bins
    bin_bp = tiling.grid.bin_bp
    end = min((int(last_bin) - zero + 1) * bin_bp, tiling.lengths_bp[chrom])
    return Locus(tiling.chroms[chrom], (int(first_bin) - zero) * bin_bp, end)


class LociBook:
    """Collects what was scored at the shown loci."""

    def __init__(self, bin_bp: int) -> None:
        self.bin_bp = bin_bp
        self.rows: list[dict[str, Any]] = []
        self._open: list[tuple[Shown, list[_Kept]]] = []

    def open(self, loci: Sequence[Shown]) -> None:
        """Begin a group."""
        self._open = [(shown, []) for shown in loci[:MOST_LOCI]]

    def add(
        self,
        names: dict[str, str],
        probability: Float32[np.ndarray, " k"],
        labels: Float32[np.ndarray, " k"],
        signal: Float32[np.ndarray, " k"] | None,
    ) -> None:
        """Keep what one experiment's bins say at the open loci, if it is among those that bind most there."""
        n_positive = int(np.nansum(labels))
        for shown, kept in self._open:
            at = shown.at
            n_bound = int(np.nansum(labels[at]))
            own = None if signal is None else signal[at].copy()
            kept.append(_Kept(names, n_bound, n_positive, probability[at].copy(), labels[at].copy(), own))
            kept.sort(key=lambda one: (-one.n_bound, -one.n_positive, one.names["experiment"]))
            del kept[MOST_EXPERIMENTS:]

    def close(self, holdout: str) -> None:
        """End the group: its loci become rows."""
        for shown, kept in self._open:
            for one in kept:
                for place in range(len(one.labels)):
                    self.rows.append(
                        {
                            "holdout": holdout,
                            "locus": f"{shown.locus.chrom}:{shown.locus.start:,}-{shown.locus.end:,}",
                            "chrom": shown.locus.chrom,
                            "start_bp": shown.locus.start + place * self.bin_bp,
                            "end_bp": min(shown.locus.start + (place + 1) * self.bin_bp, shown.locus.end),
                            **one.names,
                            "probability": float(one.probability[place]),
                            "label": float(one.labels[place]),
                            "signal": float("nan") if one.signal is None else float(one.signal[place]),
                        }
                    )
        self._open = []
