"""Written bigWigs against a reader of their bytes that refuses what UCSC's tools refuse, and against two libraries."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pybigtools
import pyBigWig
import pytest

from tests.ucsc import read_bigwig
from tfbind_store.loci import Grid, Tiling
from tfbind_store.prediction.files import write_bigwig

BIN_BP = 32
# not in the order of their names; one shorter than a bin, one without any number, one of many sections
LENGTHS = {"chr2": 70_003, "chr10": 6_400, "chr1": 32 * 70_000 + 1, "chrUn_tiny": 17, "chrM": 3_200, "2micron": 33}
TILING = Tiling.over(Grid(window_bp=512, n_bins=16, bin_bp=BIN_BP), LENGTHS)


def track(chrom: str) -> np.ndarray:
    number = TILING.chrom_index[chrom]
    rng = np.random.default_rng(number)
    values = rng.normal(size=TILING.n_real_bins(number)).astype(np.float32)
    if chrom == "chrM":
        values[:] = np.nan
    elif len(values) > 100:
        values[rng.random(len(values)) < 0.1] = np.nan
        values[:2] = 1e-30, 3e30
    return values


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bw") / "x.bw"
    n_bins = write_bigwig(path, TILING, track)
    assert n_bins == sum(int((~np.isnan(track(chrom))).sum()) for chrom in LENGTHS)
    return path


def expected() -> list[tuple[str, int, int, float]]:
    return [
        (chrom, start * BIN_BP, min((start + 1) * BIN_BP, LENGTHS[chrom]), float(value))
        for chrom in sorted(LENGTHS)
        for start, value in enumerate(track(chrom).tolist())
        if value == value
    ]


def test_ucscs_rules_hold_and_every_item_is_there(written: Path) -> None:
    lengths, items = read_bigwig(written)
    assert list(lengths.items()) == sorted(LENGTHS.items())
    assert [tuple(item) for item in items] == expected()


def test_two_libraries_read_the_same(written: Path) -> None:
    theirs, other = pyBigWig.open(str(written)), pybigtools.open(str(written))
    assert dict(theirs.chroms()) == dict(other.chroms()) == LENGTHS
    wanted = {chrom: list(rows) for chrom, rows in itertools.groupby(expected(), lambda row: row[0])}
    for chrom in LENGTHS:
        rows = [row[1:] for row in wanted.get(chrom, [])]
        assert list(theirs.intervals(chrom) or ()) == rows
        assert list(other.records(chrom)) == rows
    assert theirs.stats("chr1", 0, 3_200, type="max")[0] == pytest.approx(3e30, rel=1e-6)  # zoom levels are there


def test_the_reader_of_bytes_refuses_what_is_not_valid(written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    cases = {
        "cut": bytes(data[:-10]),
        "no bigWig": b"\0" * 4 + bytes(data[4:]),
        "names out of order": bytes(data).replace(b"chr2\0", b"chrZ\0", 1).replace(b"chr10\0", b"chrY0\0", 1),
    }
    for name, content in cases.items():
        (tmp_path / "x.bw").write_bytes(content)
        with pytest.raises(AssertionError):
            read_bigwig(tmp_path / "x.bw")
        assert content != bytes(data), name
    file = pyBigWig.open(str(tmp_path / "y.bw"), "w")
    file.addHeader([("chr2", 100), ("chr1", 100)])  # pyBigWig itself does not mind
    file.addEntries(["chr2", "chr1"], [0, 0], ends=[10, 10], values=[1.0, 2.0])
    file.close()
    with pytest.raises(AssertionError, match="not in the order of their names"):
        read_bigwig(tmp_path / "y.bw")
