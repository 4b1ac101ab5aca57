"""What a run has seen and what not: which experiments are scored on which bins, by kind of hold-out.

What was trained on is what the checkpoint's header says, never what somebody remembers. Every labelled bin of the test
places counts; an experiment whose factor or biotype was held out is also scored on the training places, where its DNA
but not its binding was seen.
"""

# k bins · e experiments of a group

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8, Int64

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError
from tfbind_store.evaluation import baselines
from tfbind_store.feeding.feed import Experiments
from tfbind_store.heads import CheckpointHeader
from tfbind_store.names import near_miss
from tfbind_store.query import rows, splits
from tfbind_store.query.labels import Truth
from tfbind_store.query.selection import Selection, load_kinship
from tfbind_store.store.folder import Store

FAMILY = "unseen_family"
"""In place of ``unseen_factor`` where no relative was in training either."""


class Group(NamedTuple):
    """Experiments that are scored on the same bins with the same kind of hold-out."""

    holdout: str
    chroms: tuple[str, ...]
    is_seen_place: bool
    """Whether the bins lie where training was."""
    places: Int64[np.ndarray, " e"]
    """Of the experiments in the world's table."""


class World(NamedTuple):
    """What is known about all experiments."""

    table: Columns
    experiments: Experiments
    truth: Truth
    proteins: Mapping[int, baselines.FactorProtein]
    accessions: Mapping[int, frozenset[str]]
    part: Int8[np.ndarray, " bins"]
    """Of every bin of the genome: 0 where training was, else as the selection says (1 valid, 2 test, -1 none)."""
    trained: Mapping[str, frozenset[str]]
    """Names of factors, biotypes, chromosomes and experiments that the run was trained on."""
    unrelated: frozenset[str]
    """Factors of whose family training has seen nobody, where the selection held out families."""

    def is_trained(self, place: int) -> tuple[bool, bool]:
        """Return whether the run has seen an experiment's factor, and its biotype."""
        factor, biotype = (str(self.table[name][place]) for name in ("factor", "biotype"))
        return factor in self.trained["factors"], biotype in self.trained["biotypes"]

    @property
    def training(self) -> Int64[np.ndarray, " t"]:
        """Places of the experiments that the run was trained on."""
        names = self.table["experiment"].tolist()
        known = [name in self.trained["experiments"] and all(self.is_trained(at)) for at, name in enumerate(names)]
        return np.flatnonzero(known)


def read_world(store: Store, selection: Selection, header: CheckpointHeader) -> World:
    """Read experiments, labels, proteins, and what the run was trained on."""
    with store.reader() as catalog:
        evidence = rows.gather(store, catalog)
        proteins = baselines.factor_proteins(catalog)
        trained = {key: frozenset(map(str, names)) for key, names in header.trained_on.items()}
        factors = evidence.experiments["factor"].tolist()
        unrelated = _unrelated(store, catalog, selection, factors, trained["factors"])
        named = catalog.rows(
            "SELECT s.factor_id, p.accession FROM data.factor_subunits s JOIN data.proteins p USING (protein_id)"
        )
    accessions: dict[int, frozenset[str]] = {}
    for factor_id, accession in named:
        accessions[int(factor_id)] = accessions.get(int(factor_id), frozenset()) | {str(accession)}
    table = evidence.experiments
    experiments = Experiments(*(table[name].astype(np.int64) for name in Experiments._fields))
    # older headers do not name experiments: all of the selection's training part whose factor and biotype they name
    trained.setdefault("experiments", frozenset(selection.trained_on["experiments"]))
    truth = evidence.truth(selection.config.choices().rule)
    part = _parts(store, selection, trained["chromosomes"])
    return World(table, experiments, truth, proteins, accessions, part, trained, unrelated)


def _parts(store: Store, selection: Selection, trained_chroms: frozenset[str]) -> Int8[np.ndarray, " bins"]:
    """Return the part of every bin of the genome: where the selection trains and the run has seen the chromosome."""
    part = selection.place_parts().copy()
    for number, chrom in enumerate(store.tiling.chroms):
        bins = store.tiling.global_bins(number)
        own = part[bins]
        if chrom not in trained_chroms:  # nobody was looked at there, so that no row came of it
            own[own == splits.TRAIN] = splits.UNUSED
        elif not (own == splits.TRAIN).any():  # a run of another selection of this name has seen all of it
            own[:] = splits.TRAIN
        part[bins] = own
    return np.asarray(part)


def _unrelated(
    store: Store, catalog: Catalog, selection: Selection, factors: Sequence[str], trained: frozenset[str]
) -> frozenset[str]:
    """Return the factors without a trained relative, where the selection kept families together; else none."""
    split = selection.config.split
    asked = {*split.hold_out, *(rule.partition(":")[0] for rule in split.hold_out_random)}
    if not asked & {"family", "domain"} and not (split.folds and "family" in split.fold_by):
        return frozenset()
    names = sorted({*factors, *trained})
    family = load_kinship(store, catalog, split.identity).groups(names, by_family=True)
    known = {family[name] for name in trained}
    return frozenset(name for name in names if family[name] not in known)


