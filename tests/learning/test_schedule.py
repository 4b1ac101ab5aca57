import numpy as np
import pytest

from tfbind_store.learning.schedule import Schedule


def rates(schedule, n=100):
    return [schedule.rate(step / n) for step in range(n + 1)]


def test_rate_rises_then_falls_like_a_cosine():
    found = rates(Schedule(n_steps=100, warmup=0.1))
    assert found[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(found) == pytest.approx(1.0)
    assert np.argmax(found) in (9, 10)
    assert found[55] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0.0)


def test_constant_rate_stays_after_the_warm_up():
    found = rates(Schedule(kind="constant", n_steps=100, warmup=0.1))
    assert found[:2] == pytest.approx([0.1, 0.2])
    assert set(found[10:]) == {1.0}


def test_without_a_warm_up_the_first_step_is_made_at_the_full_rate():
    assert Schedule(n_steps=10, warmup=0.0).rate(0.0) == 1.0
    assert Schedule(kind="constant", n_steps=10, warmup=0.0).rate(0.0) == 1.0
