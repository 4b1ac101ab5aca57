"""One byte a number: how far it is off, that nothing is clipped, and the corners of float16."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfbind_store.arrays.int8 import LEVELS, NOTHING, SCALE_ROWS, Scales, decode, decode_many, encode, scales_of

FLOAT16 = st.floats(-65504, 65504, width=16)


def back(values):
    rows = encode(np.asarray(values, dtype=np.float32))
    return decode(rows[:-SCALE_ROWS], scales_of(rows)).astype(np.float64)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float16, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=FLOAT16))
def test_no_number_is_off_by_more_than_half_a_step_and_float16s_own_rounding(values):
    step = scales_of(encode(values.astype(np.float32))).step.astype(np.float64)
    off = np.abs(back(values) - values.astype(np.float64))
    ulp = np.maximum(np.abs(values.astype(np.float64)) * 2**-10, 2**-24)
    # the largest numbers of float16 may be a whole step off, so that reading them gives no infinity
    room = np.where(np.abs(values.astype(np.float64)) > 60000, 1.0, 0.5)
    assert (off <= room * step * 1.001 + 2 * ulp).all()


def test_error_is_what_255_levels_of_each_channels_own_range_give():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(896, 16)) * np.logspace(-3, 2, 16) + rng.normal(size=16) * 5
    off = np.sqrt(np.square(back(values) - values).mean(axis=0)) / np.ptp(values, axis=0)
    rounding = np.abs(values).max(axis=0) * 2**-11 / np.ptp(values, axis=0)
    assert (off < 1 / 254 / np.sqrt(12) * 1.05 + rounding).all()


def test_an_outlier_is_neither_clipped_nor_paid_for_by_other_channels():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(64, 4)).astype(np.float32)
    values[7, 2] = 3000.0
    kept = back(values)
    assert kept[7, 2] == pytest.approx(3000, rel=1e-3)
    others = [0, 1, 3]
    assert np.abs(kept[:, others] - values[:, others]).max() < 6 / 254


def test_a_channel_that_does_not_vary_is_exact():
    values = np.tile(np.float16([0.1, -7.5, 65504, 0, -6e-8]).astype(np.float32), (5, 1))
    np.testing.assert_array_equal(back(values), values)


def test_the_ends_of_float16_stay_finite():
    values = np.array([[65504, -65504, 65504], [-65504, 65504, 60000], [0, 1, 65503]], dtype=np.float32)
    kept = back(values)
    assert np.isfinite(kept).all()
    assert np.abs(kept - values).max() <= 65504 / LEVELS


def test_levels_never_say_nothing():
    values = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    assert (encode(values)[:-SCALE_ROWS] != NOTHING).all()


def test_bins_of_several_windows_get_their_own_scales():
    rng = np.random.default_rng(3)
    windows = np.stack([encode(rng.normal(size=(6, 3)).astype(np.float32) * 10**k) for k in range(4)])
    which, bins = rng.integers(0, 4, 900), rng.integers(0, 6, 900)
    found = decode_many(windows[which, bins], scales_of(windows), which)
    whole = np.stack([decode(window[:-SCALE_ROWS], scales_of(window)) for window in windows])
    np.testing.assert_array_equal(found, whole[which, bins])


@pytest.mark.parametrize(("middle", "step"), [(np.nan, 1), (0, np.inf), (0, -1)])
def test_scales_that_nobody_wrote_are_known(middle, step):
    assert not Scales(np.float16([0, middle]), np.float16([1, step])).are_sane
    assert Scales(np.float16([0]), np.float16([0])).are_sane
