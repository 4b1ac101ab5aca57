"""Import metadata: of experiments (a table, or ReMap's experiments.json) and of biotypes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store.catalog.database import Catalog
from tfbind_store.contexts import DEFAULT_TEMPLATE, check_template, metadata_for, read_biotypes
from tfbind_store.errors import InputFileError, NameParseError
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.naming import COLUMN_WORDS, column_of, experiment_name
from tfbind_store.ingest.registry import (
    Names,
    as_json,
    biotype_metadata,
    ensure_biotypes,
    ensure_experiments,
    ids_of,
    write_contexts,
)
from tfbind_store.ingest.retraction import take_back_replaced
from tfbind_store.ingest.sources import FileIdentity, ImportReport, add_source, check_strict, earlier_import, some
from tfbind_store.store.folder import Store
from tfbind_store.textfiles import read_chunks, read_table


class _Row(NamedTuple):
    """What a file says about one or more experiments."""

    line: int
    name: str | None
    """The experiment, where the row names it in full."""
    parts: dict[str, str]
    """accession, factor, biotype, as far as given."""
    metadata: dict[str, str]
    peaks_nr: int | None
    assembly: str | None
    source: str | None


class _Stored(NamedTuple):
    """An experiment of the catalog, by which a row that names only parts of it can find it."""

    experiment: str
    accession: str
    biotype: str
    base_biotype: str
    factors: frozenset[str]


@recorded
def import_experiments(
    store: Store,
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    biotype: str | None = None,
    source: str | None = None,
    strict: bool = False,
) -> ImportReport:
    """Import metadata of experiments.

    Parameters
    ----------
    store
        Where to.
    path
        CSV or TSV with a column ``experiment`` (ACCESSION.FACTOR.BIOTYPE) or with some of ``accession``, ``factor``,
        ``biotype``, ``treatment``, which must fit; ``peaks_nr``, ``assembly`` and all other columns are kept. Or
        ReMap's ``experiments.json``, for ``peaks_nr``.
    columns
        Which columns these are, where they are called something else; ``{"accession": ""}``: there is none.
    biotype
        For all rows of a table without a biotype.
    source
        Peak file imported before (its path or name) that covered these experiments too: an experiment that is not in
        the store is then added, without peaks but labelled where that file has looked. A column ``source`` does the
        same row by row. Without it, such rows are dropped and counted.
    strict
        Refuse to drop anything.

    Raises
    ------
    InputFileError
        If the file is no such table, no row of it is of an experiment in the store, or no import of `source` is known.
    """
    path = Path(path)
    rows = list(_json_rows(path) if _is_json(path) else _table_rows(path, columns or {}, biotype))
    brought = sorted({column for row in rows for column in row.metadata})
    options = {"columns": dict(columns or {}), "biotype": biotype, "source": source, "brought": brought}
    file = FileIdentity.of("experiments", path, options)
    with store.reader() as catalog:
        earlier = earlier_import(catalog, file)
        # what fitted no experiment then may fit one now: peaks may come after their metadata
        if earlier and earlier.dropped == _match(catalog, rows, source)[1]:
            return earlier
    with store.writer() as catalog, catalog.transaction():
        take_back_replaced(catalog)
        found, dropped, declared = _match(catalog, rows, source)
        _require_any(catalog, path, rows, sum(dropped.values()))
        names = Names(catalog)
        _declare(catalog, names, declared)
        _update(catalog, [*found, *((row, [str(row.name)]) for row, _ in declared)])
        notes = [f"{len(declared)} experiments without peaks were added"] if declared else []
        kept = len(rows) - sum(dropped.values())
        report = ImportReport("experiments", str(path), len(rows), kept, dropped, notes)
        check_strict(report, strict=strict)
        add_source(catalog, file, report)
    return report


def _require_any(catalog: Catalog, path: Path, rows: Sequence[_Row], n_dropped: int) -> None:
    """Refuse a table of which no row fits: a wrong column, or the experiments' peaks are still to come."""
    if n_dropped < len(rows):
        return
    stored = [str(name) for (name,) in catalog.rows("SELECT experiment FROM data.experiments ORDER BY experiment")]
    named = [row.name or " ".join(row.parts.values()) for row in rows]
    raise InputFileError(
        f"none of the {len(rows):,} rows is of an experiment in this store: {some(named, limit=3)}",
        where=str(path),
        fix=f"it has {some(stored, limit=3) or 'none yet'}: --column says which columns name them, "
        "--source adds experiments without peaks",
    )


def _is_json(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".json")


