"""Which split a row belongs to: by chromosome, by held-out factor, by held-out biotype, and by all of them at once.

A row has three parts: of its chromosome, its factor, its biotype. Each is train, valid or test. A row trains if all its
parts train; it is a validation (test) row if at least one part is valid (test) and none is test (valid). Rows between
validation and test are left out, counted: they would make one depend on the other.

Holding out means holding out the thing, not its name. A held-out factor takes along every factor that shares a gene
with it (under any synonym, in any complex, with any modification) or has the same protein sequence; a held-out biotype
takes along every treatment of the same base biotype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, Integer

from tfbind_store.columns import Columns
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.names import near_miss
from tfbind_store.query import draws

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = 0, 1, 2
UNUSED, BETWEEN = -1, -2
HELD_OUT_KINDS = ("factor", "biotype")
LEAK_KINDS = ("gene", "sequence", "treatment")
_UNSEEN = ("unseen_chromosome", "unseen_factor", "unseen_biotype")
HOLDOUTS = tuple("+".join(name for bit, name in enumerate(_UNSEEN) if code >> bit & 1) or "seen" for code in range(8))
"""What a row may be to a model: ``seen``, ``unseen_factor``, ``unseen_chromosome+unseen_factor`` …"""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is kept apart from training."""

    train_chroms: tuple[str, ...] = ()
    """Chromosomes to train on; empty means all that are neither in `valid_chroms` nor in `test_chroms`."""
    valid_chroms: tuple[str, ...] = ()
    """Chromosomes of validation rows: early stopping and choices look at them."""
    test_chroms: tuple[str, ...] = ()
    """Chromosomes of test rows."""
    hold_out: Mapping[str, Any] = field(default_factory=dict)
    """Names by kind, ``{"factor": ["SOX2"], "biotype": ["MCF-7"]}``: in no training row."""
    hold_out_random: tuple[str, ...] = ()
    """Seeded choices, ``factor:20:min_peaks=100`` or ``biotype:2``, made among the selected experiments."""
    hold_out_valid_share: float = 0.0
    """Share of the held-out factors and biotypes whose rows go to validation instead of test."""

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out_valid_share <= 1:
            raise ConfigError(f"hold_out_valid_share is {self.hold_out_valid_share}, must be 0 to 1", where="split")
        for kind in self.hold_out:
            if kind not in HELD_OUT_KINDS:
                raise ConfigError(f"cannot hold out {kind!r}", where="split.hold_out", fix="factor=… or biotype=…")


class FactorIdentity(NamedTuple):
    """What makes two factors the same thing."""

    genes: frozenset[str]
    """Symbols, synonyms resolved, in upper case."""
    sequences: frozenset[str]
    """sha256 of the subunits' sequences."""


class HeldOut(NamedTuple):
    """What was asked to be held out and what that took along; names."""

    asked: list[str]
    valid: list[str]
    test: list[str]


class Parts(NamedTuple):
    """The part of each chromosome and of each experiment's factor and biotype: 0 train, 1 valid, 2 test, -1 unused."""

    chrom: Int8[np.ndarray, " chroms"]
    factor: Int8[np.ndarray, " e"]
    biotype: Int8[np.ndarray, " e"]
    held_out: dict[str, HeldOut]


def identities(
    subunits: Sequence[tuple[int, str, str, str | None]], synonyms: Mapping[str, str]
) -> dict[str, FactorIdentity]:
    """Return each factor's genes and sequences; `subunits` as ``reads.subunits`` gives them."""
    upper = {synonym.upper(): symbol.upper() for synonym, symbol in synonyms.items()}
    genes: dict[str, set[str]] = {}
    sequences: dict[str, set[str]] = {}
    for _, factor, gene, sha256 in subunits:
        genes.setdefault(factor, set()).add(upper.get(gene.upper(), gene.upper()))
        sequences.setdefault(factor, set()).update([sha256] if sha256 else [])
    return {factor: FactorIdentity(frozenset(genes[factor]), frozenset(sequences[factor])) for factor in genes}


