"""The report's figures as SVG text: nothing but numbers in, nothing but text out.

Text stays text in the SVG, so that a page with many figures is small and can be searched; colours are told apart by
lightness too. Who chooses what to draw is ``report``.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe and Ito's palette (2008), darkest first: distinct for colour-blind readers and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
WIDTH_IN, HEIGHT_IN = 4.8, 3.9
MOST_DOTS = 1500
LETTERS_PER_INCH = 13
"""Of the width of a figure, in the usual size."""
Points = Sequence[tuple[float, float]]
_RC: dict[Any, Any] = {
    "text.parse_math": False,  # names may hold dollars
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Picture(NamedTuple):
    """One figure of the page."""

    name: str
    """File name without ending."""
    svg: str
    """The whole ``<svg>`` element."""
    caption: str
    """What it shows, in a sentence; also its alternative text."""


def draw(name: str, caption: str, paint: Callable[[Axes], None]) -> Picture:
    """Return the figure that `paint` draws on an empty pair of axes; the same input gives the same bytes."""
    return draw_rows(name, caption, [paint], width_in=WIDTH_IN, row_in=HEIGHT_IN)


def draw_rows(
    name: str,
    caption: str,
    paints: Sequence[Callable[[Axes], None]],
    *,
    width_in: float,
    row_in: float | Sequence[float],
) -> Picture:
    """Return a figure of axes below each other, one for each of `paints`, `row_in` inches high, or each its own."""
    heights = [row_in] * len(paints) if isinstance(row_in, float) else list(row_in)
    with mpl.rc_context({**_RC, "svg.hashsalt": name}), warnings.catch_warnings():
        # the text stays text, and whoever shows it has more fonts
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure = Figure(figsize=(width_in, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(paints), 1, height_ratios=heights)
        for row, paint in enumerate(paints):
            paint(figure.add_subplot(grid[row]))
        for text in figure.findobj(Text):
            text.set_text(shortened(text.get_text(), int(width_in * LETTERS_PER_INCH)))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page decides the width; the height follows from the view box.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Picture(name, _without_idle_ids(svg.strip()), caption)


def shortened(text: str, most: int) -> str:
    """Return a text without its middle where it is longer than `most` letters: names often differ at their ends.

    Examples
    --------
    >>> shortened("chr1 and so on", 9), shortened("chr1", 9)
    ('chr1…o on', 'chr1')
    """
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[len(text) - (most - 1) // 2 :]


def _without_idle_ids(svg: str) -> str:
    """Drop the ids that nothing refers to (figure_1, axes_1, ...): on a page with many figures they would clash."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)


def sized(svg: str) -> str:
    """Return a figure as a file of its own, twice as large as on a page."""
    box = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    assert box, "every figure has a view box"
    width, height = (round(2 * float(side)) for side in box.groups())
    return svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)


def scatter_against(
    name: str, caption: str, points: Mapping[str, Points], *, x_label: str, y_label: str, log: bool
) -> Picture:
    """Draw one dot per experiment, with the diagonal on which both scores are equal."""

    def paint(axes: Axes) -> None:
        every = np.asarray([p for group in points.values() for p in group], dtype=float).reshape(-1, 2)
        every = every[np.isfinite(every).all(axis=1)]
        is_log = log and _spans_a_decade(every)
        low = max(float(every.min()) * 0.8, 1e-4) if is_log else 0.0
        axes.plot([low, 1], [low, 1], color="#777777", linewidth=1)
        for colour, (label, group) in zip(itertools.cycle(COLOURS), points.items(), strict=False):
            _dots(axes, group, colour, label)
        if is_log:
            axes.set(xscale="log", yscale="log", xlim=(low, 1.1), ylim=(low, 1.1))
            _plain_numbers(axes, both=True)
        axes.set(xlabel=x_label, ylabel=y_label)
        _legend(axes)

    return draw(name, caption, paint)


def scatter_counts(
    name: str, caption: str, points: Mapping[str, Points], *, x_label: str, y_label: str, is_count: bool = True
) -> Picture:
    """Draw a score against a number; counts stand on a logarithmic axis if they differ tenfold."""

    def paint(axes: Axes) -> None:
        for colour, (label, group) in zip(itertools.cycle(COLOURS), points.items(), strict=False):
            _dots(axes, group, colour, label)
        axes.set(xlabel=x_label, ylabel=y_label)
        if is_count and _spans_a_decade(np.asarray([x for group in points.values() for x, _ in group], dtype=float)):
            axes.set(xscale="log")
            _plain_numbers(axes, both=False)
        _legend(axes)

    return draw(name, caption, paint)


def _dots(axes: Axes, group: Points, colour: str, label: str) -> None:
    """Draw dots; many of them as one picture inside the figure, so that a page does not grow with every factor."""
    x, y = _columns(group)
    is_many = len(x) > MOST_DOTS
    axes.scatter(x, y, s=14, color=colour, alpha=0.75, linewidths=0, label=f"{label} ({len(x)})", rasterized=is_many)


def lines(
    name: str,
    caption: str,
    curves: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    markers: bool = False,
    limits: tuple[float, float] | None = None,
    diagonal: bool = False,
    log: bool = False,
    looks: Mapping[str, tuple[int, int]] | None = None,
) -> Picture:
    """Draw one line per named curve.

    Parameters
    ----------
    looks
        Number of colour and of dashes of some curves, so that a thing looks the same in every figure.
    """

    def paint(axes: Axes) -> None:
        styles = ("-", "--", "-.", ":")
        if diagonal:
            axes.plot([1e-6, 1], [1e-6, 1], color="#777777", linewidth=1)
        for index, (label, curve) in enumerate(curves.items()):
            x, y = _columns(curve)
            colour, dashes = (looks or {}).get(label, (index, index // len(COLOURS)))
            axes.plot(
                x,
                y,
                color=COLOURS[colour % len(COLOURS)],
                linestyle=styles[dashes % len(styles)],
                marker="o" if markers else None,
                markersize=4,
                linewidth=1.6,
                label=label,
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        if limits:
            axes.set(ylim=limits)
        if log:
            low = min((min(x, y) for curve in curves.values() for x, y in curve if min(x, y) > 0), default=0.01)
            axes.set(xscale="log", yscale="log", xlim=(low / 1.5, 1.2), ylim=(low / 1.5, 1.2))
            _plain_numbers(axes, both=True)
        _legend(axes)

    return draw(name, caption, paint)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    """Return x and y of the points that have both."""
    finite = [(x, y) for x, y in points if np.isfinite(x) and np.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _spans_a_decade(values: np.ndarray) -> bool:
    """Whether a logarithmic axis would have two labels at least."""
    positive = values[values > 0]
    return bool(positive.size) and float(positive.max() / positive.min()) >= 10


def _legend(axes: Axes) -> None:
    """Name what is drawn, below the axes: inside, it would lie on the data."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        fits_twice = max(map(len, labels)) <= 24
        axes.figure.legend(loc="outside lower center", ncols=2 if fits_twice else 1)


def _plain_numbers(axes: Axes, *, both: bool) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis in (axes.xaxis, axes.yaxis) if both else (axes.xaxis,):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
