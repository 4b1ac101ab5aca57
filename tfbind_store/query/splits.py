"""Which split a row belongs to: by place, by held-out factor, by held-out biotype, and by all of them at once.

A row has three parts: of its place (chromosome or locus), its factor, its biotype. Each is train, valid or test. A row
trains if all its parts train; it is a validation (test) row if at least one part is valid (test) and none is test
(valid). Rows between validation and test are left out, counted: they would make one depend on the other.

Holding out means holding out the thing, not its name: ``kinship`` says what goes along. Folds divide what is left for
training once more, on one or several of the three axes; opening fold f makes validation of whatever is in fold f on any
of them, so that folds by chromosome and factor validate on unseen chromosomes, unseen factors, and both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, Integer

from tfbind_store.catalog.columns import Columns
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.loci import Tiling
from tfbind_store.query import draws, places
from tfbind_store.query.folds import NO_FOLD, spread
from tfbind_store.query.kinship import Kinship, cell_name, close_names
from tfbind_store.query.places import SPLITS, TEST, TRAIN, UNUSED, VALID, Places

__all__ = ["BETWEEN", "HOLDOUTS", "SPLITS", "TEST", "TRAIN", "UNUSED", "VALID"]
BETWEEN = -2
HELD_OUT_KINDS = ("factor", "family", "domain", "biotype")
FOLD_KINDS = ("chrom", "loci", "factor", "family", "biotype")
MAX_FOLDS = 100
_UNSEEN = ("unseen_chromosome", "unseen_factor", "unseen_biotype")
HOLDOUTS = tuple("+".join(name for bit, name in enumerate(_UNSEEN) if code >> bit & 1) or "seen" for code in range(8))
"""What a row may be to a model: ``seen``, ``unseen_factor``, ``unseen_chromosome+unseen_factor`` … A locus that
training has not seen counts as an unseen chromosome."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is kept apart from training."""

    train_chroms: tuple[str, ...] = ()
    """Chromosomes to train on; empty means all that are neither in `valid_chroms` nor in `test_chroms`."""
    valid_chroms: tuple[str, ...] = ()
    """Chromosomes of validation rows: early stopping and choices look at them."""
    test_chroms: tuple[str, ...] = ()
    """Chromosomes of test rows."""
    loci: str = ""
    """A set of loci with a split each (`tfbind import loci`), in place of chromosomes; what is in none is not used."""
    trunk: str = ""
    """An array of windows, or an imported trunk: train where that trunk was trained, test elsewhere."""
    hold_out: Mapping[str, Any] = field(default_factory=dict)
    """Names by kind, ``{"factor": ["SOX2"], "biotype": ["MCF-7"]}``: in no training row. ``family`` takes the paralogs
    of a factor along, ``domain`` means all factors that have it."""
    hold_out_random: tuple[str, ...] = ()
    """Seeded choices, ``factor:20:min_peaks=100``, ``family:5`` or ``biotype:2``, among the selected experiments."""
    hold_out_valid_share: float = 0.0
    """Share of the held-out factors and biotypes whose rows go to validation instead of test."""
    identity: float = 0.4
    """Two proteins are paralogs if they share at least this part of the shorter one's residues in an alignment."""
    overlap: str = "refuse"
    """What to do with training rows whose windows read what windows of held-out places read: ``refuse`` or ``drop``."""
    folds: int = 0
    """Divide the training part into so many folds for cross-validation; 0 for none."""
    fold_by: tuple[str, ...] = ("chrom",)
    """What folds keep whole: chrom or loci, factor or family, biotype; several at once nest."""

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out_valid_share <= 1:
            raise ConfigError(f"hold_out_valid_share is {self.hold_out_valid_share}, must be 0 to 1", where="split")
        if not 0 < self.identity <= 1:
            raise ConfigError(f"identity is {self.identity}, must be above 0 and at most 1", where="split")
        if self.overlap not in ("refuse", "drop"):
            raise ConfigError(f"overlap is {self.overlap!r}", where="split", fix="write refuse or drop")
        for kind in self.hold_out:
            if kind not in HELD_OUT_KINDS:
                fix = "factor=…, family=…, domain=… or biotype=…"
                raise ConfigError(f"cannot hold out {kind!r}", where="split.hold_out", fix=fix)
        chroms = (*self.train_chroms, *self.valid_chroms, *self.test_chroms)
        if sum(map(bool, (self.loci, self.trunk, chroms))) > 1:
            fix = "give one of loci, trunk, and train_chroms / valid_chroms / test_chroms"
            raise ConfigError("places are split in two ways at once", where="split", fix=fix)
        self._check_folds()

    def _check_folds(self) -> None:
        if self.folds and not 2 <= self.folds <= MAX_FOLDS:
            raise ConfigError(f"folds is {self.folds}, must be 0 or 2 to {MAX_FOLDS}", where="split")
        unknown = [kind for kind in self.fold_by if kind not in FOLD_KINDS]
        if unknown or not self.fold_by:
            what = f"cannot fold by {unknown[0]!r}" if unknown else "fold_by is empty"
            raise ConfigError(what, where="split.fold_by", fix=f"one of {', '.join(FOLD_KINDS)}")
        if {"chrom", "loci"} <= set(self.fold_by) or {"factor", "family"} <= set(self.fold_by):
            fix = "name at most one of chrom and loci, one of factor and family"
            raise ConfigError("fold_by names two things of one axis", where="split.fold_by", fix=fix)
        if self.folds and (self.valid_chroms or self.hold_out_valid_share):
            fix = "leave validation to the folds: no valid_chroms, no hold_out_valid_share"
            raise ConfigError("a selection with folds has a validation part of its own", where="split", fix=fix)


