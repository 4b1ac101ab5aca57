"""Import bigWigs: binned to the store's grid, several files at once, into one array of labels or of signals.

Every file's header is looked at before anything is written, so that another assembly is refused at once. A file that
cannot be read refuses the import, unless the caller lets it be dropped; tracks that were published before stay, and the
same call goes on with the rest.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash
from tqdm import tqdm

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import InputFileError, TfbindError
from tfbind_store.ingest.aliases import add_aliases, read_aliases
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.registry import Names, ensure_biotypes, ensure_experiments
from tfbind_store.ingest.sources import FileIdentity, ImportReport, add_source, check_drop, check_strict, in_words, some
from tfbind_store.ingest.track_rows import (
    StoredTrack,
    TrackEntry,
    only_importer,
    open_tracks,
    publish_track,
    stored_tracks,
    track_spec,
    write_entries,
)
from tfbind_store.loci import Tiling
from tfbind_store.spec import ArrayKind, EmbeddingSpec
from tfbind_store.store.folder import Store
from tfbind_store.tracks.binning import Binning, Gaps, Statistic, bin_bigwig, match_chroms, open_bigwig
from tfbind_store.tracks.tables import SUFFIXES, TrackRow, file_of, read_annotation

PARALLEL_BYTES = 256 * 1024**2
"""Fewer bytes of bigWig than this are binned in this process: starting others takes longer."""
READ_BYTES = 1 << 22


@recorded
def import_tracks(
    store: Store,
    path: Path | str,
    *,
    annotation: Path | str,
    name: str = "tracks",
    assembly: str | None = None,
    biotype: str | None = None,
    statistic: Statistic = "mean",
    gaps: Gaps = "missing",
    clip: float | None = None,
    scale: float = 1.0,
    log1p: bool = False,
    aliases: Path | str | None = None,
    workers: int | None = None,
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import bigWigs as labels, into the array ``tracks/<name>``.

    Parameters
    ----------
    store
        Where to.
    path
        Folder of bigWigs.
    annotation
        What each track is of: ChIP-Atlas's experimentList, ENCODE's metadata.tsv, or a table with a column ``track``.
    name
        Of the array. More tracks may come into it later, binned in the same way.
    assembly
        Take rows of this assembly only; needed where a track has rows of several.
    biotype
        Of rows of a factor that name none.
    statistic, gaps, clip, scale, log1p
        See `tfbind_store.tracks.binning.Binning`.
    aliases
        Table of further names of chromosomes.
    workers
        Processes that bin; default: one, or one per core where there is much to read.
    drop
        ``bad_file``: leave out files that cannot be read or are of another assembly, and count them.
    strict
        Refuse to leave out anything: a row without its file, a row of another assembly, a bad file.

    Raises
    ------
    InputFileError
        If a file is damaged or of another assembly, no row has a file, or a track stands twice.
    SpecError
        If the array holds tracks that were binned otherwise.
    """
    binning = Binning(statistic=statistic, gaps=gaps, clip=clip, scale=scale, log1p=log1p)
    asked = _Asked(Path(path), Path(annotation), name, assembly, biotype, binning, workers)
    return _import(store, "tracks", asked, aliases, check_drop(drop), strict=strict)


