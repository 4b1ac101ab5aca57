"""Selections made again from their file, and what two of them differ in."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner

from tests.query.world import busy_world
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.query.compare import differences, remake
from tfbind_store.query.selection import Selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return busy_world(tmp_path_factory.mktemp("busy")).write()


@pytest.fixture(scope="module")
def first(store):
    split = SplitConfig(test_chroms=("chr2",), hold_out={"factor": ["DDD"]})
    return store.select("first", where="score > $least", params={"least": 50}, n_bins=4, margin_bp=16, split=split)


def test_a_store_selects_by_name_and_refuses_what_it_does_not_know(store, first):
    assert isinstance(first, Selection)
    assert first.config.params == {"least": 50}
    with pytest.raises(ConfigError, match="n_bin"):
        store.select("x", n_bin=4)
    with pytest.raises(SelectionError, match="already"):
        store.select("first")


def test_the_file_of_a_selection_makes_the_same_bytes_in_another_place(store, first, tmp_path):
    shutil.copytree(store.path, tmp_path / "copy")
    other = Store.open(tmp_path / "copy")
    remade = remake(other, "again", first.path.parent)
    assert remade.is_same
    assert remade.reasons == []
    assert remade.selection.path.read_bytes() == first.path.read_bytes()


def test_other_inputs_are_named(first, tmp_path):
    other = busy_world(tmp_path, seed=5).write()
    remade = remake(other, "again", first.path.parent / "selection.json")
    assert not remade.is_same
    assert remade.reasons == ["genome"]


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"config": {}}'])
def test_what_is_no_selection_is_refused(store, tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SelectionError, match="not what a selection is described by"):
        remake(store, "x", path)


def test_a_selection_does_not_differ_from_itself(first):
    found = differences(first, first)
    assert found["same"]
    assert found["rows"] == {"both": first.info["rows"], "first": 0}
    assert not found["config"]
    assert not found["changed"]
    assert found["only"] == {"first": {}}


def test_differences_are_counted_by_split_and_kind(store, first):
    split = SplitConfig(test_chroms=("chr2",), valid_chroms=("chr3",), hold_out={"factor": ["DDD"]})
    second = store.select(
        "second", where="score > 50 AND factor <> 'BBB'", n_bins=4, margin_bp=16, split=split, negatives=("random:1",)
    )
    found = differences(first, second)
    assert not found["same"]
    assert set(found["config"]) == {"where", "params", "negatives", "split.valid_chroms"}
    one, other = (selection.columns() for selection in (first, second))

    def rows(table):
        names = ("window", "bin", "experiment", "kind")
        return Counter(zip(*(table[name].tolist() for name in names), strict=True))

    both = (rows(one) & rows(other)).total()
    assert found["rows"] == {"both": both, "first": len(one["row"]) - both, "second": len(other["row"]) - both}
    assert "scoped" in found["only"]["first"]["train"]
    assert found["changed"]["split"] > 0


def test_the_command_shows_differences_and_makes_again(store, first):
    run = CliRunner().invoke
    done = run(main, ["select", str(store.path), "third", "--from", str(first.path.parent), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["same_as_described"] is True
    shown = run(main, ["select", str(store.path), "first", "--diff", "third"])
    assert "the same rows to the byte" in shown.output
    assert f"rows in both: {first.info['rows']:,}" in shown.output
    absent = run(main, ["select", str(store.path), "first", "--diff", "firts"])
    assert absent.exit_code == 1
