"""Look for the same thing on both sides of a split, in the rows themselves.

``splits`` keeps kin together when it assigns parts; this module does not trust it and compares what training rows and
held-out rows really hold: genes, sequences, paralogs, treatments and spellings of a cell, windows of the genome, and
what the trunk was trained on. Input that both sides read is a leak where the *place* is held out; with a held-out
factor it is meant (the same DNA, another factor), and only counted (``describe``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.errors import ConfigError, LeakError
from tfbind_store.loci import Tiling
from tfbind_store.query.kinship import FactorIdentity, Kinship, cell_name

LEAK_KINDS = ("gene", "sequence", "paralog", "treatment", "cell_name", "window", "receptive_field", "trunk")
_NOBODY = FactorIdentity(frozenset(), frozenset())
NAMED = 5
"""Names of each side that an error shows."""


class Leak(NamedTuple):
    """One thing that training and held-out rows share."""

    kind: str
    """One of `LEAK_KINDS`."""
    shared: str
    """The gene, sequence, cell, locus, or what the trunk has seen."""
    training: list[str]
    """Factors, biotypes or loci of training rows."""
    held_out: list[str]
    """Those of held-out rows."""
    n_training_rows: int
    fold: int | None = None
    """The fold in which it is one; None where it is one without folds too."""


class Side(NamedTuple):
    """Names on one side of a split, with the number of their rows."""

    factors: Mapping[str, int]
    biotypes: Mapping[str, int]


def find_leaks(
    training: Side,
    held_out: Side,
    *,
    kinship: Kinship,
    base_biotypes: Mapping[str, str],
    fold: int | None = None,
) -> list[Leak]:
    """Return what training shares with held-out factors and biotypes.

    Parameters
    ----------
    training
        All training rows.
    held_out
        Only factors of rows that are to be of an unseen factor, and biotypes of rows of an unseen biotype.
    kinship
        Genes, sequences and paralogs of factors.
    base_biotypes
        The base of each biotype, its treatment taken off.

    Examples
    --------
    >>> sox2 = FactorIdentity(frozenset({"SOX2"}), frozenset())
    >>> both = {"SOX2": sox2, "SOX2-POU5F1": FactorIdentity(frozenset({"SOX2", "POU5F1"}), frozenset())}
    >>> train, test = Side({"SOX2-POU5F1": 7}, {}), Side({"SOX2": 3}, {})
    >>> find_leaks(train, test, kinship=Kinship(both), base_biotypes={})[0].shared
    'SOX2'
    """
    identities = kinship.factors
    factors = training.factors, held_out.factors
    leaks = _shared("gene", *factors, {factor: identity.genes for factor, identity in identities.items()})
    leaks += _shared("sequence", *factors, {factor: identity.sequences for factor, identity in identities.items()})
    leaks += _paralogs(*factors, kinship)
    biotypes = training.biotypes, held_out.biotypes
    leaks += _shared("treatment", *biotypes, {biotype: {base} for biotype, base in base_biotypes.items()})
    spelt = _shared("cell_name", *biotypes, {biotype: {cell_name(base)} for biotype, base in base_biotypes.items()})
    same = {frozenset((*leak.training, *leak.held_out)) for leak in leaks if leak.kind == "treatment"}
    leaks += [leak for leak in spelt if frozenset((*leak.training, *leak.held_out)) not in same]
    return [leak._replace(fold=fold) for leak in leaks]


def trunk_leaks(
    held_out: Mapping[str, Sequence[str]],
    trained_on: Mapping[str, Any] | None,
    *,
    name: str = "",
    kinship: Kinship | None = None,
    fold: int | None = None,
) -> list[Leak]:
    """Return which held-out factors, biotypes and chromosomes a trunk has seen in its own training.

    Parameters
    ----------
    held_out
        Names by ``factors``, ``biotypes`` and ``chromosomes``: `Selection.held_out` gives them.
    trained_on
        The trunk's card, same keys; None where a trunk says nothing, which is a leak that cannot be excluded.
    name
        What the trunk is called.
    kinship
        By it a factor counts as seen if one of its genes was, under any name.
    """
    said = f" of {name}" if name else ""
    if trained_on is None:
        return [Leak("trunk", f"unknown: the trunk{said} does not say what it was trained on", [], [], 0)]
    leaks = []
    for key in ("factors", "biotypes", "chromosomes"):
        seen = {mark for other in trained_on.get(key) or () for mark in _marks(key, str(other), kinship)}
        both = sorted(other for other in held_out.get(key, ()) if not seen.isdisjoint(_marks(key, other, kinship)))
        if both:
            leaks.append(Leak("trunk", f"{key}{said}", both, both, 0, fold))
    return leaks


def is_of_trunk(leak: Mapping[str, Any], name: str) -> bool:
    """Return whether a leak, as a selection keeps it, is what the trunk of this name has seen."""
    shared = str(leak["shared"])
    return leak["kind"] == "trunk" and (shared.endswith(f" of {name}") or shared.startswith(f"places of {name} ("))


def place_leaks(
    tiling: Tiling,
    training: tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " a"]],
    unseen: tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]],
    *,
    fold: int | None = None,
) -> list[Leak]:
    """Return what rows of unseen places share with training rows: windows, and bases that their windows read.

    Parameters
    ----------
    training, unseen
        First and last window of each row; rows of unseen places only.
    """
    trained, held = (np.unique(np.concatenate(side)) for side in (training, unseen))
    leaks = []
    same = np.intersect1d(trained, held)
    near = np.setdiff1d(windows_read_by_both(tiling, held, trained), same)
    for kind, windows in (("window", same), ("receptive_field", near)):
        if len(windows):
            rows = np.isin(training[0], windows) | np.isin(training[1], windows)
            beside = windows_read_by_both(tiling, windows, held)
            leaks.append(
                Leak(
                    kind,
                    f"of {len(windows):,} windows, the first {tiling.read(int(windows[0]))}",
                    _loci(tiling, windows),
                    _loci(tiling, beside),
                    int(rows.sum()),
                    fold,
                )
            )
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
        others = sorted({leak.kind for leak in bad[1:]})
        more = f"; {len(bad) - 1} more leaks ({', '.join(others)})" if others else ""
        raise LeakError(sentence(bad[0]) + more, where=where, fix=_fix(bad[0]))


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


def sentence(leak: Leak) -> str:
    """Return what leaks, as people read it."""
    fold = "" if leak.fold is None else f" in fold {leak.fold}"
    held = ", ".join(leak.held_out[:NAMED]) + (", …" if len(leak.held_out) > NAMED else "")
    if leak.kind == "trunk":
        return f"the trunk has seen held-out {leak.shared}: {held}" if leak.held_out else leak.shared
    trained = ", ".join(leak.training[:NAMED]) + (", …" if len(leak.training) > NAMED else "")
    what = {"cell_name": "cell", "receptive_field": "input", "paralog": "family"}.get(leak.kind, leak.kind)
    return (
        f"{leak.n_training_rows:,} training rows of {trained} share the {what} {leak.shared} with held-out {held}{fold}"
    )


def _fix(leak: Leak) -> str:
    allow = f"or allow it by name: --allow-leak {leak.kind}"
    if leak.kind == "paralog":
        return f"hold the family out: --hold-out family={leak.held_out[0]}, {allow}"
    if leak.kind in ("window", "receptive_field"):
        return f"leave those training rows out: --overlap drop, {allow}"
    if leak.kind == "trunk":
        return f"name the array that will be read, embedded or not: --windows NAME (tfbind pretrain makes one), {allow}"
    return f"hold those out too, {allow}"


def _paralogs(training: Mapping[str, int], held_out: Mapping[str, int], kinship: Kinship) -> list[Leak]:
    """Return pairs of held-out and training factors with proteins that are alike but not the same."""
    if kinship.find_paralogs is None or not held_out or not training:
        return []
    trained, held = _by_sequence(training, kinship), _by_sequence(held_out, kinship)
    found: dict[tuple[str, str], float] = {}
    for pair in kinship.find_paralogs(set(held), set(trained)):
        for mine, other in ((pair.first, pair.second), (pair.second, pair.first)):
            for factor in held.get(mine, ()):
                for near in trained.get(other, ()):
                    found[factor, near] = max(found.get((factor, near), 0.0), pair.identity)
    by_factor: dict[str, list[tuple[str, float]]] = {}
    for (factor, near), identity in sorted(found.items()):
        by_factor.setdefault(factor, []).append((near, identity))
    return [
        Leak(
            "paralog",
            f"of {factor} ({', '.join(f'{near} {identity:.0%}' for near, identity in pairs[:NAMED])} identical)",
            [near for near, _ in pairs],
            [factor],
            sum(training[near] for near, _ in pairs),
        )
        for factor, pairs in by_factor.items()
    ]


def _by_sequence(names: Mapping[str, int], kinship: Kinship) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        for sha256 in kinship.factors.get(name, _NOBODY).sequences:
            found.setdefault(sha256, []).append(name)
    return found


def _loci(tiling: Tiling, windows: Int64[np.ndarray, " n"]) -> list[str]:
    return [str(tiling.kept(int(window))) for window in windows[:NAMED]]


def _marks(key: str, name: str, kinship: Kinship | None) -> set[str]:
    """Return by what a factor, biotype or chromosome is known again: names, genes, the cell without its treatment."""
    if key == "biotypes":
        return {cell_name(name.partition("_")[0])}
    if key == "chromosomes" or kinship is None:
        return {name.upper()}
    gene = kinship.upper.get(name.upper(), name.upper())
    return {name.upper(), gene, *kinship.factors.get(name, _NOBODY).genes}


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