def _json_rows(path: Path) -> Iterator[_Row]:
    """Yield the data sets of ReMap's experiments.json that say how many peaks they have."""
    try:
        value = json.loads(b"".join(read_chunks(path)))
        for experiment in value["experiments"]:
            for dataset in (experiment.get("details") or {}).get("datasets") or []:
                peaks_nr = dataset.get("peaks_NR")
                yield _Row(
                    0, str(dataset["dataset_name"]), {}, {}, None if peaks_nr is None else int(peaks_nr), None, None
                )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        fix = "it holds experiments, each with details, datasets, dataset_name and peaks_NR"
        raise InputFileError(f"not ReMap's experiments.json: {error!r}", where=str(path), fix=fix) from error


def _table_rows(path: Path, columns: Mapping[str, str], biotype: str | None) -> Iterator[_Row]:
    table = read_table(path)
    places = {wanted: column_of(table, wanted, columns) for wanted in COLUMN_WORDS}
    keys = [places[wanted] for wanted in ("experiment", "accession", "factor")]
    if not any(keys):
        fix = f"name it experiment, accession or factor; columns: {', '.join(table.columns)}"
        raise InputFileError("no column names the experiments", where=str(path), fix=fix)
    used = {place for wanted, place in places.items() if wanted != "file"} | {"source", "assembly"}
    for line, cells in table.rows:
        parts = {w: cells[p] for w in ("accession", "factor", "biotype") if (p := places[w]) and p in cells}
        if biotype is not None:
            parts.setdefault("biotype", biotype)
        name = experiment_name(cells, places, biotype)
        if not parts and name is None:
            raise InputFileError("the row names no experiment", where=f"{path}:{line}")
        text = cells.get(places["peaks_nr"] or "")
        if text is not None and not text.isdigit():
            raise InputFileError(f"peaks_nr {text!r} is not a whole number", where=f"{path}:{line}")
        rest = {column: cell for column, cell in cells.items() if column not in used}
        peaks_nr = None if text is None else int(text)
        yield _Row(line, name, parts, rest, peaks_nr, cells.get("assembly"), cells.get("source"))


def _match(
    catalog: Catalog, rows: Iterable[_Row], source: str | None
) -> tuple[list[tuple[_Row, list[str]]], dict[str, int], list[tuple[_Row, int]]]:
    """Return rows with their experiments, rows dropped by cause, and rows that declare a new one with its source."""
    stored = _stored(catalog)
    by_name = {item.experiment for item in stored}
    by_factor: dict[str, list[_Stored]] = defaultdict(list)
    for item in stored:
        for factor in item.factors:
            by_factor[factor].append(item)
    found: list[tuple[_Row, list[str]]] = []
    declared: list[tuple[_Row, int]] = []
    dropped: dict[str, int] = {}
    names = Names(catalog)
    for row in rows:
        if row.name in by_name:
            found.append((row, [str(row.name)]))
        elif row.name is not None and (row.source or source):
            declared.append((row, _source_id(catalog, str(row.source or source))))
        elif fitting := _fitting(row, names, by_factor, stored):
            found.append((row, fitting))
        else:
            dropped["no_such_experiment"] = dropped.get("no_such_experiment", 0) + 1
    return found, dropped, declared


def _stored(catalog: Catalog) -> list[_Stored]:
    rows = catalog.rows(
        "SELECT experiment, accession, biotype, base_biotype, factor FROM data.experiments"
        " JOIN data.factors USING (factor_id) JOIN data.biotypes USING (biotype_id) ORDER BY experiment"
    )
    names = Names(catalog)
    return [
        _Stored(str(e), str(a), str(b), str(base), frozenset({str(f), names.experiment(str(e)).factor}))
        for e, a, b, base, f in rows
    ]


def _fitting(row: _Row, names: Names, by_factor: Mapping[str, list[_Stored]], stored: Iterable[_Stored]) -> list[str]:
    """Return the experiments that have every part that the row gives."""
    if not row.parts:
        return []
    candidates: Iterable[_Stored] = stored
    if factor := row.parts.get("factor"):
        candidates = by_factor.get(factor) or by_factor.get(names.factor(factor).factor) or []
    accession, biotype = row.parts.get("accession"), row.parts.get("biotype")
    return [
        item.experiment
        for item in candidates
        if accession in (None, item.accession) and biotype in (None, item.biotype, item.base_biotype)
    ]


def _source_id(catalog: Catalog, named: str) -> int:
    rows = catalog.rows("SELECT source_id, path FROM data.sources WHERE kind = 'peaks' ORDER BY source_id DESC")
    for source_id, path in rows:
        if named == path or named == Path(str(path)).name:
            return int(source_id)
    known = [Path(str(path)).name for _, path in rows]
    raise InputFileError(f"no peak file {named!r} was imported", where="source", fix=f"imported: {some(known)}")


