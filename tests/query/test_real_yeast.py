"""Selections on the real yeast peaks: 139,465 peaks of 350 factors, two chromosomes without labels."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.ingest import import_blacklist, import_peaks, import_proteins
from tfbind_store.loci import Grid
from tfbind_store.query.labels import load_truth
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
SPLIT = SplitConfig(valid_chroms=("II",), test_chroms=("IV", "XVI"), hold_out_random=("factor:20:min_peaks=100",))


@pytest.fixture(scope="module")
def store(data_dir, tmp_path_factory):
    yeast, folder = data_dir / "yeast_sacCer3", tmp_path_factory.mktemp("yeast")
    grid = Grid(window_bp=16_384, n_bins=96, bin_bp=128)
    store = Store.create(folder / "store", fasta=yeast / "sacCer3.nuclear.fa.gz", grid=grid)
    import_proteins(store, yeast / "sacCer3.proteins.fa.gz", synonyms=[yeast / "SGD_features_170331.tab.gz"])
    import_peaks(store, yeast / "peaks.remap.bed.gz")
    import_blacklist(store, yeast / "ChExMix_Peak_Filter_List_190612.bed", drop=("unknown_chromosome",))
    return store


@pytest.fixture(scope="module")
def selection(store):
    make_selection(store, "yeast", SelectionConfig(split=SPLIT, allow_leaks=("paralog",)))
    return Selection.open(store, "yeast")


def test_every_peak_is_accounted_for(store, selection):
    positive = sum(kinds["positive"] for kinds in selection.info["totals"].values())
    assert positive + sum(selection.info["dropped"].values()) == 139_465
    assert selection.info["dropped"]["factor_without_protein"] > 0


def test_no_row_lies_on_a_chromosome_without_labels(store, selection):
    chroms = store.tiling.window_chrom(selection.columns(names=("window",))["window"])
    names = {store.tiling.chroms[chrom] for chrom in np.unique(chroms)}
    assert names.isdisjoint({"chrVII", "chrXV"})
    assert len(names) == 14


def test_held_out_factors_train_nowhere_and_are_named(selection):
    held = set(selection.info["held_out"]["factor"]["test"])
    assert len(held) == 20
    assert held.isdisjoint(selection.trained_on["factors"])
    assert set(selection.held_out["factors"]) == held


def test_every_label_is_that_of_the_rule(store, selection):
    table = selection.columns()
    first = table["window"].astype(np.int64) * store.grid.n_bins + table["bin"]
    codes = load_truth(store).codes(table["experiment"], first)
    assert (codes == table["label"]).all()
    assert ((codes[:, 0] == 1) == (table["kind"] == "positive")).all()


def test_another_run_gives_the_same_bytes(store, selection):
    again = make_selection(store, "again", SelectionConfig(split=SPLIT, allow_leaks=("paralog",)))
    assert again.info["rows_sha256"] == selection.info["rows_sha256"]
