"""An array under random publishing, failing, flipping, deleting and repairing always agrees with a dictionary."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.crash_disk import NOT_ASKED, OK, Failing, open_small, rows_of, small_array
from tfbind_store.arrays.receipts import receipt_path
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.errors import DamagedShard, MissingWindow, StoreError
from tfbind_store.keeping.repair import repair_shard
from tfbind_store.keeping.verify import damaged_shards, verify_shard

N_ROWS, SHARDS = 20, (0, 1, 2)
shard_ids = st.sampled_from(SHARDS)
places = st.sets(st.integers(0, 7), min_size=1)


class ArrayMachine(RuleBasedStateMachine):
    """`ok` has the windows of each shard that should be served, `flipped` those whose bytes were changed by us."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.layout = small_array(self.folder, n_rows=N_ROWS)
        self.ok = {shard: set() for shard in SHARDS}
        self.flipped = {shard: set() for shard in SHARDS}

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def states(self, shard, wanted):
        return [OK if place in wanted else NOT_ASKED for place in range(self.layout.windows_in(shard))]

    def expected(self, shard, wanted):
        asked = {place for place in wanted if place < self.layout.windows_in(shard)}
        return (self.ok[shard] - self.flipped[shard]) | asked

    @rule(shard=shard_ids, wanted=places)
    def publish(self, shard, wanted):
        publish_shard(self.layout, shard, rows_of(self.layout, shard), self.states(shard, wanted))
        self.ok[shard], self.flipped[shard] = self.expected(shard, wanted), set()

    @rule(shard=shard_ids, wanted=places, nth=st.integers(1, 14), code=st.sampled_from([errno.EIO, errno.ENOSPC]))
    def publish_on_a_bad_disk(self, shard, wanted, nth, code):
        before, after = self.ok[shard] - self.flipped[shard], self.expected(shard, wanted)
        try:
            publish_shard(
                self.layout, shard, rows_of(self.layout, shard), self.states(shard, wanted), fs=Failing(nth, code)
            )
        except StoreError:
            served = self.served(shard)
            assert before <= served <= after
            receipt = open_small(self.layout, on_damage="exclude").receipts().get(shard)
            promised = {p for p, state in enumerate(receipt.states) if state is OK} if receipt else set()
            self.ok[shard], self.flipped[shard] = promised, promised - served
        else:
            self.ok[shard], self.flipped[shard] = after, set()

    @rule(shard=shard_ids, place=st.integers(0, 7), bit=st.integers(0, 7), data=st.data())
    def flip(self, shard, place, bit, data):
        if place in self.ok[shard] - self.flipped[shard]:
            path, size = self.layout.shard_path(shard), self.layout.window_bytes
            content = bytearray(path.read_bytes())
            content[place * size + data.draw(st.integers(0, size - 1))] ^= 1 << bit
            path.write_bytes(content)
            self.flipped[shard].add(place)

    @rule(shard=shard_ids, what=st.sampled_from(["shard", "receipt"]))
    def delete(self, shard, what):
        receipts = self.layout.receipts_dir
        path = self.layout.shard_path(shard) if what == "shard" else receipt_path(receipts, shard)
        path.unlink(missing_ok=True)
        self.ok[shard], self.flipped[shard] = set(), set()

    @rule()
    def verify_and_repair(self):
        array = open_small(self.layout, on_damage="exclude")
        problems = list(damaged_shards(array))
        for receipt in array.receipts().values():
            problems += verify_shard(self.layout, receipt, deep=True)
        named = {(p.shard, p.window - p.shard * 8) for p in problems if p.window is not None}
        assert named == {(shard, place) for shard in SHARDS for place in self.flipped[shard]}
        for shard in {problem.shard for problem in problems}:
            mine = [problem for problem in problems if problem.shard == shard]
            repair_shard(self.layout, shard, mine, self.folder / "aside")
            self.ok[shard], self.flipped[shard] = self.ok[shard] - self.flipped[shard], set()

    def served(self, shard):
        array, good = open_small(self.layout, verify="first-touch", on_damage="exclude"), rows_of(self.layout, shard)
        found = set()
        for place in range(self.layout.windows_in(shard)):
            try:
                row = array.row(shard * 8 + place)
            except (MissingWindow, DamagedShard):
                continue
            np.testing.assert_array_equal(row, good[place])
            found.add(place)
        return found

    @invariant()
    def what_is_served_is_what_should_be(self):
        for shard in SHARDS:
            assert self.served(shard) == self.ok[shard] - self.flipped[shard]


QUICK = settings(max_examples=15, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_few_histories():
    run_state_machine_as_test(ArrayMachine, settings=QUICK)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_histories():
    run_state_machine_as_test(ArrayMachine, settings=settings(QUICK, max_examples=500))
