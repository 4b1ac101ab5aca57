"""Give a window that breaks its embedder three tries and no more, even where it kills the process.

A window that raises is tried again by itself. One that ends the process (a crash in a driver, the kernel's memory
killer) can only be known by the next process: before a shard is begun, a small file beside its receipt says which
windows are tried for which time. Whoever holds the shard's claim and finds such a file knows that its writer died; it
then goes through the windows one by one, those under suspicion last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float32
from numpy import ndarray

from tfbind_store.arrays.layouts import ArrayLayout
from tfbind_store.durable import read_regular
from tfbind_store.errors import EmbeddingError, TfbindError

MAX_TRIES = 3
HOPELESS = 4
"""So many windows of a shard that all raise, and none that does not: the fault is the embedder's, not the windows'."""
MAX_REASON_CHARS = 300
_log = logging.getLogger(__name__)
HalveBatch = Callable[[], int]
"""Halves an embedder's batch and returns the new size; 0, and nothing is changed, where it is one already."""
Embed = Callable[[Sequence[int]], Iterator[tuple[int, Float32[ndarray, "n_bins dim"]]]]


class Tried(NamedTuple):
    """What came of one window."""

    window: int
    values: Float32[ndarray, "n_bins dim"] | None
    reason: str
    """Why there are no values."""


class Attempts:
    """The file that counts tries of a shard's windows. Not fsynced: it outlives a process, not a power cut."""

    def __init__(self, layout: ArrayLayout, shard_id: int) -> None:
        self.path: Path = layout.receipts_dir / f"{shard_id:06d}.attempt"
        self.earlier = self._read()
        """Tries by window, of processes that died."""
        self._tries = dict(self.earlier)

    def note(self, windows: Sequence[int]) -> None:
        """Say that these windows are tried once more, now."""
        for window in windows:
            self._tries[window] = self._tries.get(window, 0) + 1
        text = json.dumps({str(window): n for window, n in self._tries.items()})
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # only a help: without it a poison window costs more tries
            temporary.write_text(text, encoding="ascii")
            temporary.replace(self.path)

    def n_tries(self, window: int) -> int:
        """Return how often a window was tried, this process included."""
        return self._tries.get(window, 0)

    def succeeded(self, window: int) -> None:
        """Clear a window of suspicion."""
        self._tries.pop(window, None)

    def done(self) -> None:
        """Forget: the shard is published, or this process lives to say what was wrong."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[int, int]:
        try:
            value: dict[str, Any] = json.loads(read_regular(self.path))
            return {int(window): int(n) for window, n in value.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def try_windows(
    embed: Embed, windows: Sequence[int], attempts: Attempts, *, halve_batch: HalveBatch | None = None
) -> Iterator[Tried]:
    """Yield each window's numbers, or why there are none, together at first and one by one after any trouble.

    An embedder that is out of memory is asked to halve its batch and goes on with all that is left: that is no fault of
    any window, and counts as no try.

    Parameters
    ----------
    embed, windows
        What gives the numbers, and of which windows.
    attempts
        Counts tries beyond this process's life.
    halve_batch
        Of the embedder, if it has one.

    Raises
    ------
    EmbeddingError
        If every window raises.
    """
    left = list(windows)
    if not attempts.earlier:
        attempts.note(left)
    goes_on = not attempts.earlier
    while goes_on and left:
        try:
            for window, values in embed(list(left)):
                left.remove(window)
                yield Tried(window, values, "")
        except TfbindError:
            raise
        except Exception as error:  # whatever a model raises
            goes_on = _has_shrunk(error, halve_batch)
            if not goes_on:
                _log.warning("embedding %d windows together failed, one by one now: %s", len(left), _said(error))
    n_good, n_bad = len(windows) - len(left), 0
    for window in sorted(left, key=lambda window: (attempts.n_tries(window) >= MAX_TRIES - 1, window)):
        tried = _alone(embed, window, attempts)
        n_good, n_bad = n_good + (not tried.reason), n_bad + bool(tried.reason)
        if n_bad >= HOPELESS and not n_good:
            what = f"the embedder fails on every window; window {window}: {tried.reason}"
            raise EmbeddingError(what, where=str(attempts.path.parent), fix="mend the embedder; nothing was recorded")
        yield tried


def _alone(embed: Embed, window: int, attempts: Attempts) -> Tried:
    reason = f"the process died {attempts.n_tries(window)} times while embedding it"
    while attempts.n_tries(window) < MAX_TRIES:
        attempts.note([window])
        try:
            ((_, values),) = embed([window])
        except TfbindError:
            raise
        except Exception as error:  # whatever a model raises
            reason = f"{_said(error)} (tried {attempts.n_tries(window)} times)"
            continue
        attempts.succeeded(window)
        return Tried(window, values, "")
    return Tried(window, None, reason)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def _has_shrunk(error: Exception, halve_batch: HalveBatch | None) -> bool:
    """Halve the batch of an embedder that ran out of memory; False where that was not it, or it is one already."""
    if halve_batch is None or not is_out_of_memory(error):
        return False
    size = halve_batch()
    if size:
        _log.warning("out of memory: batches of %d windows from now on", size)
    return size > 0
