"""Formats of peak files: what the columns mean, where the summit is, and which line is wrong.

BED3 to BED6 and more, narrowPeak and broadPeak (ENCODE), and ReMap's 9 columns. Coordinates are bp, 0-based, half-open.
This module reads a file as clean text (tabs, no header lines) and says what its columns are; ``ingest`` has the catalog
read that at scale, and comes back for `first_bad_line` when a row does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfbind_store.errors import PeakFileError
from tfbind_store.textfiles import read_chunks, read_lines

SNIFFED_ROWS = 1000
MIN_FITTING = 0.9
"""More of the sniffed rows than this must fit a format."""
_HEADER = re.compile(rb"(?m)^(?:#[^\n]*|(?:track|browser)(?:[ \t][^\n]*)?|[ \t]*)\n")
_HEADER_LINE = re.compile(r"#.*|(?:track|browser)(?:[ \t].*)?|[ \t]*")
_HEADER_STARTS = np.frombuffer(b"#tb \t\n", dtype=np.uint8)
_BLANKS = re.compile(rb"[ \t]+")
_INTEGER = re.compile(r"[0-9]{1,12}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|Inf|nan|NaN)")


class PeakFormat(StrEnum):
    """Which BED relative a file is."""

    BED = "bed"
    """chrom, start, end and, if there, name, score, strand; further columns are not read."""
    NARROW_PEAK = "narrowpeak"
    """ENCODE: column 7 signal, column 10 summit as offset from the start, -1 for none."""
    BROAD_PEAK = "broadpeak"
    """ENCODE: column 7 signal, no summit."""
    REMAP = "remap"
    """ReMap: columns 7 and 8 hold the summit, column 9 a colour."""

    @property
    def min_columns(self) -> int:
        """Columns that every row must have."""
        return {"bed": 3, "narrowpeak": 10, "broadpeak": 9, "remap": 9}[self.value]

    def summit_sql(self) -> str:
        """Return SQL for the summit over typed ``start_bp``, ``end_bp`` and text columns ``c7``, ``c10``.

        A summit outside its peak is no summit: the midpoint ``(start + end) // 2`` stands in, as where none is given.
        """
        midpoint = "(start_bp + end_bp) // 2"
        called = {
            PeakFormat.NARROW_PEAK: "CASE WHEN c10 <> '-1' THEN start_bp + try_cast(c10 AS BIGINT) END",
            PeakFormat.REMAP: "CASE WHEN try_cast(c8 AS BIGINT) - try_cast(c7 AS BIGINT) <= 1"
            " THEN try_cast(c7 AS BIGINT) END",
        }.get(self)
        if called is None:
            return midpoint
        return f"CASE WHEN ({called}) >= start_bp AND ({called}) < end_bp THEN ({called}) ELSE {midpoint} END"

    def score_sql(self) -> str:
        """Return SQL for the score: the signal of ENCODE's formats, else column 5; NULL where it is no number."""
        column = "c7" if self in (PeakFormat.NARROW_PEAK, PeakFormat.BROAD_PEAK) else "c5"
        return f"try_cast({column} AS FLOAT)"


class CleanBlock(NamedTuple):
    """Some rows of a peak file as clean text: tabs between columns, LF at each end, no header lines."""

    text: bytes
    n_rows: int
    is_rectangular: bool
    """Whether every row has as many columns as the file's first."""


