"""Make a selection, the rows that a head trains and is judged on, and open it again.

A selection is a folder ``selections/<name>/`` with two files that are written once and together: ``rows.parquet`` (one
row per window, first bin and experiment) and ``selection.json`` (config, SQL, counts, what was held out, leaks). The
same store and config give the same bytes in ``rows.parquet``.

Columns of ``rows.parquet``: row BIGINT, window INTEGER, bin SMALLINT (first bin, counted in the window; a row may go on
into the next window), n_bins SMALLINT, experiment INTEGER, factor INTEGER, context INTEGER (the biotype's id), label
TINYINT[] (1, 0, -1 not labelled), weight FLOAT, read_value FLOAT, split VARCHAR, kind VARCHAR, holdout VARCHAR,
fold_place, fold_factor, fold_biotype TINYINT (-1 for none).

A selection with folds serves all of them: ``Selection.open(store, "cv@2")`` is fold 2 of ``cv`` and looks, to whoever
trains on it or evaluates it, like any other selection. What is in fold 2 validates, the rest trains, test stays test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, Int64

from tfbind_store import config as configs
from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError, SelectionError, SqlError
from tfbind_store.names import near_miss, path_safe_name
from tfbind_store.query import describe, leaks, negatives, places, reads, row_leaks, rowfile, rows, splits, trunks
from tfbind_store.query.declared import declared_signals
from tfbind_store.query.folds import NO_FOLD
from tfbind_store.query.kinship import Kinship, identities
from tfbind_store.query.labels import LabelRule
from tfbind_store.query.similarity import ParalogFinder
from tfbind_store.query.splits import SplitConfig
from tfbind_store.query.stretches import bin_spans
from tfbind_store.store.folder import Store

FORMAT_VERSION = 1
ROWS_FILE, INFO_FILE = "rows.parquet", "selection.json"
MAX_JITTER = 0.25
EVERYTHING = "TRUE"
ANCHOR_COLUMNS = ("experiment_id", "window_id", "bin", "score")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What to select."""

    where: str = ""
    """SQL condition on the view `peaks` that chooses the positives; empty means every peak."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values of ``$name`` in `where`."""
    negatives: tuple[str, ...] = ("random:1", "scoped:1")
    """Kinds of negatives and how many of each per positive."""
    n_bins: int = 1
    """Bins per row."""
    rule: str = "summit"
    """Which bins a peak binds: ``summit``, or ``overlap:0.5``."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """What is kept apart from training."""
    margin_bp: int = 512
    """Negatives keep this far from the experiment's own peaks, its relaxed peaks and blacklists: of rows of several
    bins the middle one does, which is the negative; no bin of them is bound."""
    jitter: float = MAX_JITTER
    """How far a row's centre may lie from its summit or negative bin, as a share of its bins; at most a quarter."""
    sample: float = 1.0
    """Share of the positives to take, chosen by the seed."""
    max_positives: int = 0
    """At most so many positives per experiment in each split (and fold) of the places; 0 means all."""
    balance: tuple[str, ...] = ()
    """Weigh rows so that each ``factor``, each ``biotype``, or each pair of both has the same total in a split."""
    kind_weights: Mapping[str, Any] = field(default_factory=dict)
    """Weights by kind of row, ``{"random": 0.5}``; 1 where not given."""
    factors_need_protein: bool = True
    """Leave out experiments whose factor has no sequence, counted."""
    allow_leaks: tuple[str, ...] = ()
    """Kinds of leaks that are accepted, and of kinship that holding out shall not follow; recorded in the selection."""
    signals: str = ""
    """Array of signals, such as accessibility by biotype, that training and evaluation give beside the embeddings."""
    windows: tuple[str, ...] = ()
    """Arrays of windows that will be read, embedded or not yet: what their trunks have seen is looked at; all if empty.
    Training looks at those of its own array in any case."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        if self.n_bins < 1 or self.margin_bp < 0 or self.max_positives < 0:
            raise ConfigError("n_bins must be at least 1, margin_bp and max_positives at least 0", where="selection")
        if not 0 <= self.jitter <= MAX_JITTER or not 0 < self.sample <= 1:
            raise ConfigError(f"jitter must be 0 to {MAX_JITTER}, sample above 0 and at most 1", where="selection")
        for name in self.balance:
            if name not in rows.BALANCE_COLUMNS:
                fix = f"one or both of {', '.join(rows.BALANCE_COLUMNS)}"
                raise ConfigError(f"cannot balance by {name!r}", where="selection.balance", fix=fix)
        for kind, weight in self.kind_weights.items():
            if kind not in rows.KINDS or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                fix = f"a number from 0 on for {', '.join(rows.KINDS)}"
                raise ConfigError(f"weight {weight!r} of {kind!r}", where="selection.kind_weights", fix=fix)

    def choices(self) -> rows.RowChoices:
        """Return what decides the rows, texts parsed."""
        return rows.RowChoices(
            rule=LabelRule.parse(self.rule),
            negatives=tuple(negatives.parse_rule(text) for text in self.negatives),
            n_bins=self.n_bins,
            margin_bp=self.margin_bp,
            jitter=self.jitter,
            sample=self.sample,
            max_positives=self.max_positives,
            balance=tuple(sorted(set(self.balance))),
            kind_weights={kind: float(weight) for kind, weight in self.kind_weights.items()},
            seed=self.seed,
        )


class SelectionReport(NamedTuple):
    """What `make_selection` made."""

    name: str
    path: Path
    n_rows: int
    info: dict[str, Any]
    """All of ``selection.json``: totals, counts, dropped, shortfall, held_out, leaks, notes."""


def make_selection(
    store: Store, name: str, config: SelectionConfig | None = None, *, overwrite: bool = False
) -> SelectionReport:
    """Choose rows and write them to ``selections/<name>/``.

    Parameters
    ----------
    overwrite
        Replace a selection of this name.

    Raises
    ------
    SelectionError
        If nothing is left, a name is unknown, or the selection exists.
    LeakError
        If training rows hold what is held out in a way that `allow_leaks` does not name.
    """
    config = config or SelectionConfig()
    choices = config.choices()
    folder = _free_folder(store, name, overwrite=overwrite)
    if config.n_bins > store.grid.n_bins:
        raise SelectionError(
            f"{config.n_bins} bins per row, a window has {store.grid.n_bins}",
            where=f"selection {name}",
            fix="ask for fewer: --bins",
        )
    with store.reader() as catalog:
        kinds = {rule.kind for rule in choices.negatives}
        evidence = rows.gather(store, catalog, with_gc="gc" in kinds, with_listed="listed" in kinds)
        chosen = choose(catalog, evidence, config)
        kinship = load_kinship(store, catalog, config.split.identity)
        known_trunks = trunks.read_trunks(store, catalog)
        own = trunks.trunk_named(known_trunks, config.split.trunk) if config.split.trunk else None
        looked_at = trunks.looked_at(known_trunks, config.windows)
        parts = splits.resolve(
            config.split,
            tiling=store.tiling,
            aliases=store.meta.aliases,
            experiments=chosen.experiments,
            kinship=kinship,
            seed=config.seed,
            loci=reads.loci(catalog, config.split.loci) if config.split.loci else own and own.loci,
            trunk=own and own.trained_on,
            allow_leaks=config.allow_leaks,
        )
        parts = _for_all(parts, evidence.experiments, chosen.experiments)
        built = rows.build(evidence, chosen.anchors, chosen.unbound, parts, choices)
        built = row_leaks.without_overlap(evidence, built) if config.split.overlap == "drop" else built
        _require_rows(built, name)
        found = row_leaks.find_row_leaks(store, evidence, built.rows, parts.n_folds, kinship, looked_at.trunks)
        leaks.refuse(found, config.allow_leaks, where=f"selection {name}")
        biotypes = chosen.experiments["biotype"].tolist()
        notes = [*chosen.notes, *looked_at.notes, *trunks.silent_notes(looked_at.trunks)]
        info = {
            **_origin(store, catalog, name, config, chosen.sql),
            **describe.describe(
                evidence, built, parts, found, chosen.dropped, notes, chosen.experiments["experiment_id"]
            ),
            "signals": declared_signals(store, catalog, config.signals, biotypes, where=f"selection {name}"),
        }
        _write(catalog, folder, evidence, built.rows, info)
    for leak in found:
        _log.warning("selection %s: allowed: %s", name, leaks.sentence(leak))
    for cause, lost in info["dropped"].items():
        _log.info("selection %s: %d positives left out: %s", name, lost, cause)
    return SelectionReport(name, folder, info["rows"], info)


def load_kinship(store: Store, catalog: Catalog, identity: float) -> Kinship:
    """Read who is kin to whom; paralogs are looked for when somebody asks."""
    synonyms = reads.synonyms(catalog)
    finder = ParalogFinder(reads.proteins(catalog), least=identity, cache=store.cache_dir())
    return Kinship(
        factors=identities(reads.subunits(catalog), synonyms),
        synonyms=synonyms,
        domains=reads.domains(catalog),
        find_paralogs=finder,
        find_families=finder.families,
    )


def _origin(store: Store, catalog: Catalog, name: str, config: SelectionConfig, sql: str) -> dict[str, Any]:
    """Return what the rows were made from: with a store of the same inputs, the config makes them again."""
    return {
        "format": FORMAT_VERSION,
        "name": name,
        "config": configs.to_mapping(config),
        "sql": sql,
        "genome": store.meta.genome,
        "grid": {"window_bp": store.grid.window_bp, "n_bins": store.grid.n_bins, "bin_bp": store.grid.bin_bp},
        "inputs": [list(row) for row in catalog.rows("SELECT kind, sha256 FROM data.sources ORDER BY source_id")],
    }


class Chosen(NamedTuple):
    """What the user's WHERE chose."""

    experiments: Columns
    anchors: rows.Anchors
    unbound: np.ndarray
    """Ids of chosen experiments without a peak."""
    sql: str
    dropped: dict[str, int]
    notes: list[str]


def choose(catalog: Catalog, evidence: rows.Evidence, config: SelectionConfig) -> Chosen:
    """Apply the WHERE: peaks become anchors, experiments without any peak are kept where it can be said of them."""
    condition = config.where.strip() or EVERYTHING
    table, notes = evidence.experiments, []
    ids = table["experiment_id"].astype(np.int64)
    found = _chosen_peaks(catalog, evidence, condition, config.params)
    place = np.searchsorted(ids, found.experiment_id)
    empty = np.flatnonzero(table["n_peaks"] == 0)
    if condition != EVERYTHING and len(empty):
        try:
            named = catalog.untrusted_where("experiments", condition, dict(config.params), columns=("experiment_id",))
            empty = np.intersect1d(empty, np.searchsorted(ids, named["experiment_id"]))
        except SqlError:
            empty = empty[:0]
            notes.append("the condition is about peaks: experiments without any peak are left out")
    dropped: dict[str, int] = {}
    present = np.bincount(place, minlength=table.n) > 0
    if config.factors_need_protein:
        protein = table["has_protein"].astype(bool)
        if not protein[present].all():
            keep = protein[place]
            dropped["factor_without_protein"] = int((~keep).sum())
            found = rows.Anchors(*(column[keep] for column in found))
        empty, present = empty[protein[empty]], present & protein
    kept = np.union1d(np.flatnonzero(present), empty)
    experiments = Columns({key: column[kept] for key, column in table.items()})
    sql = f"SELECT {', '.join(ANCHOR_COLUMNS)} FROM peaks WHERE (\n{condition}\n)"
    return Chosen(experiments, found, ids[empty], sql, dropped, notes)


