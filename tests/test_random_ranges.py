"""Random ranges: checked by bedtools, uniform over what is left, the same for a seed."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tests.query.world import random_sequence, write_fasta
from tfbind_store.errors import ConfigError, GenomeError, PeakFileError
from tfbind_store.random_ranges import random_ranges


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genome")
    long = random_sequence(40_000, 0)
    chroms = {"chr1": "N" * 5_000 + long[5_000:20_000] + "NNN" + long[20_003:], "chr2": random_sequence(10_000, 1)}
    return write_fasta(folder / "genome.fa", {**chroms, "short": "ACGT"}), {**chroms, "short": "ACGT"}


@pytest.fixture
def peaks(tmp_path):
    rng = np.random.default_rng(3)
    rows = [("chr1", int(start), int(start) + 150) for start in rng.integers(0, 39_000, 60)]
    rows += [("chr2", int(start), int(start) + 1) for start in rng.integers(0, 9_000, 20)] + [("chrUn", 5, 9)]
    path = tmp_path / "peaks.bed.gz"
    path.write_bytes(gzip.compress("".join(f"{c}\t{s}\t{e}\tx\n" for c, s, e in rows).encode()))
    return path


def test_no_range_touches_a_peak_or_an_n_by_bedtools(genome, peaks, tmp_path):
    import pybedtools

    fasta, chroms = genome
    made = random_ranges(fasta, tmp_path / "out" / "r.bed", context_length=64, filter_bed_files=[peaks], n_ranges=900)
    bed = pybedtools.BedTool(str(made.path))
    assert len(bed) == made.n_ranges == 900
    assert len(bed.intersect(str(peaks), u=True)) == 0
    rows = [(row.chrom, row.start, row.end) for row in bed]
    assert all(end - start == 64 and "N" not in chroms[chrom][start:end] for chrom, start, end in rows)
    assert len(set(rows)) == 900
    assert rows == sorted(rows, key=lambda row: (list(chroms).index(row[0]), row[1]))
    assert made.unknown_chromosomes == {"chrUn": 1}


def test_every_allowed_start_is_as_likely_and_no_other_is_drawn(genome, peaks, tmp_path):
    fasta, chroms = genome
    length = 50
    bad = {chrom: np.array([base == "N" for base in text] + [True] * length) for chrom, text in chroms.items()}
    for line in gzip.decompress(peaks.read_bytes()).decode().splitlines():
        chrom, start, end, _ = line.split("\t")
        if chrom in bad:
            bad[chrom][max(0, int(start) - 7) : int(end) + 7] = True
    allowed = {
        (chrom, start)
        for chrom, text in chroms.items()
        for start in range(len(text) - length + 1)
        if not bad[chrom][start : start + length].any()
    }
    made = random_ranges(
        fasta, tmp_path / "r.bed", context_length=length, filter_bed_files=[peaks], margin_bp=7, n_ranges=len(allowed)
    )
    rows = [line.split("\t") for line in made.path.read_text().splitlines()]
    assert {(chrom, int(start)) for chrom, start, _ in rows} == allowed
    few = random_ranges(fasta, tmp_path / "f.bed", context_length=length, n_ranges=2_000)
    share = few.per_chromosome["chr2"] / 2_000
    assert share == pytest.approx(10_000 / 45_000, abs=0.04)
    assert few.per_chromosome["short"] == 0
    with pytest.raises(ConfigError, match=f"{len(allowed):,} places are left"):
        random_ranges(
            fasta, tmp_path / "r.bed", context_length=length, filter_bed_files=[peaks], margin_bp=7, n_ranges=10**6
        )


def test_a_seed_gives_the_same_file_and_another_one_another(genome, tmp_path):
    fasta, _ = genome

    def text(seed):
        return random_ranges(fasta, tmp_path / "r.bed", context_length=100, n_ranges=20, seed=seed).path.read_text()

    assert text(1) == text(1) != text(2)


def test_mistakes_are_named(genome, tmp_path):
    fasta, _ = genome
    with pytest.raises(GenomeError, match="chr3"):
        random_ranges(fasta, tmp_path / "r.bed", context_length=10, chromosomes=["chr3"])
    with pytest.raises(ConfigError):
        random_ranges(fasta, tmp_path / "r.bed", context_length=0)
    bad = tmp_path / "bad.bed"
    bad.write_text("chr1\t1\t2\nchr1 5 9\n")
    with pytest.raises(PeakFileError) as caught:
        random_ranges(fasta, tmp_path / "r.bed", context_length=10, filter_bed_files=[bad])
    assert caught.value.where.endswith("bad.bed:2")
