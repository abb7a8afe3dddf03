"""Plot specifications (plain plotly JSON: data and layout) from rows and records; the page's script draws them.

Colours are tokens (``@run-3``, ``@muted``) that the script resolves against the page's style sheet, so that light
and dark are one specification. Every text goes through ``label``: plotly reads a subset of HTML in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

from kdedge.reporting.cells import Cell
from kdedge.reporting.conditions import OFFLINE, SINGLE_STREAM, slug
from kdedge.reporting.drawing import (
    Plot,
    Spec,
    base_layout,
    colour,
    dash,
    envelope,
    label,
    logarithmic,
    name,
    points_a_run,
    ranks,
    short,
    x_range,
)
from kdedge.reporting.rows import Row
from kdedge.reporting.runs import Run

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")
_PHASES = ("start", "import", "load", "first", "steady", "peak")
_MOST_TOLD = 10
# Columns that only runs of one scenario share: a batch's latency beside an inference's would be no comparison.
_ALIKE_IN = {"p50": SINGLE_STREAM, "throughput": OFFLINE}


def overview(runs: Sequence[Run], rows: Sequence[Row], students: Sequence[Row] = ()) -> list[Plot]:
    """The plots of all runs; ``students`` are those of bundles, which have an accuracy and a size."""
    plots = []
    scenarios = {row.scenario for row in rows}
    if SINGLE_STREAM in scenarios:
        plots.append(tradeoff(rows, "p50", "Accuracy against latency", "latency p50 (ms)"))
    if OFFLINE in scenarios:
        plots.append(tradeoff(rows, "throughput", "Accuracy against throughput", "throughput (samples/s)"))
    plots.append(tradeoff(rows, "size", "Accuracy against size", "size (MB)", students))
    return [*plots, *distributions(runs, rows), memory(runs, rows)]


def tradeoff(rows: Sequence[Row], key: str, title: str, axis: str, students: Sequence[Row] = ()) -> Plot:
    """Accuracy against another column (``p50``, ``throughput`` or ``size``), with 95% intervals as bars."""
    places = sorted({row.place for row in rows})
    points, absent, others = [], [], 0
    for index, row in enumerate([*rows, *students]):
        if row.scenario and row.scenario != _ALIKE_IN.get(key, row.scenario):
            others += 1
            continue
        x, y = row.cells[key], row.cells["accuracy"]
        if x.value is not None and y.value is not None:
            points.append((index, row, (x.value * x.unit.factor, y.value)))
            continue
        gap, what = (x, axis.split(" (", maxsplit=1)[0]) if x.value is None else (y, "accuracy")
        absent.append(f"{name(row)} ({what}: {gap.reason})")
    runs_at = {at for index, _, at in points if index < len(rows)}
    # A student in torch that was measured as a run of its own is that run's point.
    points = [(index, row, at) for index, row, at in points if index < len(rows) or at not in runs_at]
    data = []
    for (index, row, at), place in zip(points, _label_places([at for _, _, at in points]), strict=True):
        trace = _point(row, at, row.cells[key], place)
        if index < len(rows):
            same = [str(i + 1) for i, _, other in points if other == at and i < len(rows)]
            look = (", ".join(same), colour(index), _SYMBOLS[places.index(row.place) % len(_SYMBOLS)])
        else:
            look = (row.label.split(maxsplit=1)[0], "@muted", "circle-open")
        mark, token, symbol = look
        trace["text"] = [label(mark)]
        trace["marker"] = {"size": 10, "color": token, "symbol": symbol, "line": {"width": 1.5, "color": token}}
        data.append(trace)
    layout = base_layout(axis, "accuracy")
    layout["yaxis"]["tickformat"] = ".3f"
    x_range(layout["xaxis"], [x for _, _, (x, _) in points])
    better = "right" if key == "throughput" else "left"
    caption = [f"Numbers are the runs of the key; bars are 95% intervals. Up and to the {better} is better."]
    if others and key == "p50":
        caption.append(f"Runs in batches stand against their throughput instead ({others} of {len(rows)}).")
    caption += [f"Not drawn: {text}." for text in absent]
    told = [f"{name(row)}: accuracy {row.cells['accuracy'].text}, {row.cells[key].text}" for _, row, _ in points]
    alt = f"Scatter plot of accuracy against {axis}, {len(points)} points. {'; '.join(told[:_MOST_TOLD])}"
    return Plot(f"plot-accuracy-{key}", title, alt, tuple(caption), {"data": data, "layout": layout})


def _point(row: Row, at: tuple[float, float], x: Cell, place: str) -> Spec:
    y = row.cells["accuracy"]
    text = f"{label(name(row))}<br>accuracy {y.text} ({label(y.detail)})<br>{x.text} ({label(x.detail)})"
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [at[0]],
        "y": [at[1]],
        "error_x": _bars(x),
        "error_y": _bars(y),
        "textposition": place,
        "hovertext": [text],
        "hoverinfo": "text",
        "name": label(name(row)),
        "cliponaxis": False,
    }


def _bars(cell: Cell) -> Spec:
    if cell.interval is None or cell.value is None:
        return {"visible": False}
    low, high = cell.interval
    factor = cell.unit.factor
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - cell.value) * factor],
        "arrayminus": [max(0.0, cell.value - low) * factor],
        "thickness": 1.2,
        "width": 4,
    }


def _label_places(points: Sequence[tuple[float, float]]) -> list[str]:
    """Left of a point that has a close neighbour on its right, else right: labels of neighbours stay apart."""
    if not points:
        return []
    width = max(x for x, _ in points) or 1.0
    height = (max(y for _, y in points) - min(y for _, y in points)) or 1.0
    places = []
    for x, y in points:
        near = any(0 < (a - x) / width < 0.06 and abs(b - y) / height < 0.4 for a, b in points)
        places.append("middle left" if near else "middle right")
    return places


def distributions(runs: Sequence[Run], rows: Sequence[Row]) -> list[Plot]:
    """The empirical distribution of every run's raw latencies; batches of each size have a plot of their own."""

    def size(numbered: tuple[int, Run, Row]) -> tuple[bool, int]:
        row = numbered[2]
        return row.is_offline, row.batch_size or 0

    numbered = sorted(((index, run, row) for index, (run, row) in enumerate(zip(runs, rows, strict=True))), key=size)
    return [_distribution(list(group), points_a_run(len(runs))) for _, group in groupby(numbered, size)]


