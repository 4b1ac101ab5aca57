"""Draws are the same everywhere, and look random."""

from __future__ import annotations

import numpy as np

from tfbind_store.query import draws


def test_known_values_never_change():
    ids = np.array([0, 1, 2], dtype=np.int64)
    assert draws.draw(0, "order", ids).tolist() == KNOWN


KNOWN = [17218696988960925998, 18410330626885532751, 14391367701850921911]


def test_a_draw_depends_on_its_ids_alone():
    many = draws.draw(7, "x", np.arange(100), np.arange(100) * 3)
    assert many[42] == draws.draw(7, "x", np.array([42]), np.array([126]))[0]


def test_purposes_seeds_and_columns_give_other_numbers():
    ids = np.arange(5)
    seen = {
        draws.draw(0, "a", ids).tobytes(),
        draws.draw(1, "a", ids).tobytes(),
        draws.draw(0, "b", ids).tobytes(),
        draws.draw(0, "a", ids, ids).tobytes(),
        draws.draw(0, "a", ids[::-1].copy()).tobytes(),
    }
    assert len(seen) == 5


def test_draws_are_even():
    numbers = draws.below(draws.draw(3, "even", np.arange(100_000)), 10)
    counts = np.bincount(numbers, minlength=10)
    assert counts.min() > 9_600
    assert counts.max() < 10_400


def test_unit_draws_lie_below_one():
    numbers = draws.unit(draws.draw(3, "unit", np.arange(10_000)))
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1


def test_name_order_keeps_when_names_come_and_go():
    order = draws.name_order(0, "factors", ["REB1", "RAP1", "HSF1", "MCM1"])
    without = draws.name_order(0, "factors", ["MCM1", "RAP1", "REB1"])
    assert [name for name in order if name != "HSF1"] == without