class CleanFile:
    """A peak file made ready for reading; use `clean_rows`."""

    def __init__(self, source: Path, format: PeakFormat | None) -> None:
        self.source = source
        self.n_rows = 0
        """Rows of the blocks that were read so far."""
        self.n_headers = 0
        """Header, comment and blank lines left out of them."""
        self._by_blanks: bool | None = None
        self._blocks = self._read()
        self._head: list[CleanBlock] = []
        rows: list[list[str]] = []
        self.n_columns = 0
        """Of the first row; 0 for a file without rows."""
        for block in self._blocks:
            self._head.append(block)
            rows += _rows(block.text, SNIFFED_ROWS - len(rows), source)
            if len(rows) >= SNIFFED_ROWS:
                break
        self.format = format or sniff(rows)
        self.is_empty = not rows
        if rows and self.n_columns < self.format.min_columns:
            bad = first_bad_line(source, self.format)
            raise PeakFileError(
                f"{self.n_columns} columns, {self.format} has at least {self.format.min_columns}",
                where=f"{source}:{bad.number if bad else 1}",
                fix="columns are chrom, start, end, name, ... with tabs between them",
            )

    def blocks(self) -> Iterator[CleanBlock]:
        """Yield all rows, once."""
        while self._head:
            yield self._head.pop(0)
        yield from self._blocks

    def _read(self) -> Iterator[CleanBlock]:
        for text in _whole_lines(self.source):
            if _may_hold_headers(text):
                text, n_found = _HEADER.subn(b"", text)
                self.n_headers += n_found
            if text and self._by_blanks is None:
                text = self._first(text)
            if not text:
                continue
            if self._by_blanks:
                text = _BLANKS.sub(b"\t", text)
            if not self.n_columns:
                self.n_columns = text[: text.index(b"\n")].count(b"\t") + 1
            n_rows, is_rectangular = _shape(text, self.n_columns)
            self.n_rows += n_rows
            yield CleanBlock(text, n_rows, is_rectangular)

    def _first(self, text: bytes) -> bytes:
        """Look at the file's first row: what separates its columns, and whether it only names them."""
        first, _, rest = text.partition(b"\n")
        self._by_blanks = b"\t" not in first
        if not _is_column_names(first.decode("latin-1").split()):
            return text
        self.n_headers += 1
        return rest


class BadLine(NamedTuple):
    """The first line of a file that is no peak, and why."""

    number: int
    reason: str


def sniff(rows: Sequence[Sequence[str]]) -> PeakFormat:
    """Return the format that fits all rows but a few, which are then bad lines: they must not hide the summits.

    Examples
    --------
    >>> sniff([["chr1", "5", "9", "GSE1.SOX2.H1", "10", ".", "6", "7", "0,0,255"]])
    <PeakFormat.REMAP: 'remap'>
    """
    for format, fits in (
        (PeakFormat.NARROW_PEAK, _is_narrow),
        (PeakFormat.REMAP, _is_remap),
        (PeakFormat.BROAD_PEAK, _is_broad),
    ):
        if rows and sum(map(fits, rows)) > MIN_FITTING * len(rows):
            return format
    return PeakFormat.BED


def _is_narrow(row: Sequence[str]) -> bool:
    if len(row) < 10 or not all(_NUMBER.fullmatch(cell) for cell in row[6:9]):
        return False
    return row[9] == "-1" or bool(_INTEGER.fullmatch(row[9]))


def _is_broad(row: Sequence[str]) -> bool:
    return len(row) == 9 and all(_NUMBER.fullmatch(cell) for cell in row[6:9])


def _is_remap(row: Sequence[str]) -> bool:
    if len(row) < 9 or not all(_INTEGER.fullmatch(row[i]) for i in (1, 2, 6, 7)):
        return False
    start, end, first, last = (int(row[i]) for i in (1, 2, 6, 7))
    return start <= first <= last <= end and bool(re.fullmatch(r"0|\.|\d+,\d+,\d+", row[8]))


def clean_rows(source: Path | str, *, format: PeakFormat | None = None) -> CleanFile:
    """Open a peak file and say what it is.

    Its blocks are decompressed, without header, comment and blank lines wherever they stand, with LF for CRLF and,
    where the first row has no tab, tabs for blanks.

    Raises
    ------
    PeakFileError
        If the file is absent, truncated, binary, or has too few columns for the format that was asked for.
    """
    return CleanFile(Path(source), format)


