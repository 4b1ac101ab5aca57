"""Write finished shards in a thread of their own, so that the model does not wait for the disk.

Bounded: one shard is being written and at most `n_waiting` wait for it; then whoever computes waits too. Writing
releases Python's lock (hashes, write, fsync), so the two really overlap.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from tfbind_store.arrays.receipts import Receipt
from tfbind_store.arrays.sharded import ArrayLayout, WindowState, publish_shard
from tfbind_store.errors import Interrupted


@dataclass(frozen=True)
class Computed:
    """A shard as it came from the embedder."""

    shard_id: int
    data: Shaped[np.ndarray, "rows ..."]
    states: list[WindowState]
    reasons: Mapping[int, str]
    provenance: Mapping[str, Any]


class Published(NamedTuple):
    """A shard that is on the disk."""

    receipt: Receipt
    write_seconds: float


class ShardWriter:
    """Publishes shards in the background, in the order they come. Use it in a ``with`` block.

    Parameters
    ----------
    layout
        Of the array.
    n_waiting
        Shards that may wait; -1 writes in the caller's thread.
    """

    def __init__(self, layout: ArrayLayout, *, n_waiting: int = 1) -> None:
        self.layout = layout
        self.n_waiting = n_waiting
        self.waited_seconds = 0.0
        """How long the caller was kept waiting for the disk."""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._pending: deque[Future[Published]] = deque()

    def put(self, computed: Computed, release: Callable[[], object]) -> Iterator[Published]:
        """Have a shard written and `release` called after it; yield what has been published meanwhile."""
        self._pending.append(self._pool.submit(self._write, computed, release))
        while len(self._pending) > self.n_waiting + 1 or (self._pending and self._pending[0].done()):
            yield self._oldest()

    def drain(self) -> Iterator[Published]:
        """Yield the rest as it is published."""
        while self._pending:
            yield self._oldest()

    def _oldest(self) -> Published:
        started = time.monotonic()
        published = self._pending.popleft().result()
        self.waited_seconds += time.monotonic() - started
        return published

    def _write(self, computed: Computed, release: Callable[[], object]) -> Published:
        started = time.monotonic()
        with contextlib.ExitStack() as after:
            after.callback(release)
            receipt = publish_shard(
                self.layout,
                computed.shard_id,
                computed.data,
                computed.states,
                reasons=computed.reasons,
                provenance=computed.provenance,
            )
        return Published(receipt, time.monotonic() - started)

    def __enter__(self) -> ShardWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was given; when told to stop at once, leave it."""
        at_once = isinstance(error, Interrupted)
        self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
