"""What every plot is made of: texts, colours, axes, and how many of many points to draw."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdedge.reporting.rows import Row
from kdedge.reporting.text import plain

COLOURS = 8
_DASHES = ("solid", "dash", "dot", "dashdot")
_POINTS_OF_ALL_RUNS = 16_000
_MOST_POINTS, _FEWEST_POINTS = 2000, 100
_LOG_FROM_RATIO = 20.0

Spec = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A plot of the page.

    Attributes:
        id: Of its element.
        title: Heading above it.
        alt: What it shows, in words, for those who do not see it.
        caption: How to read it, and what is not drawn and why.
        spec: ``data`` and ``layout`` of plotly; empty ``data`` means that there is nothing to draw.
    """

    id: str
    title: str
    alt: str
    caption: tuple[str, ...]
    spec: Spec


def label(text: object) -> str:
    """Text for plotly: what looks like HTML is shown, not read."""
    return html.escape(plain(text), quote=False)


def colour(index: int) -> str:
    """Colour token of a run by its place in the report."""
    return f"@run-{index % COLOURS}"


def name(row: Row) -> str:
    """A run in a legend: artifact, device, runtime, threads."""
    place = " · ".join(part for part in (row.place, row.runtime.split(" (")[0]) if part)
    threads = "" if row.threads is None else f" · {row.threads} thread{'' if row.threads == 1 else 's'}"
    return f"{row.label} · {place}{threads}"


def x_range(axis: Spec, values: Sequence[float]) -> None:
    """Linear from 0, or logarithmic where the values span much."""
    if values and min(values) >= 0 and max(values) > 0 and not logarithmic(axis, values):
        axis["range"] = [0, max(values) * 1.12]


def logarithmic(axis: Spec, values: Sequence[float]) -> bool:
    """Make an axis logarithmic if its values span more than a factor of 20; whether it now is."""
    if not values or min(values) <= 0 or max(values) / min(values) < _LOG_FROM_RATIO:
        return False
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**decade for decade in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    axis["type"] = "log"
    axis["range"] = [low - 0.1, high + 0.15]
    axis["tickvals"] = [short(tick) for tick in ticks]
    axis["ticktext"] = [f"{tick:.4g}" for tick in ticks]
    return True


def points_a_run(runs: int) -> int:
    """Points that one run may take in a plot, so that the page stays small with many runs."""
    return max(_FEWEST_POINTS, min(_MOST_POINTS, _POINTS_OF_ALL_RUNS // max(1, runs)))


def ranks(n: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced ranks of 0..n-1, both ends among them."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def envelope(values: Sequence[float], most: int) -> tuple[list[int], bool]:
    """Indices to draw: all, or the least, the middle and the greatest value of each of ``most / 3`` equal blocks."""
    if len(values) <= most:
        return list(range(len(values))), False
    blocks = most // 3
    chosen: set[int] = set()
    for block in range(blocks):
        span = range(block * len(values) // blocks, (block + 1) * len(values) // blocks)
        order = sorted(span, key=values.__getitem__)
        chosen |= {order[0], order[len(order) // 2], order[-1]}
    return sorted(chosen), True


def short(value: float) -> float:
    """Six significant digits: finer than a pixel, and half the bytes of a float's full form."""
    return float(f"{value:.6g}")


def base_layout(x_title: str, y_title: str) -> Spec:
    """The layout that all plots share, with these titles at the axes."""

    def axis(title: str) -> Spec:
        return {
            "title": {"text": title, "standoff": 8},
            "gridcolor": "@grid",
            "linecolor": "@muted",
            "zeroline": False,
            "ticks": "outside",
            "tickcolor": "@muted",
            "automargin": True,
        }

    return {
        "height": 380,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "font": {"color": "@text", "size": 13},
        "hoverlabel": {"align": "left"},
        "showlegend": False,  # the page's own key names the runs of all plots once
        "xaxis": axis(x_title),
        "yaxis": axis(y_title),
    }


def dash(index: int) -> str:
    """Line style of a run: another one each time that the colours start anew."""
    return _DASHES[(index // COLOURS) % len(_DASHES)]
