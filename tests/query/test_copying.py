"""Announcing: what is told to the system, and when. (Copying is tested with the loader.)"""

import numpy as np
import pytest

from tfbind_store.query import copying
from tfbind_store.query.copying import Announcer

BATCHES = [np.array([2 * number, 2 * number + 1]) for number in range(10)]


@pytest.fixture
def faults(monkeypatch):
    """Pages that this thread has waited for."""
    count = [7]
    monkeypatch.setattr(copying, "_major_faults", lambda: count[0])
    return count


def read_all(announcer, told, *, every=2, faults=None, fault_at=None):
    """Return how many batches had been told before each batch was read."""
    seen = []
    for number in range(len(BATCHES)):
        if number % every == 0:
            announcer.before(number)
        seen.append(len(told) // 2)
        if number == fault_at:
            faults[0] += 1
    return seen


def announcer(told, *, n_ahead, is_cold):
    return Announcer(lambda rows: told.extend(rows.tolist()), BATCHES, n_ahead, is_cold=is_cold)


def test_where_nothing_is_waited_for_nothing_is_announced(faults):
    told = []
    read_all(announcer(told, n_ahead=4, is_cold=False), told)
    assert told == []


@pytest.mark.parametrize("n_ahead", [2, 5, 40])
def test_cold_rows_are_announced_once_each_in_order_and_ahead(faults, n_ahead):
    told = []
    seen = read_all(announcer(told, n_ahead=n_ahead, is_cold=True), told)
    assert told == list(range(20))
    for number, n_told in enumerate(seen):
        assert n_told >= min(number + n_ahead - number % 2, len(BATCHES))


def test_from_the_first_fault_on_the_rest_is_announced(faults):
    told = []
    read_all(announcer(told, n_ahead=3, is_cold=False), told, faults=faults, fault_at=3)
    assert told == list(range(8, 20))
