"""What is left to embed, and what that costs: pure arithmetic on receipts.

A window is *done* when its receipt says ``ok`` or ``all_n``. Failed windows are left alone unless a retry is asked
for: the same model on the same bases fails again. Only shards with something to do are in a plan, so that the plan of
a finished array is empty. Nothing here touches a disk, a model or the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from tfbind_store.arrays.receipts import Receipt, WindowState

RESERVE_BYTES = 64 * 1024 * 1024
"""Kept free for the catalog, its snapshots and the receipts."""


class ShardWork(NamedTuple):
    """What one shard still needs."""

    shard_id: int
    compute: tuple[int, ...]
    """Windows to embed, ascending."""
    all_n: tuple[int, ...]
    """Windows to record as holding only N."""


@dataclass(frozen=True)
class Plan:
    """All that is left to do for one array."""

    shards: tuple[ShardWork, ...]
    n_planned: int
    """Windows of the array."""
    n_asked: int
    """Windows this run was asked for."""
    n_done: int
    """Of those asked for: ok or all N before this run."""
    n_failed_before: int
    """Of those asked for: failed in an earlier run, not tried again."""
    shard_bytes: int
    """Bytes of one shard."""
    seconds_per_window: float | None = None
    """From earlier receipts of the array, where there are any."""

    @property
    def n_compute(self) -> int:
        """Windows to embed."""
        return sum(len(work.compute) for work in self.shards)

    @property
    def n_all_n(self) -> int:
        """Windows to record as holding only N."""
        return sum(len(work.all_n) for work in self.shards)

    @property
    def write_bytes(self) -> int:
        """Bytes that will be written: shards are always written whole."""
        return len(self.shards) * self.shard_bytes

    @property
    def need_bytes(self) -> int:
        """Free disk that must be there before the start."""
        return self.write_bytes + RESERVE_BYTES if self.shards else 0

    @property
    def estimate_seconds(self) -> float | None:
        """How long embedding takes at the speed of earlier receipts; None where there are none."""
        return None if self.seconds_per_window is None else self.n_compute * self.seconds_per_window


def make_plan(
    receipts: Mapping[int, Receipt],
    *,
    n_windows: int,
    windows_per_shard: int,
    shard_bytes: int,
    all_n: Bool[np.ndarray, " n_windows"],
    asked: Int64[np.ndarray, " n_asked"] | None = None,
    retry_failed: bool = False,
) -> Plan:
    """Return what is left to do.

    Parameters
    ----------
    receipts
        By shard; a shard without one has nothing.
    n_windows, windows_per_shard, shard_bytes
        Of the array.
    all_n
        Windows without a single base to read.
    asked
        Windows wanted; None for all.
    retry_failed
        Try failed windows again.
    """
    wanted = np.arange(n_windows) if asked is None else np.unique(asked)
    states = window_states(receipts, n_windows=n_windows, windows_per_shard=windows_per_shard)
    finished = {WindowState.ok, WindowState.all_n}
    done = [window for window in wanted.tolist() if states[window] in finished]
    failed = [window for window in wanted.tolist() if states[window] is WindowState.failed and not retry_failed]
    todo = np.setdiff1d(wanted, np.array(done + failed, dtype=np.int64), assume_unique=True)
    return Plan(
        shards=_by_shard(todo.tolist(), windows_per_shard, all_n),
        n_planned=n_windows,
        n_asked=len(wanted),
        n_done=len(done),
        n_failed_before=len(failed),
        shard_bytes=shard_bytes,
        seconds_per_window=speed(receipts.values()),
    )


def window_states(receipts: Mapping[int, Receipt], *, n_windows: int, windows_per_shard: int) -> list[WindowState]:
    """Return the state of every window; ``not_asked`` where there is no receipt."""
    states = [WindowState.not_asked] * n_windows
    for shard_id, receipt in receipts.items():
        first = shard_id * windows_per_shard
        states[first : first + receipt.n_windows] = receipt.states
    return states


def speed(receipts: Iterable[Receipt]) -> float | None:
    """Return seconds per embedded window over receipts that say so, None where none does."""
    seconds = windows = 0.0
    for receipt in receipts:
        spent, computed = receipt.provenance.get("seconds"), receipt.provenance.get("n_computed")
        if isinstance(spent, int | float) and isinstance(computed, int) and computed > 0:
            seconds, windows = seconds + spent, windows + computed
    return seconds / windows if windows else None


def _by_shard(
    todo: Sequence[int], windows_per_shard: int, all_n: Bool[np.ndarray, " n_windows"]
) -> tuple[ShardWork, ...]:
    compute: dict[int, list[int]] = {}
    empty: dict[int, list[int]] = {}
    for window in todo:
        (empty if all_n[window] else compute).setdefault(window // windows_per_shard, []).append(window)
    return tuple(
        ShardWork(shard_id, tuple(compute.get(shard_id, ())), tuple(empty.get(shard_id, ())))
        for shard_id in sorted({*compute, *empty})
    )
