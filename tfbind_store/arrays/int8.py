"""Embeddings in one byte each: every channel of every window has a scale of its own.

Scales that were calibrated on a few windows clip what is larger elsewhere (5 % error where 0.5 % was possible), so each
window brings its own: a channel's middle and step, float16, in four more rows at its end. A stored window is then whole
in itself, nothing is ever clipped, and a window that comes later changes none that is there. ``-128`` is no number: it
stands where nothing was embedded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int8, Int64

SCALE_ROWS = 4
"""Rows at a window's end: two of them are the channels' middles, two their steps, as bytes of float16."""
LEVELS = 127
NOTHING = -128
FLOAT16_MAX = 65504.0
_ROWS_AT_ONCE = 64
"""Rows that are turned into numbers together: as float32 they stay in a core's cache, 1.8 times faster than 512."""


class Scales(NamedTuple):
    """What one stored number of each channel means: ``middle + number * step``."""

    middle: Float16[np.ndarray, "... dim"]
    step: Float16[np.ndarray, "... dim"]

    @property
    def are_sane(self) -> bool:
        """Whether they could have come from `encode`: finite, no step below zero."""
        return bool(np.isfinite(self.middle).all() and np.isfinite(self.step).all() and (self.step >= 0).all())


def encode(values: Float32[np.ndarray, "bins dim"]) -> Int8[np.ndarray, "rows dim"]:
    """Return a window's numbers as one byte each, its scales in `SCALE_ROWS` rows after them.

    Parameters
    ----------
    values
        Finite, and within float16.

    Examples
    --------
    >>> rows = encode(np.array([[0.0, 5.0], [1.0, 5.0]], dtype=np.float32))
    >>> rows.shape, (abs(decode(rows[:2], scales_of(rows)) - [[0, 5], [1, 5]]) < 0.001).all().item()
    ((6, 2), True)
    """
    low, high = values.min(axis=0), values.max(axis=0)
    middle = ((low.astype(np.float64) + high) / 2).astype(np.float16)
    centre = middle.astype(np.float32)
    reach = np.maximum(high - centre, centre - low)
    step = _rounded_up(reach / LEVELS)
    width = np.where(step > 0, step, 1).astype(np.float32)
    levels = np.clip(np.rint((values - centre) / width), -LEVELS, LEVELS)
    too_large = np.abs(centre + levels * step.astype(np.float32)) > FLOAT16_MAX
    levels -= too_large * np.sign(levels)
    scales = np.concatenate([middle, step]).astype("<f2").view(np.int8).reshape(SCALE_ROWS, -1)
    return np.concatenate([levels.astype(np.int8), scales])


def _rounded_up(values: Float32[np.ndarray, " dim"]) -> Float16[np.ndarray, " dim"]:
    """Return the next float16 that is not smaller, so that the largest number still fits its level."""
    near = values.astype(np.float16)
    return np.where(near.astype(np.float32) < values, np.nextafter(near, np.float16(np.inf)), near)


def scales_of(rows: Int8[np.ndarray, "... rows dim"]) -> Scales:
    """Return the scales in the last rows of stored windows."""
    last = np.ascontiguousarray(rows[..., -SCALE_ROWS:, :])
    both = last.reshape(*last.shape[:-2], -1).view("<f2").reshape(*last.shape[:-2], 2, -1)
    return Scales(both[..., 0, :], both[..., 1, :])


def decode(levels: Int8[np.ndarray, "bins dim"], scales: Scales) -> Float16[np.ndarray, "bins dim"]:
    """Return the numbers of bins that lie in one window."""
    out = np.empty(levels.shape, dtype=np.float16)
    middle, step = (part.astype(np.float32) for part in scales)
    for at in range(0, len(levels), _ROWS_AT_ONCE):
        values = levels[at : at + _ROWS_AT_ONCE].astype(np.float32)
        values *= step
        values += middle
        out[at : at + _ROWS_AT_ONCE] = values
    return out


def decode_many(
    levels: Int8[np.ndarray, "k dim"], scales: Scales, which: Int64[np.ndarray, " k"]
) -> Float16[np.ndarray, "k dim"]:
    """Return the numbers of bins of several windows; bin i has the scales number ``which[i]``."""
    out = np.empty(levels.shape, dtype=np.float16)
    middle, step = (part.astype(np.float32) for part in scales)
    for at in range(0, len(levels), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        values = levels[part].astype(np.float32)
        values *= step[which[part]]
        values += middle[which[part]]
        out[part] = values
    return out
