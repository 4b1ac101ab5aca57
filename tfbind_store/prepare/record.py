"""What a store remembers of its preparation, and the hashes of files that were read before.

``STORE/prepared.json`` is one sealed JSON object: which plan, a record per stage that was done, and for each file that
was hashed its size, times and inode, so that a file of many gigabytes is read again only if it was touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store.durable import publish, read_regular, sealed_json, typed_errors, unsealed_json
from tfbind_store.errors import InputFileError, StoreError
from tfbind_store.fetch import sha256_of
from tfbind_store.ingest.calls import Imported, SourceKey
from tfbind_store.spec import fingerprint_of

FORMAT_VERSION = 1
MAX_BYTES = 1 << 28
"""A folder of many thousand files is remembered file by file."""


class Mark(NamedTuple):
    """What changes when a file is written; ctime cannot be set by hand."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """A stage that was done."""

    own: Mapping[str, Any]
    """Options, and the sha256 of every input by option: what the stage itself says."""
    upstream: Mapping[str, str]
    """Key of each stage that it stood on."""
    outcome: Mapping[str, Any]
    """What it reported."""
    imported: Imported = field(default_factory=Imported)
    """What it brought into the catalog."""
    made: str = ""
    """Sum of what it wrote: a selection's rows, a download; the digest of a genome."""

    @property
    def key(self) -> str:
        """What the stages behind it depend on: what it made, where that has a sum of its own."""
        return fingerprint_of([self.made]) if self.made else fingerprint_of([self.own, self.upstream])


@dataclass
class Record:
    """All that is remembered; `read` gives an empty one where there is none."""

    plan: str = ""
    """Name of the plan's file."""
    stages: dict[str, Done] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    """Selections that were begun and did not end."""
    hashes: dict[str, tuple[Mark, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        try:
            value = unsealed_json(read_regular(path, max_bytes=MAX_BYTES))
            if value["format"] != FORMAT_VERSION:
                raise ValueError(f"format {value['format']}, this version reads {FORMAT_VERSION}")
            stages = {name: _done(stage) for name, stage in value["stages"].items()}
            hashes = {name: (Mark(*mark), str(digest)) for name, (mark, digest) in value["hashes"].items()}
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "remove it: what is in the store already is found there and not brought in twice"
            raise StoreError(
                f"the record of the preparation cannot be read: {error}", where=str(path), fix=fix
            ) from error
        return cls(str(value["plan"]), stages, list(value["begun"]), hashes)

    def write(self, path: Path) -> None:
        """Write it in place of the old one, whole or not at all."""
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        value = {
            "format": FORMAT_VERSION,
            "plan": self.plan,
            "stages": stages,
            "begun": self.begun,
            "hashes": self.hashes,
        }
        plain = json.loads(json.dumps(value, default=str))  # tuples as lists, before the seal is made
        with typed_errors(path):
            publish(path, [sealed_json(plain)])

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, or of all files of a folder with their names.

        Raises
        ------
        InputFileError
            If it is not there or cannot be read.
        """
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                return fingerprint_of([[str(file.relative_to(path)), self._file(file)] for file in files])
            return self._file(path)
        except FileNotFoundError as error:
            raise InputFileError(
                "no such file", where=str(path), fix="correct the plan, or put the file there"
            ) from error
        except OSError as error:
            raise InputFileError(f"cannot be read: {error.strerror or error}", where=str(path)) from error

    def _file(self, path: Path) -> str:
        found = path.stat()
        mark = Mark(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        name = str(path.absolute())
        if name not in self.hashes or self.hashes[name][0] != mark:
            self.hashes[name] = (mark, sha256_of(path))
        return self.hashes[name][1]


def _done(value: Mapping[str, Any]) -> Done:
    imported = value["imported"]
    sources = [SourceKey(*map(str, key)) for key in imported["sources"]]
    return Done(
        own=value["own"],
        upstream=value["upstream"],
        outcome=value["outcome"],
        imported=Imported(sources, list(imported["calls"])),
        made=str(value["made"]),
    )


def together(parts: Sequence[Imported]) -> Imported:
    """Return several imports as one."""
    return Imported([key for part in parts for key in part.sources], [call for part in parts for call in part.calls])
