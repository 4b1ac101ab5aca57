"""Plans from literal receipts."""

from __future__ import annotations

import numpy as np

from tfbind_store.arrays.receipts import Receipt, WindowState
from tfbind_store.precompute.plan import RESERVE_BYTES, ShardWork, make_plan, speed, window_states

OK, N, FAILED, NOT = WindowState.ok, WindowState.all_n, WindowState.failed, WindowState.not_asked


def receipt(shard_id: int, *states: WindowState, **provenance) -> Receipt:
    return Receipt(
        array="embeddings/windows", fingerprint="0" * 64, shard_id=shard_id, generation=1, states=states,
        window_xxh3_64=tuple("0" * 16 if s is OK else None for s in states), size_bytes=1, xxh3_128="0" * 32,
        absmax=1.0, created="", provenance=provenance,
    )  # fmt: skip


def plan(receipts, all_n=(), **options):
    flags = np.zeros(10, dtype=bool)
    flags[list(all_n)] = True
    return make_plan(receipts, n_windows=10, windows_per_shard=4, shard_bytes=100, all_n=flags, **options)


def test_an_empty_array_needs_everything():
    found = plan({}, all_n=[5])
    assert found.shards == (
        ShardWork(0, (0, 1, 2, 3), ()),
        ShardWork(1, (4, 6, 7), (5,)),
        ShardWork(2, (8, 9), ()),
    )
    assert (found.n_planned, found.n_asked, found.n_done, found.n_compute, found.n_all_n) == (10, 10, 0, 9, 1)
    assert found.write_bytes == 300
    assert found.need_bytes == 300 + RESERVE_BYTES
    assert found.estimate_seconds is None


def test_only_gaps_are_left():
    receipts = {0: receipt(0, OK, OK, OK, OK), 1: receipt(1, OK, N, NOT, FAILED)}
    found = plan(receipts, all_n=[5])
    assert found.shards == (ShardWork(1, (6,), ()), ShardWork(2, (8, 9), ()))
    assert (found.n_done, found.n_failed_before) == (6, 1)


def test_failed_windows_are_tried_again_only_when_asked():
    receipts = {1: receipt(1, OK, OK, OK, FAILED)}
    assert plan(receipts, asked=np.array([7])).shards == ()
    assert plan(receipts, asked=np.array([7]), retry_failed=True).shards == (ShardWork(1, (7,), ()),)


def test_asked_windows_bound_the_plan_and_repeat_without_effect():
    found = plan({}, all_n=[1], asked=np.array([9, 1, 2, 9]))
    assert found.shards == (ShardWork(0, (2,), (1,)), ShardWork(2, (9,), ()))
    assert found.n_asked == 3


def test_a_finished_array_needs_nothing():
    receipts = {0: receipt(0, OK, OK, OK, OK), 1: receipt(1, OK, N, OK, OK), 2: receipt(2, OK, OK)}
    found = plan(receipts, all_n=[5])
    assert found.shards == ()
    assert (found.write_bytes, found.need_bytes, found.n_done) == (0, 0, 10)


def test_states_of_a_short_last_shard():
    states = window_states({2: receipt(2, OK, FAILED)}, n_windows=10, windows_per_shard=4)
    assert states == [NOT] * 8 + [OK, FAILED]


def test_speed_is_of_receipts_that_say_it():
    receipts = [receipt(0, OK, seconds=6.0, n_computed=3), receipt(1, OK, seconds=2.0, n_computed=1), receipt(2, OK)]
    assert speed(receipts) == 2.0
    assert speed(receipts[2:]) is None
    found = plan({0: receipts[0]}, asked=np.array([8, 9]))
    assert found.estimate_seconds == 4.0
