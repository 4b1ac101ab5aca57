"""Tell how a run goes: a bar for people, one line of JSON per shard for programs, an estimate after the first shard."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from tfbind_store.arrays.sharded import WindowState
from tfbind_store.durable import make_directory
from tfbind_store.precompute.plan import Plan
from tfbind_store.precompute.shard_writer import Published
from tfbind_store.store.folder import Store

LOG_FILE = "logs/embed.jsonl"
Tell = Callable[[str], object]


class RunProgress:
    """What is shown and logged while windows are embedded. Use it in a ``with`` block.

    Parameters
    ----------
    store, plan
        Where, and what is to be done.
    show
        Draw a bar on stderr.
    tell
        Called with a line of text once the first shard is there.
    """

    def __init__(self, store: Store, plan: Plan, *, show: bool, tell: Tell | None = None) -> None:
        self.store, self.plan, self.tell = store, plan, tell
        self.started = time.monotonic()
        self.n_shards = self.n_windows = self.n_bytes = 0
        self._bar = tqdm(total=plan.n_compute, unit="window", disable=not show)

    def windows(self, n: int) -> None:
        """Count windows that were computed."""
        self.n_windows += n
        self._bar.update(n)

    def shard(self, published: Published) -> None:
        """Count a published shard, and log it."""
        receipt, seconds = published.receipt, time.monotonic() - self.started
        self.n_shards += 1
        self.n_bytes += receipt.size_bytes
        self._bar.set_postfix_str(f"{self.n_bytes / 1e6 / seconds:.1f} MB/s" if seconds else "")
        self._append(published)
        if self.n_shards == 1 and self.tell and self.n_windows:
            left = max(self.plan.n_compute - self.n_windows, 0)
            rate = self.n_windows / seconds
            self.tell(
                f"first shard: {rate:.3g} windows/s; about {left / rate:,.0f} s for the other {left:,} windows{_peak()}"
            )

    def _append(self, published: Published) -> None:
        receipt = published.receipt
        line = {
            "time": receipt.created,
            "array": receipt.array,
            "shard": receipt.shard_id,
            "generation": receipt.generation,
            **{f"n_{state}": receipt.count(state) for state in WindowState},
            "size_bytes": receipt.size_bytes,
            "xxh3_128": receipt.xxh3_128,
            "compute_seconds": receipt.provenance.get("seconds"),
            "write_seconds": round(published.write_seconds, 3),
            "host": receipt.provenance.get("host", platform.node()),
            "driver_pid": os.getpid(),
        }
        path = self.store.path / LOG_FILE
        with contextlib.suppress(OSError):  # the receipts are the truth, the log is for reading
            make_directory(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            with open(descriptor, "wb", buffering=0) as file:
                file.write((json.dumps(line) + "\n").encode("ascii"))

    def __enter__(self) -> RunProgress:
        """Begin to count."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def _peak() -> str:
    """Say how much of a GPU this process has used at most, if it has used one."""
    torch = sys.modules.get("torch")  # an embedder without a model never loads it
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return ""
    return f"; {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU used at most"
