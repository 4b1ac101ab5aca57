"""A locus as rows below each other that share its coordinates: lines of numbers, boxes with names.

Nothing but numbers in, an SVG out, like ``figures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tfbind_store.drawing.figures import COLOURS, Picture, draw_rows

WIDTH_IN = 11.0
LINE_IN, BOXES_IN = 1.25, 0.5
MAX_LANES = 8
"""Boxes that overlap stand in lanes; what needs more is drawn over the last one, without names."""
MAX_NAMES = 40
"""Boxes with names; more would cover each other."""


class Box(NamedTuple):
    """Something that lies somewhere."""

    start: int
    end: int
    name: str = ""


class LineRow(NamedTuple):
    """Numbers of bins."""

    label: str
    edges: Float[np.ndarray, " bins_plus_1"]
    """Where bins begin, and where the last one ends."""
    values: Float[np.ndarray, " bins"]
    """NaN leaves a gap."""
    unit: str


class BoxRow(NamedTuple):
    """Boxes on a line."""

    label: str
    boxes: Sequence[Box]


def draw_tracks(name: str, caption: str, start: int, end: int, rows: Sequence[LineRow | BoxRow]) -> Picture:
    """Return the figure of a locus of ``[start, end)``."""
    paints, heights = [], []
    for place, row in enumerate(rows):
        is_last = place == len(rows) - 1
        if isinstance(row, LineRow):
            paints.append(partial(_paint_line, row, COLOURS[place % len(COLOURS)], start, end, is_last))
            heights.append(LINE_IN)
        else:
            lanes = lanes_of(row.boxes)
            paints.append(partial(_paint_boxes, row, lanes, COLOURS[place % len(COLOURS)], start, end, is_last))
            heights.append(BOXES_IN + 0.2 * max(lanes, default=0))
    heights[-1] += 0.35  # the axis' numbers
    return draw_rows(name, caption, paints, width_in=WIDTH_IN, row_in=heights)


def lanes_of(boxes: Sequence[Box]) -> list[int]:
    """Return the lane of each box: the first one that is free, boxes taken from left to right.

    Examples
    --------
    >>> lanes_of([Box(0, 10), Box(5, 8), Box(9, 12), Box(10, 11)])
    [0, 1, 1, 0]
    """
    ends: list[int] = []
    lanes = [0] * len(boxes)
    for place in sorted(range(len(boxes)), key=lambda place: boxes[place][:2]):
        box = boxes[place]
        free = next((lane for lane, end in enumerate(ends) if end <= box.start), None)
        if free is None:
            free = min(len(ends), MAX_LANES - 1)
            if free == len(ends):
                ends.append(0)
        ends[free] = box.end
        lanes[place] = free
    return lanes


def _paint_line(row: LineRow, colour: str, start: int, end: int, is_last: bool, axes: Axes) -> None:
    axes.stairs(row.values, row.edges, baseline=None, color=colour, linewidth=1.4)
    finite = row.values[np.isfinite(row.values)]
    if len(finite) == 0:
        axes.text(0.5, 0.5, "no embedded bins here", transform=axes.transAxes, ha="center", va="center")
        axes.set(ylim=(0, 1), yticks=[])
    elif np.ptp(finite) < 1e-6:
        axes.set(ylim=(float(finite[0]) - 1, float(finite[0]) + 1))
    axes.set_ylabel(row.unit)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    _frame(row.label, start, end, is_last, axes)


def _paint_boxes(
    row: BoxRow, lanes: Sequence[int], colour: str, start: int, end: int, is_last: bool, axes: Axes
) -> None:
    shown = [(box, lane) for box, lane in zip(row.boxes, lanes, strict=True) if box.end > start and box.start < end]
    least = (end - start) / 500  # a peak of one base on 100 kb would not be seen
    for lane in sorted({lane for _, lane in shown}):  # a call for each box would take seconds for hundreds
        spans = [(box.start, max(box.end - box.start, least)) for box, own in shown if own == lane]
        axes.broken_barh(spans, (-lane - 0.35, 0.7), color=colour, alpha=0.8)
    if len(shown) <= MAX_NAMES:
        for box, lane in shown:
            if lane == MAX_LANES - 1:
                continue
            middle = (max(box.start, start) + min(box.end, end)) / 2
            axes.text(middle, -lane, box.name, ha="center", va="center", fontsize=7, clip_on=True)
    axes.set(ylim=(-max(lanes, default=0) - 0.5, 0.5), yticks=[])
    _frame(f"{row.label} ({len(shown)})", start, end, is_last, axes)


def _frame(label: str, start: int, end: int, is_last: bool, axes: Axes) -> None:
    axes.set_title(label, loc="left", fontsize=9, pad=2)
    axes.set_axisbelow(True)
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelbottom=is_last)