def resolve(
    config: SplitConfig,
    *,
    chroms: Sequence[str],
    aliases: Mapping[str, str],
    experiments: Columns,
    factors: Mapping[str, FactorIdentity],
    synonyms: Mapping[str, str],
    seed: int,
    allow_leaks: Collection[str] = (),
) -> Parts:
    """Turn the names of a split into parts.

    Parameters
    ----------
    experiments
        The selected experiments, as ``reads.experiments`` gives them.
    allow_leaks
        Kinds of kinship that holding out shall not follow: gene, sequence, treatment.

    Raises
    ------
    SelectionError
        If a name is unknown, a chromosome stands in two splits, or too few candidates are there to choose from.
    """
    asked = {kind: list(_as_names(config.hold_out.get(kind, ()))) for kind in HELD_OUT_KINDS}
    for rule in config.hold_out_random:
        kind, names = choose_random(rule, experiments, seed=seed, already=asked)
        asked[kind] += names
    shares = {kind: _shares(kind, asked[kind], config, seed) for kind in HELD_OUT_KINDS}
    factor_part, factor_names = _factor_parts(shares["factor"], experiments, factors, synonyms, allow_leaks)
    biotype_part, biotype_names = _biotype_parts(shares["biotype"], experiments, allow_leaks)
    held_out = {"factor": factor_names, "biotype": biotype_names}
    return Parts(_chrom_parts(config, chroms, aliases), factor_part, biotype_part, held_out)


def combine(
    chrom: Integer[np.ndarray, " n"], factor: Integer[np.ndarray, " n"], biotype: Integer[np.ndarray, " n"]
) -> Int8[np.ndarray, " n"]:
    """Return the split of rows from their three parts; -1 for unused chromosomes, -2 between validation and test.

    Examples
    --------
    >>> combine(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 2]), np.array([0, 0, 0, 0])).tolist()
    [0, 2, 2, -2]
    """
    parts = np.stack([chrom, factor, biotype]).astype(np.int8)
    split: Int8[np.ndarray, " n"] = parts.max(axis=0)
    split[(parts == VALID).any(axis=0) & (parts == TEST).any(axis=0)] = BETWEEN
    split[np.asarray(chrom) == UNUSED] = UNUSED
    return split


def unseen(
    chrom: Integer[np.ndarray, " n"], factor: Integer[np.ndarray, " n"], biotype: Integer[np.ndarray, " n"]
) -> Int8[np.ndarray, " n"]:
    """Return what training has not seen of each row, as a place in `HOLDOUTS`."""
    code = np.zeros(len(chrom), dtype=np.int8)
    for bit, part in enumerate((chrom, factor, biotype)):
        code |= np.where(np.asarray(part) != TRAIN, 1 << bit, 0).astype(np.int8)
    return code


def choose_random(
    rule: str, experiments: Columns, *, seed: int, already: Mapping[str, Collection[str]]
) -> tuple[str, list[str]]:
    """Choose what to hold out by a seeded rule that knows names and numbers of peaks, nothing else.

    The order of the candidates is a hash of seed and name, so that a choice stays the same when others come or go.
    """
    kind, number, min_peaks = _parse_random(rule)
    column = "factor" if kind == "factor" else "base_biotype"
    peaks: dict[str, int] = {}
    for name, n_peaks, has_protein in zip(
        experiments[column].tolist(), experiments["n_peaks"].tolist(), experiments["has_protein"].tolist(), strict=True
    ):
        if has_protein or kind != "factor":
            peaks[name] = peaks.get(name, 0) + n_peaks
    candidates = [name for name, n_peaks in peaks.items() if n_peaks >= min_peaks and name not in already[kind]]
    if len(candidates) < number:
        raise SelectionError(
            f"{number} {kind}s to be held out, {len(candidates)} have at least {min_peaks} peaks",
            where=f"split.hold_out_random: {rule}",
            fix="ask for fewer, or lower min_peaks",
        )
    return kind, sorted(draws.name_order(seed, f"hold out {kind}", candidates)[:number])


def _parse_random(rule: str) -> tuple[str, int, int]:
    kind, _, rest = rule.partition(":")
    number, _, option = rest.partition(":")
    key, _, value = option.partition("=")
    if kind not in HELD_OUT_KINDS or not number.isdigit() or (option and (key != "min_peaks" or not value.isdigit())):
        raise ConfigError(f"{rule!r} is no rule", where="split.hold_out_random", fix="write factor:20:min_peaks=100")
    return kind, int(number), int(value or 1)


