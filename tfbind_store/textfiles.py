"""Read text from outside: plain or gzip, with either line ending, by line or as a table with a header.

A truncated or damaged .gz, a binary file and text that is not UTF-8 are refused with the file's name. What the text
means is the business of ``peaks``, ``factors`` and ``contexts``.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import queue
import re
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, TypeVar, cast

from tfbind_store.errors import InputFileError

T = TypeVar("T")
GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 23
LONGEST_LINE_BYTES = 1 << 26
"""A few bytes of gzip can stand for a line that fills the memory."""
NULL_CELLS = frozenset({"", ".", "-", "na", "n/a", "nan", "null", "none"})
"""Cells that stand for no value, in lower case."""


class TableRow(NamedTuple):
    """One row of a table: cells by column, empty ones left out."""

    line: int
    cells: dict[str, str]


class TextTable(NamedTuple):
    """A table with a header line."""

    path: Path
    columns: tuple[str, ...]
    rows: list[TableRow]


def read_chunks(path: Path | str, *, error_class: type[InputFileError] = InputFileError) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in pieces.

    Raises
    ------
    InputFileError
        Or `error_class`, if the file is absent, a folder, truncated or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise error_class("no such file" if not path.exists() else "not a file", where=str(path))
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == GZIP_MAGIC
            plain.seek(0)
            file = cast(IO[bytes], gzip.GzipFile(fileobj=plain, mode="rb")) if packed else plain
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise error_class(
            f"the compressed file is truncated or damaged: {error}", where=str(path), fix="copy or download it again"
        ) from error
    except OSError as error:
        raise error_class(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def read_ahead(items: Iterator[T], *, n_waiting: int = 2) -> Generator[T, None, None]:
    """Yield the same items, made by a thread that is a few of them ahead.

    What the maker raises is raised here, in its place. A caller that stops early stops the thread.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=n_waiting)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None, is_end: bool) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error, is_end), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item, None, False)
                if stopped.is_set():
                    return
            put(None, None, True)
        except BaseException as error:  # handed over, and raised in the caller's thread
            put(None, error, True)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = waiting.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield cast(T, item)
    finally:
        stopped.set()
        thread.join()


def read_lines(path: Path | str, *, error_class: type[InputFileError] = InputFileError) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line, line endings taken off."""
    rest, number = b"", 0
    for chunk in read_chunks(path, error_class=error_class):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, _text(line, path, number, error_class)
        if len(rest) > LONGEST_LINE_BYTES:
            what = f"a line of more than {LONGEST_LINE_BYTES:,} bytes is no text that people write"
            raise error_class(what, where=f"{path}:{number + 1}", fix="look whether this is the right file")
    if rest:
        yield number + 1, _text(rest, path, number + 1, error_class)


def _text(line: bytes, path: Path | str, number: int, error_class: type[InputFileError]) -> str:
    try:
        return line.rstrip(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise error_class("the text is not UTF-8", where=f"{path}:{number}", fix="save the file as UTF-8") from error


def read_table(path: Path | str) -> TextTable:
    """Read a TSV or CSV with a header line.

    Tabs separate if the header holds one, else commas (with double quotes around cells as CSV has them). A ``#`` before
    the first column's name belongs to nothing. Cells such as ``NA`` count as empty.

    Raises
    ------
    InputFileError
        If there is no header, a column has no name or stands twice, or a row has more cells than the header.
    """
    path = Path(path)
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        raise InputFileError("the table is empty", where=str(path))
    by_tab = "\t" in first[1]
    columns = tuple(cell.strip() for cell in _split(first[1].lstrip("#"), by_tab=by_tab))
    if not all(columns) or len(set(columns)) < len(columns):
        raise InputFileError(f"columns need different names: {columns}", where=f"{path}:{first[0]}")
    rows = []
    for number, line in lines:
        cells = [cell.strip() for cell in _split(line, by_tab=by_tab)]
        if len(cells) > len(columns) and any(cells[len(columns) :]):
            raise InputFileError(f"{len(cells)} cells under {len(columns)} columns", where=f"{path}:{number}")
        full = {name: cell for name, cell in zip(columns, cells, strict=False) if cell.lower() not in NULL_CELLS}
        rows.append(TableRow(number, full))
    return TextTable(path, columns, rows)


def _split(line: str, *, by_tab: bool) -> list[str]:
    return line.split("\t") if by_tab else next(csv.reader([line]))


def find_column(table: TextTable, wanted: str, others: Mapping[str, str] | None = None, *words: str) -> str | None:
    """Return the table's column for `wanted`: as `others` says, else the first whose plain name is one of `words`.

    Raises
    ------
    InputFileError
        If `others` names a column that is not there.
    """
    named = (others or {}).get(wanted)
    if named is not None:
        if named not in table.columns:
            raise InputFileError(
                f"no column {named!r} for {wanted}", where=str(table.path), fix=f"columns: {', '.join(table.columns)}"
            )
        return named
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in reversed(table.columns)}
    return next((plain[word] for word in (wanted, *words) if word in plain), None)
