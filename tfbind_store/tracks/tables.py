"""Which track is of what: ChIP-Atlas's experimentList, ENCODE's metadata.tsv, or a table of our own.

A ChIP-Atlas list has no header and any number of columns from six on: experiment, assembly, class and name of the
antigen, class and name of the cell type, and then free text, as much as there is. ENCODE's table has a header with
``File accession``. Ours has a header with ``track`` and any of ``path, factor, biotype, assay, assembly, experiment``.
Nothing is looked up here: names are as the files spell them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tfbind_store.errors import InputFileError
from tfbind_store.textfiles import NULL_CELLS, read_lines, read_table

SUFFIXES: Final = (".bw", ".bigwig", ".bigWig", ".BigWig")
_ATLAS_FACTOR_CLASSES: Final = frozenset({"TFs and others"})
_OURS: Final = ("track", "path", "factor", "biotype", "assay", "assembly", "experiment")


class TrackRow(NamedTuple):
    """What a table says about one track."""

    line: int
    track: str
    path: str | None
    """As written; None where the file is named by the track."""
    factor: str | None
    """None of a track that is of no factor, such as ATAC."""
    biotype: str | None
    assay: str | None
    assembly: str | None
    experiment: str | None
    """The experiment in full, where the table names it."""
    metadata: dict[str, str]
    """All other cells."""


def read_annotation(path: Path | str) -> list[TrackRow]:
    """Read a table of tracks; which of the three kinds it is follows from its first line.

    Raises
    ------
    InputFileError
        If it is none of them, or has no row.
    """
    path = Path(path)
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    columns = [cell.strip().lstrip("#") for cell in first.split("\t")]
    if "File accession" in columns:
        rows = list(_encode_rows(path))
    elif "track" in columns:
        rows = list(_own_rows(path))
    elif len(columns) >= 6 and "File accession".lower() not in (cell.lower() for cell in columns):
        rows = list(_atlas_rows(path))
    else:
        fix = "give ChIP-Atlas's experimentList.tab, ENCODE's metadata.tsv, or a table with a column 'track'"
        raise InputFileError(f"no table of tracks: its first line has {columns[:4]}", where=f"{path}:1", fix=fix)
    if not rows:
        raise InputFileError("the table has no row about a track", where=str(path))
    return rows


def _cell(cells: Mapping[str, str], name: str) -> str | None:
    return cells.get(name) or None


def _atlas_rows(path: Path) -> Iterator[TrackRow]:
    for line, text in read_lines(path):
        if not text.strip():
            continue
        cells = [cell.strip() for cell in text.split("\t")]
        if len(cells) < 6 or not cells[0]:
            fix = "it has experiment, assembly, antigen class, antigen, cell type class, cell type, then anything"
            raise InputFileError(f"{len(cells)} columns, expected six or more", where=f"{path}:{line}", fix=fix)
        factor = cells[3] if cells[2] in _ATLAS_FACTOR_CLASSES and cells[3].lower() not in NULL_CELLS else None
        # column 6 is the cell type; column 5 is only its class
        biotype = None if cells[5].lower() in NULL_CELLS or cells[5] == "Unclassified" else cells[5]
        rest = {"antigen_class": cells[2], "antigen": cells[3], "cell_type_class": cells[4]}
        rest |= {f"column_{place}": cell for place, cell in enumerate(cells[6:], 7) if cell.lower() not in NULL_CELLS}
        yield TrackRow(line, cells[0], None, factor, biotype, cells[2], cells[1], None, rest)


def _encode_rows(path: Path) -> Iterator[TrackRow]:
    for line, cells in read_table(path).rows:
        kind = _cell(cells, "File format") or _cell(cells, "File type") or "bigWig"
        if kind.lower() != "bigwig":
            continue
        target = _cell(cells, "Experiment target") or _cell(cells, "Target label")
        factor = None if target is None else target.rpartition("-")[0] or target  # CTCF-human
        biotype = _cell(cells, "Biosample term name")
        treatment = _cell(cells, "Biosample treatments")
        if biotype and treatment:
            biotype = f"{biotype}_{treatment.replace(', ', '-')}"
        used = {"File accession", "Experiment target", "Biosample term name", "File assembly", "Assay"}
        yield TrackRow(
            line,
            _required(cells, "File accession", path, line),
            None,
            factor,
            biotype,
            _cell(cells, "Assay"),
            _cell(cells, "File assembly") or _cell(cells, "Assembly"),
            None,
            {name: cell for name, cell in cells.items() if name not in used},
        )


def _own_rows(path: Path) -> Iterator[TrackRow]:
    for line, cells in read_table(path).rows:
        rest = {name: cell for name, cell in cells.items() if name not in _OURS}
        track = _required(cells, "track", path, line)
        path_, factor, biotype, assay, assembly, experiment = (_cell(cells, name) for name in _OURS[1:])
        yield TrackRow(line, track, path_, factor, biotype, assay, assembly, experiment, rest)


def _required(cells: Mapping[str, str], name: str, path: Path, line: int) -> str:
    value = cells.get(name)
    if not value:
        raise InputFileError(f"the row has no {name}", where=f"{path}:{line}")
    return value


def file_of(row: TrackRow, folder: Path, table: Path) -> Path | None:
    """Return the bigWig of a row: the path it gives, seen from the folder or the table, else the file of its name."""
    if row.path is not None:
        places = (Path(row.path), folder / row.path, table.parent / row.path)
        return next((place for place in places if place.is_file()), None)
    if "/" in row.track or row.track.startswith("."):
        return None
    return next((place for suffix in SUFFIXES if (place := folder / f"{row.track}{suffix}").is_file()), None)
