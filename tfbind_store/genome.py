"""Read a genome: FASTA in, one byte a base out, and the memory-mapped genome that everything else reads.

Coordinates are bp, 0-based, half-open. Codes: A 0, C 1, G 2, T 3, N 4 (whatever is not A, C, G or T, in either case),
PAD 5 (outside the chromosome). pyfaidx reads the FASTA, with an index of our own in a temporary folder: a user's index
is only compared, never trusted or overwritten. Compressed files, bgzip too, are decompressed there first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyfaidx
from jaxtyping import UInt8

from tfbind_store.errors import GenomeError, NoSpace
from tfbind_store.textfiles import GZIP_MAGIC, read_chunks, read_lines

log = logging.getLogger(__name__)

BASES = "ACGT"
N = 4
"""Code of a base that is not A, C, G or T."""
PAD = 5
"""Code of a position outside the chromosome (Enformer's '.', 0.25 in each channel)."""

_CODE_OF_BYTE = np.full(256, N, dtype=np.uint8)
for _code, _base in enumerate(BASES):
    _CODE_OF_BYTE[[ord(_base), ord(_base.lower())]] = _code
_LETTER_OF_CODE = np.frombuffer(b"ACGTN", dtype=np.uint8)


class ChromosomeInfo(NamedTuple):
    """One chromosome of a stored genome."""

    chrom: str
    length_bp: int
    md5: str
    """Of the upper-case sequence, everything but A, C, G, T as N."""
    n_bp: int
    """Bases that are not A, C, G or T."""
    offset: int
    """Of the first base in the codes file."""


class BaseCounts(NamedTuple):
    """How many bases of a locus are what; positions outside the chromosome are none of them."""

    gc: int
    acgt: int
    n: int


class GenomeImport(NamedTuple):
    """What `write_genome` wrote and met."""

    chromosomes: tuple[ChromosomeInfo, ...]
    counted: dict[str, int]
    """Bases by letter for every letter that became N (N itself too), and chromosomes left out by ``only``."""
    notes: tuple[str, ...] = ()


def genome_digest(chromosomes: Sequence[ChromosomeInfo]) -> str:
    """Return the sha256 over name, length and md5 of each chromosome, in order."""
    lines = "".join(f"{info.chrom}\t{info.length_bp}\t{info.md5}\n" for info in chromosomes)
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


class GenomeSource:
    """A FASTA file, plain or compressed, opened for one pass.

    Parameters
    ----------
    path
        FASTA, plain, gzip or bgzip.
    temp_dir
        Where a decompressed copy and the index may lie while it is open; default: the system's place.

    Raises
    ------
    GenomeError
        If the file is absent, truncated, no FASTA, has a chromosome twice or an empty one, or if the index beside it
        belongs to another file.
    """

    def __init__(self, path: Path | str, *, temp_dir: Path | None = None) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._cleanup = contextlib.ExitStack()
        try:
            folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fasta-", dir=temp_dir)))
            self._fasta = self._cleanup.enter_context(self._open(folder))
            self._check_index()
            self._check_chromosomes()
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> GenomeSource:
        """Use it in a ``with`` block: the temporary files go at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary files."""
        self._cleanup.close()

    @property
    def chroms(self) -> tuple[str, ...]:
        """Chromosome names, in the file's order."""
        return tuple(self._fasta.keys())

    @property
    def lengths_bp(self) -> dict[str, int]:
        """Length of each chromosome."""
        return {name: int(record.rlen) for name, record in self._fasta.faidx.index.items()}

    def letters(self, chrom: str) -> UInt8[np.ndarray, " length_bp"]:
        """Return a chromosome's letters as ASCII bytes, as they stand in the file."""
        text = str(self._fasta[chrom][:])
        return np.frombuffer(text.encode("latin-1", errors="replace"), dtype=np.uint8)

    def codes(self, chrom: str) -> UInt8[np.ndarray, " length_bp"]:
        """Return a chromosome as codes A 0, C 1, G 2, T 3, N 4."""
        codes: UInt8[np.ndarray, " length_bp"] = _CODE_OF_BYTE[self.letters(chrom)]
        return codes

    def _open(self, folder: Path) -> pyfaidx.Fasta:
        if not self.path.is_file():
            raise GenomeError("no such file", where=str(self.path), fix="give a FASTA file, plain or .gz")
        with self.path.open("rb") as file:
            start = file.read(2)
        if not start:
            raise GenomeError("the file is empty", where=str(self.path))
        plain = self.path
        if start == GZIP_MAGIC:
            plain = folder / "genome.fa"
            _decompress(self.path, plain)
            self.notes.append(f"{self.path.name} is compressed and was decompressed for reading")
        with plain.open("rb") as file:
            if not file.read(64).lstrip().startswith(b">"):
                raise GenomeError("not a FASTA file: it does not begin with '>'", where=str(self.path))
        try:
            return pyfaidx.Fasta(str(plain), indexname=str(folder / "genome.fai"), as_raw=True)
        except (pyfaidx.FastaIndexingError, ValueError) as error:
            raise _unreadable(self.path, error) from error

    def _check_index(self) -> None:
        """Refuse a FASTA whose own .fai does not describe it: someone replaced one of the two."""
        theirs = self.path.with_name(self.path.name + ".fai")
        if not theirs.is_file():
            return
        try:
            rows = [line.split("\t") for line in theirs.read_text(encoding="utf-8").splitlines() if line.strip()]
            stated = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise GenomeError("the FASTA's index cannot be read", where=str(theirs), fix="delete it") from error
        real = {name: (int(record.rlen), int(record.offset)) for name, record in self._fasta.faidx.index.items()}
        if stated != real:
            odd = sorted(name for name in stated.keys() | real.keys() if stated.get(name) != real.get(name))
            raise GenomeError(
                f"stale index: it differs from the FASTA in {len(odd)} of {len(real)} chromosomes (first: {odd[0]}, "
                f"index says {_length(stated, odd[0])} bp, FASTA holds {_length(real, odd[0])} bp)",
                where=str(theirs),
                fix="delete the index, or put back the FASTA that it was made from",
            )

    def _check_chromosomes(self) -> None:
        lengths = self.lengths_bp
        if not lengths:
            raise GenomeError("no sequence in this FASTA", where=str(self.path))
        empty = [chrom for chrom, length in lengths.items() if length == 0]
        if empty:
            raise GenomeError(
                f"{len(empty)} chromosomes are empty (first: {empty[0]})", where=str(self.path), fix="remove them"
            )


def iter_chromosomes(path: Path | str) -> Iterator[tuple[str, UInt8[np.ndarray, " length_bp"]]]:
    """Yield name and codes of each chromosome of a FASTA, in the file's order."""
    with GenomeSource(path) as source:
        for chrom in source.chroms:
            yield chrom, source.codes(chrom)


def write_genome(
    fasta: Path | str, out_path: Path | str, *, only: Sequence[str] | None = None, chrom_sizes: Path | str | None = None
) -> GenomeImport:
    """Write the chromosomes of a FASTA as codes, one byte a base, one after the other.

    Parameters
    ----------
    fasta
        FASTA, plain, gzip or bgzip.
    out_path
        File to make; it must not exist.
    only
        Chromosomes to keep, named as in the FASTA; default all. The order is always the FASTA's.
    chrom_sizes
        Table of name and length to check the FASTA against.

    Raises
    ------
    GenomeError
        As `GenomeSource`; or if `only` or `chrom_sizes` do not fit the FASTA; or if it holds no DNA.
    """
    out_path = Path(out_path)
    counts = np.zeros(256, dtype=np.int64)
    chromosomes: list[ChromosomeInfo] = []
    with GenomeSource(fasta, temp_dir=out_path.parent) as source:
        chosen = _chosen(source, only)
        notes = [*source.notes, *_check_sizes(source, chosen, chrom_sizes)]
        with _no_space(out_path), out_path.open("xb") as file:
            offset = 0
            for chrom in chosen:
                letters = source.letters(chrom)
                counts += np.bincount(letters, minlength=256)
                codes = _CODE_OF_BYTE[letters]
                md5 = hashlib.md5(_LETTER_OF_CODE[codes].tobytes(), usedforsecurity=False).hexdigest()
                chromosomes.append(ChromosomeInfo(chrom, codes.size, md5, int((codes == N).sum()), offset))
                file.write(codes.tobytes())
                offset += codes.size
            file.flush()
            os.fsync(file.fileno())
        counted = _letters_as_n(counts)
        if 2 * (sum(counted.values()) - counted.get("N", 0)) > counts.sum():
            out_path.unlink()
            raise GenomeError("most letters are not A, C, G, T or N: is this DNA?", where=str(fasta))
        if len(chosen) < len(source.chroms):
            counted["chromosomes left out"] = len(source.chroms) - len(chosen)
    log.info("%s: %d chromosomes, %d bp", fasta, len(chromosomes), offset)
    return GenomeImport(tuple(chromosomes), counted, tuple(notes))


class Genome:
    """A stored genome, memory-mapped.

    Parameters
    ----------
    codes_path
        File that `write_genome` made.
    chromosomes
        What it returned.

    Raises
    ------
    GenomeError
        If the file's size is not what the chromosomes add up to.
    """

    def __init__(self, codes_path: Path | str, chromosomes: Sequence[ChromosomeInfo]) -> None:
        self.chromosomes = tuple(chromosomes)
        self.lengths_bp = {info.chrom: info.length_bp for info in self.chromosomes}
        self._by_name = {info.chrom: info for info in self.chromosomes}
        expected = sum(self.lengths_bp.values())
        size = Path(codes_path).stat().st_size if Path(codes_path).is_file() else -1
        if size != expected:
            raise GenomeError(
                f"the stored genome has {max(size, 0)} bytes, expected {expected}",
                where=str(codes_path),
                fix="copy the store again, or init it anew from the FASTA",
            )
        with Path(codes_path).open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._codes: UInt8[np.ndarray, " all_bp"] = np.frombuffer(self._mapping, dtype=np.uint8)

    @property
    def digest(self) -> str:
        """The sha256 over name, length and md5 of each chromosome."""
        return genome_digest(self.chromosomes)

    def codes(self, chrom: str, start: int, end: int) -> UInt8[np.ndarray, " end_minus_start"]:
        r"""Return the codes of a locus as a new array; PAD where it lies outside the chromosome.

        Examples
        --------
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "g.fa").write_text(">c\nACGTN\n")
        >>> genome = Genome(folder / "codes", write_genome(folder / "g.fa", folder / "codes").chromosomes)
        >>> genome.codes("c", -1, 6).tolist()
        [5, 0, 1, 2, 3, 4, 5]
        """
        assert end >= start, f"{chrom}:{start}-{end}"
        info = self._info(chrom)
        out = np.full(end - start, PAD, dtype=np.uint8)
        first, last = max(start, 0), min(end, info.length_bp)
        if first < last:
            out[first - start : last - start] = self._codes[info.offset + first : info.offset + last]
        return out

    def release(self) -> None:
        """Let go of the pages that were read: after a look at a whole genome they would count as memory in use.

        They stay in the system's cache, and come back when they are asked for.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def base_counts(self, chrom: str, start: int, end: int) -> BaseCounts:
        """Count G + C, A + C + G + T, and N in the part of a locus that lies on the chromosome."""
        info = self._info(chrom)
        first, last = max(start, 0), min(end, info.length_bp)
        counts = np.bincount(self._codes[info.offset + first : info.offset + max(first, last)], minlength=5)
        return BaseCounts(int(counts[1] + counts[2]), int(counts[:4].sum()), int(counts[N]))

    def _info(self, chrom: str) -> ChromosomeInfo:
        if chrom not in self._by_name:
            raise GenomeError(f"no chromosome {chrom!r}; the genome has {', '.join(list(self._by_name)[:8])}")
        return self._by_name[chrom]


def _decompress(path: Path, plain: Path) -> None:
    """Write the decompressed file; a damaged or cut one is refused."""
    with _no_space(plain), plain.open("wb") as sink:
        for chunk in read_chunks(path, error_class=GenomeError):
            sink.write(chunk)


def _unreadable(path: Path, error: Exception) -> GenomeError:
    text = str(error)
    if "uplicate" in text:
        return GenomeError(f"a chromosome stands in the file twice: {text}", where=str(path), fix="remove one of them")
    return GenomeError(f"not a regular FASTA: {text}", where=str(path), fix="give every line of a sequence one length")


def _length(index: dict[str, tuple[int, int]], chrom: str) -> int:
    return index.get(chrom, (0, 0))[0]


def _chosen(source: GenomeSource, only: Sequence[str] | None) -> list[str]:
    if only is None:
        return list(source.chroms)
    unknown = [chrom for chrom in only if chrom not in source.chroms]
    if unknown or not only:
        raise GenomeError(
            f"{len(unknown)} of the {len(only)} chromosomes asked for are not in the FASTA (first: {unknown[:1]})",
            where=str(source.path),
            fix=f"the FASTA has: {', '.join(source.chroms[:8])}",
        )
    return [chrom for chrom in source.chroms if chrom in set(only)]


def _check_sizes(source: GenomeSource, chosen: Sequence[str], chrom_sizes: Path | str | None) -> list[str]:
    """Compare with a chrom.sizes table; more chromosomes there than in the FASTA are worth a note only."""
    if chrom_sizes is None:
        return []
    stated = read_chrom_sizes(chrom_sizes)
    for chrom in chosen:
        if stated.get(chrom) != source.lengths_bp[chrom]:
            raise GenomeError(
                f"{chrom} has {source.lengths_bp[chrom]} bp in the FASTA and {stated.get(chrom, 'no')} bp in the table",
                where=str(chrom_sizes),
                fix="use the table of the same assembly",
            )
    more = len(stated.keys() - set(source.chroms))
    return [f"{more} chromosomes of {Path(chrom_sizes).name} are not in the FASTA"] if more else []


def read_chrom_sizes(path: Path | str) -> dict[str, int]:
    """Read a table of chromosome name and length in bp, separated by blanks or tabs."""
    sizes: dict[str, int] = {}
    for number, line in read_lines(path, error_class=GenomeError):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdigit():
            raise GenomeError(f"not a chromosome and its length: {line[:80]!r}", where=f"{path}:{number}")
        sizes[fields[0]] = int(fields[1])
    return sizes


def _letters_as_n(counts: np.ndarray) -> dict[str, int]:
    """Return how many bases became N, by upper-case letter, most frequent first."""
    letters: Counter[str] = Counter()
    for byte in np.flatnonzero(counts):
        if _CODE_OF_BYTE[byte] == N:
            letters[chr(int(byte)).upper()] += int(counts[byte])
    return dict(letters.most_common())


@contextlib.contextmanager
def _no_space(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise NoSpace(f"the disk is full: {free:,} bytes are left", where=str(path.parent), fix="make room") from error