def _whole_lines(source: Path) -> Iterator[bytes]:
    """Yield blocks of whole lines, LF at each end, the last line's too."""
    rest = b""
    for chunk in read_chunks(source, error_class=PeakFileError):
        if b"\0" in chunk:
            raise PeakFileError("not a text file: it holds NUL bytes", where=str(source))
        block, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            block += newline
            yield block.replace(b"\r\n", b"\n") if b"\r" in block else block
    if rest:
        yield rest.rstrip(b"\r") + b"\n"


def _may_hold_headers(block: bytes) -> bool:
    """Whether a line begins as a header line does: five times as fast as looking for one."""
    letters = np.frombuffer(block, dtype=np.uint8)
    starts = letters[np.flatnonzero(letters[:-1] == ord("\n")) + 1]
    return bool(np.isin(starts, _HEADER_STARTS).any() or letters[0] in _HEADER_STARTS)


def _shape(block: bytes, n_columns: int) -> tuple[int, bool]:
    """Return the rows of a block, and whether every one has `n_columns` columns."""
    letters = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    tabs = np.add.reduceat((letters == ord("\t")).view(np.uint8), starts, dtype=np.uint16)
    return len(ends), bool((tabs == n_columns - 1).all())


def _rows(block: bytes, limit: int, source: Path) -> list[list[str]]:
    lines = block.split(b"\n", limit)[:limit]
    try:
        return [line.decode("utf-8").split("\t") for line in lines if line]
    except UnicodeDecodeError as error:
        raise PeakFileError("the text is not UTF-8", where=str(source), fix="save the file as UTF-8") from error


def first_bad_line(source: Path | str, format: PeakFormat, *, needs_name: bool = False) -> BadLine | None:
    """Return the first line that is no peak, counted in the source file as it is, or None.

    Parameters
    ----------
    source
        The peak file.
    format
        What its rows must be.
    needs_name
        Whether column 4 must name an experiment.
    """
    by_blanks: bool | None = None
    for number, line in read_lines(source, error_class=PeakFileError):
        if _HEADER_LINE.fullmatch(line):
            continue
        if by_blanks is None:
            by_blanks = "\t" not in line
            if _is_column_names(line.split()):
                continue
        reason = _problem(line.split() if by_blanks else line.split("\t"), format, needs_name=needs_name)
        if reason:
            return BadLine(number, reason)
    return None


def _is_column_names(cells: Sequence[str]) -> bool:
    """Whether a file's first row names its columns, without the ``#`` that it should have."""
    return len(cells) >= 3 and not any(re.search(r"[0-9]", cell) for cell in cells[1:3])


def _problem(row: Sequence[str], format: PeakFormat, *, needs_name: bool) -> str | None:
    """Return why a row is no peak, or None."""
    if len(row) < max(format.min_columns, 4 if needs_name else 3):
        return f"{len(row)} columns, expected at least {max(format.min_columns, 4 if needs_name else 3)}"
    chrom, start, end = row[:3]
    if not chrom:
        return "no chromosome in column 1"
    for what, cell in (("start", start), ("end", end)):
        if not _INTEGER.fullmatch(cell):
            return f"{what} {cell!r} is not a whole number of bp"
    if int(end) <= int(start):
        return f"end {end} <= start {start}"
    if needs_name and not row[3].strip():
        return "no name in column 4"
    return None


GOOD_ROW_SQL = (
    "c1 IS NOT NULL AND regexp_full_match(c2, '[0-9]{1,12}') AND regexp_full_match(c3, '[0-9]{1,12}')"
    " AND coalesce(try_cast(c3 AS BIGINT) > try_cast(c2 AS BIGINT), false)"
)
"""SQL twin of `_problem` over text columns c1, c2, c3."""


def source_line(source: Path | str, row: int) -> int:
    """Return the line number in the source file of row number `row` (from 1) of its clean rows."""
    seen, first = 0, True
    for number, line in read_lines(source, error_class=PeakFileError):
        if _HEADER_LINE.fullmatch(line) or (first and _is_column_names(line.split())):
            first = first and bool(_HEADER_LINE.fullmatch(line))
            continue
        first = False
        seen += 1
        if seen == row:
            return number
    return 0