def _chrom_parts(config: SplitConfig, chroms: Sequence[str], aliases: Mapping[str, str]) -> Int8[np.ndarray, " chroms"]:
    rest = UNUSED if config.train_chroms else TRAIN
    part = np.full(len(chroms), rest, dtype=np.int8)
    given: dict[str, str] = {}
    for split, names in zip(SPLITS, (config.train_chroms, config.valid_chroms, config.test_chroms), strict=True):
        for name in names:
            chrom = name if name in chroms else aliases.get(name)
            if chrom is None or chrom not in chroms:
                raise SelectionError(
                    f"no chromosome {name!r} in this genome", where=f"split.{split}_chroms", fix=_close(name, chroms)
                )
            if given.setdefault(chrom, split) != split:
                what = f"chromosome {chrom} is both {given[chrom]} and {split}"
                raise SelectionError(what, where="split", fix=f"leave {name} out of one of them")
            part[chroms.index(chrom)] = SPLITS.index(split)
    return part


def _factor_parts(
    asked: Mapping[str, int],
    experiments: Columns,
    factors: Mapping[str, FactorIdentity],
    synonyms: Mapping[str, str],
    allow_leaks: Collection[str],
) -> tuple[Int8[np.ndarray, " e"], HeldOut]:
    upper = {synonym.upper(): symbol.upper() for synonym, symbol in synonyms.items()}
    part_of: dict[str, int] = {}
    # a factor near one held out for test and one for validation goes to test: training loses it either way
    for name, part in sorted(asked.items(), key=lambda item: item[1]):
        for factor in _kin(name, factors, upper, allow_leaks):
            part_of[factor] = part
    names = experiments["factor"].tolist()
    parts = np.array([part_of.get(name, TRAIN) for name in names], dtype=np.int8).reshape(-1)
    return parts, _held_out(asked, part_of)


def _kin(
    name: str, factors: Mapping[str, FactorIdentity], synonyms: Mapping[str, str], allow_leaks: Collection[str]
) -> set[str]:
    """Return every factor that is `name` or shares a gene or a sequence with it."""
    gene = synonyms.get(name.upper(), name.upper())
    exact = {factor for factor in factors if factor.upper() == name.upper()}
    same = exact or {factor for factor, identity in factors.items() if gene in identity.genes}
    if not same:
        raise SelectionError(f"no factor {name!r} to hold out", where="split.hold_out", fix=_close(name, list(factors)))
    genes = {gene for factor in same for gene in factors[factor].genes} if exact else {gene}
    sequences = {sha256 for factor in same if factors[factor].genes <= genes for sha256 in factors[factor].sequences}
    kin = set(same)
    if "gene" not in allow_leaks:
        kin |= {factor for factor, identity in factors.items() if identity.genes & genes}
    if "sequence" not in allow_leaks:
        kin |= {factor for factor, identity in factors.items() if identity.sequences & sequences}
    return kin


def _biotype_parts(
    asked: Mapping[str, int], experiments: Columns, allow_leaks: Collection[str]
) -> tuple[Int8[np.ndarray, " e"], HeldOut]:
    biotypes, bases = experiments["biotype"].tolist(), experiments["base_biotype"].tolist()
    part_of: dict[str, int] = {}
    for name, part in sorted(asked.items(), key=lambda item: item[1]):
        roots = {base for biotype, base in zip(biotypes, bases, strict=True) if name in (biotype, base)}
        if not roots:
            known = sorted(set(biotypes) | set(bases))
            raise SelectionError(f"no biotype {name!r} to hold out", where="split.hold_out", fix=_close(name, known))
        for biotype, base in zip(biotypes, bases, strict=True):
            if biotype == name or (base in roots and "treatment" not in allow_leaks):
                part_of[biotype] = part
    parts = np.array([part_of.get(name, TRAIN) for name in biotypes], dtype=np.int8).reshape(-1)
    return parts, _held_out(asked, part_of)


def _shares(kind: str, asked: list[str], config: SplitConfig, seed: int) -> dict[str, int]:
    ordered = draws.name_order(seed, f"{kind} to validation", sorted(set(asked)))
    n_valid = int(len(ordered) * config.hold_out_valid_share + 0.5)
    return {name: VALID if place < n_valid else TEST for place, name in enumerate(ordered)}


def _held_out(asked: Mapping[str, int], part_of: Mapping[str, int]) -> HeldOut:
    valid = sorted(name for name, part in part_of.items() if part == VALID)
    return HeldOut(sorted(asked), valid, sorted(name for name, part in part_of.items() if part == TEST))


def _as_names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _close(name: str, known: Sequence[str]) -> str:
    close = near_miss(name, known)
    return f"did you mean {close}?" if close else f"known: {', '.join(list(known)[:12])}"
