"""Immutable copies of the catalog: what readers open, and what a writer starts from after a crash.

The working file is written by one process. When that process ends well, the file is copied to a numbered snapshot and
CURRENT names it; the last three stay. While a writer is at work (or after it died) a marker lies beside the working
file; the next writer that finds one throws the working file away, log and all, and starts from the newest snapshot. So
a half-written or damaged log is never replayed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

from tfbind_store.durable import (
    REAL,
    FileSystem,
    make_directory,
    open_regular,
    publish,
    read_regular,
    sealed_json,
    typed_errors,
    unsealed_json,
)
from tfbind_store.errors import CatalogError

KEEP = 3
_DATABASE = "catalog.duckdb"
_log = logging.getLogger(__name__)


class Snapshots:
    """The catalog's folder: working file, snapshots, CURRENT.

    Parameters
    ----------
    folder
        ``STORE/catalog``.
    fs
        The calls to the operating system.
    """

    def __init__(self, folder: Path, *, fs: FileSystem = REAL) -> None:
        self.folder = folder
        self.working = folder / _DATABASE
        """The one file that a writer changes."""
        self._marker = folder / "writing"
        self._snapshots = folder / "snapshots"
        self._current = self._snapshots / "CURRENT"
        self._fs = fs

    def newest(self) -> Path:
        """Return the database file of the newest snapshot.

        Raises
        ------
        CatalogError
            If there is none, or it has not the size it was published with.
        """
        number, size, _ = self._read_current()
        path = self._path(number)
        found = path.stat().st_size if path.is_file() else -1
        if found != size:
            what = f"the newest snapshot has {max(found, 0):,} bytes, expected {size:,}"
            raise CatalogError(what, where=str(path), fix="run tfbind rebuild-catalog")
        return path

    def begin(self) -> None:
        """Prepare the working file for a writer: as it was left, or as the newest snapshot if a writer died."""
        make_directory(self._snapshots, fs=self._fs)
        log = self.working.with_name(_DATABASE + ".wal")
        was_left_well = self.working.is_file() and not self._marker.exists() and not log.exists()
        if not was_left_well and self._current.exists():
            self._restore(log)
        publish(self._marker, [b"a writer is at work, or died\n"], fs=self._fs)

    def _restore(self, log: Path) -> None:
        _log.warning("the last writer did not end well: %s is made anew from the newest snapshot", self.working)
        number, _, digest = self._read_current()
        with typed_errors(self.working):
            log.unlink(missing_ok=True)
            with _mapped(self._path(number)) as content:
                if xxhash.xxh3_128_hexdigest(content) != digest:
                    what = "the newest snapshot does not hash to what it was published with"
                    raise CatalogError(what, where=str(self._path(number)), fix="run tfbind rebuild-catalog")
                publish(self.working, [content], fs=self._fs)

    def end(self) -> None:
        """Say that the writer has closed the working file in order."""
        with typed_errors(self._marker):
            self._marker.unlink(missing_ok=True)
            self._fs.fsync_directory(self.folder)

    def publish(self) -> Path:
        """Copy the closed working file to a new snapshot, make it CURRENT, drop the oldest ones."""
        number = max(self._numbers(), default=0) + 1
        path = self._path(number)
        make_directory(path.parent, fs=self._fs)
        with _mapped(self.working) as content:
            publish(path, [content], fs=self._fs)
            facts = {
                "snapshot": number,
                "size_bytes": len(content),
                "xxh3_128": xxhash.xxh3_128_hexdigest(content),
            }
        publish(self._current, [sealed_json(facts)], fs=self._fs)
        for old in sorted(self._numbers())[:-KEEP]:
            shutil.rmtree(self._path(old).parent, ignore_errors=True)
        return path

    def number(self) -> int:
        """Return the newest snapshot's number."""
        return self._read_current()[0]

    def _path(self, number: int) -> Path:
        return self._snapshots / str(number) / _DATABASE

    def _numbers(self) -> list[int]:
        return [int(name) for name in os.listdir(self._snapshots) if name.isdigit()]

    def _read_current(self) -> tuple[int, int, str]:
        try:
            facts = unsealed_json(read_regular(self._current))
            return int(facts["snapshot"]), int(facts["size_bytes"]), str(facts["xxh3_128"])
        except FileNotFoundError as error:
            fix = "run tfbind rebuild-catalog"
            raise CatalogError("the catalog has no snapshot", where=str(self._current), fix=fix) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "run tfbind rebuild-catalog"
            raise CatalogError(f"CURRENT is damaged: {error}", where=str(self._current), fix=fix) from error


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    descriptor = open_regular(path)
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as pages, memoryview(pages) as content:
            yield content
    finally:
        os.close(descriptor)
