"""What a variant does to predicted binding: both alleles through the live trunk, a head on both, the difference.

The rule, for every variant: the window is the one of the store's grid that holds the variant's first base. Bases before
the variant keep their place, bases behind it move by the difference in length: an insertion pushes bases out of the
window's end, a deletion lets the following ones in. An allele's score is the highest logit among the kept bins that
touch its own bases and `flank_bp` around them. Bins beyond the window are not looked at, and counted. What cannot be
scored is written with its reason and counted, never left out.

Alleles that follow each other in one window go through the trunk together, convolutions anew only where bases are.
"""

# n bins · d trunk dim · p pairs

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from tfbind_store.durable import typed_errors
from tfbind_store.errors import ConfigError
from tfbind_store.genome import Genome
from tfbind_store.loci import Locus
from tfbind_store.precompute.as_read import embedder_as_read
from tfbind_store.precompute.embedder import Codes, WindowEmbedder
from tfbind_store.precompute.versions import embed_versions, remembering
from tfbind_store.precompute.weights import pick_device
from tfbind_store.prediction.asked_pairs import Asked, EncodedPairs, encode_asked
from tfbind_store.prediction.cells import Cells
from tfbind_store.prediction.vcf import Variant, VcfRow, read_vcf
from tfbind_store.scoring.bins import LoadedRun, load_run
from tfbind_store.store.folder import Store

