"""Folds: of what they are made, that kin stay together, and that an opened fold looks like any other selection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.query.world import World, busy_world, random_sequence
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.loci import Grid
from tfbind_store.query import describe, rows, splits
from tfbind_store.query.folds import spread
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig


def paralogs_world(folder):
    """Eight factors, of which two complexes tie genes together, in three cells with treatments and spellings."""
    world = World(folder, {c: random_sequence(3_000, n) for n, c in enumerate("abcdef")}, GRID)
    source = world.source()
    rng = np.random.default_rng(0)
    world.factor("F1-F2", ["F1", "F2"])
    names = ["F1.U2.OS", "F2.U2.OS_dex", "F1-F2.MCF-7", "F3.MCF7", "F4.MCF-7_E2", "F5.K562", "F6.K562", "F7.U2OS"]
    for number, name in enumerate(names):
        starts = rng.integers(0, 2_900, 60)
        peaks = [("abcdef"[int(rng.integers(6))], int(start), int(start) + 8) for start in starts]
        world.experiment(f"E{number}.{name}", peaks, source=source)
    return world


GRID = Grid(window_bp=80, n_bins=4, bin_bp=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return paralogs_world(tmp_path_factory.mktemp("folds")).write()


def make(store, **split):
    config = SelectionConfig(margin_bp=0, split=SplitConfig(**split))
    make_selection(store, "cv", config, overwrite=True)
    return Selection.open(store, "cv")


class TestSpread:
    @given(
        st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 90), min_size=5), st.integers(2, 5)
    )
    def test_every_unit_is_in_one_fold_and_no_fold_is_empty(self, sizes, n_folds):
        found = spread(sizes, n_folds, seed=0, purpose="x")
        assert set(found) == set(sizes)
        assert set(found.values()) == set(range(n_folds))
        filled = [sum(size for unit, size in sizes.items() if found[unit] == fold) for fold in range(n_folds)]
        assert max(filled) - min(filled) <= max(sizes.values()) + len(sizes)

    def test_too_few_units_are_refused(self):
        with pytest.raises(SelectionError, match="3 folds of 2 things"):
            spread({"a": 1, "b": 1}, 3, seed=0, purpose="things")


class TestOpenedFold:
    @pytest.mark.parametrize("fold_by", [("chrom",), ("factor",), ("biotype",), ("chrom", "factor"), ("loci",)])
    def test_folds_validate_on_each_training_row_once_and_train_on_the_rest(self, store, fold_by):
        n_folds = 3 if fold_by != ("loci",) else 2
        allow = {"test_chroms": ("f",)}
        selection = make(store, folds=n_folds, fold_by=fold_by, **allow)
        base = selection.columns(names=("row", "split"))
        training = set(base["row"][base["split"] == "train"].tolist())
        seen = []
        for fold in selection.folds():
            table = fold.columns(names=("row", "split", "holdout"))
            parts = {name: set(table["row"][table["split"] == name].tolist()) for name in splits.SPLITS}
            assert parts["train"] | parts["valid"] == training
            assert parts["train"].isdisjoint(parts["valid"])
            assert set(table["holdout"][table["split"] == "train"].tolist()) == {"seen"}
            assert all(name.startswith("unseen") for name in table["holdout"][table["split"] == "valid"].tolist())
            seen += sorted(parts["valid"])
        if len(fold_by) == 1:
            assert sorted(seen) == sorted(training)
        else:  # a row whose chromosome and factor lie in two folds validates in both
            assert set(seen) == training

    def test_nested_folds_tell_three_questions_apart(self, store):
        holdouts = make(store, folds=3, fold_by=("chrom", "factor")).folds()[1].info["holdouts"]["valid"]
        assert set(holdouts) == {"unseen_chromosome", "unseen_factor", "unseen_chromosome+unseen_factor"}

    def test_what_it_says_of_itself_is_what_its_rows_hold(self, store):
        for fold in make(store, folds=3, fold_by=("chrom", "factor"), test_chroms=("f",)).folds():
            table = fold.columns()
            totals = {
                (split, kind): number for split, kinds in fold.info["totals"].items() for kind, number in kinds.items()
            }
            pairs = list(zip(table["split"].tolist(), table["kind"].tolist(), strict=True))
            assert totals == {pair: pairs.count(pair) for pair in set(pairs)}
            mine = table["split"] == "train"
            chroms = {store.tiling.chroms[c] for c in store.tiling.window_chrom(table["window"][mine])}
            assert set(fold.trained_on["chromosomes"]) == chroms
            assert set(fold.trained_on["factors"]).isdisjoint(fold.held_out["factors"])
            assert set(fold.trained_on["chromosomes"]).isdisjoint(fold.held_out["chromosomes"])
            where = table["window"].astype(np.int64) * 4 + table["bin"]
            assert (fold.place_parts()[where[mine]] == splits.TRAIN).all()
            assert set(fold.bins("train").tolist()) >= set(where[mine].tolist())

    def test_the_file_and_the_arithmetic_open_a_fold_alike(self, store):
        selection = make(store, folds=2, fold_by=("chrom", "biotype"), hold_out={"factor": ["F5"]})
        fold = Selection.open(store, "cv@1")
        table = fold.columns(names=("row", "split", "holdout"))
        whole = selection.columns()
        columns = {name: np.zeros(whole.n, dtype=np.int64) for name in rows.RowTable._fields}
        folds = np.stack([whole[f"fold_{axis}"] for axis in ("place", "factor", "biotype")], axis=1)
        split = np.array([splits.SPLITS.index(name) for name in whole["split"].tolist()], dtype=np.int8)
        holdout = np.array([splits.HOLDOUTS.index(name) for name in whole["holdout"].tolist()], dtype=np.int8)
        opened = describe.opened(
            rows.RowTable(**{**columns, "folds": folds, "split": split, "holdout": holdout, "anchor": whole["row"]}), 1
        )
        assert opened.anchor.tolist() == table["row"].tolist()
        assert [splits.SPLITS[code] for code in opened.split] == table["split"].tolist()
        assert [splits.HOLDOUTS[code] for code in opened.holdout] == table["holdout"].tolist()

    def test_rows_stay_inside_their_fold(self, store):
        make_selection(
            store,
            "wide",
            SelectionConfig(n_bins=4, margin_bp=0, split=SplitConfig(folds=3), negatives=("random:1",)),
        )
        selection = Selection.open(store, "wide")
        for fold in selection.folds():
            table = fold.columns("valid", names=("window", "bin"))
            first = table["window"].astype(np.int64) * 4 + table["bin"]
            assert (fold.place_parts()[first[:, None] + np.arange(4)] == splits.VALID).all()

    def test_each_fold_has_its_own_share_of_negatives(self, store):
        selection = make(store, folds=3)
        for fold in selection.folds():
            kinds = fold.info["totals"]["valid"]
            assert kinds["random"] >= kinds["positive"]
            assert kinds["random"] <= kinds["positive"] + 8

    def test_names_and_numbers(self, store):
        selection = make(store, folds=3)
        assert Selection.open(store, "cv@2").name == "cv@2"
        assert Selection.open(store, "cv", fold=2).trained_on == Selection.open(store, "cv@2").trained_on
        assert [fold.name for fold in selection.folds()] == ["cv@0", "cv@1", "cv@2"]
        for wrong in ("cv@3", "cv@", "cv@x", "cv@-1"):
            with pytest.raises(SelectionError, match="no fold"):
                Selection.open(store, wrong)


class TestKinStayTogether:
    def test_complexes_tie_their_genes_and_spellings_tie_cells(self, store):
        for fold in make(store, folds=3, fold_by=("factor",)).folds():
            held = set(fold.held_out["factors"])
            assert held.isdisjoint({"F1", "F2", "F1-F2"}) or {"F1", "F2", "F1-F2"} <= held
        for fold in make(store, folds=3, fold_by=("biotype",)).folds():
            held = set(fold.held_out["biotypes"])
            for kin in ({"U2.OS", "U2.OS_dex", "U2OS"}, {"MCF-7", "MCF7", "MCF-7_E2"}):
                assert held.isdisjoint(kin) or kin <= held

    def test_more_folds_than_groups_are_refused(self, store):
        with pytest.raises(SelectionError, match="9 folds of 6 factors"):
            make(store, folds=9, fold_by=("factor",))


@pytest.mark.parametrize(
    "split",
    [
        {"folds": 1},
        {"folds": 3, "fold_by": ("cells",)},
        {"folds": 3, "fold_by": ("chrom", "loci")},
        {"folds": 3, "valid_chroms": ("a",)},
        {"folds": 3, "fold_by": ()},
        {"folds": -2},
    ],
)
def test_nonsense_is_refused(split):
    with pytest.raises(ConfigError):
        SplitConfig(**split)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_the_same_seed_gives_the_same_folds(tmp_path_factory, seed):
    store = busy_world(tmp_path_factory.mktemp("busy")).write()
    made = [
        make_selection(store, name, SelectionConfig(seed=seed, split=SplitConfig(folds=2, fold_by=("factor",))))
        for name in ("one", "two")
    ]
    assert made[0].info["rows_sha256"] == made[1].info["rows_sha256"]
    assert made[0].info["folds"] == made[1].info["folds"]
