"""Loci as rows: lanes, names, gaps."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.drawing.figures import lines
from tfbind_store.drawing.tracks import MAX_LANES, MAX_NAMES, Box, BoxRow, LineRow, draw_tracks, lanes_of


def line(values: list[float]) -> LineRow:
    return LineRow("run", np.arange(0.0, 10 * len(values) + 1, 10), np.array(values), "logit")


def test_boxes_that_overlap_stand_in_lanes_of_which_there_are_few() -> None:
    same = [Box(0, 10, "a")] * 12
    assert lanes_of(same) == [*range(MAX_LANES), *[MAX_LANES - 1] * 4]
    assert lanes_of([]) == []
    assert lanes_of([Box(10, 20), Box(0, 10)]) == [0, 0]


def test_names_stand_in_boxes_unless_there_are_too_many() -> None:
    few = draw_tracks("t", "c", 0, 100, [BoxRow("peaks", [Box(5, 30, "REB1"), Box(-20, -1, "ELSEWHERE")])]).svg
    assert "REB1" in few
    assert "ELSEWHERE" not in few
    assert "peaks (1)" in few
    many = [Box(place, place + 1, f"N{place}") for place in range(MAX_NAMES + 1)]
    assert "N7" not in draw_tracks("t", "c", 0, 100, [BoxRow("peaks", many)]).svg


def test_what_is_not_embedded_is_said() -> None:
    nothing = draw_tracks("t", "c", 0, 30, [line([np.nan] * 3)]).svg
    assert "no embedded bins here" in nothing
    part = draw_tracks("t", "c", 0, 30, [line([1, np.nan, 1])]).svg
    assert "no embedded bins here" not in part


@pytest.mark.filterwarnings("error")
def test_long_and_foreign_names_stay_within_the_figure() -> None:
    long, foreign = "x" * 90 + "end", "転写因子"
    svg = draw_tracks("t", "c", 0, 30, [BoxRow(f"begin {long} {long}", []), BoxRow(foreign, [])]).svg
    assert long not in svg
    assert "begin x" in svg
    assert "end (0)" in svg
    assert foreign in svg


@pytest.mark.filterwarnings("error")
def test_a_legend_of_long_names_leaves_room_for_the_curves() -> None:
    picture = lines(
        "t", "c", {f"{'run ' * 40}{number}": [(0, 0), (1, 1)] for number in range(8)}, x_label="x", y_label="y"
    )
    assert "run 7" in picture.svg


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [line([1, 2, 3]), BoxRow("peaks", [Box(1, 2, "a")])]
    first, second = (draw_tracks("t", "c", 0, 30, rows) for _ in range(2))
    assert first == second
    assert first.svg.count("<svg") == 1
