"""The order of an epoch: a permutation, near in memory, seeded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbind_store.errors import ConfigError
from tfbind_store.query.sampler import RowWindows, balanced_rows, batches_of, epoch_order

WINDOWS = st.lists(st.integers(0, 30), max_size=80).map(lambda w: np.array(w, dtype=np.int32))


@settings(deadline=None)
@given(WINDOWS, st.integers(1, 40), st.integers(1, 90), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_row_comes_exactly_once_for_any_sizes(windows, block_windows, batch_size, n_parts, seed, epoch):
    order = epoch_order(RowWindows.of(windows), block_windows=block_windows, seed=seed, epoch=epoch)
    seen = [
        row
        for part in range(n_parts)
        for _, rows in batches_of(order, batch_size=batch_size, part=part, n_parts=n_parts)
        for row in rows.tolist()
    ]
    assert sorted(seen) == list(range(len(windows)))


@settings(deadline=None)
@given(WINDOWS, st.integers(1, 8))
def test_blocks_follow_each_other(windows, block_windows):
    order = epoch_order(RowWindows.of(windows), block_windows=block_windows, seed=0, epoch=0)
    visited, places = windows[order].tolist(), {}
    for place, window in enumerate(visited):
        places.setdefault(window, []).append(place)
    finished = 0
    for window in sorted(places, key=lambda w: places[w][0]):
        # a window's rows may be mixed with those of at most block_windows - 1 others
        first, last = places[window][0], places[window][-1]
        assert len(set(visited[first : last + 1])) <= block_windows
        finished += 1
    assert finished == len(set(visited))


@settings(deadline=None)
@given(WINDOWS, st.integers(1, 20), st.integers(0, 10), st.integers(1, 3))
def test_resuming_yields_what_was_left(windows, batch_size, n_seen, n_parts):
    order = epoch_order(RowWindows.of(windows), block_windows=2, seed=0, epoch=0)
    whole = list(batches_of(order, batch_size=batch_size, part=n_parts - 1, n_parts=n_parts))
    first_row = whole[min(n_seen, len(whole)) - 1][0] if n_seen and whole else 0
    rest = batches_of(order, batch_size=batch_size, first_row=first_row, part=n_parts - 1, n_parts=n_parts)
    left = [(seen, rows.tolist()) for seen, rows in whole if seen > first_row]
    assert [(seen, rows.tolist()) for seen, rows in rest] == left


def test_seed_and_epoch_change_the_order():
    windows = RowWindows.of(np.repeat(np.arange(10), 5))
    orders = {epoch_order(windows, block_windows=3, seed=s, epoch=e).tobytes() for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_the_order_is_the_same_in_every_version():
    windows = RowWindows.of(np.array([0, 0, 1, 1, 2, 2]))
    assert epoch_order(windows, block_windows=2, seed=0, epoch=0).tolist() == KNOWN_ORDER


KNOWN_ORDER = [1, 4, 0, 5, 3, 2]


@pytest.mark.parametrize(("batch_size", "part"), [(0, 0), (1, 2), (1, -1)])
def test_nonsense_is_refused(batch_size, part):
    with pytest.raises(ConfigError):
        list(batches_of(np.arange(3), batch_size=batch_size, part=part, n_parts=2))


class TestBalancedRows:
    def test_groups_come_equally_often(self):
        groups = np.repeat([3, 7, 9], [50, 5, 20])
        rows = balanced_rows(groups, seed=0, epoch=0)
        assert len(rows) == 75
        assert np.bincount(groups[rows])[[3, 7, 9]].tolist() == [25, 25, 25]

    def test_all_rows_of_a_group_come_equally_often_over_time(self):
        groups = np.repeat([0, 1], [9, 4])
        drawn = np.concatenate([balanced_rows(groups, seed=1, epoch=epoch) for epoch in range(36)])
        counts = np.bincount(drawn, minlength=13)
        assert np.ptp(counts[:9]) <= 1
        assert np.ptp(counts[9:]) <= 1

    def test_epochs_and_seeds_differ_and_repeat(self):
        groups = np.repeat([0, 1], [30, 10])
        one = balanced_rows(groups, seed=0, epoch=0)
        assert one.tolist() == balanced_rows(groups, seed=0, epoch=0).tolist()
        assert one.tolist() != balanced_rows(groups, seed=0, epoch=1).tolist()
        assert one.tolist() != balanced_rows(groups, seed=1, epoch=0).tolist()
