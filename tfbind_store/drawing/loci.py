"""A locus as tracks: what was predicted, what was measured, and which genes lie there. Numbers in, SVG out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tfbind_store.drawing.figures import COLOURS, WIDTH_IN, Picture, draw_rows

PANEL_IN, FEET_IN = 0.62, 0.75
PREDICTED, BOUND, SIGNAL, UNKNOWN = COLOURS[0], COLOURS[1], "#555555", "#cccccc"
MOST_GENES = 14


class Panel(NamedTuple):
    """One experiment at a locus, bin by bin."""

    label: str
    start_bp: Sequence[int]
    end_bp: Sequence[int]
    probability: Sequence[float]
    label_of_bin: Sequence[float]
    """1 bound, 0 not, NaN where nobody knows."""


class Gene(NamedTuple):
    """A gene, or its start, at a locus; bp, 0-based, half-open."""

    name: str
    start_bp: int
    end_bp: int
    strand: str


def draw_locus(
    name: str,
    caption: str,
    panels: Sequence[Panel],
    signal: Sequence[float] | None,
    genes: Sequence[Gene],
) -> Picture:
    """Draw a panel per experiment, the signal if there is one, and the genes."""
    paints: list[Callable[[Axes], None]] = [partial(_experiment, panel=panel) for panel in panels]
    if signal is not None:
        paints.append(partial(_signal, like=panels[0], values=signal))
    start, end = panels[0].start_bp[0], panels[0].end_bp[-1]
    if genes:
        paints.append(partial(_genes, genes=genes, start=start, end=end))

    def placed(axes: Axes, paint: Callable[[Axes], None], is_last: bool) -> None:
        paint(axes)
        axes.set_xlim(start, end)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:,.1f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelbottom=is_last)
        if is_last:
            axes.set_xlabel("position, kb")

    rows = [partial(placed, paint=paint, is_last=row == len(paints) - 1) for row, paint in enumerate(paints)]
    row_in = PANEL_IN + FEET_IN / len(paints)
    return draw_rows(name, caption, rows, width_in=WIDTH_IN, row_in=row_in)


def _experiment(axes: Axes, panel: Panel) -> None:
    edges = [*panel.start_bp, panel.end_bp[-1]]
    axes.stairs(np.nan_to_num(np.asarray(panel.probability)), edges, fill=True, color=PREDICTED)
    top = max(0.02, float(np.nanmax(panel.probability, initial=0.0)) * 1.1)
    foot = -0.28 * top
    for value, colour in ((1.0, BOUND), (float("nan"), UNKNOWN)):
        for start, end, label in zip(panel.start_bp, panel.end_bp, panel.label_of_bin, strict=True):
            if label == value or (np.isnan(label) and np.isnan(value)):
                axes.fill_between([start, end], foot, foot * 0.25, color=colour, linewidth=0)
    _frame(axes, panel.label, foot, top, f"{top / 1.1:.2g}")


def _signal(axes: Axes, like: Panel, values: Sequence[float]) -> None:
    numbers = np.asarray(values, dtype=float)
    low, high = (float(part) for part in (np.nanmin(numbers), np.nanmax(numbers)))
    axes.stairs(
        np.nan_to_num(numbers, nan=low), [*like.start_bp, like.end_bp[-1]], fill=True, baseline=low, color=SIGNAL
    )
    _frame(axes, "signal", low, high + (high == low), "")


def _frame(axes: Axes, label: str, low: float, high: float, top: str) -> None:
    axes.set_ylim(low, high)
    axes.set_yticks([high / 1.1] if top else [], [top] if top else [])
    axes.grid(visible=False)
    axes.text(0.005, 0.97, label, transform=axes.transAxes, va="top", fontsize=9, bbox=_BACKED)


_BACKED = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}


def _genes(axes: Axes, genes: Sequence[Gene], start: int, end: int) -> None:
    """Draw genes on two lines, so that neighbours' names do not lie on each other; names only where they fit."""
    axes.grid(visible=False)
    axes.set_ylim(-0.7, 2)
    axes.set_yticks([])
    reach = [float(start - end)] * 2
    least = (end - start) * 0.015
    for gene in sorted(genes, key=lambda one: one.start_bp):
        low, high = max(gene.start_bp, start), min(max(gene.end_bp, gene.start_bp + 1), end)
        room = (end - start) * 0.016 * (len(gene.name) + 1)
        line = 0 if reach[0] <= low else 1
        mark = {"+": ">", "-": "<"}.get(gene.strand, "|")
        axes.plot([low, max(high, low + least)], [line, line], color="#000000", linewidth=2, solid_capstyle="butt")
        axes.plot(
            [low if gene.strand == "-" else max(high, low + least)], [line], marker=mark, color="#000000", markersize=4
        )
        if reach[line] <= low and len(genes) <= MOST_GENES * 3:
            axes.text(low, line + 0.22, gene.name, fontsize=7, va="bottom", clip_on=True)
            reach[line] = low + room
