"""Jobs side by side: results in order, no more at once than allowed, and torch left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tfbind_store.precompute.in_order import InOrder


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_jobs", [0, 1, 2, 9])
def test_results_come_in_the_order_of_the_jobs(n_threads: int, n_jobs: int) -> None:
    with InOrder(n_threads) as threads:
        assert list(threads.results(lambda i=i: i * i for i in range(n_jobs))) == [i * i for i in range(n_jobs)]


def test_jobs_really_lie_side_by_side() -> None:
    meet = threading.Barrier(2, timeout=60)  # two must be there at once

    def job() -> int:
        return meet.wait()

    with InOrder(2) as threads:
        assert sorted(threads.results([job, job])) == [0, 1]


def test_jobs_are_taken_in_the_callers_thread_and_not_far_ahead() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[object]:
        for i in range(20):
            assert threading.current_thread() is threading.main_thread()
            taken.append(i)
            yield lambda i=i: i

    with InOrder(2) as threads:
        results = threads.results(jobs())
        assert next(results) == 0
        assert len(taken) == 3


def test_one_thread_is_the_callers_own() -> None:
    with InOrder(1) as threads:
        (found,) = threads.results([threading.current_thread])
    assert found is threading.current_thread()


def test_each_thread_gets_its_share_of_the_cores_and_the_caller_its_own_back() -> None:
    with InOrder(2) as threads:
        assert list(threads.results([torch.get_num_threads] * 2)) == [2, 2]
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 4
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start(), thread.join()
    assert later == [4]


def test_an_error_in_a_job_is_the_callers_and_ends_the_rest() -> None:
    done: list[int] = []

    def fail() -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"), InOrder(2) as threads:
        for _ in threads.results([fail, *[lambda i=i: done.append(i) for i in range(50)]]):
            pass
    assert len(done) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tfbind-jobs")]


def test_a_caller_that_stops_early_leaves_no_thread_behind() -> None:
    def some() -> Iterator[int]:
        with InOrder(2) as threads:
            yield from threads.results(lambda i=i: i for i in range(50))

    results = some()
    assert next(results) == 0
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tfbind-jobs")]