@recorded
def import_signals(
    store: Store,
    path: Path | str,
    *,
    annotation: Path | str,
    name: str = "signals",
    assembly: str | None = None,
    biotype: str | None = None,
    statistic: Statistic = "mean",
    gaps: Gaps = "zero",
    clip: float | None = None,
    scale: float = 1.0,
    log1p: bool = False,
    aliases: Path | str | None = None,
    workers: int | None = None,
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import bigWigs of biotypes, such as accessibility, as inputs of a head, into the array ``signals/<name>``.

    As `import_tracks`; every row needs a biotype, and bases without a value are zero, as in pile-ups, unless `gaps`
    says otherwise.
    """
    binning = Binning(statistic=statistic, gaps=gaps, clip=clip, scale=scale, log1p=log1p)
    asked = _Asked(Path(path), Path(annotation), name, assembly, biotype, binning, workers)
    return _import(store, "signals", asked, aliases, check_drop(drop), strict=strict)


class _Asked(NamedTuple):
    """What an import was asked for."""

    folder: Path
    annotation: Path
    name: str
    assembly: str | None
    biotype: str | None
    binning: Binning
    workers: int | None


class _Job(NamedTuple):
    """One file to bin, for whichever process does it."""

    layout: ArrayLayout
    row_index: int
    track: str
    path: Path
    tiling: Tiling
    aliases: Mapping[str, str]
    binning: Binning
    known: StoredTrack | None
    """What is stored of this track already."""

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of change of the file, as it is now."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise InputFileError(f"cannot be read: {error.strerror or error}", where=str(self.path)) from error
        return found.st_size, found.st_mtime_ns

    @property
    def is_settled(self) -> bool:
        """Whether the stored track is of this very file, by size and time: it is not read again then."""
        return self.known is not None and self.known.stamp == self.stamp


class _Done(NamedTuple):
    """What became of a job."""

    row_index: int
    n_bins: int
    notes: Mapping[str, int]
    error: TfbindError | None


def _import(
    store: Store,
    kind: ArrayKind,
    asked: _Asked,
    aliases: Path | str | None,
    allowed: frozenset[str],
    *,
    strict: bool,
) -> ImportReport:
    more = {} if aliases is None else read_aliases(aliases)
    options = {"folder": str(asked.folder.absolute()), "name": asked.name, "assembly": asked.assembly}
    file = FileIdentity.of(kind, asked.annotation, options | {"binning": asked.binning.identity()})
    rows = read_annotation(asked.annotation)
    chosen, dropped, notes = _choose(rows, asked, needs_biotype=kind == "signals")
    names = _chromosome_names(store, more)
    chosen = _readable(chosen, store.tiling, names, dropped, allowed)
    array_name = store.array_name_for(kind, asked.name)
    _require_not_strict(kind, asked, len(rows), len(chosen), dropped, strict=strict)
    with only_importer(store, array_name):
        spec = track_spec(store, kind, "bigwig", {"binning": asked.binning.identity()})
        done, n_before = _bin_all(store, array_name, spec, chosen, names, asked)
        kept, bad = _settle(chosen, done, allowed)
        if bad:
            dropped["bad_file"] = dropped.get("bad_file", 0) + bad
        notes += _notes(done, n_before)
        report = ImportReport(kind, str(asked.folder), len(rows), len(kept), dropped, notes)
        with store.reader() as catalog:
            known = catalog.rows("SELECT track FROM data.tracks WHERE array_name = ?", [array_name])
        if {row.track for row, _ in kept} <= {str(track) for (track,) in known} and not more:
            return report
        check_strict(report, strict=strict)
        with store.writer() as catalog, catalog.transaction():
            add_aliases(catalog, more)
            source_id = add_source(catalog, file, report)
            write_entries(catalog, array_name, _entries(catalog, kept, asked.biotype), source_id)
    return report


def _require_not_strict(
    kind: str, asked: _Asked, n_rows: int, n_kept: int, dropped: dict[str, int], *, strict: bool
) -> None:
    check_strict(ImportReport(kind, str(asked.folder), n_rows, n_kept, dropped, []), strict=strict)


def _choose(
    rows: Sequence[TrackRow], asked: _Asked, *, needs_biotype: bool
) -> tuple[list[tuple[TrackRow, Path]], dict[str, int], list[str]]:
    """Return the rows that have a file and may be imported, what was left out, and notes."""
    if not asked.folder.is_dir():
        raise InputFileError("no such folder", where=str(asked.folder), fix="give the folder with the bigWigs")
    dropped: Counter[str] = Counter()
    chosen: dict[str, tuple[TrackRow, Path]] = {}
    for row in rows:
        if asked.assembly is not None and row.assembly not in (None, asked.assembly):
            dropped["other_assembly"] += 1
            continue
        path = file_of(row, asked.folder, asked.annotation)
        if path is None:
            dropped["no_file"] += 1
        elif (needs_biotype or row.factor) and not (row.biotype or asked.biotype):
            dropped["no_biotype"] += 1
        elif row.track in chosen:
            raise _twice(chosen[row.track][0], row, asked.annotation)
        else:
            chosen[row.track] = (row, path)
    if not chosen:
        what = f"none of the {len(rows):,} rows has a bigWig here ({in_words(dropped)})"
        fix = f"put files named TRACK{SUFFIXES[0]} into the folder, or give the table a column 'path'"
        raise InputFileError(what, where=str(asked.folder), fix=fix)
    used = {path.resolve() for _, path in chosen.values()}
    spare = sorted(p.name for p in asked.folder.iterdir() if p.suffix in SUFFIXES and p.resolve() not in used)
    notes = [f"{len(spare):,} bigWigs of the folder have no row: {some(spare)}"] if spare else []
    return list(chosen.values()), dict(dropped), notes


def _twice(first: TrackRow, second: TrackRow, table: Path) -> InputFileError:
    where = f"{table}:{second.line}"
    if first.assembly != second.assembly:
        what = f"track {second.track!r} has rows of {first.assembly} and {second.assembly}"
        return InputFileError(what, where=where, fix=f"say which: --assembly {first.assembly}")
    return InputFileError(f"track {second.track!r} stands in line {first.line} already", where=where)


def _chromosome_names(store: Store, more: Mapping[str, str]) -> dict[str, str]:
    with store.reader() as catalog:
        sql = "SELECT alias, chrom FROM data.chromosome_aliases JOIN data.chromosomes USING (chrom_id)"
        known = {str(alias): str(chrom) for alias, chrom in catalog.rows(sql)}
    return {**store.meta.aliases, **known, **more}


def _readable(
    chosen: list[tuple[TrackRow, Path]],
    tiling: Tiling,
    names: Mapping[str, str],
    dropped: dict[str, int],
    allowed: frozenset[str],
) -> list[tuple[TrackRow, Path]]:
    """Look at every file's header: what is no bigWig or of another assembly is refused before anything is written."""
    good = []
    first: TfbindError | None = None
    for row, path in chosen:
        try:
            with open_bigwig(path) as file:
                match_chroms(file.chroms(), tiling, names, where=str(path))
            good.append((row, path))
        except InputFileError as error:
            first = first or error
            dropped["bad_file"] = dropped.get("bad_file", 0) + 1
    if first is not None and ("bad_file" not in allowed or not good):
        first.fix += f"; {dropped['bad_file']} of {len(chosen)} files are refused, --drop bad_file leaves them out"
        raise first
    return good


def _bin_all(
    store: Store,
    array_name: str,
    spec: EmbeddingSpec,
    chosen: Sequence[tuple[TrackRow, Path]],
    names: Mapping[str, str],
    asked: _Asked,
) -> tuple[list[_Done], int]:
    """Bin and publish what is not there yet; return what became of each row, in order, and how many were there."""
    array, _ = open_tracks(store, array_name, spec, 0)
    stored = stored_tracks(array)
    new = [row.track for row, _ in chosen if row.track not in stored]
    array, free = open_tracks(store, array_name, spec, len(new))
    place = {track: found.row_index for track, found in stored.items()} | dict(zip(new, free, strict=True))
    jobs = [
        _Job(
            array.layout,
            place[row.track],
            row.track,
            path,
            store.tiling,
            names,
            asked.binning,
            stored.get(row.track),
        )
        for row, path in chosen
    ]
    done = list(tqdm(_run(jobs, asked.workers), total=len(jobs), desc="bin", unit="track", disable=None))
    n_before = len(jobs) - len(new)
    return [
        result._replace(n_bins=stored[job.track].n_bins) if job.track in stored else result
        for job, result in zip(jobs, done, strict=True)
    ], n_before


def _run(jobs: Sequence[_Job], workers: int | None) -> Iterator[_Done]:
    if workers is None:
        n_bytes = sum(job.stamp[0] for job in jobs if not job.is_settled)
        workers = 1 if n_bytes < PARALLEL_BYTES else len(os.sched_getaffinity(0))
    workers = max(1, min(workers, len(jobs)))
    if workers == 1:
        yield from map(_bin_one, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_bin_one, jobs)


def _bin_one(job: _Job) -> _Done:
    """Bin one file and publish it, unless it is there; a mistake in the file comes back as a value."""
    try:
        if job.is_settled:
            return _Done(job.row_index, 0, {}, None)
        stamp = job.stamp  # before the bytes: a file that changes meanwhile is hashed next time
        digest = _hash(job.path)
        if job.known is not None:
            if digest != job.known.made_of:
                fix = "import it under another --name; a stored track is never changed"
                what = f"track {job.track!r} is there already, made from another file"
                raise InputFileError(what, where=str(job.path), fix=fix)
            return _Done(job.row_index, 0, {}, None)
        track = bin_bigwig(job.path, job.tiling, job.aliases, job.binning)
        provenance = {"file": job.path.name, "stamp": list(stamp), "absent_chroms": list(track.absent_chroms)}
        n_bins = publish_track(
            job.layout, job.row_index, track.values, track=job.track, made_of=digest, provenance=provenance
        )
        counted = {
            "chromosomes of the genome are not in": len(track.absent_chroms),
            "other chromosomes were left out of": len(track.other_chroms),
            "infinite values count as missing in": track.n_not_finite,
        }
        return _Done(job.row_index, n_bins, counted, None)
    except InputFileError as error:
        return _Done(job.row_index, 0, {}, error)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise InputFileError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    return digest.hexdigest()


def _settle(
    chosen: Sequence[tuple[TrackRow, Path]], done: Sequence[_Done], allowed: frozenset[str]
) -> tuple[list[tuple[TrackRow, _Done]], int]:
    """Return rows with their results, and how many failed where they may be dropped."""
    errors = [result.error for result in done if result.error is not None]
    if errors and ("bad_file" not in allowed or len(errors) == len(done)):
        error = errors[0]
        error.fix += f"; {len(errors)} of {len(done)} files cannot be used, --drop bad_file leaves them out"
        raise error
    kept = [(row, result) for (row, _), result in zip(chosen, done, strict=True) if result.error is None]
    return kept, len(errors)


def _notes(done: Sequence[_Done], n_before: int) -> list[str]:
    counted: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for result in done:
        counted.update(result.notes)
        files.update({what: 1 for what, n in result.notes.items() if n})
    notes = [f"{counted[what]:,} {what} {files[what]:,} of {len(done):,} files" for what in counted if counted[what]]
    return [*notes, f"{n_before:,} tracks were there before"] if n_before else notes


def _entries(catalog: Catalog, kept: Sequence[tuple[TrackRow, _Done]], default_biotype: str | None) -> list[TrackEntry]:
    """Make factors, biotypes and experiments known, and return the catalog's rows."""
    names = Names(catalog)
    biotypes = {row.track: row.biotype or default_biotype for row, _ in kept}
    full = {row.track: _experiment(row, biotypes[row.track]) for row, _ in kept if row.factor}
    parsed = [names.experiment(name) for name in full.values()]
    experiments = ensure_experiments(catalog, names, parsed)
    ids = ensure_biotypes(catalog, [biotype for biotype in biotypes.values() if biotype])
    by_experiment = {
        str(name): int(key) for name, key in catalog.rows("SELECT experiment, biotype_id FROM data.experiments")
    }
    entries = []
    for row, result in kept:
        name, biotype = full.get(row.track), biotypes[row.track]
        biotype_id = by_experiment[name] if name else ids[biotype] if biotype else None
        experiment_id = experiments[name] if name else None
        entries.append(
            TrackEntry(
                result.row_index, row.track, experiment_id, biotype_id, row.assay, row.assembly, result.n_bins,
                row.metadata,
            )
        )  # fmt: skip
    return entries


def _experiment(row: TrackRow, biotype: str | None) -> str:
    """Return the experiment of a track that has a factor; the accession ends at the first dot."""
    return row.experiment or f"{row.track.replace('.', '_')}.{row.factor}.{biotype}"
