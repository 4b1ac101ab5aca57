import numpy as np
import pytest

from tests.query.world import World, random_sequence
from tfbind_store.loci import Grid
from tfbind_store.precompute.enformer import reverse_complement
from tfbind_store.pretraining.feed import Stretch, TrackFeed, mutated
from tfbind_store.query import rows
from tfbind_store.query.labels import LabelRule

BIN_BP, WINDOW_BP = 8, 64


@pytest.fixture
def world(tmp_path):
    chroms = {"chr1": random_sequence(300, 0), "chr2": random_sequence(203, 1)}
    chroms["chr1"] = chroms["chr1"][:96] + "N" * 16 + chroms["chr1"][112:]
    world = World(tmp_path, chroms, Grid(window_bp=WINDOW_BP, n_bins=8, bin_bp=BIN_BP))
    both, first = world.source(), world.source(chroms=["chr1"])
    world.experiment("E1.AAA.cell", [("chr1", 20, 41, 33), ("chr2", 100, 101)], source=both)
    world.experiment("E2.BBB.cell", [("chr1", 40, 48)], source=first)
    world.experiment("E3.CCC.cell", [("chr1", 200, 260)], source=both)
    world.source("relaxed")
    world.relaxed(0, "chr1", 30, 50)
    world.blacklist("chr1", 150, 152)
    world.write()
    return world


def feed_of(world, *, experiments=(0, 1), chroms=(0, 1), rule=None, **changes):
    with world.store.reader() as catalog:
        evidence = rows.gather(world.store, catalog)
    ids = np.array(experiments, dtype=np.int64)
    return TrackFeed(world.store.genome, evidence, rule or LabelRule(), ids, chroms, WINDOW_BP, **changes)


