"""Figures from raw samples: percentiles with their intervals, drift, throughput. The host computes them.

How the intervals come about, and what is tested about them, stands in :mod:`kdedge_agent.intervals`; those of several
starts of the worker in :mod:`kdedge_agent.between_starts`.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kdedge_agent import between_starts
from kdedge_agent.drift import drift
from kdedge_agent.intervals import Interval, Series
from kdedge_agent.order_statistics import CONFIDENCE, interval, percentile, quantile_ranks

P99_MIN_SAMPLES = 1000
P99_MIN_OF_START = 200
"""Of several starts each needs so many: the p99 of a hundred samples is nearly their largest."""
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))

__all__ = [
    "CONFIDENCE",
    "drift",
    "interval",
    "latency_summary",
    "moments",
    "percentile",
    "quantile_ranks",
    "throughput",
]


def moments(samples: Sequence[float]) -> Tuple[float, Optional[float]]:
    """Mean, and standard deviation with n-1 (None below two samples)."""
    mean = math.fsum(samples) / len(samples)
    if len(samples) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in samples) / (len(samples) - 1))


class _Percentile(NamedTuple):
    """One percentile of a run: value, interval, how it came about, correlation time; the reasons of what is None."""

    value: Optional[float]
    bounds: Optional[Tuple[float, float]]
    method: Optional[str]
    correlation_time: Optional[float]
    missing: Optional[str]
    no_interval: Optional[str]


def _percentile(series: Series, ordered: Sequence[Sequence[float]], name: str, q: float) -> _Percentile:
    """Of one start as its samples have it; of several what they have in common.

    Args:
        series: All samples in order.
        ordered: The samples of each start, ascending.
        name: p50, p90 or p99.
        q: The same as a share.
    """
    n, fewest = len(series.samples), min(map(len, ordered))
    several = len(ordered) > 1
    if name == "p99" and (n < P99_MIN_SAMPLES or (several and fewest < P99_MIN_OF_START)):
        missing = f"{n} samples; a 99th percentile needs at least {P99_MIN_SAMPLES}"
        missing += f", and {P99_MIN_OF_START} of each start" if several else ""
        return _Percentile(None, None, None, None, f"{missing} (raise --repetitions)", None)
    if not several:
        found = series.quantile(q)
        time = round(found.correlation_time, 2)
        return _Percentile(percentile(series.ordered, q), found.bounds, found.method, time, None, found.reason)
    pooled = interval(series.ordered, q)
    figure, bounds, reason = between_starts.across([percentile(part, q) for part in ordered], pooled)
    if pooled is None:
        bounds, reason = None, Interval.too_few(n, q)
    return _Percentile(figure, bounds, between_starts.METHOD if bounds else None, None, None, reason)


def latency_summary(
    samples_s: Sequence[float], warmup_s: Sequence[float] = (), starts: Sequence[int] = ()
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The ``latency_s`` part of a record, and the reasons of its nulls.

    Args:
        samples_s: Seconds of every timed call, in order, at least one; of several starts one after the other.
        warmup_s: Seconds of every call before them; kept, and in no figure.
        starts: How many samples each start has, at least one; empty for one start.

    Returns:
        {p50, p90, p99, n, mean, std, min, max, ci95, ci95_method, correlation_time, drift, starts, samples,
        warmup_samples} and key -> reason. ``ci95_method`` names for each percentile how its interval came about,
        ``correlation_time`` how many samples count as one independent one there. Of several starts the percentiles are
        the geometric means of the starts' own, which ``starts`` holds.
    """
    series = Series(samples_s)
    parts = between_starts.split(samples_s, starts or [len(samples_s)])
    ordered = [sorted(part) for part in parts]
    unmeasured: Dict[str, str] = {}
    figures: Dict[str, Any] = {}
    ci95: Dict[str, Optional[List[float]]] = {}
    methods: Dict[str, Optional[str]] = {}
    times: Dict[str, Optional[float]] = {}
    for name, q in PERCENTILES:
        found = _percentile(series, ordered, name, q)
        figures[name], methods[name], times[name] = found.value, found.method, found.correlation_time
        ci95[name] = None if found.bounds is None else list(found.bounds)
        if found.missing is not None:
            unmeasured[f"latency_s.{name}"] = found.missing
        if found.no_interval is not None:
            unmeasured[f"latency_s.ci95.{name}"] = found.no_interval
    if len(parts) > 1:
        unmeasured["latency_s.correlation_time"] = "the starts are the samples of these intervals"
    mean, std = moments(samples_s)
    if std is None:
        unmeasured["latency_s.std"] = "one sample has no spread"
    figures.update(n=len(samples_s), mean=mean, std=std, min=series.ordered[0], max=series.ordered[-1])
    figures.update(ci95=ci95, ci95_method=methods, correlation_time=times)
    figures["drift"] = drift(samples_s, starts)
    if figures["drift"] is None:
        unmeasured["latency_s.drift"] = f"{len(samples_s)} samples are too few to compare the first third with the last"
    given = [(name, q) for name, q in PERCENTILES if figures[name] is not None]
    figures["starts"] = [
        {"n": len(part), "mean": moments(part)[0], **{name: percentile(part, q) for name, q in given}}
        for part in ordered
    ]
    figures.update(samples=list(samples_s), warmup_samples=list(warmup_s))
    return figures, unmeasured


def _mean(samples_s: Sequence[float], starts: Sequence[int]) -> Tuple[float, Interval]:
    """Mean seconds and their interval."""
    if len(starts) < 2:
        return moments(samples_s)[0], Series(samples_s).mean()
    means = [moments(part)[0] for part in between_starts.split(samples_s, starts)]
    mean, bounds, reason = between_starts.across(means)
    return mean, Interval(bounds, between_starts.METHOD if bounds else None, reason, 1.0)


def throughput(
    samples_s: Sequence[float], batch_size: int, starts: Sequence[int] = ()
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The ``throughput`` part of a record of batches run back to back, and the reasons of its nulls.

    Args:
        samples_s: Seconds of every batch, in order, at least one.
        batch_size: Samples in each.
        starts: How many batches each start has; empty for one start.

    Returns:
        {samples_per_s, ci95, ci95_method, batch_size, batches} and key -> reason. The rate is batch size / mean
        seconds of a batch, its interval that of the mean; of several starts the mean is that of the starts' means.
    """
    mean, found = _mean(samples_s, starts)
    if mean <= 0:
        reason = "the clock of the device saw no time pass"
        empty: Dict[str, Any] = {"samples_per_s": None, "ci95": None, "ci95_method": None}
        return {**empty, "batch_size": batch_size, "batches": len(samples_s)}, {"throughput.samples_per_s": reason}
    bounds = found.bounds if found.bounds is not None and found.bounds[0] > 0 else None
    unmeasured = {}
    if bounds is None:
        unmeasured["throughput.ci95"] = found.reason or "the batches differ too much for an interval of their mean"
    return {
        "samples_per_s": batch_size / mean,
        "ci95": None if bounds is None else [batch_size / bounds[1], batch_size / bounds[0]],
        "ci95_method": None if bounds is None else found.method,
        "batch_size": batch_size,
        "batches": len(samples_s),
    }, unmeasured
