"""Import peaks: one file whose column 4 names the experiments, or a folder with one file per experiment.

Each file is a source of its own: an experiment is labelled on the chromosomes on which its files have at least one row,
unless the caller says otherwise. Rows whose summit lies in a bin of N only are dropped and counted; bins outside N that
they touch are then ambiguous, not unbound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import NameParseError, PeakFileError
from tfbind_store.ingest.aliases import add_aliases, read_aliases
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.labelling import Labels
from tfbind_store.ingest.naming import FileNames, peak_files
from tfbind_store.ingest.registry import Names, ensure_experiments
from tfbind_store.ingest.retraction import take_back_replaced
from tfbind_store.ingest.rows import MAX_BAD_NAMES, place_rows, refuse_names
from tfbind_store.ingest.sources import (
    FileIdentity,
    ImportReport,
    add_source,
    check_drop,
    check_strict,
    earlier_import,
    some,
)
from tfbind_store.names import ParsedName
from tfbind_store.peaks import CleanFile, PeakFormat, clean_rows
from tfbind_store.store.folder import Store

CAUSE = "ENUM('summit_in_n', 'duplicate', 'already_stored')"


class Options(NamedTuple):
    """How peak files are to be read."""

    relaxed: bool
    format: PeakFormat | None
    drop: frozenset[str]
    labelled_chroms: tuple[str, ...] | None

    def identity(self, name: str | None, aliases: Mapping[str, str]) -> dict[str, object]:
        """Return what decides the meaning of a file's import."""
        return {
            "format": self.format,
            "drop": sorted(self.drop),
            "labelled_chroms": self.labelled_chroms and list(self.labelled_chroms),
            "experiment": name,
            "aliases": dict(aliases),
        }


