"""What counts as seen: by chromosome, by loci, by family; and which experiments are scored where."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted import CHROMS, Planted, make_planted
from tfbind_store.evaluation.holdouts import World, bins_of, choose_groups, read_world
from tfbind_store.heads import CheckpointHeader
from tfbind_store.ingest.loci import import_loci
from tfbind_store.query.kinship import Kinship
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import TRAIN, SplitConfig


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("planted"))


def world_of(planted: Planted, name: str, split: SplitConfig) -> tuple[Selection, World]:
    # other ways of sharing are not what these tests are about
    leaks = ("paralog", "trunk", "window", "receptive_field")
    make_selection(planted.store, name, SelectionConfig(n_bins=1, margin_bp=0, split=split, allow_leaks=leaks))
    selection = Selection.open(planted.store, name)
    header = CheckpointHeader(head="linear", options={}, geometry={}, trained_on=selection.trained_on)
    return selection, read_world(planted.store, selection, header)


def test_places_by_loci_are_seen_bin_by_bin(planted: Planted, tmp_path) -> None:
    """chr1 trains up to 6,144 and is tested from 8,192 on; neither the gap between nor another chromosome counts."""
    bed = tmp_path / "places.bed"
    bed.write_text("chr1\t0\t6144\ttrain\nchr1\t8192\t12000\ttest\nchr2\t0\t3072\ttrain\n")
    import_loci(planted.store, bed, name="places")
    split = SplitConfig(loci="places", hold_out={"factor": ["OLA"]})
    selection, world = world_of(planted, "by-loci", split)
    groups = choose_groups(planted.store, selection, world)
    start = planted.store.tiling.grid.bin_bp
    found = {group.holdout: bins_of(planted.store, world, group, whole=False) * start for group in groups}
    assert set(found) == {"unseen_chromosome", "unseen_factor", "unseen_chromosome+unseen_factor"}
    assert (found["unseen_chromosome"].min(), found["unseen_chromosome"].max()) == (8192, 11_968)
    on_chr1 = found["unseen_factor"][found["unseen_factor"] < CHROMS["chr1"]]
    assert (on_chr1.min(), on_chr1.max()) == (0, 6112)
    assert not set(found["unseen_factor"]) & set(found["unseen_chromosome"])
    assert {group.chroms for group in groups if group.holdout == "unseen_chromosome"} == {("chr1",)}


def test_asked_chromosomes_are_scored_whole(planted: Planted) -> None:
    split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr4",))
    selection, world = world_of(planted, "asked", split)
    groups = choose_groups(planted.store, selection, world, chroms=("chr1", "chr3"))
    assert {(group.holdout, group.chroms) for group in groups} == {
        ("seen", ("chr1",)),
        ("unseen_chromosome", ("chr3",)),
    }
    valid = next(group for group in groups if group.chroms == ("chr3",))
    assert len(bins_of(planted.store, world, valid, whole=True)) == -(-CHROMS["chr3"] // 32)
    assert len(bins_of(planted.store, world, valid, whole=False)) == 0


def test_what_the_checkpoint_names_is_seen_whatever_a_newer_selection_says(planted: Planted) -> None:
    selection, _ = world_of(planted, "newer", SplitConfig(test_chroms=("chr1", "chr4")))
    trained = {"factors": ["WEA"], "biotypes": ["cellA"], "chromosomes": ["chr1"]}
    header = CheckpointHeader(head="linear", options={}, geometry={}, trained_on=trained)
    world = read_world(planted.store, selection, header)
    tiling = planted.store.tiling
    assert (world.part[tiling.global_bins(0)] == TRAIN).all()
    assert (world.part[tiling.global_bins(1)] != TRAIN).all()
    groups = choose_groups(planted.store, selection, world)
    assert {group.chroms for group in groups if group.holdout == "unseen_chromosome"} == {("chr4",)}
    assert [world.table["experiment"][place] for place in world.training] == ["EA.WEA.cellA"]


def test_families_are_named_where_the_selection_held_them_out(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OLA, OLB and OLC are one family here; OLA alone held out has relatives in training."""
    families = {f"{stem}{letter}": frozenset({at}) for at, stem in enumerate(("WE", "OL", "OG")) for letter in "ABC"}
    monkeypatch.setattr(Kinship, "family_of", families)

    def alike(kinship: Kinship, sequences: set[str], _: set[str]) -> set[str]:
        of_stem = {factor[:2] for factor, mine in kinship.factors.items() if mine.sequences & sequences}
        return {s for factor, mine in kinship.factors.items() if factor[:2] in of_stem for s in mine.sequences}

    monkeypatch.setattr(Kinship, "_alike", alike)
    chroms = {"valid_chroms": ("chr3",), "test_chroms": ("chr4",)}
    selection, world = world_of(planted, "family", SplitConfig(**chroms, hold_out={"family": ["OLA"]}))
    kinds = {group.holdout for group in choose_groups(planted.store, selection, world)}
    assert kinds == {"unseen_chromosome", "unseen_family", "unseen_chromosome+unseen_family"}
    assert world.unrelated == {"OLA", "OLB", "OLC"}
    selection, world = world_of(planted, "factor", SplitConfig(**chroms, hold_out={"factor": ["OLA"]}))
    kinds = {group.holdout for group in choose_groups(planted.store, selection, world)}
    assert kinds == {"unseen_chromosome", "unseen_factor", "unseen_chromosome+unseen_factor"}


def test_training_experiments_are_those_of_the_header(planted: Planted) -> None:
    _, world = world_of(planted, "held", SplitConfig(test_chroms=("chr4",), hold_out={"factor": ["OLA"]}))
    names = {str(world.table["factor"][place]) for place in world.training}
    assert "OLA" not in names
    assert {"WEA", "OLB", "OGB"} <= names
    assert np.array_equal(np.sort(world.training), world.training)