def _chosen_peaks(catalog: Catalog, evidence: rows.Evidence, condition: str, params: Mapping[str, Any]) -> rows.Anchors:
    """Return the summits' bins of the peaks that a condition keeps; where it keeps all, they are read already."""
    n_bins = evidence.tiling.grid.n_bins
    if condition == EVERYTHING:
        spans = bin_spans(
            evidence.tiling, evidence.peaks.chrom_id, evidence.peaks.summit_bp, evidence.peaks.summit_bp + 1
        )
        return rows.Anchors(evidence.peaks.experiment_id.astype(np.int64), spans.first, evidence.score)
    peaks = catalog.untrusted_where(
        "peaks", condition, dict(params), columns=ANCHOR_COLUMNS, distinct=False, seconds=600, memory="2GB"
    )
    address = peaks["window_id"].astype(np.int64)
    address *= n_bins
    address += peaks["bin"]
    return rows.Anchors(peaks["experiment_id"].astype(np.int64), address, peaks["score"].astype(np.float32))


class Selection:
    """A selection that was written; use `open`."""

    def __init__(self, store: Store, name: str, info: dict[str, Any], *, fold: int | None = None) -> None:
        self.store = store
        self.base_name = name
        """Name without the fold."""
        self.name = name if fold is None else f"{name}@{fold}"
        self.fold = fold
        """Number of the open fold, None where the selection is open as a whole."""
        self.n_folds: int = info["folds"]["n"]
        self._whole = info
        self.info = info if fold is None else {**info, **info["folds"]["each"][fold]}
        """All of ``selection.json``; with a fold open, what it says of rows is said of that fold."""
        self.config = configs.from_mapping(SelectionConfig, info["config"], where=f"selection {name}")
        self.path = Path(store.selection_dir(name)) / ROWS_FILE
        self.n_bins = self.config.n_bins

    @classmethod
    def open(cls, store: Store, name: str, *, fold: int | None = None) -> Selection:
        """Open a selection of a store, or one of its folds, and check that its rows are those that were written.

        Parameters
        ----------
        name
            ``cv``, or ``cv@2`` for fold 2 of it.
        fold
            The same, as a number from 0 on.

        Raises
        ------
        SelectionError
            If there is none of this name or no such fold, it belongs to another genome or grid, or its rows were
            changed.
        """
        name, fold = _fold_in(name, fold)
        folder = Path(store.selection_dir(path_safe_name(name)))
        if not (folder / INFO_FILE).is_file():
            close = near_miss(name, list(store.selections()))
            fix = f"did you mean {close}?" if close else f"make it: tfbind select {store.path} {name}"
            raise SelectionError(f"no selection {name!r}", where=str(folder), fix=fix)
        try:
            info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
            fits = (info["genome"], info["grid"]["n_bins"], info["grid"]["bin_bp"]) == (
                store.meta.genome,
                store.grid.n_bins,
                store.grid.bin_bp,
            )
            digest, version, n_folds = info["rows_sha256"], info["format"], info["folds"]["n"]
        except (ValueError, KeyError, TypeError) as error:
            fix = f"select again: tfbind select {store.path} {name} --overwrite"
            raise SelectionError("selection.json cannot be read", where=str(folder), fix=fix) from error
        if version != FORMAT_VERSION:
            raise SelectionError(f"selection of format {version}, this version reads {FORMAT_VERSION}", where=name)
        if not fits:
            raise SelectionError("selection of another genome or grid", where=str(folder), fix="select again")
        if rowfile.sha256_of(folder / ROWS_FILE) != digest:
            raise SelectionError("rows.parquet is not what selection.json says", where=str(folder), fix="select again")
        if fold is not None and not 0 <= fold < n_folds:
            fix = f"one of 0 to {n_folds - 1}" if n_folds else "give tfbind select --folds to have some"
            raise SelectionError(f"no fold {fold}: the selection has {n_folds}", where=f"selection {name}", fix=fix)
        return cls(store, name, info, fold=fold)

    def folds(self) -> list[Selection]:
        """Return every fold of the selection, opened; none where it has no folds."""
        return [Selection(self.store, self.base_name, self._whole, fold=fold) for fold in range(self.n_folds)]

    def place_parts(self) -> Int8[np.ndarray, " bins"]:
        """Return the part of each global bin's place: 0 train, 1 valid, 2 test, -1 none; as the open fold has it."""
        found = places.from_stretches(self.store.tiling, self.info["places"])
        if self.fold is None:
            return found.part
        part: Int8[np.ndarray, " bins"] = np.where(found.fold == self.fold, np.int8(splits.VALID), found.part)
        return part

    def bins(self, split: str) -> Int64[np.ndarray, " n"]:
        """Return the global bins of the places of one split: chromosomes, loci, or what of them a fold leaves."""
        return np.flatnonzero(self.place_parts() == splits.SPLITS.index(split)).astype(np.int64)

    @property
    def held_out(self) -> dict[str, list[str]]:
        """Names that training has not seen, by ``factors``, ``biotypes`` and ``chromosomes``."""
        found: dict[str, list[str]] = self.info["unseen"]
        return found

    def require_training_rows(self) -> None:
        """Refuse a selection that nothing can be trained on.

        Raises
        ------
        SelectionError
            If it has no training rows.
        """
        if not self.trained_on["chromosomes"]:
            fix = "select again and leave training some chromosomes, factors and biotypes"
            raise SelectionError("the selection has no training rows", where=f"selection {self.name}", fix=fix)

    def leaks_to(self, array: str) -> list[Mapping[str, Any]]:
        """Return what leaks to a model that reads an array.

        What the selection names, but for other arrays' trunks, and what the array's own has seen if it came later.
        """
        others = [name for name in self.store.array_names() if name != array]
        named = [leak for leak in self.info["leaks"] if not any(leaks.is_of_trunk(leak, other) for other in others)]
        return [*named, *(leak._asdict() for leak in self.trunk_leaks(array))]

    def trunk_leaks(self, array: str) -> list[leaks.Leak]:
        """Return what the trunk of an array has seen of what is held out, where the selection does not say so itself.

        The array may have come after the selection was made, or not be one that it was made for. An array that does not
        say what its trunk was trained on is judged by the trunks that were imported. Of a chromosome that the split
        divides nothing is said.
        """
        own = self.trained_on
        unseen = {key: [name for name in names if name not in own[key]] for key, names in self.held_out.items()}
        with self.store.reader() as catalog:
            kinship = load_kinship(self.store, catalog, self.config.split.identity)
            concerned = trunks.looked_at(trunks.read_trunks(self.store, catalog), (array,)).trunks
        knows_places = any(trunk.loci is not None for trunk in concerned)
        bins = self._unseen_bins() if knows_places else np.empty(0, dtype=np.int64)
        found = trunks.find_trunk_leaks(self.store, concerned, unseen, bins, kinship, fold=self.fold)
        said = {(leak["kind"], leak["shared"], leak["fold"]) for leak in self.info["leaks"]}
        return [leak for leak in found if (leak.kind, leak.shared, leak.fold) not in said]

    def _unseen_bins(self) -> Int64[np.ndarray, " n"]:
        """Return the middle bins of rows whose place is held out."""
        rows = self.columns(names=("window", "bin", "n_bins", "holdout"))
        at = rows["window"].astype(np.int64) * self.store.grid.n_bins + rows["bin"] + rows["n_bins"] // 2
        unseen_places = [name for code, name in enumerate(splits.HOLDOUTS) if code & 1]
        held: Int64[np.ndarray, " n"] = at[np.isin(rows["holdout"], unseen_places)]
        return held

    def require_unseen_by(self, array: str) -> None:
        """Refuse an array whose trunk has seen what is held out.

        Raises
        ------
        LeakError
            If it has, and leaks by trunks are not allowed; of a fold a warning is enough.
        """
        found = self.trunk_leaks(array)
        if self.fold is None:
            leaks.refuse(found, self.config.allow_leaks, where=f"selection {self.name}")
        for leak in found:
            _log.warning("selection %s: %s", self.name, leaks.sentence(leak))

    @property
    def trained_on(self) -> dict[str, list[str]]:
        """Names in training rows, by ``factors``, ``biotypes``, ``chromosomes`` and ``experiments``."""
        found: dict[str, list[str]] = self.info["parts"]["train"]
        return found

    def columns(self, split: str | None = None, *, names: Sequence[str] = ()) -> Columns:
        """Return columns of the rows of one split, or of all, in file order; ``label`` as int8 [rows, n_bins]."""
        with self.store.reader() as catalog:
            return rowfile.read_rows(catalog, self.path, n_bins=self.n_bins, split=split, names=names, fold=self.fold)


