"""Run jobs side by side on several threads, and give their results back in order.

torch's own way to use several cores shares every operation out among them and waits at its end for the slowest. Whole
jobs side by side wait for nobody: on two idle cores twice as fast as on one, where sharing out gives 1.5 times; beside
other people's work, where one of the two is always late, it is tens of times faster. Jobs must not wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

MOST_THREADS = 8
"""Each job needs memory of its own; where there are more cores, several share the operations of one job."""

T = TypeVar("T")


class InOrder:
    """Threads for jobs; a context.

    Parameters
    ----------
    n_threads
        Jobs at once. With one, each runs in the caller's thread when its result is asked for.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._of_caller = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> InOrder:
        if self.n_threads > 1:
            of_each = max(self._of_caller // self.n_threads, 1)
            self._pool = ThreadPoolExecutor(
                self.n_threads, "tfbind-jobs", initializer=torch.set_num_threads, initargs=(of_each,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            torch.set_num_threads(self._of_caller)  # part of what the threads were told is told to the whole process

    def results(self, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield each job's result; jobs are taken from the iterable as threads come free, in the caller's thread."""
        if self._pool is None:
            for job in jobs:
                yield job()
            return
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(job))
            if len(waiting) > self.n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def threads_of_cpu() -> int:
    """Return how many jobs may run at once, by the number of threads that torch was given.

    Examples
    --------
    >>> threads_of_cpu() <= MOST_THREADS
    True
    """
    return min(torch.get_num_threads(), MOST_THREADS)
