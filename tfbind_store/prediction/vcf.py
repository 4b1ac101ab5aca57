"""Read a VCF row by row and allele by allele, saying of each that cannot be scored why.

Positions are 0-based here (a VCF's POS minus one), half-open. Each alternative allele of a row is a variant of its own,
in the row's order. Plain and gzip (bgzip too); nothing of FILTER, INFO and the samples is read, all of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tfbind_store.errors import VariantFileError
from tfbind_store.textfiles import read_lines

COLUMNS: Final = ("CHROM", "POS", "ID", "REF", "ALT")
_BASES = re.compile(r"[ACGTNacgtn]+")
_BREAKEND = re.compile(r"[\[\].]")
"""A mate's place in brackets, a single breakend's dot, or a dot alone: no other allele."""


class Variant(NamedTuple):
    """One alternative allele of one row."""

    line: int
    """Of the file, from 1."""
    allele: int
    """Number of the alternative allele in its row, from 1."""
    chrom: str
    """As the file spells it."""
    start: int
    name: str
    ref: str
    alt: str
    reason: str
    """Why it cannot be scored whatever the genome is; empty where it may."""


class VcfRow(NamedTuple):
    """One row: its text and its alleles."""

    text: str
    variants: tuple[Variant, ...]


def read_vcf(path: Path | str) -> Iterator[str | VcfRow]:
    """Yield header lines as text, then rows.

    Raises
    ------
    VariantFileError
        If the file has no header line ``#CHROM``, or a row has too few columns or no position.
    """
    has_header = False
    for line, text in read_lines(path, error_class=VariantFileError):
        if text.startswith("#"):
            has_header = has_header or text.startswith("#CHROM")
            yield text
        elif text.strip():
            if not has_header:
                raise VariantFileError("no header line #CHROM before the first row", where=f"{path}:{line}")
            yield VcfRow(text, tuple(_variants(text, line, path)))
    if not has_header:
        raise VariantFileError("no header line #CHROM", where=str(path))


def _variants(text: str, line: int, path: Path | str) -> Iterator[Variant]:
    cells = text.split("\t")
    if len(cells) < len(COLUMNS):
        what = f"a row needs {', '.join(COLUMNS)} with tabs between: {text[:60]!r}"
        raise VariantFileError(what, where=f"{path}:{line}")
    if not (cells[1].isascii() and cells[1].strip().isdigit()):
        raise VariantFileError(f"POS is {cells[1][:20]!r}, no number", where=f"{path}:{line}")
    chrom, position, name, ref = cells[0], int(cells[1]), cells[2], cells[3]
    for allele, alt in enumerate(cells[4].split(","), 1):
        yield Variant(line, allele, chrom, position - 1, name, ref.upper(), alt.upper(), _reason(ref, alt, position))


def _reason(ref: str, alt: str, position: int) -> str:
    if position < 1:
        return "off_chromosome"
    if not _BASES.fullmatch(ref):
        return "bad_ref"
    if alt == "*" or alt.startswith("<") or _BREAKEND.search(alt):
        return "symbolic_allele"
    if not _BASES.fullmatch(alt):
        return "bad_alt"
    return "same_as_ref" if ref.upper() == alt.upper() else ""
