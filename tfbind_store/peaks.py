"""Formats of peak files: what the columns mean, where the summit is, and which line is wrong.

BED3 to BED6 and more, narrowPeak and broadPeak (ENCODE), and ReMap's 9 columns. Coordinates are bp, 0-based, half-open.
This module makes a clean copy of a file (plain text, tabs, no header lines) and says how to read it; ``ingest`` has
the catalog read the copy at scale, and comes back for `first_bad_line` when a row does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfbind_store.durable import typed_errors
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


class CleanFile(NamedTuple):
    """A peak file made ready for reading."""

    source: Path
    copy: Path
    """Plain text, one row a line, tabs between columns, no header lines."""
    n_rows: int
    n_headers: int
    """Header, comment and blank lines left out."""
    n_columns: int
    """Of the first row; 0 for a file without rows."""
    is_rectangular: bool
    """Whether every row has as many."""
    format: PeakFormat


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


def clean_copy(source: Path | str, copy: Path | str, *, format: PeakFormat | None = None) -> CleanFile:
    """Write a plain copy of a peak file and say what it is.

    Decompresses, takes header, comment and blank lines out wherever they stand, turns CRLF into LF and, where the first
    row has no tab, blanks into tabs.

    Raises
    ------
    PeakFileError
        If the file is absent, truncated, binary, or has too few columns for the format that was asked for.
    """
    source, copy = Path(source), Path(copy)
    n_rows = n_headers = 0
    first_rows: list[list[str]] = []
    by_blanks: bool | None = None
    is_rectangular = True
    with typed_errors(copy), copy.open("wb") as sink:
        for block in _whole_lines(source):
            if _may_hold_headers(block):
                block, n_found = _HEADER.subn(b"", block)
                n_headers += n_found
            if not block:
                continue
            if by_blanks is None:
                first, _, rest = block.partition(b"\n")
                by_blanks = b"\t" not in first
                if _is_column_names(first.decode("latin-1").split()):
                    block, n_headers = rest, n_headers + 1
            if by_blanks:
                block = _BLANKS.sub(b"\t", block)
            if len(first_rows) < SNIFFED_ROWS:
                first_rows += _rows(block, SNIFFED_ROWS - len(first_rows), source)
            n_rows += block.count(b"\n")
            is_rectangular = is_rectangular and _is_rectangular(block, len(first_rows[0]))
            sink.write(block)
    n_columns = len(first_rows[0]) if first_rows else 0
    found = format or sniff(first_rows)
    if first_rows and n_columns < found.min_columns:
        bad = first_bad_line(source, found)
        raise PeakFileError(
            f"{n_columns} columns, {found} has at least {found.min_columns}",
            where=f"{source}:{bad.number if bad else 1}",
            fix="columns are chrom, start, end, name, ... with tabs between them",
        )
    return CleanFile(source, copy, n_rows, n_headers, n_columns, is_rectangular, found)


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


def _is_rectangular(block: bytes, n_columns: int) -> bool:
    """Whether every line of a block has `n_columns` columns."""
    letters = np.frombuffer(block, dtype=np.uint8)
    tabs_before = np.searchsorted(np.flatnonzero(letters == ord("\t")), np.flatnonzero(letters == ord("\n")))
    return bool((np.diff(tabs_before, prepend=0) == n_columns - 1).all())


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
    """Return the line number in the source file of row number `row` (from 1) of its clean copy."""
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