@recorded
def import_peaks(
    store: Store,
    path: Path | str,
    *,
    relaxed: bool = False,
    format: str | None = None,
    experiment_template: str | None = None,
    experiments_tsv: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    biotype: str | None = None,
    labelled_chroms: Sequence[str] | str | None = None,
    aliases: Mapping[str, str] | Path | str | None = None,
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import peaks.

    Parameters
    ----------
    store
        Where to.
    path
        A BED3 to BED6+, narrowPeak, broadPeak or ReMap file, or a folder of them; .gz too.
    relaxed
        These are lenient calls: near one of them but near no peak, a bin is ambiguous.
    format
        ``bed``, ``narrowpeak``, ``broadpeak`` or ``remap``; default: found out.
    experiment_template
        Makes an experiment's name, ACCESSION.FACTOR.BIOTYPE, from ``{name}`` (column 4), or for a file as a whole from
        its name: ``{stem}``, ``{1}``, ``{2}``, ... (between underscores), ``{accession}`` and ``{factor}`` (the first
        two of these). Without braces it is the name itself.
    experiments_tsv
        For a folder: a table with a row per file, columns ``file``, ``accession``, ``factor``, ``biotype`` (or
        ``experiment``); its other columns become the experiment's metadata. See `FileNames`.
    columns
        Which of the table's columns are these, where they are called something else: ``{"factor": "Target"}``.
    biotype
        For all rows of a table that has no biotype.
    labelled_chroms
        Chromosomes taken as looked at; ``all``; or ``union``: those that any file of the folder has. Default: those on
        which the file itself has a row.
    aliases
        Further names of chromosomes, ``{alias: store's name}`` or a table of two columns; kept in the store.
    drop
        Causes for which rows may be left out instead of refused: ``unknown_chromosome``, ``beyond_end``, ``bad_line``,
        ``bad_name``.
    strict
        Refuse to drop anything, rows in N too.

    Returns
    -------
    Rows read, kept and dropped over all files. Fewer rows are kept than read because of `drop`, because the summit's
    bin holds nothing but N, and because rows repeat each other or what is stored.

    Raises
    ------
    PeakFileError
        If a row cannot be used and may not be dropped: file, line, and counts per cause.
    NameParseError
        If a name is no experiment's.
    StrictError
        If `strict` and something would have been dropped.
    """
    path = Path(path)
    wanted = (labelled_chroms,) if isinstance(labelled_chroms, str) else labelled_chroms
    options = Options(relaxed, _format(format), check_drop(drop), tuple(wanted) if wanted is not None else None)
    more = _read_aliases(aliases)
    files = peak_files(path)
    names = FileNames(path, files, experiment_template, experiments_tsv, columns or {}, biotype)
    kind = "relaxed" if relaxed else "peaks"
    todo = [(file, FileIdentity.of(kind, file, options.identity(names.identity(file), more))) for file in files]
    reports: list[ImportReport] = []
    with store.reader() as catalog:
        done = {file: report for file, identity in todo if (report := earlier_import(catalog, identity))}
    if len(done) < len(todo):
        with store.writer() as catalog, catalog.transaction():
            take_back_replaced(catalog)
            add_aliases(catalog, more)
            importer = _Importer(store, catalog, options, names)
            reports = [importer.run(file, identity) for file, identity in todo if file not in done]
            notes = importer.finish()
            report = _sum(kind, path, [*done.values(), *reports], len(done), notes)
            check_strict(report, strict=strict)
        return report
    return _sum(kind, path, list(done.values()), len(done), [])


def _format(name: str | None) -> PeakFormat | None:
    plain = {"remap9": "remap", "bed3": "bed", "bed6": "bed"}.get((name or "").lower(), (name or "").lower())
    if not plain:
        return None
    if plain not in list(PeakFormat):
        raise PeakFileError(f"no such format: {name!r}", fix=f"one of {', '.join(PeakFormat)}")
    return PeakFormat(plain)


def _read_aliases(aliases: Mapping[str, str] | Path | str | None) -> dict[str, str]:
    return dict(aliases) if isinstance(aliases, Mapping) else read_aliases(aliases) if aliases is not None else {}


def _sum(kind: str, path: Path, reports: Sequence[ImportReport], n_done: int, notes: Sequence[str]) -> ImportReport:
    dropped: Counter[str] = Counter()
    for report in reports:
        dropped.update(report.dropped)
    told = [note for report in reports[n_done:] for note in report.notes]
    if n_done:
        those = "the same file was" if len(reports) == 1 else f"{n_done} of {len(reports)} files were"
        told.insert(0, f"{those} imported before: nothing changed")
    return ImportReport(
        kind,
        str(path),
        sum(report.rows_read for report in reports),
        sum(report.rows_kept for report in reports),
        {cause: count for cause, count in sorted(dropped.items()) if count},
        [*told, *notes],
    )


class _Importer:
    """One import's state: the catalog in its transaction, and what the files said so far."""

    def __init__(self, store: Store, catalog: Catalog, options: Options, names: FileNames) -> None:
        self.store, self.catalog, self.options, self.file_names = store, catalog, options, names
        self.table = "data.relaxed_peaks" if options.relaxed else "data.peaks"
        self.names = Names(catalog)
        self.had_peaks = bool(catalog.one(f"SELECT 1 FROM {self.table} LIMIT 1"))
        self.labels = Labels(catalog, options.labelled_chroms)
        self.n_sources = 0
        self.parsed: set[ParsedName] = set()
        self.empty: list[str] = []

    def run(self, file: Path, identity: FileIdentity) -> ImportReport:
        """Import one file and return its report."""
        clean = clean_rows(file, format=self.options.format)
        fixed = self.file_names.experiment(file)
        if clean.is_empty:
            return self._empty(file, identity, fixed)
        placed = place_rows(self.catalog, clean, drop=self.options.drop, needs_name=fixed is None)
        dropped = dict(placed.bad)
        ids = self._experiments(clean, fixed, dropped)
        self._resolve(ids, fixed, dropped)
        kept = self._count("cause IS NULL")
        report = ImportReport(identity.kind, str(file), clean.n_rows, kept, dropped, [])
        source_id = add_source(self.catalog, identity, report)
        self._store_rows(source_id)
        self._label(source_id, sorted(set(ids.values())))
        return report

    def _empty(self, file: Path, identity: FileIdentity, fixed: str | None) -> ImportReport:
        """Take an empty file as an experiment of which nothing is known, if the file's name says which."""
        if fixed is None or not self.file_names.is_folder:
            raise PeakFileError("the file has no peaks", where=str(file), fix="give a file with at least one row")
        ids = ensure_experiments(
            self.catalog, self.names, [self._parse(fixed)], {fixed: self.file_names.metadata(file)}
        )
        report = ImportReport(identity.kind, str(file), 0, 0, {}, [])
        source_id = add_source(self.catalog, identity, report)
        self.catalog.execute("CREATE OR REPLACE TEMP TABLE import_rows (chrom_id SMALLINT, cause VARCHAR)")
        self._label(source_id, [ids[fixed]])
        self.empty.append(file.name)
        return report

    def _parse(self, name: str) -> ParsedName:
        parsed = self.names.experiment(name)
        self.parsed.add(parsed)
        return parsed

    def _experiments(self, clean: CleanFile, fixed: str | None, dropped: dict[str, int]) -> dict[str, int]:
        """Return the experiment of each name in the file; make those that are new."""
        if fixed is not None:
            metadata = {fixed: self.file_names.metadata(clean.source)}
            return {fixed: ensure_experiments(self.catalog, self.names, [self._parse(fixed)], metadata)[fixed]}
        raw = [str(name) for (name,) in self.catalog.rows(
            "SELECT name FROM import_names ORDER BY name"
        )]  # fmt: skip
        parsed: dict[str, ParsedName] = {}
        bad: dict[str, NameParseError] = {}
        for name in raw:
            try:
                parsed[name] = self._parse(self.file_names.from_column(name))
            except NameParseError as error:
                bad[name] = error
                if len(bad) >= MAX_BAD_NAMES and "bad_name" not in self.options.drop:
                    break
        if bad and "bad_name" not in self.options.drop:
            refuse_names(self.catalog, clean, bad)
        if bad:
            self.catalog.execute(
                "UPDATE import_rows SET cause = 'bad_name' WHERE cause IS NULL AND name_id IN"
                " (SELECT name_id FROM import_names WHERE name IN (SELECT unnest(?)))",
                [sorted(bad)],
            )
            dropped["bad_name"] = self._count("cause = 'bad_name'")
        ids = ensure_experiments(self.catalog, self.names, list(parsed.values()))
        return {name: ids[found.raw] for name, found in parsed.items()}

    def _all_n(self) -> dict[str, np.ndarray]:
        """Return window and bin of bins of N only in the windows that this file's summits lie in."""
        if self.options.relaxed:  # they have no summit: what they cover outside N is ambiguous all the same
            return {"window_id": np.empty(0, np.int64), "bin": np.empty(0, np.int64)}
        rows = self.catalog.rows(
            f"""SELECT DISTINCT w.window_id FROM import_rows AS r JOIN data.chromosomes AS c USING (chrom_id)
            JOIN data.windows AS w ON w.window_id = c.first_window + r.summit_bp // {self.store.grid.stride_bp}
            WHERE r.cause IS NULL AND w.n_fraction > 0 ORDER BY 1"""
        )
        windows, bins = all_n_bins(self.store, [int(window) for (window,) in rows])
        return {"window_id": windows, "bin": bins}

    def _resolve(self, ids: Mapping[str, int], fixed: str | None, dropped: dict[str, int]) -> None:
        """Make ``import_good``: rows with experiment, window, bin, and why some are left out after all."""
        grid = self.store.grid
        join = "CROSS JOIN import_ids AS m"
        if fixed is None:
            join = """JOIN (SELECT name_id, experiment_id FROM import_names JOIN import_ids USING (name)) AS m
                USING (name_id)"""
        names = {"name": list(ids), "experiment_id": list(ids.values())}
        with self.catalog.registered("import_ids", names), self.catalog.registered("import_all_n", self._all_n()):
            self.catalog.execute(
                f"""CREATE OR REPLACE TEMP TABLE import_good AS
                SELECT g.*, (CASE WHEN n.bin IS NOT NULL THEN 'summit_in_n' END)::{CAUSE} AS cause
                FROM (SELECT r.line, m.experiment_id::INTEGER AS experiment_id, r.chrom_id, r.start_bp, r.end_bp,
                             r.summit_bp, r.score,
                             (c.first_window + r.summit_bp // {grid.stride_bp})::INTEGER AS window_id,
                             (r.summit_bp % {grid.stride_bp} // {grid.bin_bp})::SMALLINT AS bin
                      FROM import_rows AS r {join} JOIN data.chromosomes AS c ON c.chrom_id = r.chrom_id
                      WHERE r.cause IS NULL) AS g
                LEFT JOIN import_all_n AS n ON g.window_id = n.window_id AND g.bin = n.bin"""
            )
        self._mark_repeats()
        for cause, count in self.catalog.rows(
            "SELECT cause, count(*) FROM import_good WHERE cause IS NOT NULL GROUP BY cause ORDER BY cause::VARCHAR"
        ):
            dropped[str(cause)] = int(count)

    def _mark_repeats(self) -> None:
        """Mark rows that repeat an earlier line of the file, or what is stored."""
        same = "experiment_id, chrom_id, start_bp, end_bp" + ("" if self.options.relaxed else ", summit_bp")
        # most files repeat nothing, which counting hashes shows at once; else only rows whose hash comes twice are
        # numbered
        counted = self.catalog.one(f"SELECT count(*), count(DISTINCT hash({same})) FROM import_good")
        if counted is not None and counted[0] != counted[1]:
            self.catalog.execute(
                f"""UPDATE import_good SET cause = 'duplicate' WHERE line IN (
                SELECT line FROM (
                    SELECT line, row_number() OVER (PARTITION BY {same} ORDER BY line) AS copy FROM import_good
                    WHERE cause IS NULL AND hash({same}) IN (
                        SELECT hash({same}) AS key FROM import_good WHERE cause IS NULL GROUP BY key HAVING count(*) > 1
                    )) WHERE copy > 1)"""
            )
        if self.had_peaks or self.n_sources:
            self.catalog.execute(
                f"UPDATE import_good SET cause = 'already_stored' WHERE cause IS NULL AND line IN"
                f" (SELECT line FROM import_good SEMI JOIN {self.table} USING ({same}))"
            )

    def _count(self, condition: str) -> int:
        table = "import_good" if condition == "cause IS NULL" else "import_rows"
        found = self.catalog.one(f"SELECT count(*) FROM {table} WHERE {condition}")
        return int(found[0]) if found else 0

    def _store_rows(self, source_id: int) -> None:
        columns = "experiment_id, chrom_id, start_bp, end_bp"
        columns += "" if self.options.relaxed else ", summit_bp, score, window_id, bin"
        order = (
            "experiment_id, chrom_id, start_bp" if self.options.relaxed else "experiment_id, window_id, bin, start_bp"
        )
        self.catalog.execute(
            f"INSERT INTO {self.table} BY NAME SELECT {columns}, {source_id} AS source_id FROM import_good"
            f" WHERE cause IS NULL ORDER BY {order}, line"
        )
        # what such a peak covers outside N is bound, nobody sees by which bin: it is ambiguous, as near lenient calls
        self.catalog.execute(
            f"""INSERT INTO data.relaxed_peaks BY NAME
            SELECT experiment_id, chrom_id, start_bp, end_bp, {source_id} AS source_id
            FROM import_good WHERE cause = 'summit_in_n' ORDER BY experiment_id, chrom_id, start_bp, line"""
        )

    def _label(self, source_id: int, experiment_ids: Sequence[int]) -> None:
        """Say on which chromosomes this source has looked, for which experiments; lenient calls say nothing."""
        self.n_sources += 1
        if not self.options.relaxed:
            rows = self.catalog.rows("SELECT DISTINCT chrom_id FROM import_rows WHERE chrom_id IS NOT NULL ORDER BY 1")
            self.labels.add(source_id, experiment_ids, [int(chrom_id) for (chrom_id,) in rows])

    def finish(self) -> list[str]:
        """Put the rows of all imports in order, and return what the user should know."""
        if (self.had_peaks or self.n_sources > 1) and not self.options.relaxed:
            self.catalog.execute(f"CREATE OR REPLACE TEMP TABLE import_sorted AS SELECT * FROM {self.table}")
            self.catalog.execute(f"DELETE FROM {self.table}")
            self.catalog.execute(
                f"INSERT INTO {self.table} SELECT * FROM import_sorted ORDER BY experiment_id, window_id, bin, start_bp"
            )
            self.catalog.execute("DROP TABLE import_sorted")
        for table in ("import_rows", "import_good", "import_names", "import_odd"):
            self.catalog.execute(f"DROP TABLE IF EXISTS {table}")
        return self._notes()

    def _notes(self) -> list[str]:
        """Return notes on empty files, unlabelled chromosomes, and factors without protein."""
        notes = []
        if self.empty:
            notes.append(f"{len(self.empty)} files are empty, their experiments have no labels: {some(self.empty)}")
        if not self.options.relaxed:
            notes += self.labels.finish()
        factors = {gene for name in self.parsed for gene in name.genes}
        missing = sorted(gene for gene in factors if gene not in self.names.symbols)
        if missing and self.names.symbols:
            notes.append(f"{len(missing)} of {len(factors)} genes have no protein: {some(missing)}")
        elif missing:
            notes.append("no proteins are imported yet: names of factors stay as they are until then")
        return notes


def all_n_bins(store: Store, windows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return window and bin of every bin of `windows` that has no base but N, or none at all."""
    grid, found = store.grid, []
    for window in windows:
        codes = store.genome.codes(*store.tiling.kept(window))
        bins = np.flatnonzero((codes >= 4).reshape(grid.n_bins, grid.bin_bp).all(axis=1))
        found.append((np.full(bins.size, window, dtype=np.int64), bins.astype(np.int64)))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])