def _distribution(numbered: Sequence[tuple[int, Run, Row]], most: int) -> Plot:
    """Of runs whose latencies are of like calls, each with its place in the report."""
    first = numbered[0][2]
    calls, title, plot_id = first.calls, "Latency distribution", "plot-latency"
    if first.is_offline:
        title, plot_id = f"{title}, {calls}", f"{plot_id}-{slug(first.call)}"
    data, absent, thinned, every = [], [], 0, []
    for index, run, row in numbered:
        samples = sorted(run.record.latency_s.get("samples") or [])
        if not samples:
            absent.append(name(row))
            continue
        drawn = ranks(len(samples), most)
        thinned += len(drawn) < len(samples)
        every += [samples[0] * 1e3, samples[-1] * 1e3]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hv", "width": 2, "color": colour(index), "dash": dash(index)},
                "x": [short(samples[rank] * 1e3) for rank in drawn],
                "y": [short((rank + 1) / len(samples)) for rank in drawn],
                "name": label(name(row)),
                "hovertemplate": f"run {index + 1}: %{{y:.1%}} took %{{x:.4g}} ms or less<extra></extra>",
            }
        )
    layout = base_layout(f"latency of one {first.call} (ms)", f"share of {calls}")
    layout["yaxis"].update({"range": [0, 1.02], "tickformat": ".0%"})
    layout["shapes"] = [_guide(share) for share in (0.5, 0.9, 0.99)]
    x_range(layout["xaxis"], every)
    layout["annotations"] = _line_numbers(numbered, is_log=layout["xaxis"].get("type") == "log")
    caption = [f"Share of {calls} that took no longer; dotted lines at 50, 90 and 99%. No value is left out."]
    if thinned:
        caption.append(f"Drawn at {most} evenly spaced ranks where a run has more values ({thinned} of {len(data)}).")
    caption += [f"Not drawn: {text} (the record holds no raw values)." for text in absent]
    of_what = f" of one {first.call}" if first.is_offline else ""
    alt = f"Cumulative distribution of latency{of_what}, one line a run, {len(data)} runs."
    alt += " The table gives p50, p90 and p99."
    return Plot(plot_id, title, alt, tuple(caption), {"data": data, "layout": layout})


def _line_numbers(numbered: Sequence[tuple[int, Run, Row]], *, is_log: bool) -> list[Spec]:
    """The number of each run beside its line, at staggered heights, so that colour is not the only key."""
    if len(numbered) > _MOST_TOLD:
        return []
    notes = []
    for index, run, _ in numbered:
        samples = sorted(run.record.latency_s.get("samples") or [])
        share = 0.2 + 0.6 * ((index * 3) % 8) / 7
        if not samples or samples[0] <= 0:
            continue
        x = samples[int(share * (len(samples) - 1))] * 1e3
        notes.append(
            {
                "x": short(math.log10(x) if is_log else x),
                "y": short(share),
                "text": str(index + 1),
                "showarrow": False,
                "xanchor": "left",
                "xshift": 3,
                "font": {"color": colour(index)},
            }
        )
    return notes


