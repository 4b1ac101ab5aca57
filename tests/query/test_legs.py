"""Columns of many batches looked up together, and arrays that are given again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfbind_store.query.legs import Buffers, Leg, batches_per_leg, each_once, row_table


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=6))
def test_each_number_of_each_batch_comes_once(batches):
    found, index = each_once(np.concatenate(batches), [len(batch) for batch in batches], 10)
    assert [distinct.tolist() for distinct in found] == [sorted(set(batch)) for batch in batches]
    begin = 0
    for distinct, batch in zip(found, batches, strict=True):
        assert distinct[index[begin : begin + len(batch)]].tolist() == batch
        begin += len(batch)


def test_a_leg_holds_what_the_rows_hold():
    rng = np.random.default_rng(0)
    n, n_bins = 50, 9
    columns = {
        "row": rng.permutation(n) * 3,
        "first_bin": rng.integers(0, 2**40, n),
        "factor": rng.integers(0, 5, n),
        "context": rng.integers(0, 70, n),
        "codes": rng.integers(-1, 2, (n, n_bins)).astype(np.int8),
        "weight": rng.random(n).astype(np.float32),
    }
    batches = [np.array([4, 9, 11]), np.array([0]), np.array([7, 49])]
    leg = Leg(row_table(**columns), batches, n_factors=5, n_contexts=70)
    for mine, places, factors, contexts in zip(leg.slices, batches, leg.factors, leg.contexts, strict=True):
        assert np.array_equal(leg.rows[mine], columns["row"][places])
        assert np.array_equal(leg.first_bin[mine], columns["first_bin"][places])
        assert np.array_equal(leg.weights[mine], columns["weight"][places])
        assert np.array_equal(factors[leg.factor_index[mine]], columns["factor"][places])
        assert np.array_equal(contexts[leg.context_index[mine]], columns["context"][places])
        codes = columns["codes"][places].astype(float)
        codes[codes < 0] = np.nan
        assert np.array_equal(leg.labels[mine], codes, equal_nan=True)


def test_legs_stay_small_however_many_factors_there_are():
    assert batches_per_leg(256, 12) == 128
    assert batches_per_leg(256, 100_000) == 10
    assert batches_per_leg(10**6, 10**7) == 1


class TestBuffers:
    def made(self):
        return Buffers(lambda n_rows: np.zeros((n_rows, 2), dtype=np.float16), 4)

    def test_what_somebody_holds_is_not_given_again(self):
        buffers = self.made()
        held = [buffers.get(4) for _ in range(20)]
        for number, array in enumerate(held):
            array[:] = number
        assert [int(array.max()) for array in held] == [int(array.min()) for array in held] == list(range(20))

    def test_a_view_of_a_view_holds_it_too(self):
        buffers = self.made()
        view = buffers.get(3).reshape(-1)[1:].view(np.uint16)
        view[:] = 7
        others = [buffers.get(3) for _ in range(3)]
        assert not any(np.shares_memory(view, other) for other in others)

    def test_what_nobody_holds_is_given_again(self):
        buffers = self.made()
        first = buffers.get(4).__array_interface__["data"]
        assert buffers.get(2).__array_interface__["data"] == first
        assert buffers.get(2).shape == (2, 2)
