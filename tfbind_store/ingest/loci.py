"""Import plain loci: blacklists, whose bins are neither positive nor negative, and named sets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tfbind_store.errors import PeakFileError
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.naming import plain_name
from tfbind_store.ingest.retraction import take_back_replaced
from tfbind_store.ingest.rows import place_rows
from tfbind_store.ingest.sources import FileIdentity, ImportReport, add_source, check_drop, check_strict, earlier_import
from tfbind_store.loci import Locus
from tfbind_store.peaks import PeakFormat, clean_rows, first_bad_line, source_line
from tfbind_store.store.folder import Store

SPLITS = ("train", "valid", "test")
_IMPORT = "mend the file, or import it with --drop and name the set: tfbind import loci"


@recorded
def import_blacklist(
    store: Store, path: Path | str, *, name: str | None = None, drop: Collection[str] = (), strict: bool = False
) -> ImportReport:
    """Import loci whose bins are neither positive nor negative.

    Parameters
    ----------
    store
        Where to.
    path
        BED file; only its first three columns count.
    name
        Name of the list; default: the file's.
    drop
        As for peaks: ``unknown_chromosome``, ``beyond_end``, ``bad_line``.
    strict
        Refuse to drop anything.

    Raises
    ------
    PeakFileError
        If a row cannot be used and may not be dropped.
    """
    path = Path(path)
    columns = {"name": "?"}
    return _import(store, "blacklist", path, "data.exclusions", columns, [name or plain_name(path.name)], drop, strict)


@recorded
def import_loci(
    store: Store,
    path: Path | str,
    name: str,
    *,
    split: str | None = None,
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import a named set of loci.

    Parameters
    ----------
    store
        Where to.
    path
        BED file: chrom, start, end, and if there a name and, where column 5 says train, valid or test, a split.
    name
        Name of the set; a second file under the same name adds to it.
    split
        Split of all loci in the file.
    drop
        As for peaks.
    strict
        Refuse to drop anything.

    Raises
    ------
    PeakFileError
        If a row cannot be used and may not be dropped, or `split` is no split.
    """
    if split is not None and split not in SPLITS:
        raise PeakFileError(f"split {split!r} is not one of {', '.join(SPLITS)}", where=str(path))
    own = "CASE WHEN c5 IN ('train', 'valid', 'test') THEN c5 WHEN name IN ('train', 'valid', 'test') THEN name END"
    columns = {"set_name": "?", "name": "name", "split": f"coalesce(?, {own})"}
    return _import(store, "loci", Path(path), "data.loci", columns, [name, split], drop, strict)


def read_loci(store: Store, path: Path) -> list[Locus]:
    """Return the loci of a BED file, every row of it, without importing them.

    Raises
    ------
    PeakFileError
        If a row is no locus of the store's genome: the first such line, and how many there are.
    """
    clean = clean_rows(path, format=PeakFormat.BED)
    if bad := first_bad_line(path, PeakFormat.BED):
        raise PeakFileError(bad.reason, where=f"{path}:{bad.number}", fix=_IMPORT)
    text = b"".join(block.text for block in clean.blocks()).decode("utf-8")
    rows = [line.split("\t", 3)[:3] for line in text.splitlines()]
    if not rows:
        raise PeakFileError("the file has no loci", where=str(path), fix="give a file with at least one row")
    aliases, lengths = store.meta.aliases, store.genome.lengths_bp
    loci = [Locus(aliases.get(chrom, chrom), int(start), int(end)) for chrom, start, end in rows]
    odd = [place for place, locus in enumerate(loci) if locus.end > lengths.get(locus.chrom, 0)]
    if odd:
        what = f"{len(odd):,} of {len(loci):,} loci do not lie on the genome; first: {loci[odd[0]]}"
        raise PeakFileError(what, where=f"{path}:{source_line(path, odd[0] + 1)}", fix=_IMPORT)
    return loci


def _import(
    store: Store,
    kind: str,
    path: Path,
    table: str,
    columns: dict[str, str],
    params: list[Any],
    drop: Collection[str],
    strict: bool,
) -> ImportReport:
    allowed = check_drop(drop)
    if not path.is_file():
        raise PeakFileError("no such file", where=str(path))
    file = FileIdentity.of(kind, path, {"params": params, "drop": sorted(allowed)})
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    with store.writer() as catalog, catalog.transaction():
        take_back_replaced(catalog)
        clean = clean_rows(path, format=PeakFormat.BED)
        if clean.is_empty:
            raise PeakFileError("the file has no loci", where=str(path), fix="give a file with at least one row")
        placed = place_rows(catalog, clean, drop=allowed, keep_text=True)
        kept = clean.n_rows - sum(placed.bad.values())
        report = ImportReport(kind, str(path), clean.n_rows, kept, dict(placed.bad), [])
        check_strict(report, strict=strict)
        source_id = add_source(catalog, file, report)
        chosen = ", ".join(f"{sql} AS {column}" for column, sql in columns.items())
        catalog.execute(
            f"INSERT INTO {table} BY NAME SELECT {chosen}, chrom_id, start_bp, end_bp, {source_id} AS source_id"
            " FROM import_rows WHERE cause IS NULL ORDER BY chrom_id, start_bp, end_bp, line",
            params,
        )
        catalog.execute("DROP TABLE import_rows")
    return report
