"""Selections on small stores: what is in them, what never is, and the same bytes each time."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.query.world import World, busy_world, random_sequence
from tfbind_store.errors import ConfigError, LeakError, SelectionError, SqlError, TfbindError
from tfbind_store.loci import Grid
from tfbind_store.query.kinship import Kinship
from tfbind_store.query.labels import load_truth
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig

ALL = ("random:2", "scoped:2")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return busy_world(tmp_path_factory.mktemp("busy")).write()


def rows_of(store, **config):
    make_selection(store, "s", SelectionConfig(**config), overwrite=True)
    selection = Selection.open(store, "s")
    return selection, selection.columns()


def facts(store):
    """Everything that the catalog holds about bp, by name, for slow referees."""
    with store.reader() as catalog:
        chroms = dict(catalog.rows("SELECT chrom_id, chrom FROM data.chromosomes"))
        peaks = catalog.rows("SELECT experiment_id, chrom_id, start_bp, end_bp, summit_bp FROM data.peaks")
        relaxed = catalog.rows("SELECT experiment_id, chrom_id, start_bp, end_bp FROM data.relaxed_peaks")
        blacklist = catalog.rows("SELECT chrom_id, start_bp, end_bp FROM data.exclusions")
        who = {
            e: (f, b) for e, f, b in catalog.rows("SELECT experiment_id, factor_id, biotype_id FROM data.experiments")
        }
    return chroms, peaks, relaxed, blacklist, who


class Referee:
    """Judges a negative row base by base."""

    def __init__(self, store, n_bins, margin_bp):
        self.store, self.tiling, self.n_bins, self.margin_bp = store, store.tiling, n_bins, margin_bp
        self.chroms, self.peaks, self.relaxed, self.blacklist, self.who = facts(store)

    def loci(self, window, first_bin):
        bin_bp, chrom = self.tiling.grid.bin_bp, int(self.tiling.window_chrom([window])[0])
        start = self.tiling.bin_locus(window, first_bin).start
        return chrom, [(start + k * bin_bp, start + (k + 1) * bin_bp) for k in range(self.n_bins)]

    def complaints(self, row):
        chrom, loci = self.loci(row["window"], row["bin"])
        own = [e for e, pair in self.who.items() if pair == self.who[row["experiment"]]]
        found = []
        for experiment, where, start, end, summit in self.peaks:
            if where == chrom and experiment in own:
                found += [f"touches peak {start}-{end}" for first, last in loci if start < last and end > first]
                found += [f"holds summit {summit}" for first, last in loci if first <= summit < last]
        bound = {e for e, where, _, _, summit in self.peaks for f, t in loci if where == chrom and f <= summit < t}
        allowed = [
            (f, t)
            for f, t in loci
            if t > 0
            and f < self.tiling.lengths_bp[chrom]
            and (self.store.genome.codes(self.chroms[chrom], f, t) < 4).any()
            and not any(w == chrom and s - self.margin_bp < t and e + self.margin_bp > f for w, s, e in self.blacklist)
            and not any(
                w == chrom and who in own and s - self.margin_bp < t and e + self.margin_bp > f
                for who, w, s, e in [p[:4] for p in self.peaks] + self.relaxed
            )
        ]
        if not allowed:
            found.append("no bin of it could be an anchor")
        if row["kind"] == "random" and all(
            any(w == chrom and f <= summit < t for _, w, _, _, summit in self.peaks) for f, t in allowed
        ):
            found.append("every possible anchor is bound by somebody")
        if row["kind"] == "scoped" and not any(self.who[e][1] == self.who[row["experiment"]][1] for e in bound):
            found.append("bound by nobody in its biotype")
        return found


class TestNegatives:
    @settings(max_examples=8, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        n_bins=st.integers(1, 8),
        margin_bp=st.sampled_from([0, 16, 50]),
        rule=st.sampled_from(["summit", "overlap:0.5"]),
    )
    def test_none_holds_a_positive_of_its_experiment_by_a_slow_referee(self, store, seed, n_bins, margin_bp, rule):
        _, table = rows_of(store, seed=seed, n_bins=n_bins, margin_bp=margin_bp, negatives=ALL, rule=rule)
        referee = Referee(store, n_bins, margin_bp)
        rows = [dict(zip(table, row, strict=True)) for row in table.rows()]
        negatives = [row for row in rows if row["kind"] != "positive"]
        assert len(negatives) > 100
        for row in negatives:
            assert 1 not in row["label"]
            complaints = referee.complaints(row)
            if rule != "summit":  # the referee's "bound" is by summit
                complaints = [text for text in complaints if "bound by" not in text]
            assert complaints == [], row

    def test_the_chromosome_that_a_source_has_not_looked_at_is_left_out(self, store):
        _, table = rows_of(store, negatives=ALL)
        third = int(store.tiling.first_window[2])
        assert (table["window"][table["experiment"] != 2] >= third).any()
        assert not (table["window"][table["experiment"] == 2] >= third).any()

    def test_no_anchor_comes_twice(self, store):
        _, table = rows_of(store, negatives=("random:3", "scoped:3", "random:3"), margin_bp=0)
        keys = list(zip(table["experiment"].tolist(), table["window"].tolist(), table["bin"].tolist(), strict=True))
        assert len(set(keys)) == len(keys)

    def test_ratios_are_kept_per_experiment_and_split_of_the_chromosomes(self, store):
        split = SplitConfig(test_chroms=("chr2",))
        selection, table = rows_of(store, negatives=("random:1.5",), margin_bp=0, split=split)
        assert selection.info["shortfall"] == {}
        for experiment in range(6):
            for name in ("train", "test"):
                mine = (table["experiment"] == experiment) & (table["split"] == name)
                n_positive = int((mine & (table["kind"] == "positive")).sum())
                assert (mine & (table["kind"] == "random")).sum() == -(-n_positive * 3 // 2)

    def test_an_experiment_without_peaks_gets_as_many_as_the_median(self, store):
        _, table = rows_of(store, negatives=("random:1",), margin_bp=0)
        positives = [((table["experiment"] == e) & (table["kind"] == "positive")).sum() for e in range(6)]
        assert (table["experiment"] == 6).sum() == np.ceil(np.median(positives))

    def test_a_shortfall_is_said(self, store):
        selection, table = rows_of(store, negatives=("scoped:50",))
        short = selection.info["shortfall"]["scoped"]
        wanted = sum(
            50 * int(((table["experiment"] == e) & (table["kind"] == "positive")).sum()) for e in range(6)
        ) + 50 * int(
            np.ceil(np.median([((table["experiment"] == e) & (table["kind"] == "positive")).sum() for e in range(6)]))
        )
        assert short["rows"] == wanted - int((table["kind"] == "scoped").sum())
        assert short["experiments"] == 7

    @pytest.mark.parametrize("text", ["", "peaks:1", "random:x", "random:-1", "scoped:inf"])
    def test_nonsense_is_refused(self, store, text):
        with pytest.raises(ConfigError, match="negative"):
            make_selection(store, "bad", SelectionConfig(negatives=(text,)))


class TestPositives:
    @pytest.mark.parametrize("n_bins", [1, 2, 5, 8])
    def test_labels_are_those_of_the_label_rule_and_the_summit_is_inside(self, store, n_bins):
        _, table = rows_of(store, n_bins=n_bins)
        truth = load_truth(store)
        first = table["window"].astype(np.int64) * store.grid.n_bins + table["bin"]
        assert (truth.codes(table["experiment"], first, n_bins) == table["label"]).all()
        assert (table["label"][table["kind"] == "positive"] == 1).any(axis=1).all()

    def test_rows_stay_on_their_chromosome_and_out_of_empty_windows(self, store):
        _, table = rows_of(store, n_bins=8, negatives=ALL)
        tiling = store.tiling
        chrom = tiling.window_chrom(table["window"])
        last = table["window"].astype(np.int64) * 8 + table["bin"] + 7
        ends = [tiling.global_bins(c)[-1] for c in range(3)]
        assert (last <= np.array(ends)[chrom]).all()
        assert (last == np.array(ends)[chrom]).any(), "a row at a chromosome's end"
        with store.reader() as catalog:
            empty = catalog.columns("SELECT window_id FROM data.windows WHERE gc_fraction IS NULL")["window_id"]
        assert len(empty) > 0
        assert not np.isin(table["window"], empty).any()
        assert not np.isin(last // 8, empty).any()
        assert (last // 8 > table["window"]).any(), "a row across a window's edge"

    def test_jitter_moves_rows_by_at_most_a_quarter(self, store):
        _, still = rows_of(store, n_bins=8, jitter=0.0)
        truth = load_truth(store)
        first = still["window"].astype(np.int64) * 8 + still["bin"]
        inner = (still["kind"] == "positive") & (still["bin"] > 0)
        assert (truth.codes(still["experiment"], first + 4)[inner, 0] == 1).mean() > 0.9
        _, moved = rows_of(store, n_bins=8)
        assert set(moved["read_value"].tolist()) == set(still["read_value"].tolist())
        assert moved["bin"].tolist() != still["bin"].tolist()

    def test_anchors_that_come_to_the_same_bins_are_one_row(self, store):
        single, _ = rows_of(store, negatives=("shifted:2", "random:1"))
        selection, table = rows_of(store, n_bins=8, negatives=("shifted:2", "random:1"))
        places = list(zip(*(table[name].tolist() for name in ("split", "window", "bin", "experiment")), strict=True))
        assert len(set(places)) == len(places)
        twice = {kind: n for kind, n in selection.info["dropped"].items() if kind.endswith("_twice")}
        assert twice["shifted_twice"] > 0
        positives = sum(kinds.get("positive", 0) for kinds in selection.info["totals"].values())
        asked = sum(kinds.get("positive", 0) for kinds in single.info["totals"].values())
        lost = selection.info["dropped"].get("no_room_for_row", 0) + selection.info["dropped"].get(
            "between_valid_and_test", 0
        )
        assert positives + twice.get("positive_twice", 0) + lost == asked

    def test_two_peaks_in_a_bin_are_one_row_with_the_higher_value(self, tmp_path):
        world = World(tmp_path, {"a": random_sequence(400, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        world.experiment("E.F.B", [("a", 100, 104, 101, 5), ("a", 104, 109, 106, 9)], source=world.source())
        selection, table = rows_of(world.write(), negatives=())
        assert (table["read_value"].tolist(), table["bin"].tolist()) == ([9.0], [2])
        assert selection.info["dropped"] == {"second_peak_in_bin": 1}

    def test_sampling_and_caps_are_seeded(self, store):
        whole = rows_of(store, negatives=())[1].n
        _, some = rows_of(store, negatives=(), sample=0.5)
        assert 0.3 * whole < some.n < 0.7 * whole
        _, capped = rows_of(store, negatives=(), max_positives=3)
        assert np.bincount(capped["experiment"]).tolist() == [3] * 6
        assert rows_of(store, negatives=(), max_positives=3, seed=1)[1]["bin"].tolist() != capped["bin"].tolist()


class TestWhere:
    def test_it_chooses_the_positives(self, store):
        config = {"where": "factor = $f AND score > 500", "params": {"f": "AAA"}, "negatives": ("random:1",)}
        selection, table = rows_of(store, **config)
        with store.reader() as catalog:
            ids = [0, 3, 5]
            peaks = catalog.rows("SELECT DISTINCT experiment_id, window_id, bin FROM data.peaks WHERE score > 500")
        truth = load_truth(store)
        want = {(e, w, b) for e, w, b in peaks if e in ids and truth.codes([e], np.array([w * 8 + b]))[0, 0] == 1}
        positive = table["kind"] == "positive"
        got = zip(*(table[name][positive].tolist() for name in ("experiment", "window", "bin")), strict=True)
        assert set(got) == want
        assert "factor = $f AND score > 500" in selection.info["sql"]
        assert selection.info["notes"] == ["the condition is about peaks: experiments without any peak are left out"]

    def test_negatives_stay_on_chromosomes_that_it_chose(self, store):
        _, table = rows_of(store, where="chrom = 'chr2'")
        assert set(store.tiling.window_chrom(table["window"]).tolist()) == {1}

    def test_an_unchosen_peak_is_still_no_negative(self, store):
        _, table = rows_of(store, where="score > 900", negatives=("random:9", "scoped:9"))
        truth = load_truth(store)
        negative = table["kind"] != "positive"
        first = table["window"].astype(np.int64) * 8 + table["bin"]
        assert not (truth.codes(table["experiment"], first)[negative] == 1).any()

    def test_nothing_left_is_an_error_with_the_causes(self, store):
        with pytest.raises(SelectionError, match="no positive row is left"):
            make_selection(store, "none", SelectionConfig(where="factor = 'nobody'"))
        assert not (store.path / "selections" / "none").exists()

    @pytest.mark.parametrize("where", ["1=1) --", "nonsense(", "1=1; DROP TABLE data.peaks", "no_such_column = 1"])
    def test_bad_conditions_are_refused(self, store, where):
        with pytest.raises(SqlError):
            make_selection(store, "bad", SelectionConfig(where=where))


class TestSplits:
    def test_training_rows_hold_nothing_that_is_held_out(self, store):
        split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr2",), hold_out={"factor": ["AAA"]})
        selection, table = rows_of(store, split=split)
        train = table["split"] == "train"
        assert set(store.tiling.window_chrom(table["window"][train]).tolist()) == {0}
        assert not np.isin(table["factor"][train], [0]).any()
        assert selection.info["parts"]["train"]["factors"] == ["BBB", "CCC", "DDD", "EEE"]
        assert selection.held_out == {"chromosomes": ["chr2", "chr3"], "factors": ["AAA"], "biotypes": []}
        valid = table["split"] == "valid"
        assert set(table["holdout"][valid]) == {"unseen_chromosome"}
        assert not (valid & (table["factor"] == 0)).any(), "a test factor on a validation chromosome is in no split"
        assert set(table["holdout"][table["split"] == "test"]) == {
            "unseen_chromosome",
            "unseen_factor",
            "unseen_chromosome+unseen_factor",
        }
        read = selection.info["windows_read_by_both"]
        assert read["unseen_chromosome"]["share_input"] == 0
        assert read["unseen_factor"]["share_input"] > 0

    def test_a_leak_is_refused_unless_it_is_allowed_and_then_recorded(self, tmp_path, monkeypatch):
        world = World(tmp_path, {"a": random_sequence(4000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        source = world.source()
        world.factor("SOX2-POU5F1", ["SOX2", "POU5F1"])
        for place, name in enumerate(["E1.SOX2.H1", "E2.SOX2-POU5F1.H1", "E3.CTCF.H1_dox"]):
            peaks = [("a", 50 + place + 100 * k, 55 + place + 100 * k) for k in range(5)]
            world.experiment(name, peaks, source=source)
        store = world.write()
        split = SplitConfig(hold_out={"factor": ["SOX2"]})
        selection, _ = rows_of(store, split=split)
        assert selection.info["parts"]["train"]["factors"] == ["CTCF"]
        selection, _ = rows_of(store, split=split, allow_leaks=("gene", "sequence"))
        assert selection.info["parts"]["train"]["factors"] == ["CTCF", "SOX2-POU5F1"]
        assert {leak["kind"] for leak in selection.info["leaks"]} == {"gene", "sequence"}
        # the check looks at the rows: it finds what a mistake in holding out would let through
        monkeypatch.setattr(Kinship, "kin", lambda _, kind, name, **__: {name})
        with pytest.raises(LeakError, match="training rows of SOX2-POU5F1 share the gene SOX2 with held-out SOX2"):
            make_selection(store, "leaks", SelectionConfig(split=split))
        assert "leaks" not in store.selections()

    def test_a_paralog_left_in_training_is_refused_and_a_family_takes_it_along(self, tmp_path, caplog):
        world = World(tmp_path, {"a": random_sequence(4000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        source = world.source()
        domain = "MKRPMNAFMVWSRGQRRKMAQENPKMHNSEISKRLGAEWKLLSETEKRPFIDEAKRLRALHMKEHPDYKYRPRRKTKTLMK"
        world.factor("SOX2", sequence=domain)
        world.factor("SOX3", sequence=domain.replace("K", "R"))
        for place, name in enumerate(["E1.SOX2.H1", "E2.SOX3.H1", "E3.CTCF.H1"]):
            peaks = [("a", 50 + place + 100 * k, 55 + place + 100 * k) for k in range(5)]
            world.experiment(name, peaks, source=source)
        store = world.write()
        with pytest.raises(LeakError, match="training rows of SOX3 share the family of SOX2"):
            make_selection(store, "s", SelectionConfig(split=SplitConfig(hold_out={"factor": ["SOX2"]})))
        selection, _ = rows_of(store, split=SplitConfig(hold_out={"family": ["SOX2"]}))
        assert selection.info["parts"]["train"]["factors"] == ["CTCF"]
        selection, _ = rows_of(store, split=SplitConfig(hold_out={"factor": ["SOX2"]}, identity=0.95))
        assert selection.info["leaks"] == []
        allowed = SplitConfig(hold_out={"factor": ["SOX2"]})
        selection, _ = rows_of(store, split=allowed, allow_leaks=("paralog",))
        assert [leak["kind"] for leak in selection.info["leaks"]] == ["paralog"]
        assert "allowed: " in caplog.text

    def test_loci_whose_windows_read_training_input_are_refused_or_training_rows_dropped(self, tmp_path):
        world = World(tmp_path, {"a": random_sequence(4000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        source = world.source()
        for name in ("E1.AAA.H1", "E2.CCC.H1"):
            world.experiment(name, [("a", 30 * k, 30 * k + 9) for k in range(130)], source=source)
        for start, end, split in ((0, 2000, "train"), (2000, 3000, "test"), (3000, 4000, "train")):
            world.add(
                "loci", set_name="mine", name=None, split=split, chrom_id=0, start_bp=start, end_bp=end, source_id=0
            )
        store = world.write()
        config = {"margin_bp": 0, "split": SplitConfig(loci="mine")}
        with pytest.raises(LeakError, match="share the input"):
            make_selection(store, "s", SelectionConfig(**config))
        selection, table = rows_of(store, margin_bp=0, split=SplitConfig(loci="mine", overlap="drop"))
        assert selection.info["dropped"]["positive_reads_held_out_place"] > 0
        window = table["window"].astype(int)
        test, train = (set(window[table["split"] == split].tolist()) for split in ("test", "train"))
        reach = (80 - 1) // 40
        assert all(abs(a - b) > reach for a in test for b in train)
        selection, _ = rows_of(store, **config, allow_leaks=("window", "receptive_field"))
        assert {leak["kind"] for leak in selection.info["leaks"]} >= {"receptive_field"}

    def test_factors_without_a_protein_are_counted(self, tmp_path):
        world = World(tmp_path, {"a": random_sequence(2000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        world.factor("NOPROT", sequence=None)
        world.experiment("E1.NOPROT.B", [("a", 100, 101), ("a", 300, 301)], source=world.source())
        world.experiment("E2.CTCF.B", [("a", 500, 501)], source=0)
        store = world.write()
        selection, table = rows_of(store)
        assert selection.info["dropped"] == {"factor_without_protein": 2}
        assert set(table["experiment"].tolist()) == {1}
        assert set(rows_of(store, factors_need_protein=False)[1]["experiment"].tolist()) == {0, 1}


class TestGapsAreSaid:
    def notes(self, store, **config):
        selection, _ = rows_of(store, **config)
        return selection.info["notes"]

    def test_a_test_chromosome_that_is_unlabelled(self, store):
        notes = self.notes(store, where="factor = 'CCC'", split=SplitConfig(test_chroms=("chr3",)))
        assert notes == ["test: unlabelled, so without rows: chr3", "test: no rows"]

    def test_a_training_biotype_that_may_be_the_held_out_one(self, tmp_path):
        world = World(tmp_path, {"a": random_sequence(2000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        for number, biotype in enumerate(("K562", "K562-IFNg", "K562T", "A549")):
            at = 100 + 300 * number
            world.experiment(f"E{number}.CTCF.{biotype}", [("a", at, at + 1)], source=world.source() if number else 0)
        notes = self.notes(world.write(), split=SplitConfig(hold_out={"biotype": "K562"}), negatives=())
        assert "training has K562-IFNg: hold it out as well if that is K562 too" in notes
        assert not [note for note in notes if "K562T" in note or "A549" in note]

    def test_a_factor_that_is_held_out_and_has_no_rows(self, tmp_path):
        world = World(tmp_path, {"a": random_sequence(2000, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10))
        world.factor("NOPROT", sequence=None)
        world.experiment("E1.NOPROT.B", [("a", 100, 101)], source=world.source())
        world.experiment("E2.CTCF.B", [("a", 500, 501)], source=0)
        notes = self.notes(world.write(), split=SplitConfig(hold_out={"factor": "NOPROT"}))
        assert notes == ["held out, but without rows: factor NOPROT"]

    def test_an_unlabelled_chromosome_among_the_training_ones(self, store):
        notes = self.notes(store, where="factor = 'CCC'")
        assert notes == ["train: unlabelled, so without rows: chr3"]

    def test_nothing_to_train_on(self, store):
        split = SplitConfig(test_chroms=("chr1", "chr2", "chr3"))
        notes = self.notes(store, split=split)
        assert notes == ["train: no rows", "nothing can be trained on this selection"]
        with pytest.raises(SelectionError, match="no training rows"):
            Selection.open(store, "s").require_training_rows()

    def test_none_where_all_is_there(self, store):
        assert self.notes(store, split=SplitConfig(test_chroms=("chr2",))) == []


class TestFile:
    def test_the_same_inputs_give_the_same_bytes(self, store, tmp_path):
        config = SelectionConfig(n_bins=3, split=SplitConfig(test_chroms=("chr2",)))
        other = busy_world(tmp_path).write()
        first = make_selection(store, "one", config, overwrite=True)
        second = make_selection(store, "two", config, overwrite=True)
        third = make_selection(other, "one", config)
        bytes_of = [(report.path / "rows.parquet").read_bytes() for report in (first, second, third)]
        assert bytes_of[0] == bytes_of[1] == bytes_of[2]
        other_seed = make_selection(store, "two", SelectionConfig(n_bins=3, seed=1), overwrite=True)
        assert (other_seed.path / "rows.parquet").read_bytes() != bytes_of[0]
        assert (first.path / "selection.json").read_bytes() == (third.path / "selection.json").read_bytes()

    def test_columns_and_their_order(self, store):
        selection, table = rows_of(store, n_bins=2)
        assert list(table) == [
            "row", "window", "bin", "n_bins", "experiment", "factor", "context", "label", "weight", "read_value",
            "split", "kind", "holdout", "fold_place", "fold_factor", "fold_biotype",
        ]  # fmt: skip
        assert table["row"].tolist() == list(range(table.n))
        assert table["label"].shape == (table.n, 2)
        assert set(table["n_bins"].tolist()) == {2}
        totals = selection.info["totals"]["train"]
        assert sum(totals.values()) == table.n
        assert sum(n for kinds in selection.info["counts"]["train"].values() for n in kinds.values()) == table.n

    def test_one_split_and_some_columns(self, store):
        selection, table = rows_of(store, split=SplitConfig(test_chroms=("chr2",)))
        test = selection.columns("test", names=("label", "row"))
        assert list(test) == ["label", "row"]
        assert test["row"].tolist() == table["row"][table["split"] == "test"].tolist()
        with pytest.raises(SelectionError, match="no split 'tset'"):
            selection.columns("tset")
        with pytest.raises(SelectionError, match="no column 'rows'"):
            selection.columns(names=("rows",))

    def test_a_name_that_is_taken_absent_or_no_name(self, store):
        make_selection(store, "taken", overwrite=True)
        with pytest.raises(SelectionError, match="already"):
            make_selection(store, "taken")
        with pytest.raises(SelectionError, match="no selection 'takn'") as caught:
            Selection.open(store, "takn")
        assert "taken" in caught.value.fix
        for name in ("../x", "/abs", "", ".hidden"):
            with pytest.raises(TfbindError):
                make_selection(store, name)

    def test_changed_rows_and_another_genome_are_refused(self, store, tmp_path):
        report = make_selection(store, "mine", overwrite=True)
        other = World(tmp_path, {"a": random_sequence(500, 0)}, Grid(window_bp=80, n_bins=4, bin_bp=10)).write()
        shutil.copytree(report.path, other.selection_dir("mine"))
        with pytest.raises(SelectionError, match="another genome"):
            Selection.open(other, "mine")
        with (report.path / "rows.parquet").open("r+b") as file:
            file.seek(100)
            file.write(b"\xff")
        with pytest.raises(SelectionError, match="not what selection"):
            Selection.open(store, "mine")
        (report.path / "selection.json").write_text(json.dumps({"format": 9}))
        with pytest.raises(SelectionError, match="cannot be read"):
            Selection.open(store, "mine")

    def test_config_comes_back(self, store):
        config = SelectionConfig(
            where="factor = $f",
            params={"f": "AAA"},
            n_bins=2,
            split=SplitConfig(test_chroms=("chr2",), hold_out={"biotype": ["cellB"]}),
        )
        make_selection(store, "config", config, overwrite=True)
        again = Selection.open(store, "config").config
        assert (
            make_selection(store, "again", again, overwrite=True).info["rows_sha256"]
            == (Selection.open(store, "config").info["rows_sha256"])
        )

    def test_too_many_bins_and_nonsense_are_refused(self, store):
        with pytest.raises(SelectionError, match="9 bins per row, a window has 8"):
            make_selection(store, "wide", SelectionConfig(n_bins=9))
        for bad in ({"n_bins": 0}, {"jitter": 0.3}, {"sample": 0.0}, {"margin_bp": -1}):
            with pytest.raises(ConfigError):
                SelectionConfig(**bad)