ALLELES_AT_ONCE = 16
_CODE_OF_LETTER = {letter: code for code, letter in enumerate("ACGTN")}
_OWN_HEADER = re.compile(r"##INFO=<(?:.*,)?ID=TFBIND[,>]")
TSV_COLUMNS = (
    "line", "allele", "chrom", "position", "id", "ref", "alt", "factor", "biotype", "ref_logit", "alt_logit",
    "difference", "bins_beyond", "skipped",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """How variants are scored."""

    asked: Asked
    """Factors and context."""
    flank_bp: int = 64
    """Bases on each side of an allele whose bins count."""
    checkpoint: str | None = None
    """Where the trunk's weights are."""
    device: str = "cpu"
    """Where the head runs."""

    def __post_init__(self) -> None:
        if self.flank_bp < 0:
            raise ConfigError(f"flank_bp is {self.flank_bp}, must be 0 or more", where="flank")


class VariantScore(NamedTuple):
    """One variant's scores; NaN where it was skipped."""

    variant: Variant
    ref_logit: Float32[np.ndarray, " p"]
    alt_logit: Float32[np.ndarray, " p"]
    n_beyond: int
    """Bins of either allele or its flanks that lie in the next window, and were not looked at."""
    skipped: str
    """Why it has no score."""


class ScoredFile(NamedTuple):
    """What was done with a VCF."""

    path: Path
    n_variants: int
    n_scored: int
    n_beyond: int
    """Scored alleles of which some bins lie in the next window."""
    skipped: dict[str, int]
    """By cause."""
    pairs: tuple[tuple[str, str], ...]


class _Place(NamedTuple):
    """Where a variant is scored."""

    window: int
    """-1 where it is not."""
    chrom: str
    reason: str


class VariantScorer:
    """Scores variants in their order; neighbours in one window share its reference.

    Parameters
    ----------
    store, run, encoded
        The genome, the head, and the pairs.
    embedder
        Gives what the head was trained to read.
    flank_bp
        Bases on each side of an allele.
    """

    def __init__(
        self, store: Store, run: LoadedRun, encoded: EncodedPairs, embedder: WindowEmbedder, *, flank_bp: int
    ) -> None:
        self.store, self.run, self.encoded, self.flank_bp = store, run, encoded, flank_bp
        twin = remembering(embedder)
        self.embedder, self._together = twin or embedder, twin is not None
        self._reference: tuple[int, Float16[Tensor, "n d"]] | None = None
        self._cells = Cells(store, run, encoded.biotype_id)
        run.head.eval()

    def score(self, variants: Sequence[Variant]) -> list[VariantScore]:
        """Return each variant's scores, or why there are none."""
        placed = [self._place(variant) for variant in variants]
        scores: list[VariantScore] = []
        for window, group in itertools.groupby(zip(variants, placed, strict=True), lambda pair: pair[1].window):
            while some := list(itertools.islice(group, ALLELES_AT_ONCE)):  # one row may hold thousands
                scores += self._in_window(window, some) if window >= 0 else [self._skip(*pair) for pair in some]
        return scores

    def _place(self, variant: Variant) -> _Place:
        chrom = self.store.meta.aliases.get(variant.chrom, variant.chrom)
        if reason := variant.reason or self._misfit(variant, chrom):
            return _Place(-1, chrom, reason)
        index = self.store.tiling.chrom_index[chrom]
        return _Place(int(self.store.tiling.address([index], [variant.start]).window[0]), chrom, "")

    def _skip(self, variant: Variant, place: _Place) -> VariantScore:
        nothing = np.full(len(self.encoded.names), np.nan, dtype=np.float32)
        return VariantScore(variant, nothing, nothing, 0, place.reason)

    def _in_window(self, window: int, group: Sequence[tuple[Variant, _Place]]) -> list[VariantScore]:
        versions = [self._version(place.chrom, variant) for variant, place in group]
        is_new = self._reference is None or self._reference[0] != window
        if is_new:
            versions.insert(0, self._codes)
        made = embed_versions(self.embedder, window, versions, self.store.tiling, together=self._together)
        # a head reads float16, as the store gives it
        bins = [torch.from_numpy(np.asarray(one, dtype=np.float16)).to(self.run.source.device) for one in made]
        if is_new:
            self._reference = window, bins.pop(0)
        assert self._reference is not None
        scores = []
        for (variant, _), alt in zip(group, bins, strict=True):
            own, beyond = self._bins(window, variant.start, len(variant.ref))
            other, beyond_alt = self._bins(window, variant.start, len(variant.alt))
            logits = self._best(window, self._reference[1], own), self._best(window, alt, other)
            scores.append(VariantScore(variant, *logits, max(beyond, beyond_alt), ""))
        return scores

    def _version(self, chrom: str, variant: Variant) -> Codes:
        changed = changed_codes(self.store.genome, chrom, variant.start, len(variant.ref), variant.alt)
        return lambda locus: changed(locus.start, locus.end)

    def _misfit(self, variant: Variant, chrom: str) -> str:
        """Return why a variant does not fit the genome or the grid."""
        if chrom not in self.store.tiling.chrom_index:
            return "unknown_chromosome"
        end = variant.start + len(variant.ref)
        if end > self.store.genome.lengths_bp[chrom]:
            return "off_chromosome"
        here = "".join("ACGTN"[code] for code in self.store.genome.codes(chrom, variant.start, end))
        if here != variant.ref:
            return "ref_is_not_the_genome"
        return "too_long" if max(len(variant.ref), len(variant.alt)) > self.store.grid.stride_bp // 2 else ""

    def _codes(self, locus: Locus) -> UInt8[np.ndarray, " bp"]:
        return self.store.genome.codes(locus.chrom, locus.start, locus.end)

    def _best(
        self, window: int, dna: Float16[Tensor, "n d"], bins: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, " p"]:
        """Return the highest logit of some bins; the cells' signal is as it is, whatever the allele."""
        there = window * self.store.grid.n_bins + bins
        with torch.inference_mode():
            logits = self._cells.logits(dna[int(bins[0]) : int(bins[-1]) + 1], self.encoded.pairs, there)
            best: Float32[np.ndarray, " p"] = logits.float().amax(dim=0).cpu().numpy()
        return best

    def _bins(self, window: int, start: int, n_bases: int) -> tuple[Int64[np.ndarray, " k"], int]:
        """Return the window's kept bins that touch an allele and what stands around it, and how many more there are."""
        kept, grid = self.store.tiling.kept(window), self.store.grid
        first = (start - self.flank_bp - kept.start) // grid.bin_bp
        last = (start + max(1, n_bases) - 1 + self.flank_bp - kept.start) // grid.bin_bp
        n_left = -(-(self.store.genome.lengths_bp[kept.chrom] - kept.start) // grid.bin_bp)  # to the chromosome's end
        first, last = max(first, -kept.start // grid.bin_bp), min(last, n_left - 1)
        inside = np.arange(max(0, first), min(last + 1, grid.n_bins), dtype=np.int64)
        return inside, last + 1 - first - len(inside)


def changed_codes(
    genome: Genome, chrom: str, start: int, n_ref: int, alt: str
) -> Callable[[int, int], UInt8[np.ndarray, " bp"]]:
    """Return a reader of a chromosome in which `n_ref` bases from `start` on are replaced by `alt`.

    Coordinates up to `start` are the genome's; behind the allele they have moved by the difference in length. Positions
    outside the chromosome are 5.
    """
    allele = np.array([_CODE_OF_LETTER[letter] for letter in alt], dtype=np.uint8)
    behind = start + n_ref

    def read(first: int, last: int) -> UInt8[np.ndarray, " bp"]:
        low = min(first, start)
        before = genome.codes(chrom, low, max(low, min(start, last)))
        after = genome.codes(chrom, behind, behind + max(0, last - start - len(allele)))
        return np.ascontiguousarray(np.concatenate([before, allele, after])[first - low : last - low])

    return read


def score_vcf(
    store: Store,
    run_name: str,
    vcf: Path,
    out: Path,
    config: VariantConfig,
    *,
    embedder: WindowEmbedder | None = None,
) -> ScoredFile:
    """Score every allele of a VCF and write a table, or the VCF with a field per row.

    Parameters
    ----------
    out
        ``.tsv``: a row for each allele and pair. ``.vcf``: the rows as they were, with ``TFBIND`` in INFO.
    embedder
        In place of the one that the run's array names.

    Raises
    ------
    ConfigError
        If `out` ends otherwise.
    VariantFileError
        If the VCF cannot be read; nothing is written then.
    """
    if out.suffix.lower() not in (".tsv", ".vcf"):
        fix = "end the name with .tsv or .vcf"
        raise ConfigError(f"{out.suffix or out.name!r} is no kind of file to write", where="--out", fix=fix)
    run = load_run(store, run_name, device=pick_device(config.device))
    embedder = embedder or embedder_as_read(store, run.arrays.windows, checkpoint=config.checkpoint)
    encoded = encode_asked(store, run, config.asked)
    scorer = VariantScorer(store, run, encoded, embedder, flank_bp=config.flank_bp)
    write = _write_tsv if out.suffix.lower() == ".tsv" else _write_vcf
    skipped: Counter[str] = Counter()
    n_variants = n_beyond = 0
    with _whole(out) as file:
        if write is _write_tsv:
            file.write("\t".join(TSV_COLUMNS) + "\n")
        for part in _parts(tqdm(read_vcf(vcf), desc="score", unit="row", disable=None)):
            if isinstance(part, str):
                if write is _write_vcf:
                    file.write(_header(part))
                continue
            scores = scorer.score([variant for row in part for variant in row.variants])
            n_variants += len(scores)
            n_beyond += sum(score.n_beyond > 0 for score in scores)
            skipped.update(score.skipped for score in scores if score.skipped)
            ordered = iter(scores)
            for row in part:
                write(file, row, list(itertools.islice(ordered, len(row.variants))), encoded)
    return ScoredFile(out, n_variants, n_variants - skipped.total(), n_beyond, dict(skipped), encoded.names)


def _parts(items: Iterable[str | VcfRow]) -> Iterator[str | list[VcfRow]]:
    """Yield header lines, and rows in groups of about `ALLELES_AT_ONCE` alleles."""
    rows: list[VcfRow] = []
    for item in items:
        if isinstance(item, str):
            if rows:
                yield rows
                rows = []
            yield item
            continue
        rows.append(item)
        if sum(len(row.variants) for row in rows) >= ALLELES_AT_ONCE:
            yield rows
            rows = []
    if rows:
        yield rows


def _write_tsv(file: IO[str], row: VcfRow, scores: list[VariantScore], encoded: EncodedPairs) -> None:
    for score in scores:
        variant = score.variant
        start = (variant.line, variant.allele, variant.chrom, variant.start + 1, variant.name, variant.ref, variant.alt)
        for place, pair in enumerate(encoded.names):
            ref, alt = float(score.ref_logit[place]), float(score.alt_logit[place])
            numbers = ["", "", ""] if score.skipped else [f"{ref:.6g}", f"{alt:.6g}", f"{alt - ref:.6g}"]
            file.write("\t".join(map(str, (*start, *pair, *numbers, score.n_beyond, score.skipped))) + "\n")


def _header(line: str) -> str:
    about = (
        '##INFO=<ID=TFBIND,Number=A,Type=String,Description="Per alternative allele: ref logit, alt logit and their '
        'difference for each factor, as FACTOR:REF:ALT:DIFFERENCE joined by |, or skipped:CAUSE">\n'
    )
    if _OWN_HEADER.match(line):  # scored before: what is written now takes its place
        return ""
    return (about if line.startswith("#CHROM") else "") + line + "\n"


def _write_vcf(file: IO[str], row: VcfRow, scores: list[VariantScore], encoded: EncodedPairs) -> None:
    cells = row.text.split("\t")
    cells += ["."] * (8 - len(cells))
    alleles = []
    for score in scores:
        parts = [
            f"{_vcf_safe(pair[0])}:{ref:.6g}:{alt:.6g}:{alt - ref:.6g}"
            for pair, ref, alt in zip(encoded.names, score.ref_logit.tolist(), score.alt_logit.tolist(), strict=True)
        ]
        alleles.append(f"skipped:{score.skipped}" if score.skipped else "|".join(parts))
    kept = [part for part in cells[7].split(";") if part not in ("", ".") and part.partition("=")[0] != "TFBIND"]
    cells[7] = ";".join([*kept, f"TFBIND={','.join(alleles)}"])
    file.write("\t".join(cells) + "\n")


def _vcf_safe(name: str) -> str:
    """Return a name without the letters that divide INFO."""
    return "".join("_" if letter in ",;=:| \t%" else letter for letter in name)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """Give a file to write that becomes `path` if the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with typed_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                yield file
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
