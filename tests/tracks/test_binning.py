"""Binning of bigWigs: exact against a reference base by base, and none of the faults of per-locus readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyBigWig
import pytest

from tfbind_store.errors import ConfigError, InputFileError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.names import chromosome_aliases
from tfbind_store.tracks.binning import Binning, Gaps, Statistic, bin_bigwig, binned, transformed

GRID = Grid(window_bp=64, n_bins=4, bin_bp=8)
TILING = Tiling.over(GRID, {"chrI": 77, "chrII": 32, "chrIII": 20})
ALIASES = chromosome_aliases(TILING.chroms)
Runs = Sequence[tuple[str, int, int, float]]


def write_bigwig(path: Path, lengths: dict[str, int], runs: Runs) -> Path:
    with_header = pyBigWig.open(str(path), "w")
    with_header.addHeader(list(lengths.items()))
    for chrom, start, end, value in runs:
        with_header.addEntries([chrom], [start], ends=[end], values=[value])
    with_header.close()
    return path


def by_base(path: Path, tiling: Tiling, names: dict[str, str], statistic: Statistic, gaps: Gaps) -> np.ndarray:
    """Slow reference: every base asked for on its own."""
    out = np.full((tiling.n_windows, tiling.grid.n_bins), np.nan)
    file = pyBigWig.open(str(path))
    for number, chrom in enumerate(tiling.chroms):
        if names[chrom] not in file.chroms():
            continue
        length = tiling.lengths_bp[number]
        for window in range(*tiling.first_window[number : number + 2].tolist()):
            for place in range(tiling.grid.n_bins):
                _, start, end = tiling.bin_locus(window, place)
                bases = [file.values(names[chrom], p, p + 1)[0] for p in range(start, min(end, length))]
                if gaps == "zero":
                    bases = [0.0 if math.isnan(x) else x for x in bases]
                bases = [x for x in bases if not math.isnan(x)]
                if bases:
                    total = math.fsum(bases)
                    out[window, place] = {"sum": total, "mean": total / len(bases), "max": max(bases)}[statistic]
    return out.astype(np.float32)


RUNS = [("I", 3, 11, 1.5), ("I", 11, 12, -2.0), ("I", 40, 64, 3.25), ("I", 70, 77, 7.0), ("III", 0, 20, 0.0)]


@pytest.mark.parametrize("gaps", ["missing", "zero"])
@pytest.mark.parametrize("statistic", ["sum", "mean", "max"])
def test_bins_are_those_of_a_reference_base_by_base(tmp_path: Path, statistic: Statistic, gaps: Gaps) -> None:
    path = write_bigwig(tmp_path / "a.bw", {"I": 77, "III": 20}, RUNS)
    found = bin_bigwig(path, TILING, ALIASES, Binning(statistic=statistic, gaps=gaps))
    expected = by_base(path, TILING, {"chrI": "I", "chrII": "II", "chrIII": "III"}, statistic, gaps)
    np.testing.assert_array_equal(found.values, expected)
    assert found.absent_chroms == ("chrII",)


def test_missing_is_nan_and_zero_is_zero(tmp_path: Path) -> None:
    values = bin_bigwig(write_bigwig(tmp_path / "a.bw", {"I": 77, "III": 20}, RUNS), TILING, ALIASES).values
    assert np.isnan(values[0, 3])  # a gap
    assert np.isnan(values[3]).all()  # a chromosome that the file lacks
    assert (values[4, :3] == 0).all()  # measured as zero
    assert np.isnan(values[4, 3])  # past the chromosome's end


def test_as_many_bins_as_asked_for_never_none() -> None:
    """Where bins == target length the reference's label was empty, an odd difference gave one bin too many."""
    for n_bp in range(1, 40):
        assert len(binned(np.ones(n_bp, dtype=np.float32), 8, Binning())) == -(-n_bp // 8)


def test_a_mirrored_track_has_mirrored_bins(tmp_path: Path) -> None:
    """Labels turn with the sequence: binning the reverse complement gives the bins in reverse."""
    rng = np.random.default_rng(0)
    bases = rng.random(64).astype(np.float32)
    bases[5:20] = np.nan
    for statistic in ("sum", "mean", "max"):
        binning = Binning(statistic=statistic)  # type: ignore[arg-type]
        np.testing.assert_array_equal(binned(bases[::-1].copy(), 8, binning), binned(bases, 8, binning)[::-1])


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bigwig(tmp_path / "a.bw", {"I": 77, "III": 20}, RUNS)
    whole = bin_bigwig(path, TILING, ALIASES).values
    monkeypatch.setattr("tfbind_store.tracks.binning.CHUNK_BP", 17)
    np.testing.assert_array_equal(bin_bigwig(path, TILING, ALIASES).values, whole)


def test_infinite_values_count_as_missing_and_are_told(tmp_path: Path) -> None:
    path = write_bigwig(tmp_path / "a.bw", {"I": 77}, [("I", 0, 4, math.inf), ("I", 4, 8, 2.0)])
    found = bin_bigwig(path, TILING, ALIASES)
    assert found.values[0, 0] == 2
    assert found.n_not_finite == 4


class TestTransform:
    def test_soft_clip_then_scale_then_logarithm(self) -> None:
        found = transformed(np.array([1.0, 32.0, 40.0, np.nan]), Binning(clip=32, scale=0.5, log1p=True))
        expected = np.log1p(0.5 * np.array([1.0, 32.0, 31 + math.sqrt(9)]))
        np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
        assert np.isnan(found[3])

    def test_no_logarithm_of_less_than_minus_one(self) -> None:
        with pytest.raises(InputFileError, match="2 bins are -1 or below"):
            transformed(np.array([-1.0, -3.0, 0.0]), Binning(log1p=True))

    def test_past_float32_is_refused(self) -> None:
        with pytest.raises(InputFileError, match="float32"):
            transformed(np.array([1e300]), Binning())

    @pytest.mark.parametrize("bad", [{"clip": 0.0}, {"clip": math.nan}, {"scale": 0.0}, {"scale": math.inf}])
    def test_choices_that_mean_nothing_are_refused(self, bad: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            Binning(**bad)  # type: ignore[arg-type]


class TestRefusals:
    def test_another_assembly(self, tmp_path: Path) -> None:
        path = write_bigwig(tmp_path / "a.bw", {"chrI": 78}, [("chrI", 0, 4, 1.0)])
        with pytest.raises(InputFileError, match="chrI has 78 bp in the bigWig and 77 bp"):
            bin_bigwig(path, TILING, ALIASES)

    def test_two_names_for_one_chromosome(self, tmp_path: Path) -> None:
        path = write_bigwig(tmp_path / "a.bw", {"I": 77, "chrI": 77}, [("I", 0, 4, 1.0)])
        with pytest.raises(InputFileError, match="are both chrI"):
            bin_bigwig(path, TILING, ALIASES)

    def test_no_known_chromosome(self, tmp_path: Path) -> None:
        path = write_bigwig(tmp_path / "a.bw", {"ctg1": 77}, [("ctg1", 0, 4, 1.0)])
        with pytest.raises(InputFileError, match="no chromosome of the genome"):
            bin_bigwig(path, TILING, ALIASES)

    @pytest.mark.parametrize("content", [b"", b"no bigwig at all", b"\x26\xfc\x8f\x88" + b"\0" * 100])
    def test_no_bigwig_is_an_error_and_not_an_exit(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.bw").write_bytes(content)
        with pytest.raises(InputFileError):
            bin_bigwig(tmp_path / "a.bw", TILING, ALIASES)

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match="no such file"):
            bin_bigwig(tmp_path / "a.bw", TILING, ALIASES)


@pytest.mark.real_data
@pytest.mark.parametrize("file", ["MNase", "RNA.fwd", "ATAC_SRR1822137_500k.fragment_pileup"])
def test_real_bigwigs_are_binned_exactly(data_dir: Path, file: str) -> None:
    folder = data_dir / "yeast_sacCer3"
    lines = (folder / "sacCer3.nuclear.chrom.sizes").read_text().splitlines()
    lengths = {name: int(length) for name, length in (line.split()[:2] for line in lines)}
    tiling = Tiling.over(Grid(window_bp=16_384, n_bins=96), lengths)
    path = folder / "bigwig" / f"{file}.bw"
    found = bin_bigwig(path, tiling, chromosome_aliases(tiling.chroms)).values
    reader = pyBigWig.open(str(path))
    rng = np.random.default_rng(1)
    for chrom in ("chrII", "chrIV", "chrXVI"):
        name = chrom if chrom in reader.chroms() else chrom.removeprefix("chr")
        number, length = tiling.chrom_index[chrom], lengths[chrom]
        starts = np.append(rng.integers(0, length // 128, 200) * 128, (length - 1) // 128 * 128)
        address = tiling.address(np.full(len(starts), number), starts)
        for start, window, place in zip(starts.tolist(), *address, strict=True):
            bases = [x for x in reader.values(name, start, min(start + 128, length)) if not math.isnan(x)]
            expected = np.float32(math.fsum(bases) / len(bases)) if bases else np.float32(np.nan)
            np.testing.assert_array_equal(found[window, place], expected)