def test_summit_marks_its_bin_at_any_offset(world):
    feed = feed_of(world)
    for start in range(-20, 34):
        labels = feed.batch([Stretch(0, start, False)]).labels[0]
        assert np.flatnonzero(labels[:, 0] == 1).tolist() == [(33 - start) // BIN_BP]


def test_labels_on_the_grid_are_those_of_the_truth(world):
    feed = feed_of(world, experiments=(0, 1, 2))
    truth = feed.evidence.truth(LabelRule())
    for start in (0, 64, 128, 192, 256):
        bins = world.tiling.global_bins(0)[0] + start // BIN_BP + np.arange(8)
        expected = np.stack([truth.labels(e, bins) for e in range(3)], axis=1)
        np.testing.assert_array_equal(feed.batch([Stretch(0, start, False)]).labels[0], expected)


def test_overlap_rule_is_followed(world):
    feed = feed_of(world, rule=LabelRule("overlap", 0.5), experiments=(2,))
    labels = feed.batch([Stretch(0, 196, False)]).labels[0, :, 0]
    assert np.flatnonzero(labels == 1).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    shifted = feed.batch([Stretch(0, 190, False)]).labels[0, :, 0]
    assert np.flatnonzero(shifted == 1).tolist() == [2 - 1, 2, 3, 4, 5, 6, 7]


def test_reverse_complement_mirrors_labels(world):
    feed = feed_of(world)
    forward, backward = (feed.batch([Stretch(0, 10, is_reverse)]) for is_reverse in (False, True))
    np.testing.assert_array_equal(backward.codes, reverse_complement(forward.codes))
    np.testing.assert_array_equal(backward.labels, forward.labels[:, ::-1])


@pytest.mark.parametrize("is_reverse", [False, True])
def test_parts_of_bins_have_labels_by_the_same_rule(world, is_reverse):
    feed = feed_of(world)
    for start in (-20, 0, 9, 150):
        stretch = Stretch(0, start, is_reverse)
        labels = feed.batch([stretch]).labels
        (parts,) = feed.part_labels([stretch], labels, 4)
        assert parts.shape == (WINDOW_BP // 2, 2)
        np.testing.assert_array_equal(np.isnan(parts).reshape(8, 4, 2).all(1), np.isnan(labels[0]))
        np.testing.assert_array_equal(np.isnan(parts).reshape(8, 4, 2).any(1), np.isnan(labels[0]))
        np.testing.assert_array_equal(np.nan_to_num(parts).reshape(8, 4, 2).max(1), np.nan_to_num(labels[0]))
        at = np.flatnonzero(parts[:, 0] == 1)
        expected = (33 - start) // 2  # the summit's two bases
        expected = WINDOW_BP // 2 - 1 - expected if is_reverse else expected
        assert at.tolist() == ([expected] if 0 <= 33 - start < WINDOW_BP else [])


def test_parts_follow_the_overlap_rule(world):
    feed = feed_of(world, rule=LabelRule("overlap", 0.5), experiments=(2,))
    stretch = Stretch(0, 193, False)
    (parts,) = feed.part_labels([stretch], feed.batch([stretch]).labels, 4)
    inside = [min(260, 195 + 2 * at) - max(200, 193 + 2 * at) >= 1 for at in range(32)]
    np.testing.assert_array_equal(np.flatnonzero(parts[:, 0] == 1), np.flatnonzero(inside))


def test_what_nobody_knows_is_nan(world):
    feed = feed_of(world)
    ambiguous = feed.batch([Stretch(0, 0, False)]).labels[0]
    assert np.isnan(ambiguous[:, 0]).tolist() == [False] * 3 + [True] + [False] + [True] * 2 + [False]
    assert not np.isnan(ambiguous[:, 1]).any()
    n_and_blacklist = feed.batch([Stretch(0, 92, False)]).labels[0]
    assert np.isnan(n_and_blacklist).all(1).tolist() == [True, True, True, False, False, False, True, True]
    unlabelled = feed.batch([Stretch(1, 0, False)]).labels[0]
    assert np.isnan(unlabelled[:, 1]).all()
    assert not np.isnan(unlabelled[:, 0]).any()
    before, after = (feed.batch([Stretch(1, start, False)]).labels[0, :, 0] for start in (-60, 190))
    assert np.isnan(before).tolist() == [True] * 8
    assert np.isnan(after).tolist() == [False, False] + [True] * 6


def test_a_pass_covers_every_base_once(world):
    feed = feed_of(world)
    for seed in range(5):
        covered = {0: np.zeros(300, int), 1: np.zeros(203, int)}
        for chrom, start, _ in feed.one_pass(np.random.default_rng(seed)):
            covered[chrom][max(0, start) : start + WINDOW_BP] += 1
        assert all((count == 1).all() for count in covered.values())


def test_only_the_chromosomes_asked_for_are_read(world):
    feed = feed_of(world, chroms=(1,))
    assert {stretch.chrom for stretch in feed.one_pass(np.random.default_rng(0))} == {1}


def test_passes_differ_unless_told_otherwise(world):
    feed = feed_of(world)
    offsets = {min(s.start for s in feed.one_pass(np.random.default_rng(seed))) for seed in range(20)}
    assert len(offsets) > 5
    still = feed_of(world, reverse_complement=False, random_offset=False)
    stretches = still.one_pass(np.random.default_rng(0))
    assert sorted(stretches) == [Stretch(0, start, False) for start in range(0, 300, 64)] + [
        Stretch(1, start, False) for start in range(0, 203, 64)
    ]


def test_prevalence_counts_bound_bins(world):
    scorable = int(feed_of(world).evidence.scorable.sum())
    assert feed_of(world).prevalence().tolist() == pytest.approx([2 / scorable, 1 / scorable])


def test_mutation_changes_its_share_of_bases_and_nothing_else():
    codes = np.tile(np.array([0, 1, 2, 3, 4, 5], dtype=np.uint8), (200, 500))
    changed = mutated(codes, 0.2, np.random.default_rng(0))
    is_base = codes < 4
    np.testing.assert_array_equal(changed[~is_base], codes[~is_base])
    assert changed.max() == 5
    assert set(changed[is_base].tolist()) == {0, 1, 2, 3}
    shares = (changed != codes)[:, :].sum(1) / is_base.sum(1)
    assert shares.max() < 0.22
    assert shares.min() < 0.02
    assert abs(shares.mean() - 0.1) < 0.02
