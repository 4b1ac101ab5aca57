"""Numbers as they are stored: the bits of numpy's own rounding, refused where they cannot be stored."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.arrays import int8
from tfbind_store.precompute.upkeep import TORCH_ABOVE, to_stored

HALF = np.dtype(np.float16)
MANY = 2 * TORCH_ABOVE


def many(seed: int = 0) -> np.ndarray:
    """Return numbers of every size that float16 has room for, subnormal ones and ties between two of them too."""
    bits = np.random.default_rng(seed).integers(0, 2**32, 4 * MANY, dtype=np.uint64).astype(np.uint32)
    drawn = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        drawn = drawn[np.abs(drawn) < 65520][: MANY - 4096]
    ties = (np.arange(4096, dtype=np.float32) + 0.5) * np.float32(2.0**-24)
    return np.concatenate([drawn, ties]).reshape(-1, 2)


@pytest.mark.parametrize("form", ["plain", "flipped", "read-only", "every other"])
def test_float16_has_numpys_bits(form: str) -> None:
    values = many()
    if form == "flipped":
        values = values[::-1]
    elif form == "every other":
        values = np.repeat(values, 2, axis=0)[::2]
    values.flags.writeable = form != "read-only"
    assert values.size >= TORCH_ABOVE
    wanted = values.astype(np.float16)
    room = np.full(values.shape, np.nan, dtype=np.float16)
    for out in (None, room):
        stored, reason = to_stored(values, HALF, out)
        assert not reason
        np.testing.assert_array_equal(stored.view(np.uint16), wanted.view(np.uint16))
    assert room.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("n", [4, MANY])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.nan, "1 of N numbers are not finite"),
        (-np.inf, "1 of N numbers are not finite"),
        (65520.0, "largest value 65520 does not fit float16"),
        (-70000.0, "largest value 70000 does not fit float16"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_what_cannot_be_stored_leaves_its_place_alone(n: int, wrong: float, said: str, dtype: type) -> None:
    values = np.ones((n // 2, 2), dtype=np.float32)
    values[1, 1] = wrong
    rows = n // 2 + (int8.SCALE_ROWS if dtype == np.int8 else 0)
    out = np.full((rows, 2), 7, dtype=dtype)
    assert to_stored(values, np.dtype(dtype), out)[1] == said.replace("N", str(n))
    assert (out == 7).all()


def test_the_largest_number_that_fits() -> None:
    values = np.array([[-65519.996]], dtype=np.float32)
    assert values[0, 0] > -65520
    stored, reason = to_stored(values, HALF)
    assert (float(stored[0, 0]), reason) == (-65504.0, "")


def test_float32_is_kept_however_large() -> None:
    values = np.array([[1e30, -1e-30]], dtype=np.float32)
    stored, reason = to_stored(values, np.dtype(np.float32))
    assert (stored.tobytes(), reason) == (values.tobytes(), "")


def test_int8_is_written_where_it_belongs() -> None:
    values = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    out = np.zeros((40 + int8.SCALE_ROWS, 6), dtype=np.int8)
    assert to_stored(values, np.dtype(np.int8), out)[1] == ""
    np.testing.assert_array_equal(out, int8.encode(values))


def test_numbers_of_another_shape_are_refused() -> None:
    values = np.zeros((MANY // 2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="room for"):
        to_stored(values, HALF, np.zeros((MANY // 2, 1), dtype=np.float16))


def test_nothing_is_stored_as_nothing() -> None:
    stored, reason = to_stored(np.zeros((0, 4), dtype=np.float32), HALF)
    assert (stored.shape, stored.dtype, reason) == ((0, 4), HALF, "")