def choose_groups(
    store: Store, selection: Selection, world: World, *, chroms: Sequence[str] = (), factors: Sequence[str] = ()
) -> list[Group]:
    """Return what is scored where.

    Parameters
    ----------
    chroms
        All bins of these chromosomes, seen or not; default the test places, for what was held out training ones too.
    factors
        Only these; default all with test rows.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    asked = _chosen_chroms(store, chroms)
    tested = selection.info["parts"]["test"]["experiments"]
    holds = _chroms_by_kind(store, world, asked)
    groups: dict[tuple[str, tuple[str, ...], bool], list[int]] = {}
    for place in _chosen_experiments(world, tested, factors):
        labelled = world.truth.labelled[place]
        for is_seen_place, candidates in holds.items():
            own = tuple(chrom for chrom in candidates if labelled[store.tiling.chrom_index[chrom]])
            if own and (asked or not is_seen_place or not all(world.is_trained(place))):
                holdout = _holdout(world, place, unseen_place=not is_seen_place)
                groups.setdefault((holdout, own, is_seen_place), []).append(place)
    return [Group(*key, np.array(places)) for key, places in sorted(groups.items())]


def bins_of(store: Store, world: World, group: Group, *, whole: bool) -> Int64[np.ndarray, " k"]:
    """Return the bins that a group is scored on, in genome order; `whole` takes validation and unused places too."""
    bins = np.concatenate([store.tiling.global_bins(store.tiling.chrom_index[chrom]) for chrom in group.chroms])
    part = world.part[bins]
    wanted = part == splits.TRAIN if group.is_seen_place else (part != splits.TRAIN if whole else part == splits.TEST)
    return np.asarray(bins[wanted])


def _chroms_by_kind(store: Store, world: World, asked: Sequence[str]) -> dict[bool, list[str]]:
    """Return the chromosomes with unseen places (False) and with seen ones (True) that may be scored."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for number, chrom in enumerate(store.tiling.chroms):
        if asked and chrom not in asked:
            continue
        part = world.part[store.tiling.global_bins(number)]
        if (part != splits.TRAIN).any() if asked else (part == splits.TEST).any():
            found[False].append(chrom)
        if (part == splits.TRAIN).any():
            found[True].append(chrom)
    return found


def _holdout(world: World, place: int, *, unseen_place: bool) -> str:
    seen_factor, seen_biotype = world.is_trained(place)
    holdout = splits.HOLDOUTS[int(unseen_place) + 2 * int(not seen_factor) + 4 * int(not seen_biotype)]
    if world.table["factor"][place] in world.unrelated:
        holdout = holdout.replace("unseen_factor", FAMILY)
    return holdout


def _chosen_chroms(store: Store, names: Sequence[str]) -> list[str]:
    chosen = [store.meta.aliases.get(name, name) for name in names]
    for chrom in chosen:
        if chrom not in store.tiling.chroms:
            close = near_miss(chrom, list(store.tiling.chroms))
            fix = f"did you mean {close}?" if close else f"known: {', '.join(store.tiling.chroms)}"
            raise ConfigError(f"no chromosome {chrom!r} in this genome", where="evaluate.chroms", fix=fix)
    return chosen


def _chosen_experiments(world: World, tested: Sequence[str], factors: Sequence[str]) -> list[int]:
    known = world.table["factor"].tolist()
    for factor in factors:
        if factor not in known:
            close = near_miss(factor, known)
            fix = f"did you mean {close}?" if close else ""
            raise ConfigError(f"no factor {factor!r} in this store", where="evaluate.factors", fix=fix)
    wanted, names = set(factors), set(tested)
    return [
        place
        for place, (experiment, factor) in enumerate(zip(world.table["experiment"].tolist(), known, strict=True))
        if (factor in wanted if wanted else experiment in names)
        and int(world.experiments.factor_id[place]) in world.proteins
    ]


def label_column(
    truth: Truth, experiment_id: int, bins: Int64[np.ndarray, " k"], *, at_once: int = 1_000_000
) -> np.ndarray:
    """Return 1, 0 or NaN for bins of one experiment; a genome's bins are labelled piece by piece, to save memory."""
    parts = [truth.labels(experiment_id, bins[at : at + at_once]) for at in range(0, len(bins), at_once)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def first_of_runs(values: np.ndarray) -> Bool[np.ndarray, " k"]:
    """Return where a value differs from the one before."""
    is_first = np.ones(len(values), dtype=bool)
    is_first[1:] = values[1:] != values[:-1]
    return is_first
