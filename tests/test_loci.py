"""Windows and bins tile a genome: every base in exactly one bin, and the way there and back agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfbind_store.errors import LocusError
from tfbind_store.loci import Grid, Locus, Tiling

SMALL = Grid(window_bp=24, n_bins=4, bin_bp=4)  # stride 16, margin 4


class TestGrid:
    def test_default_keeps_the_middle_114688_bp_of_enformers_window(self) -> None:
        grid = Grid()
        assert (grid.stride_bp, grid.margin_bp) == (114_688, 40_960)

    @pytest.mark.parametrize(
        ("window_bp", "n_bins", "bin_bp"),
        [(100, 896, 128), (25, 4, 4), (16, 0, 4), (0, 1, 1), (16, 4, -4)],
    )
    def test_bins_that_do_not_sit_evenly_are_refused(self, window_bp: int, n_bins: int, bin_bp: int) -> None:
        with pytest.raises(LocusError):
            Grid(window_bp=window_bp, n_bins=n_bins, bin_bp=bin_bp)

    @pytest.mark.parametrize(("length", "windows"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
    def test_last_window_is_padded_never_dropped(self, length: int, windows: int) -> None:
        assert SMALL.n_windows(length) == windows

    def test_no_crop_is_a_grid_too(self) -> None:
        grid = Grid(window_bp=4096, n_bins=32, bin_bp=128)
        assert (grid.margin_bp, grid.stride_bp) == (0, 4096)


class TestTiling:
    tiling = Tiling.over(SMALL, {"chr1": 40, "chr2": 16, "chr3": 1})

    def test_windows_count_through_the_genome(self) -> None:
        assert self.tiling.first_window.tolist() == [0, 3, 4, 5]
        assert self.tiling.n_windows == 5
        assert self.tiling.window_chrom([0, 2, 3, 4]).tolist() == [0, 0, 1, 2]

    def test_first_window_reads_past_the_chromosome_start(self) -> None:
        assert self.tiling.read(0) == Locus("chr1", -4, 20)
        assert self.tiling.kept(0) == Locus("chr1", 0, 16)

    def test_last_window_reaches_past_the_chromosome_end(self) -> None:
        assert self.tiling.kept(2) == Locus("chr1", 32, 48)
        assert self.tiling.n_real_bins(0) == 10
        assert self.tiling.global_bins(0).tolist() == list(range(10))
        assert self.tiling.global_bins(1).tolist() == [12, 13, 14, 15]

    def test_positions_off_the_chromosome_have_no_address(self) -> None:
        address = self.tiling.address([0, 0, 0, 1, 2], [-1, 40, 39, 15, 1])
        assert address.window.tolist() == [-1, -1, 2, 3, -1]
        assert address.bin.tolist() == [-1, -1, 1, 3, -1]

    def test_a_window_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(LocusError, match="window 5 is not one of the 5"):
            self.tiling.window_chrom([5])

    @given(
        lengths=st.lists(st.integers(1, 500), min_size=1, max_size=5),
        n_bins=st.integers(1, 9),
        bin_bp=st.integers(1, 16),
        margin=st.integers(0, 40),
        data=st.data(),
    )
    def test_position_to_bin_and_back(
        self, lengths: list[int], n_bins: int, bin_bp: int, margin: int, data: st.DataObject
    ) -> None:
        grid = Grid(window_bp=n_bins * bin_bp + 2 * margin, n_bins=n_bins, bin_bp=bin_bp)
        tiling = Tiling.over(grid, {f"c{i}": length for i, length in enumerate(lengths)})
        chrom = data.draw(st.integers(0, len(lengths) - 1))
        position = data.draw(st.integers(0, lengths[chrom] - 1))
        window, bin_index = (int(x[0]) for x in tiling.address([chrom], [position]))
        locus = tiling.bin_locus(window, bin_index)
        assert locus.chrom == f"c{chrom}"
        assert locus.start <= position < locus.end
        read = tiling.read(window)
        assert read.start <= locus.start
        assert locus.end <= read.end
        assert read.end - read.start == grid.window_bp

    @given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5))
    def test_every_base_lies_in_exactly_one_bin(self, lengths: list[int]) -> None:
        tiling = Tiling.over(SMALL, {f"c{i}": length for i, length in enumerate(lengths)})
        covered = []
        for chrom, length in enumerate(lengths):
            for number in tiling.global_bins(chrom):
                locus = tiling.bin_locus(*divmod(int(number), SMALL.n_bins))
                covered += [(locus.chrom, base) for base in range(locus.start, min(locus.end, length))]
        expected = [(f"c{i}", base) for i, length in enumerate(lengths) for base in range(length)]
        assert covered == expected

    def test_hg38_has_as_many_windows_as_arithmetic_says(self) -> None:
        chr1 = Tiling.over(Grid(), {"chr1": 248_956_422})
        assert chr1.n_windows == np.ceil(248_956_422 / 114_688) == 2171
