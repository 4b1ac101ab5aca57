"""What a user's query found, as text, as a file or as another library's table.

Rows come one at a time or some at once, and go on without being held, so that an answer of any size can be written.
BED is bp, 0-based, half-open. pandas, pyarrow and pybedtools are imported when they are asked for.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import numpy as np

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.catalog.strangers import Table
from tfbind_store.durable import discard, publish_temporary, temporary_beside
from tfbind_store.errors import DependencyError, SqlError

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from pybedtools import BedTool

FORMATS = ("csv", "json", "bed", "parquet")
Batches = Iterable[Sequence[Sequence[Any]]]
_BED_NAMES = {"chrom": ("chrom",), "start": ("start", "start_bp"), "end": ("end", "end_bp")}
_BED_MORE = (("name", ("name", "experiment")), ("score", ("score",)), ("strand", ("strand",)))


class Answer:
    """The rows that a query found; `Store.sql` returns it.

    Examples
    --------
    ``store.sql("SELECT * FROM peaks WHERE factor = $f", {"f": "SOX2"}).to_bedtool().intersect(other)``
    """

    def __init__(self, table: Table) -> None:
        self.columns = table.columns
        self.types = table.types
        """DuckDB's names of the columns' types."""
        self.rows = table.rows
        self.is_cut = table.is_cut
        """Whether there were more rows than asked for."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over the rows."""
        return iter(self.rows)

    def dicts(self) -> list[dict[str, Any]]:
        """Return a dict per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def arrays(self) -> Columns:
        """Return numpy columns; NULL is NaN among numbers and None among anything else."""
        found = Columns()
        for place, name in enumerate(self.columns):
            found[name] = _array([row[place] for row in self.rows])
        return found

    def to_file(self, path: Path | str, format: str | None = None) -> Path:
        """Write a file, whole or not at all: CSV, JSON, BED or Parquet, by the name's end if `format` is not given."""
        return write_file(Path(path), format, self.columns, self.types, [self.rows])

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas table."""
        try:
            import pandas
        except ImportError as error:
            raise _absent("pandas") from error
        return pandas.DataFrame(dict(self.arrays()), columns=self.columns)

    def to_arrow(self) -> pyarrow.Table:
        """Return an Arrow table."""
        try:
            import pyarrow
        except ImportError as error:
            raise _absent("pyarrow") from error
        columns = [pyarrow.array([row[place] for row in self.rows]) for place in range(len(self.columns))]
        return pyarrow.table(columns, names=self.columns)

    def to_bedtool(self) -> BedTool:
        """Return the rows as a ``pybedtools.BedTool``: chrom, start and end, then name, score and strand if there."""
        try:
            import pybedtools
        except ImportError as error:  # pragma: no cover - a dependency of the package
            raise _absent("pybedtools") from error
        return pybedtools.BedTool("".join(bed_lines(self.columns, self.rows)), from_string=True)


def write_file(path: Path, format: str | None, columns: Sequence[str], types: Sequence[str], batches: Batches) -> Path:
    """Write rows to a file as they come, whole or not at all.

    Raises
    ------
    SqlError
        If the format is none of `FORMATS`, or the rows have no chrom, start and end for a BED.
    """
    chosen = format or path.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        raise SqlError(f"no such format: {chosen!r}", where=str(path), fix=f"one of {', '.join(FORMATS)}")
    if chosen == "parquet":
        Catalog.write_parquet_rows(path, columns, types, batches)
        return path
    temporary = temporary_beside(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            WRITERS[chosen](file, columns, batches)
        publish_temporary(temporary, path, fsync_first=True)
    finally:
        discard(temporary)
    return path


def write_csv(file: TextIO, columns: Sequence[str], batches: Batches) -> None:
    """Write a header and rows; NULL is an empty field, lists and dicts are JSON."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for batch in batches:
        writer.writerows([_cell(value) for value in row] for row in batch)


def write_json(file: TextIO, columns: Sequence[str], batches: Batches) -> None:
    """Write a JSON list with one object a row, one a line; numbers that JSON has not are null."""
    before = "[\n"
    for batch in batches:
        for row in batch:
            file.write(before + json.dumps(dict(zip(columns, _finite(list(row)), strict=True)), ensure_ascii=False))
            before = ",\n"
    file.write("\n]\n" if before == ",\n" else "[]\n")


def write_bed(file: TextIO, columns: Sequence[str], batches: Batches) -> None:
    """Write BED lines without a header."""
    for batch in batches:
        file.writelines(bed_lines(columns, batch))


Writer: TypeAlias = Callable[[TextIO, Sequence[str], Batches], None]
WRITERS: Mapping[str, Writer] = {"csv": write_csv, "json": write_json, "bed": write_bed}
"""By format: what writes rows as text."""


def bed_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield rows as BED3, or as BED6 if there is a name (or an experiment), a score or a strand."""
    places = {name: _place(columns, words) for name, words in _BED_NAMES.items()}
    absent = [name for name, place in places.items() if place is None]
    if absent:
        raise SqlError(
            f"a BED needs chrom, start and end: there is no {', '.join(absent)}",
            where=f"columns {', '.join(columns)}",
            fix="select them, or call them so: SELECT chrom, start_bp AS start, ...",
        )
    first = [place for place in places.values() if place is not None]
    more = [_place(columns, words) for _, words in _BED_MORE]
    has_more = any(place is not None for place in more)
    for row in rows:
        cells = [row[place] for place in first]
        if None in cells:
            raise SqlError(f"a row without a place: {dict(zip(columns, row, strict=True))}", where="BED")
        if has_more:
            cells += [None if place is None else row[place] for place in more]
        yield "\t".join(map(_bed_cell, cells)) + "\n"


def _place(columns: Sequence[str], words: Sequence[str]) -> int | None:
    lower = [column.lower() for column in columns]
    return next((lower.index(word) for word in words if word in lower), None)


def _bed_cell(value: Any) -> str:
    if value is None:
        return "."
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.7g}"
    text = str(value)
    return " ".join(text.split()) if "\t" in text or "\n" in text else text


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _array(values: Sequence[Any]) -> np.ndarray:
    known = {type(value) for value in values if value is not None}
    whole = all(value is not None for value in values)
    with contextlib.suppress(OverflowError):  # whole numbers past 64 bits stay objects
        if values and (known == {bool} or known == {int}) and whole:
            return np.array(values, dtype=bool if known == {bool} else np.int64)
        if known and known <= {int, float}:
            return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def _absent(package: str) -> DependencyError:
    return DependencyError(f"{package} is not installed", where="sql", fix=f"pip install {package}")
