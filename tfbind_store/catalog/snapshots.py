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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        self._imports = folder / "imports.json"
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

    @property
    def _write_ahead(self) -> Path:
        return self.working.with_name(_DATABASE + ".wal")

    def begin(self) -> None:
        """Prepare the working file for a writer: as it was left, or as the newest snapshot if a writer died."""
        make_directory(self._snapshots, fs=self._fs)
        was_left_well = self.working.is_file() and not self._marker.exists() and not self._write_ahead.exists()
        if not was_left_well and self._current.exists():
            _log.warning("the last writer did not end well: %s is made anew from the newest snapshot", self.working)
            self._restore()
        publish(self._marker, [b"a writer is at work, or died\n"], fs=self._fs)

    def roll_back(self) -> None:
        """Throw away what a writer did that has closed the working file after an error; the next one finds order."""
        if self._current.exists():
            self._restore()
            self.end()

    def _restore(self) -> None:
        number, _, digest = self._read_current()
        with typed_errors(self.working):
            self._write_ahead.unlink(missing_ok=True)
            self._require_hash(self._path(number), digest)
            with _mapped(self._path(number)) as content:
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

    def require_whole(self) -> None:
        """Refuse a newest snapshot whose bytes changed.

        Raises
        ------
        CatalogError
            If it does not hash to what CURRENT says.
        """
        self._require_hash(self.newest(), self._read_current()[2])

    def _require_hash(self, path: Path, digest: str) -> None:
        with _mapped(path) as content:
            if xxhash.xxh3_128_hexdigest(content) != digest:
                what = "the newest snapshot does not hash to what it was published with"
                raise CatalogError(what, where=str(path), fix="run tfbind rebuild-catalog")

    def candidates(self) -> list[Path]:
        """Return the snapshots there are, newest first, whole or not; last those that CURRENT has never named."""
        numbers = sorted(self._numbers(), reverse=True) if self._snapshots.is_dir() else []
        with contextlib.suppress(CatalogError):
            newest = self.number()
            numbers.sort(key=lambda number: number > newest)  # who wrote these was killed before anybody saw them
        return [path for path in map(self._path, numbers) if path.is_file()]

    def folders(self) -> list[Path]:
        """Return the folders in which a writer writes."""
        return [self._snapshots, *(path.parent for path in self.candidates())]

    def leftovers(self) -> list[Path]:
        """Return folders of snapshots that CURRENT has left behind or that were never finished."""
        newest = self.number()
        numbers = sorted(self._numbers())
        return [self._path(number).parent for number in numbers if number > newest or number <= newest - KEEP]

    def adopt(self, database: Path, aside: Path) -> None:
        """Make another database the working file; what was there goes to the folder `aside`."""
        make_directory(aside, fs=self._fs)
        make_directory(self._snapshots, fs=self._fs)
        with typed_errors(self.working):
            for path in (self.working, self._write_ahead, self._current):
                if path.exists():
                    self._fs.rename(path, aside / path.name)
            with _mapped(database) as content:
                publish(self.working, [content], fs=self._fs)
            self._marker.unlink(missing_ok=True)

    def record_imports(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Keep the calls that filled the catalog beside it, so that it can be made again without it."""
        content = sealed_json({"imports": list(calls)})
        with contextlib.suppress(OSError):
            if read_regular(self._imports) == content:
                return
        publish(self._imports, [content], fs=self._fs)

    def recorded_imports(self) -> list[dict[str, Any]] | None:
        """Return what `record_imports` kept; None where it is absent or damaged."""
        try:
            calls: list[dict[str, Any]] = unsealed_json(read_regular(self._imports))["imports"]
        except (OSError, ValueError, KeyError):
            return None
        return calls

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
        pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    try:
        yield memoryview(pages)
    finally:
        # the traceback of a failed write still holds a slice: closing would hide that error behind a BufferError
        with contextlib.suppress(BufferError):
            pages.close()