class HeldOut(NamedTuple):
    """What was asked to be held out and what that took along; names."""

    asked: list[str]
    valid: list[str]
    test: list[str]


class Parts(NamedTuple):
    """Parts (0 train, 1 valid, 2 test, -1 unused) and folds (-1 none) of places, and of experiments on two axes."""

    places: Places
    factor: Int8[np.ndarray, " e"]
    biotype: Int8[np.ndarray, " e"]
    factor_fold: Int8[np.ndarray, " e"]
    biotype_fold: Int8[np.ndarray, " e"]
    n_folds: int
    held_out: dict[str, HeldOut]


def resolve(
    config: SplitConfig,
    *,
    tiling: Tiling,
    aliases: Mapping[str, str],
    experiments: Columns,
    kinship: Kinship,
    seed: int,
    loci: Columns | None = None,
    trunk: Mapping[str, Sequence[str]] | None = None,
    allow_leaks: Collection[str] = (),
) -> Parts:
    """Turn the names of a split into parts and folds.

    Parameters
    ----------
    experiments
        The selected experiments, as ``reads.experiments`` gives them.
    loci
        The set that `config.loci` (or the imported trunk) names, where it names one.
    trunk
        What the trunk that `config.trunk` names was trained on: ``chromosomes``.
    allow_leaks
        Kinds of kinship that holding out shall not follow: gene, sequence, treatment, cell_name.

    Raises
    ------
    SelectionError
        If a name is unknown, a chromosome stands in two splits, or too few candidates are there to choose from.
    """
    asked = {kind: list(_as_names(config.hold_out.get(kind, ()))) for kind in HELD_OUT_KINDS}
    for rule in config.hold_out_random:
        kind, names = choose_random(rule, experiments, kinship, seed=seed, already=asked)
        asked[kind] += names
    factor, factor_names = _factor_parts(asked, config, experiments, kinship, seed, allow_leaks)
    biotype, biotype_names = _biotype_parts(asked, config, experiments, seed, allow_leaks)
    where = _places(config, tiling, aliases, loci, trunk, seed)
    factor_fold = _factor_folds(config, experiments, factor, kinship, seed, allow_leaks)
    biotype_fold = _biotype_folds(config, experiments, biotype, seed)
    held_out = {"factor": factor_names, "biotype": biotype_names}
    return Parts(where, factor, biotype, factor_fold, biotype_fold, config.folds, held_out)


def combine(
    place: Integer[np.ndarray, " n"], factor: Integer[np.ndarray, " n"], biotype: Integer[np.ndarray, " n"]
) -> Int8[np.ndarray, " n"]:
    """Return the split of rows from their three parts; -1 for unused places, -2 between validation and test.

    Examples
    --------
    >>> combine(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 2]), np.array([0, 0, 0, 0])).tolist()
    [0, 2, 2, -2]
    """
    place, factor, biotype = (np.asarray(part, dtype=np.int8) for part in (place, factor, biotype))
    split: Int8[np.ndarray, " n"] = np.maximum(np.maximum(place, factor), biotype)
    has_valid = (place == VALID) | (factor == VALID) | (biotype == VALID)
    split[has_valid & (split == TEST)] = BETWEEN
    split[place == UNUSED] = UNUSED
    return split


