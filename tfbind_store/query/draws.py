"""Numbers that look random and are the same on every machine and in every version of numpy.

A draw is a hash of (seed, what it is for, the ids it belongs to), so it does not depend on the order of drawing, on
what else was drawn, or on a generator's state. Nothing here is fit for cryptography.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_AT_ONCE = 1 << 14
"""Numbers that are hashed at once: they stay in the processor's cache, and little memory is taken."""


def draw(seed: int, purpose: str, *ids: Int64[np.ndarray, " n"] | int) -> UInt64[np.ndarray, " n"]:
    """Return one 64-bit number per row of `ids`.

    Parameters
    ----------
    seed, purpose
        Different purposes give unrelated numbers for the same seed.
    ids
        Integer columns of one length, one at least; what a draw belongs to. A number stands for a column of it.

    Examples
    --------
    >>> draw(0, "order", np.arange(2)).tolist() == draw(0, "order", np.arange(3)).tolist()[:2]
    True

    Notes
    -----
    The finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), once
    per column.
    """
    start = int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "little")
    length = max(len(column) for column in ids if not isinstance(column, int))
    state = np.full(length, start, dtype=np.uint64)
    for begin in range(0, length, _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        mixed = state[begin : begin + 1]  # one number, until a column makes it many
        for column in ids:
            number = np.asarray([column] if isinstance(column, int) else column[part], dtype=np.int64).view(np.uint64)
            mixed = _finalise(mixed ^ _finalise(number))
        state[part] = mixed
    return state


def below(numbers: UInt64[np.ndarray, " n"], limit: Int64[np.ndarray, " n"] | int) -> Int64[np.ndarray, " n"]:
    """Turn draws into integers from 0 to `limit` - 1.

    The remainder's bias is `limit` / 2**64: less than one in a million million for anything a genome can hold.
    """
    return (numbers % np.asarray(limit, dtype=np.uint64)).astype(np.int64)


def below_share(seed: int, purpose: str, share: float, *ids: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return which rows of `ids` draw a number below `share`, of all that lie in [0, 1)."""
    chosen = np.empty(len(ids[0]), dtype=bool)
    for begin in range(0, len(chosen), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        chosen[part] = unit(draw(seed, purpose, *(np.asarray(column[part], np.int64) for column in ids))) < share
    return chosen


def unit(numbers: UInt64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Turn draws into numbers in [0, 1)."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def name_order(seed: int, purpose: str, names: list[str]) -> list[str]:
    """Return `names` in a seeded order that depends on the names alone, not on their ids or their number."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).digest())


def _finalise(state: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    mixed = state + _GOLDEN
    shifted = mixed >> np.uint64(30)
    mixed ^= shifted
    mixed *= _MIX_1
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= _MIX_2
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed
