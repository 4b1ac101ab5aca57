"""Look for the same thing on both sides of a split, in the rows themselves.

``splits`` keeps kin together when it assigns parts; this module does not trust it and compares what training rows and
held-out rows really hold. Receptive fields that both sides read are counted, not refused: with a held-out factor they
are meant (the same DNA, another factor), and with held-out chromosomes there are none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.errors import ConfigError, LeakError
from tfbind_store.loci import Tiling
from tfbind_store.query.splits import LEAK_KINDS, FactorIdentity


class Leak(NamedTuple):
    """One thing that training and held-out rows share."""

    kind: str
    """gene, sequence, treatment or trunk."""
    shared: str
    """The gene, sequence or base biotype, or what the trunk has seen."""
    training: list[str]
    """Factors or biotypes that training rows name."""
    held_out: list[str]
    """Those of held-out rows."""
    n_training_rows: int


class Side(NamedTuple):
    """Names on one side of a split, with the number of their rows."""

    factors: Mapping[str, int]
    biotypes: Mapping[str, int]


def find_leaks(
    training: Side, held_out: Side, *, factors: Mapping[str, FactorIdentity], base_biotypes: Mapping[str, str]
) -> list[Leak]:
    """Return what training shares with held-out factors and biotypes.

    Parameters
    ----------
    training
        All training rows.
    held_out
        Only factors of rows that are to be of an unseen factor, and biotypes of rows of an unseen biotype.
    factors
        Genes and sequences of each factor.
    base_biotypes
        The base of each biotype, its treatment taken off.

    Examples
    --------
    >>> sox2 = FactorIdentity(frozenset({"SOX2"}), frozenset())
    >>> both = {"SOX2": sox2, "SOX2-POU5F1": FactorIdentity(frozenset({"SOX2", "POU5F1"}), frozenset())}
    >>> find_leaks(Side({"SOX2-POU5F1": 7}, {}), Side({"SOX2": 3}, {}), factors=both, base_biotypes={})[0].shared
    'SOX2'
    """
    none = FactorIdentity(frozenset(), frozenset())
    leaks = _shared("gene", training.factors, held_out.factors, {f: factors.get(f, none).genes for f in factors})
    leaks += _shared(
        "sequence", training.factors, held_out.factors, {f: factors.get(f, none).sequences for f in factors}
    )
    return leaks + _shared(
        "treatment", training.biotypes, held_out.biotypes, {b: {base} for b, base in base_biotypes.items()}
    )


def trunk_leaks(held_out: Mapping[str, Sequence[str]], trained_on: Mapping[str, Any] | None) -> list[Leak]:
    """Return which held-out factors, biotypes and chromosomes a trunk has seen in its own training.

    Parameters
    ----------
    held_out
        Names by ``factors``, ``biotypes`` and ``chromosomes``: `Selection.held_out` gives them.
    trained_on
        The trunk's card, same keys; None where a trunk says nothing, which is a leak that cannot be excluded.
    """
    if trained_on is None:
        return [Leak("trunk", "unknown: the trunk does not say what it was trained on", [], [], 0)]
    leaks = []
    for key in ("factors", "biotypes", "chromosomes"):
        seen = {str(name).upper() for name in trained_on.get(key) or ()}
        both = sorted(name for name in held_out.get(key, ()) if name.upper() in seen)
        if both:
            leaks.append(Leak("trunk", key, both, both, 0))
    return leaks


def refuse(leaks: Sequence[Leak], allow: Collection[str], *, where: str) -> None:
    """Refuse a split that leaks in a way that was not allowed by name.

    Raises
    ------
    LeakError
        Naming the first leak and counting the others.
    """
    for kind in allow:
        if kind not in LEAK_KINDS:
            raise ConfigError(
                f"{kind!r} is no kind of leak", where="allow_leaks", fix=f"one of {', '.join(LEAK_KINDS)}"
            )
    bad = [leak for leak in leaks if leak.kind not in allow]
    if bad:
        first = bad[0]
        more = f"; {len(bad) - 1} more" if len(bad) > 1 else ""
        raise LeakError(
            f"{first.n_training_rows:,} training rows of {', '.join(first.training[:5])} share the {first.kind} "
            f"{first.shared} with held-out {', '.join(first.held_out[:5])}{more}",
            where=where,
            fix=f"hold those out too, or allow it by name: --allow-leak {first.kind}",
        )


def windows_read_by_both(
    tiling: Tiling, training: Int64[np.ndarray, " a"], other: Int64[np.ndarray, " b"]
) -> Int64[np.ndarray, " c"]:
    """Return which windows of `other` share input sequence with a window of `training` (distinct, ascending)."""
    apart = (tiling.grid.window_bp - 1) // tiling.grid.stride_bp
    training, other = np.unique(training), np.unique(other)
    chrom = tiling.window_chrom(other)
    low = np.maximum(other - apart, tiling.first_window[chrom])
    high = np.minimum(other + apart, tiling.first_window[chrom + 1] - 1)
    near = np.searchsorted(training, high, side="right") > np.searchsorted(training, low, side="left")
    shared: Int64[np.ndarray, " c"] = other[near]
    return shared


def _shared(
    kind: str, training: Mapping[str, int], held_out: Mapping[str, int], marks: Mapping[str, Collection[str]]
) -> list[Leak]:
    trained: dict[str, list[str]] = {}
    for name in sorted(training):
        for mark in marks.get(name, ()):
            trained.setdefault(mark, []).append(name)
    held: dict[str, list[str]] = {}
    for name in sorted(held_out):
        for mark in marks.get(name, ()):
            held.setdefault(mark, []).append(name)
    return [
        Leak(kind, mark, trained[mark], held[mark], sum(training[name] for name in trained[mark]))
        for mark in sorted(set(trained) & set(held))
    ]