def unseen(
    place: Integer[np.ndarray, " n"], factor: Integer[np.ndarray, " n"], biotype: Integer[np.ndarray, " n"]
) -> Int8[np.ndarray, " n"]:
    """Return what training has not seen of each row, as a place in `HOLDOUTS`."""
    code = np.zeros(len(place), dtype=np.int8)
    for bit, part in enumerate((place, factor, biotype)):
        code |= np.where(np.asarray(part) != TRAIN, 1 << bit, 0).astype(np.int8)
    return code


def choose_random(
    rule: str, experiments: Columns, kinship: Kinship, *, seed: int, already: Mapping[str, Collection[str]]
) -> tuple[str, list[str]]:
    """Choose what to hold out by a seeded rule that knows names and numbers of peaks, nothing else.

    The order of the candidates is a hash of seed and name, so that a choice stays the same when others come or go. A
    family is called by its first factor.
    """
    kind, number, min_peaks = _parse_random(rule)
    column = "base_biotype" if kind == "biotype" else "factor"
    peaks: dict[str, int] = {}
    for name, n_peaks, has_protein in zip(
        experiments[column].tolist(), experiments["n_peaks"].tolist(), experiments["has_protein"].tolist(), strict=True
    ):
        if has_protein or kind == "biotype":
            peaks[name] = peaks.get(name, 0) + n_peaks
    if kind == "family":
        peaks = _by_family(peaks, kinship)
    candidates = [name for name, n_peaks in peaks.items() if n_peaks >= min_peaks and name not in already[kind]]
    if len(candidates) < number:
        plural = "families" if kind == "family" else f"{kind}s"
        raise SelectionError(
            f"{number} {plural} to be held out, {len(candidates)} have at least {min_peaks} peaks",
            where=f"split.hold_out_random: {rule}",
            fix="ask for fewer, or lower min_peaks",
        )
    return kind, sorted(draws.name_order(seed, f"hold out {kind}", candidates)[:number])


def _by_family(peaks: Mapping[str, int], kinship: Kinship) -> dict[str, int]:
    group = kinship.groups(sorted(peaks), by_family=True)
    first: dict[int, str] = {}
    total: dict[str, int] = {}
    for name in sorted(peaks):
        called = first.setdefault(group[name], name)
        total[called] = total.get(called, 0) + peaks[name]
    return total


def _parse_random(rule: str) -> tuple[str, int, int]:
    kind, _, rest = rule.partition(":")
    number, _, option = rest.partition(":")
    key, _, value = option.partition("=")
    known = kind in HELD_OUT_KINDS and kind != "domain"
    if not known or not number.isdigit() or (option and (key != "min_peaks" or not value.isdigit())):
        raise ConfigError(f"{rule!r} is no rule", where="split.hold_out_random", fix="write factor:20:min_peaks=100")
    return kind, int(number), int(value or 1)


def _places(
    config: SplitConfig,
    tiling: Tiling,
    aliases: Mapping[str, str],
    loci: Columns | None,
    trunk: Mapping[str, Sequence[str]] | None,
    seed: int,
) -> Places:
    between = 0
    if loci is not None:
        part, between = places.by_loci(tiling, loci, name=config.loci or config.trunk)
    else:
        named = {"train": config.train_chroms, "valid": config.valid_chroms, "test": config.test_chroms}
        if trunk is not None:
            trained = [name for name in trunk["chromosomes"] if name in tiling.chroms]
            rest = tuple(chrom for chrom in tiling.chroms if chrom not in trained)
            named = {"train": tuple(trained), "valid": (), "test": rest}
        part = places.whole_chromosomes(tiling, places.by_chromosomes(tiling, aliases, named))
    fold = np.full(tiling.n_bins, NO_FOLD, dtype=np.int8)
    if config.folds and "chrom" in config.fold_by:
        fold = places.fold_chromosomes(tiling, part, config.folds, seed=seed)
    elif config.folds and "loci" in config.fold_by:
        fold = places.fold_loci(tiling, part, config.folds, seed=seed)
    return Places(part, fold, between)


def _factor_parts(
    asked: Mapping[str, Sequence[str]],
    config: SplitConfig,
    experiments: Columns,
    kinship: Kinship,
    seed: int,
    allow_leaks: Collection[str],
) -> tuple[Int8[np.ndarray, " e"], HeldOut]:
    part_of: dict[str, int] = {}
    said: list[str] = []
    # a factor near one held out for test and one for validation goes to test: training loses it either way
    for part in (VALID, TEST):
        for kind in ("factor", "family", "domain"):
            for name, mine in _shares(kind, asked[kind], config, seed).items():
                if mine == part:
                    part_of.update(dict.fromkeys(kinship.kin(kind, name, allow_leaks=allow_leaks), part))
                    said.append(name if kind == "factor" else f"{kind}={name}")
    parts = np.array([part_of.get(name, TRAIN) for name in experiments["factor"].tolist()], dtype=np.int8).reshape(-1)
    return parts, _held_out(said, part_of)


