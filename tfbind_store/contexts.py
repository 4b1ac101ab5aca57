"""Biotype metadata and the text that a text encoder reads about a biotype.

A template is pieces between ``|``; ``{column}`` stands for a cell. The columns are those of the metadata table and
``biotype``, ``base_biotype``, ``treatment``; ``{metadata}`` stands for all of the table's columns in their order, as
``name: cell``. A piece of which a cell is missing is left out whole. The text is stored in the catalog beside the
template; who embeds it is ``precompute``'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tfbind_store.errors import ConfigError, InputFileError
from tfbind_store.names import near_miss, split_treatment
from tfbind_store.textfiles import NULL_CELLS, find_column, read_table

DEFAULT_TEMPLATE = "cell type: {base_biotype} | treatment: {treatment} | {metadata}"
KEY_COLUMNS = ("cell", "cell_type", "celltype", "cell_line", "base_biotype", "biosample", "tissue", "strain")
OWN_COLUMNS = ("biotype", "base_biotype", "treatment", "metadata")

_FIELD = re.compile(r"\{([^{}]*)\}")


class BiotypeRow(NamedTuple):
    """One biotype's metadata."""

    biotype: str
    metadata: dict[str, str]
    """Cells by column, empty ones left out."""


class BiotypeTable(NamedTuple):
    """A file of biotype metadata."""

    columns: tuple[str, ...]
    rows: tuple[BiotypeRow, ...]
    n_read: int
    n_repeated: int
    """Rows that say the same as an earlier one."""


def read_biotypes(path: Path | str, *, key: str | None = None) -> BiotypeTable:
    """Read a CSV or TSV with one row per biotype.

    Parameters
    ----------
    path
        The table; its header has a column ``biotype`` (or ``cell``, ``cell_type``, ...), else the first column is it.
    key
        Name of that column, if it is none of these.

    Raises
    ------
    InputFileError
        If a row names no biotype, or two rows say different things about one.
    """
    table = read_table(path)
    column = find_column(table, "biotype", {"biotype": key} if key else None, *KEY_COLUMNS) or table.columns[0]
    others = tuple(name for name in table.columns if name != column)
    seen: dict[str, tuple[int, dict[str, str]]] = {}
    n_repeated = 0
    for line, cells in table.rows:
        biotype = cells.get(column)
        if biotype is None:
            raise InputFileError(f"no biotype in column {column!r}", where=f"{path}:{line}")
        metadata = {name: cells[name] for name in others if name in cells}
        if biotype in seen and seen[biotype][1] != metadata:
            raise InputFileError(
                f"biotype {biotype!r} stands in lines {seen[biotype][0]} and {line} with other cells",
                where=f"{path}:{line}",
                fix="keep one of the rows",
            )
        n_repeated += biotype in seen
        seen.setdefault(biotype, (line, metadata))
    rows = tuple(BiotypeRow(biotype, metadata) for biotype, (_, metadata) in seen.items())
    return BiotypeTable(others, rows, len(table.rows), n_repeated)


def metadata_for(biotype: str, known: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of a biotype: its own row, else that of the cell type without treatment, else nothing."""
    base, _ = split_treatment(biotype)
    return dict(known.get(biotype, known.get(base, {})))


def template_fields(template: str) -> tuple[str, ...]:
    """Return the columns that a template asks for.

    Raises
    ------
    ConfigError
        If it has no text at all, or a brace that opens or closes nothing.
    """
    bare = _FIELD.sub("", template)
    if not template.strip() or "{" in bare or "}" in bare:
        raise ConfigError(f"not a template: {template!r}", where="template", fix="write {column} between braces")
    return tuple(dict.fromkeys(_FIELD.findall(template)))


def check_template(template: str, columns: tuple[str, ...]) -> None:
    """Refuse a template that asks for a column which neither a biotype nor the metadata has."""
    known = (*OWN_COLUMNS, *columns)
    for name in template_fields(template):
        if name not in known:
            close = near_miss(name, known)
            raise ConfigError(
                f"the template asks for column {name!r}",
                where="template",
                fix=f"did you mean {close}?" if close else f"columns: {', '.join(known)}",
            )


def context_text(template: str, biotype: str, metadata: Mapping[str, object]) -> str:
    """Return the text about one biotype.

    A cell that is None, not a number, or a word such as ``NA`` is missing. If every piece is left out, the text is the
    biotype.

    Examples
    --------
    >>> context_text(DEFAULT_TEMPLATE, "MCF-7_E2", {"organ": "breast", "sex": None})
    'cell type: MCF-7 | treatment: E2 | organ: breast'
    """
    base, treatment = split_treatment(biotype)
    plain = {name: text for name, value in metadata.items() if (text := _cell(value)) is not None}
    cells: dict[str, str | None] = {**plain, "biotype": biotype, "base_biotype": base, "treatment": treatment}
    cells["metadata"] = " | ".join(f"{name}: {text}" for name, text in plain.items()) or None
    pieces = []
    for piece in template.split("|"):
        fields = _FIELD.findall(piece)
        if all(cells.get(name) is not None for name in fields):
            pieces.append(_FIELD.sub(lambda match: str(cells[match[1]]), piece).strip())
    return " | ".join(piece for piece in pieces if piece) or biotype


def _cell(value: object) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in NULL_CELLS else text
