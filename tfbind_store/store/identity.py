"""What ``store.json`` says: the format's version, the genome, the grid; written once, checked at every open."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tfbind_store.durable import read_regular, sealed_json, unsealed_json
from tfbind_store.errors import FormatVersionError, LocusError, NameParseError, StoreError, StoreMissing
from tfbind_store.genome import ChromosomeInfo, GenomeImport, genome_digest
from tfbind_store.loci import Grid
from tfbind_store.names import chromosome_aliases

FORMAT_VERSION: Final = 1
FILE_NAME: Final = "store.json"


@dataclass(frozen=True, kw_only=True)
class StoreMeta:
    """The content of ``store.json``."""

    format_version: int
    created: str
    """UTC time, ISO 8601."""
    genome: str
    """Digest over the chromosomes' names, lengths and md5."""
    chromosomes: tuple[ChromosomeInfo, ...]
    grid: Grid
    aliases: Mapping[str, str]
    """Other names of chromosomes, each with the store's own."""
    counted: Mapping[str, int]
    """Letters that became N, by letter, and chromosomes left out."""


def new_meta(found: GenomeImport, grid: Grid, aliases: Mapping[str, str]) -> StoreMeta:
    """Return the identity of a new store; `aliases` come on top of those that follow from the names.

    Raises
    ------
    NameParseError
        If an alias points to no chromosome, or is another chromosome's name.
    """
    chroms = [info.chrom for info in found.chromosomes]
    for alias, chrom in aliases.items():
        if chrom not in chroms:
            fix = f"the genome has: {', '.join(chroms[:8])}"
            raise NameParseError(f"alias {alias!r} is for {chrom!r}, which is not there", where="aliases", fix=fix)
        if alias in chroms and alias != chrom:
            raise NameParseError(f"alias {alias!r} for {chrom!r} is itself a chromosome", where="aliases")
    return StoreMeta(
        format_version=FORMAT_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        genome=genome_digest(found.chromosomes),
        chromosomes=found.chromosomes,
        grid=grid,
        aliases={**chromosome_aliases(chroms), **aliases},
        counted=found.counted,
    )


def meta_bytes(meta: StoreMeta) -> bytes:
    """Return the text of ``store.json``."""
    value = asdict(meta)
    value["chromosomes"] = [info._asdict() for info in meta.chromosomes]
    return sealed_json(value)


def read_meta(store_path: Path) -> StoreMeta:
    """Read ``store.json``.

    Raises
    ------
    StoreMissing
        If there is no store.
    FormatVersionError
        If another version of the format wrote it.
    StoreError
        If it is damaged.
    """
    where = store_path / FILE_NAME
    try:
        value = unsealed_json(read_regular(where))
        version = value["format_version"]
        if version != FORMAT_VERSION:
            what = f"the store has format version {version}, this tfbind_store reads {FORMAT_VERSION}"
            raise FormatVersionError(what, where=str(where), fix="use the tfbind_store that wrote it, or init anew")
        value["chromosomes"] = tuple(ChromosomeInfo(**info) for info in value["chromosomes"])
        value["grid"] = Grid(**value["grid"])
        meta = StoreMeta(**value)
        if genome_digest(meta.chromosomes) != meta.genome:
            raise ValueError("the genome digest does not fit the chromosomes")
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "make one with tfbind init, or check the path"
        raise StoreMissing("there is no store", where=str(store_path), fix=fix) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatVersionError):
            raise
        what = f"{FILE_NAME} is damaged: {error.what if isinstance(error, LocusError) else error}"
        raise StoreError(what, where=str(where), fix=f"put {FILE_NAME} back from a copy") from error
    return meta
