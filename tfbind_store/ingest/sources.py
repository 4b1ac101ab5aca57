"""What every import shares: its report, what may be dropped, and the record of the file it came from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError, InputFileError, StrictError
from tfbind_store.ingest.calls import SourceKey, note_call, replaced, saw_source
from tfbind_store.spec import canonical_json

log = logging.getLogger(__name__)

DROP_CAUSES = ("unknown_chromosome", "beyond_end", "bad_line", "bad_name", "bad_sequence", "bad_file")
"""Rows that are refused unless the caller allows them to be dropped."""
NO_LOSS = frozenset({"duplicate", "already_stored", "another_entry_of_the_gene"})
"""Rows left out because what they say is there already: no reason for ``strict`` to refuse."""


class ImportReport(NamedTuple):
    """What an import did."""

    kind: str
    path: str
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    """Rows left out, by cause."""
    notes: list[str]


class FileIdentity(NamedTuple):
    """One outside file, and the options that decide what its import means."""

    kind: str
    path: Path
    sha256: str
    size_bytes: int
    options: str

    @classmethod
    def of(cls, kind: str, path: Path, options: Mapping[str, Any]) -> FileIdentity:
        """Hash a file, or all files of a folder with their names."""
        return cls(kind, path.absolute(), *_digest(path), canonical_json(dict(options)))

    @property
    def key(self) -> SourceKey:
        """What tells this import from others."""
        return SourceKey(self.kind, self.sha256, self.options)


def _digest(path: Path) -> tuple[str, int]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [(str(file.relative_to(path)), *_digest(file)) for file in files]
        return hashlib.sha256(canonical_json(parts).encode("ascii")).hexdigest(), sum(part[2] for part in parts)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    except OSError as error:
        raise InputFileError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def digest_of(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder with their names."""
    return _digest(path)[0]


def earlier_import(catalog: Catalog, file: FileIdentity) -> ImportReport | None:
    """Return the report of the newest import of the same bytes with the same options, if there was one."""
    found = catalog.one(
        "SELECT rows_read, rows_kept, dropped FROM data.sources"
        " WHERE kind = ? AND sha256 = ? AND options = ? ORDER BY source_id DESC LIMIT 1",
        [file.kind, file.sha256, file.options],
    )
    if found is None or file.key in replaced().sources:
        return None
    saw_source(file.key)
    note = "the same file was imported before: nothing changed"
    return ImportReport(file.kind, str(file.path), found[0], found[1], json.loads(found[2]), [note])


def add_source(catalog: Catalog, file: FileIdentity, report: ImportReport) -> int:
    """Record a file as imported and return its id."""
    source_id = next_id(catalog, "data.sources", "source_id")
    row = {
        "source_id": source_id,
        "kind": file.kind,
        "path": str(file.path),
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "options": file.options,
        "rows_read": report.rows_read,
        "rows_kept": report.rows_kept,
        "dropped": canonical_json(report.dropped),
    }
    catalog.insert("data.sources", {name: [value] for name, value in row.items()})
    note_call(catalog, digest_of)
    saw_source(file.key)
    log.info("%s: %d of %d rows kept, dropped %s", file.path, report.rows_kept, report.rows_read, report.dropped)
    return source_id


def next_id(catalog: Catalog, table: str, column: str) -> int:
    """Return the first unused id of a table."""
    found = catalog.one(f"SELECT coalesce(max({column}) + 1, 0) FROM {table}")
    return int(found[0]) if found else 0


def check_drop(drop: Collection[str]) -> frozenset[str]:
    """Refuse causes that nobody may drop."""
    for cause in drop:
        if cause not in DROP_CAUSES:
            raise ConfigError(f"no such cause to drop: {cause!r}", where="drop", fix=f"one of {', '.join(DROP_CAUSES)}")
    return frozenset(drop)


def check_strict(report: ImportReport, *, strict: bool) -> None:
    """Under ``strict``, refuse an import that lost a row.

    Raises
    ------
    StrictError
        With the count of each cause.
    """
    lost = {cause: count for cause, count in report.dropped.items() if count and cause not in NO_LOSS}
    if strict and lost:
        raise StrictError(
            f"rows would be dropped: {in_words(lost)}",
            where=report.path,
            fix="correct the file, or import it without --strict",
        )


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts by cause as text."""
    return ", ".join(f"{count:,} {cause.replace('_', ' ')}" for cause, count in counts.items())


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