def _biotype_parts(
    asked: Mapping[str, Sequence[str]],
    config: SplitConfig,
    experiments: Columns,
    seed: int,
    allow_leaks: Collection[str],
) -> tuple[Int8[np.ndarray, " e"], HeldOut]:
    pairs = sorted(set(zip(experiments["biotype"].tolist(), experiments["base_biotype"].tolist(), strict=True)))
    part_of: dict[str, int] = {}
    shares = _shares("biotype", asked["biotype"], config, seed)
    for name, part in sorted(shares.items(), key=lambda item: item[1]):
        roots = {base for biotype, base in pairs if name in (biotype, base)}
        if not roots:
            known = sorted({name for pair in pairs for name in pair})
            fix = close_names(name, known)
            raise SelectionError(f"no biotype {name!r} to hold out", where="split.hold_out", fix=fix)
        spelt = {cell_name(base) for base in roots}
        for biotype, base in pairs:
            is_treatment = base in roots and "treatment" not in allow_leaks
            is_spelling = base not in roots and cell_name(base) in spelt and "cell_name" not in allow_leaks
            if biotype == name or is_treatment or is_spelling:
                part_of[biotype] = part
    parts = np.array([part_of.get(name, TRAIN) for name in experiments["biotype"].tolist()], dtype=np.int8).reshape(-1)
    return parts, _held_out(list(shares), part_of)


def _factor_folds(
    config: SplitConfig,
    experiments: Columns,
    part: Int8[np.ndarray, " e"],
    kinship: Kinship,
    seed: int,
    allow_leaks: Collection[str],
) -> Int8[np.ndarray, " e"]:
    if not config.folds or not {"factor", "family"} & set(config.fold_by):
        return np.full(experiments.n, NO_FOLD, dtype=np.int8)
    names = experiments["factor"].tolist()
    group = kinship.groups(sorted(set(names)), by_family="family" in config.fold_by, allow_leaks=allow_leaks)
    return _fold_units(config, experiments, part, {n: str(g) for n, g in group.items()}, "factor", "factors", seed)


def _biotype_folds(
    config: SplitConfig, experiments: Columns, part: Int8[np.ndarray, " e"], seed: int
) -> Int8[np.ndarray, " e"]:
    if not config.folds or "biotype" not in config.fold_by:
        return np.full(experiments.n, NO_FOLD, dtype=np.int8)
    unit = {base: cell_name(base) for base in experiments["base_biotype"].tolist()}
    return _fold_units(config, experiments, part, unit, "base_biotype", "biotypes", seed)


def _fold_units(
    config: SplitConfig,
    experiments: Columns,
    part: Int8[np.ndarray, " e"],
    unit_of: Mapping[str, str],
    column: str,
    purpose: str,
    seed: int,
) -> Int8[np.ndarray, " e"]:
    """Fold the training experiments by units that a column's names belong to; a unit is called by its first name."""
    names = experiments[column].tolist()
    called: dict[str, str] = {}
    for name in sorted(set(names)):
        called.setdefault(unit_of[name], name)
    sizes: dict[str, int] = {}
    for name, n_peaks, mine in zip(names, experiments["n_peaks"].tolist(), part.tolist(), strict=True):
        if mine == TRAIN:
            unit = called[unit_of[name]]
            sizes[unit] = sizes.get(unit, 0) + n_peaks
    found = spread(sizes, config.folds, seed=seed, purpose=purpose)
    folds = [found[called[unit_of[n]]] if mine == TRAIN else NO_FOLD for n, mine in zip(names, part, strict=True)]
    return np.array(folds, dtype=np.int8).reshape(-1)


def _shares(kind: str, asked: Sequence[str], config: SplitConfig, seed: int) -> dict[str, int]:
    ordered = draws.name_order(seed, f"{kind} to validation", sorted(set(asked)))
    n_valid = int(len(ordered) * config.hold_out_valid_share + 0.5)
    return {name: VALID if place < n_valid else TEST for place, name in enumerate(ordered)}


def _held_out(asked: Sequence[str], part_of: Mapping[str, int]) -> HeldOut:
    valid = sorted(name for name, part in part_of.items() if part == VALID)
    return HeldOut(sorted(asked), valid, sorted(name for name, part in part_of.items() if part == TEST))


def _as_names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))