def over_time(run: Run, row: Row, index: int, most: int) -> Plot | None:
    """Latency in the order of measurement, warm-up apart: what the verdict rests on. None without raw values."""
    latency = run.record.latency_s
    samples, warmup = latency.get("samples") or [], latency.get("warmup_samples") or []
    if not samples:
        return None
    order, thinned = envelope(samples, most)
    warm_order, warm_thinned = envelope(warmup, most // 4)
    data = [
        _strip([i - len(warmup) for i in warm_order], [warmup[i] for i in warm_order], "@muted", "warm-up"),
        _strip(order, [samples[i] for i in order], colour(index), "timed"),
    ]
    of_what = f" of one {row.call}" if row.is_offline else ""
    layout = base_layout(f"{row.call} (timed from 0; warm-up before)", f"latency{of_what} (ms)")
    p50 = row.cells["p50"].value
    if p50 is not None:
        layout["shapes"] = [
            {"type": "line", "x0": 0, "x1": len(samples), "y0": p50 * 1e3, "y1": p50 * 1e3, "line": _THIN}
        ]
    if run.record.starts > 1:
        ends = list(accumulate(start["n"] for start in latency["starts"]))[:-1]
        layout["shapes"] = [*layout.get("shapes", []), *map(_beginning, ends)]
    layout["height"] = 260
    logarithmic(layout["yaxis"], [value * 1e3 for value in (min(samples), max(samples))])
    caption = [f"{len(samples)} timed {row.calls} in order, {len(warmup)} of warm-up before them (grey). Line: p50."]
    if run.record.starts > 1:
        caption += [f"{run.record.starts} starts, parted by upright lines; their warm-ups stand before the first."]
    if thinned or warm_thinned:
        caption.append("Drawn: the least, the middle and the greatest value of equal blocks; no outlier is hidden.")
    alt = f"Latency of each {row.call} of {name(row)} in order of measurement; verdict: {row.verdict}."
    data = [trace for trace in data if trace["x"]]
    return Plot(f"plot-run-{index}", "Latency over time", alt, tuple(caption), {"data": data, "layout": layout})


def memory(runs: Sequence[Run], rows: Sequence[Row]) -> Plot:
    """Memory at each phase of a run."""
    data, absent = [], []
    for index, (run, row) in enumerate(zip(runs, rows, strict=True)):
        found = phases(run.record.memory_bytes)
        if not found:
            absent.append(name(row))
            continue
        data.append(
            {
                "type": "bar",
                "name": label(name(row)),
                "x": list(found),
                "y": [short(value / 1e6) for value in found.values()],
                "marker": {"color": colour(index)},
                "text": [str(index + 1)] * len(found),
                "textposition": "inside",
                "insidetextanchor": "start",
                "textangle": 0,
                "insidetextfont": {"color": "@surface"},
                "hovertemplate": f"run {index + 1}, %{{x}}: %{{y:.4g}} MB<extra></extra>",
            }
        )
    layout = base_layout("", "peak resident memory (MB)")
    layout["xaxis"].update({"type": "category", "categoryorder": "array", "categoryarray": list(_PHASES)})
    layout["yaxis"]["rangemode"] = "tozero"
    layout["barmode"] = "group"
    caption = ["Peak resident memory within each phase of a run's one process; peak is that of the whole run."]
    if any(run.record.starts > 1 for run in runs):
        caption += ["Of several starts each is the largest."]
    caption += [f"Not drawn: {text} (memory was not measured; its details say why)." for text in absent]
    alt = f"Bars of memory by phase ({', '.join(_PHASES)}), {len(data)} runs; the details of each run give the values."
    return Plot("plot-memory", "Memory by phase", alt, tuple(caption), {"data": data, "layout": layout})


def phases(memory_bytes: Mapping[str, Any]) -> dict[str, float]:
    """Bytes by phase, in the order in which a run passes them; phases that were not measured are left out."""
    inner = memory_bytes.get("phases")
    found = {**(inner if isinstance(inner, Mapping) else {}), **memory_bytes}
    numbers = {phase: found.get(phase) for phase in _PHASES}
    return {phase: float(value) for phase, value in numbers.items() if isinstance(value, (int, float))}


def _strip(order: Sequence[int], latencies_s: Sequence[float], token: str, title: str) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(order),
        "y": [short(value * 1e3) for value in latencies_s],
        "marker": {"size": 4, "color": token, "opacity": 0.7},
        "name": title,
        "hovertemplate": f"{title} %{{x}}: %{{y:.4g}} ms<extra></extra>",
    }


_THIN = {"width": 1, "color": "@text", "dash": "dot"}


def _beginning(sample: int) -> Spec:
    """Where the next start begins."""
    return {"type": "line", "yref": "paper", "x0": sample, "x1": sample, "y0": 0, "y1": 1, "line": _THIN}


def _guide(share: float) -> Spec:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": share, "y1": share, "line": _THIN}
