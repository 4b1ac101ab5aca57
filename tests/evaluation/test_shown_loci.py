"""Loci are chosen by what was measured, and hold whole stretches."""

from __future__ import annotations

import numpy as np

from tfbind_store.evaluation.shown_loci import LOCUS_BINS, MOST_EXPERIMENTS, LociBook, choose_loci, named_loci
from tfbind_store.loci import Grid, Locus, Tiling

TILING = Tiling.over(Grid(window_bp=80, n_bins=8, bin_bp=10), {"a": 4_000, "b": 3_995})
BINS = np.concatenate([TILING.global_bins(0), TILING.global_bins(1)])


def bound_at(**places: dict[int, float]) -> np.ndarray:
    total = np.zeros(len(BINS), dtype=np.float32)
    for chrom, counts in places.items():
        for place, count in counts.items():
            total[place + (0 if chrom == "a" else TILING.n_real_bins(0))] = count
    return total


def test_the_busiest_stretch_and_a_middling_one_are_chosen() -> None:
    found = choose_loci(TILING, BINS, bound_at(a={5: 9.0, 100: 1.0, 170: 2.0}, b={3: 4.0, 90: 3.0}))
    assert [one.locus for one in found] == [Locus("a", 0, 800), Locus("b", 800, 1600)]
    assert BINS[found[1].at].tolist() == (TILING.global_bins(1)[80:160]).tolist()


def test_nothing_bound_shows_nothing() -> None:
    assert choose_loci(TILING, BINS, bound_at()) == []
    assert choose_loci(TILING, BINS[:0], np.empty(0, np.float32)) == []


def test_a_stretch_with_a_gap_is_not_shown() -> None:
    kept = np.arange(len(BINS)) != 7
    found = choose_loci(TILING, BINS[kept], bound_at(a={5: 9.0, 100: 1.0})[kept])
    assert [one.locus for one in found] == [Locus("a", 800, 1600)]


def test_asked_loci_are_widened_to_bins_and_left_out_where_nothing_is_scored() -> None:
    asked = [Locus("a", 15, 42), Locus("b", 3_990, 3_995)]
    found = named_loci(TILING, BINS[20:], [*asked, Locus("a", 300, 310)])
    assert [one.locus for one in found] == [Locus("b", 3_990, 3_995), Locus("a", 300, 310)]
    assert named_loci(TILING, BINS, asked)[0].locus == Locus("a", 10, 50)


def test_experiments_that_bind_most_of_a_locus_are_kept() -> None:
    book = LociBook(10)
    labels = np.zeros(len(BINS), dtype=np.float32)
    book.open(choose_loci(TILING, BINS, bound_at(a={5: 9.0})))
    for number in range(9):
        labels[5 : 5 + number] = 1
        names = {"factor": f"F{number}", "biotype": "c", "experiment": f"E{number}"}
        book.add(names, labels / 2, labels.copy(), None)
    book.close("seen")
    assert sorted({row["factor"] for row in book.rows}) == [f"F{n}" for n in range(9 - MOST_EXPERIMENTS, 9)]
    assert len(book.rows) == MOST_EXPERIMENTS * LOCUS_BINS
    first = book.rows[0]
    assert (first["factor"], first["locus"], first["start_bp"], first["end_bp"]) == ("F8", "a:0-800", 0, 10)
    assert sum(row["label"] for row in book.rows if row["factor"] == "F8") == 8