def _declare(catalog: Catalog, names: Names, declared: Iterable[tuple[_Row, int]]) -> None:
    """Add experiments without peaks, labelled where their source has looked."""
    pairs = [(row, source_id) for row, source_id in declared]
    try:
        parsed = {str(row.name): names.experiment(str(row.name)) for row, _ in pairs}
    except NameParseError as error:
        raise InputFileError(error.what, where="experiments", fix=error.fix) from error
    ids = ensure_experiments(catalog, names, list(parsed.values()))
    links = sorted({(ids[str(row.name)], source_id) for row, source_id in pairs})
    columns = {"experiment_id": [link[0] for link in links], "source_id": [link[1] for link in links]}
    catalog.insert("data.experiment_sources", columns)


def _update(catalog: Catalog, found: Iterable[tuple[_Row, list[str]]]) -> None:
    """Add what rows say to their experiments; several rows' different cells stand side by side."""
    old = {
        str(name): json.loads(text) for name, text in catalog.rows("SELECT experiment, metadata FROM data.experiments")
    }
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    facts: dict[str, dict[str, Any]] = defaultdict(dict)
    for row, experiments in found:
        for name in experiments:
            for column, cell in row.metadata.items():
                if cell not in said[name][column]:
                    said[name][column].append(cell)
            for fact in ("peaks_nr", "assembly"):
                if getattr(row, fact) is not None:
                    facts[name][fact] = getattr(row, fact)
    changed = sorted(said.keys() | facts.keys())
    if not changed:
        return
    new = {name: old[name] | {column: "; ".join(cells) for column, cells in said[name].items()} for name in changed}
    incoming = {
        "experiment": changed,
        "peaks_nr": [facts[name].get("peaks_nr") for name in changed],
        "assembly": [facts[name].get("assembly") for name in changed],
        "metadata": [as_json(new[name]) for name in changed],
    }
    with catalog.registered("import_metadata", incoming):
        catalog.execute(
            "UPDATE data.experiments AS e SET metadata = m.metadata, assembly = coalesce(m.assembly, e.assembly),"
            " peaks_nr = coalesce(m.peaks_nr::INTEGER, e.peaks_nr) FROM import_metadata AS m"
            " WHERE e.experiment = m.experiment"
        )


@recorded
def import_biotypes(
    store: Store, path: Path | str, *, template: str = DEFAULT_TEMPLATE, key: str | None = None, strict: bool = False
) -> ImportReport:
    """Import metadata of biotypes and make their contexts.

    A treated cell type without a row of its own takes that of its cell type. Biotypes that no experiment has are kept
    too: a head may be asked about them. The template holds for biotypes that come later as well.

    Parameters
    ----------
    store
        Where to.
    path
        CSV or TSV with one row per biotype.
    template
        Text with ``{column}`` for cells; see `tfbind_store.contexts`.
    key
        Column that names the biotype, where it is not called so.
    strict
        Refuse to drop anything.

    Raises
    ------
    InputFileError
        If rows contradict each other or name no biotype.
    ConfigError
        If the template asks for a column that is not there.
    """
    path = Path(path)
    file = FileIdentity.of("biotypes", path, {"template": template, "key": key})
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    table = read_biotypes(path, key=key)
    check_template(template, table.columns)
    dropped = {"duplicate": table.n_repeated} if table.n_repeated else {}
    with store.writer() as catalog, catalog.transaction():
        take_back_replaced(catalog)
        catalog.insert("data.meta", {"key": ["context_template"], "value": [template]}, replace=True)
        ids = ensure_biotypes(catalog, (row.biotype for row in table.rows))
        own = {row.biotype: row.metadata for row in table.rows}
        stored = biotype_metadata(catalog)
        merged = {name: metadata_for(name, own) or stored[name] for name in ids_of(catalog, "biotypes", "biotype")}
        incoming = {"biotype": list(merged), "metadata": [as_json(cells) for cells in merged.values()]}
        with catalog.registered("import_metadata", incoming):
            catalog.execute(
                "UPDATE data.biotypes AS b SET metadata = m.metadata FROM import_metadata AS m"
                " WHERE b.biotype = m.biotype"
            )
        catalog.execute("DELETE FROM data.contexts")
        ordered = sorted(merged, key=lambda name: ids[name])
        write_contexts(catalog, {ids[name]: (name, merged[name]) for name in ordered}, template)
        bare = sorted(name for name in merged if not merged[name])
        notes = [f"{len(bare)} biotypes have no metadata: {some(bare)}"] if bare else []
        report = ImportReport("biotypes", str(path), table.n_read, len(table.rows), dropped, notes)
        check_strict(report, strict=strict)
        add_source(catalog, file, report)
    return report