def _fold_in(name: str, fold: int | None) -> tuple[str, int | None]:
    """Take ``cv@2`` apart."""
    base, at, number = name.rpartition("@")
    if not at:
        return name, fold
    if not number.isdecimal() or (fold is not None and fold != int(number)):
        raise SelectionError(f"no fold {number!r}", where=f"selection {name}", fix=f"write {base}@0 for its first fold")
    return base, int(number)


def _for_all(parts: splits.Parts, every: Columns, chosen: Columns) -> splits.Parts:
    """Return parts for all experiments; those that were not chosen have no rows, their part does not matter."""
    place = np.searchsorted(every["experiment_id"], chosen["experiment_id"])

    def spread(mine: np.ndarray, rest: int) -> np.ndarray:
        whole = np.full(every.n, rest, dtype=np.int8)
        whole[place] = mine
        return whole

    return parts._replace(
        factor=spread(parts.factor, splits.TRAIN),
        biotype=spread(parts.biotype, splits.TRAIN),
        factor_fold=spread(parts.factor_fold, NO_FOLD),
        biotype_fold=spread(parts.biotype_fold, NO_FOLD),
    )


def _require_rows(built: rows.Built, name: str) -> None:
    if not (built.rows.kind == 0).any():
        lost = ", ".join(f"{n:,} {cause}" for cause, n in built.dropped.items()) or "no peak meets the condition"
        raise SelectionError(f"no positive row is left ({lost})", where=f"selection {name}", fix="widen the condition")


def _free_folder(store: Store, name: str, *, overwrite: bool) -> Path:
    folder = Path(store.selection_dir(path_safe_name(name)))
    if folder.exists() and not overwrite:
        raise SelectionError(
            f"there is a selection {name!r} already", where=str(folder), fix="choose another name, or --overwrite"
        )
    return folder


def _write(catalog: Catalog, folder: Path, evidence: rows.Evidence, table: rows.RowTable, info: dict[str, Any]) -> None:
    """Write both files into a new folder and put it in place."""
    with rowfile.new_folder(folder) as temporary:
        path = temporary / ROWS_FILE
        rowfile.write_rows(catalog, path, evidence, table)
        info["rows_sha256"] = rowfile.sha256_of(path)
        (temporary / INFO_FILE).write_text(json.dumps(info, indent=1, sort_keys=True) + "\n", encoding="utf-8")
