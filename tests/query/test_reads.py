"""Tests of what is read from catalog and genome: composition of bins at ends, in N and in bins of any width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfbind_store.loci import Grid
from tfbind_store.query.reads import acgt_per_bin, gc_per_bin
from tfbind_store.store.folder import Store

CHROMS = {"one": "GCGCATNNGGCCTTAANNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNCGC", "two": "ACGTGGG" * 11 + "N"}


@pytest.mark.parametrize("bin_bp", [3, 8, 16])
def test_composition_of_every_bin_is_that_of_its_letters(tmp_path: Path, bin_bp: int) -> None:
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in CHROMS.items()))
    store = Store.create(
        tmp_path / "store", fasta=tmp_path / "g.fa", grid=Grid(window_bp=6 * bin_bp, n_bins=4, bin_bp=bin_bp)
    )
    gc, acgt = np.zeros(store.tiling.n_bins, dtype=int), np.zeros(store.tiling.n_bins, dtype=int)
    for number, letters in enumerate(CHROMS.values()):
        for place, one in enumerate(store.tiling.global_bins(number).tolist()):
            text = letters[place * bin_bp : (place + 1) * bin_bp]
            gc[one], acgt[one] = text.count("G") + text.count("C"), len(text) - text.count("N")
    with store.reader() as catalog:
        assert gc_per_bin(store).tolist() == gc.tolist()
        assert acgt_per_bin(store, catalog).tolist() == acgt.tolist()
