"""Further names of chromosomes, as a user gives them: read from a table, checked, kept in the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import InputFileError
from tfbind_store.textfiles import read_lines


def read_aliases(path: Path | str) -> dict[str, str]:
    """Read a table of two columns without header, alias and the store's own name."""
    aliases: dict[str, str] = {}
    for number, line in read_lines(path):
        cells = line.split()
        if not cells or line.startswith("#"):
            continue
        if len(cells) != 2:
            what, fix = f"{len(cells)} columns, expected alias and name", "write ALIAS<tab>CHROM on each line"
            raise InputFileError(what, where=f"{path}:{number}", fix=fix)
        if aliases.setdefault(cells[0], cells[1]) != cells[1]:
            what, fix = f"alias {cells[0]!r} stands for two chromosomes", "keep one of them"
            raise InputFileError(what, where=f"{path}:{number}", fix=fix)
    return aliases


def add_aliases(catalog: Catalog, aliases: Mapping[str, str]) -> None:
    """Record aliases; one that stands for another chromosome already is refused."""
    own = {str(chrom): int(key) for chrom, key in catalog.rows("SELECT chrom, chrom_id FROM data.chromosomes")}
    known = own | {str(a): int(key) for a, key in catalog.rows("SELECT alias, chrom_id FROM data.chromosome_aliases")}
    for alias, chrom in aliases.items():
        if chrom not in own:
            raise InputFileError(f"alias {alias!r} for {chrom!r}, which the genome does not have", where="aliases")
        if known.get(alias, own[chrom]) != own[chrom]:
            raise InputFileError(f"{alias!r} is a name of another chromosome already", where="aliases")
    new = {alias: own[chrom] for alias, chrom in aliases.items() if alias not in known}
    catalog.insert("data.chromosome_aliases", {"alias": list(new), "chrom_id": list(new.values())})
