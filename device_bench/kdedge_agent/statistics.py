"""Figures from raw samples: percentiles with their intervals, drift, throughput. The host computes them.

How the intervals come about, and what is tested about them, stands in :mod:`kdedge_agent.intervals`.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kdedge_agent.intervals import Series
from kdedge_agent.order_statistics import CONFIDENCE, interval, percentile, quantile_ranks

P99_MIN_SAMPLES = 1000
_PARTS, _PART_SAMPLES = 10, 5
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


def drift(samples: Sequence[float]) -> Optional[Dict[str, Any]]:
    """The last third of the run against the first, in the order they were taken; None below 9 samples.

    Returns:
        first_p50, last_p50 in the unit of the samples; ratio last/first; significant: whether the two medians'
        95% intervals lie apart, or, where samples hang together too much for intervals, all medians of ten parts of
        the one third from all of the other's (None where a third is too short for either).
    """
    third = len(samples) // 3
    if third < 3:
        return None
    first, last = Series(samples[:third]), Series(samples[-third:])
    a, b = percentile(first.ordered, 0.5), percentile(last.ordered, 0.5)
    ranges = first.quantile(0.5).bounds, last.quantile(0.5).bounds
    if ranges[0] is None or ranges[1] is None:
        ranges = _range_of_parts(samples[:third]), _range_of_parts(samples[-third:])
    apart = None
    if ranges[0] is not None and ranges[1] is not None:
        apart = ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]
    return {"first_p50": a, "last_p50": b, "ratio": b / a if a else None, "significant": apart}


def _range_of_parts(samples: Sequence[float]) -> Optional[Tuple[float, float]]:
    """Least and greatest median of ten consecutive parts; None below five samples a part."""
    length = len(samples) // _PARTS
    if length < _PART_SAMPLES:
        return None
    medians = [percentile(sorted(samples[part * length : (part + 1) * length]), 0.5) for part in range(_PARTS)]
    return min(medians), max(medians)


def moments(samples: Sequence[float]) -> Tuple[float, Optional[float]]:
    """Mean, and standard deviation with n-1 (None below two samples)."""
    mean = math.fsum(samples) / len(samples)
    if len(samples) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in samples) / (len(samples) - 1))


def latency_summary(
    samples_s: Sequence[float], warmup_s: Sequence[float] = ()
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The ``latency_s`` part of a record, and the reasons of its nulls.

    Args:
        samples_s: Seconds of every timed call, in order, at least one.
        warmup_s: Seconds of every call before them; kept, and in no figure.

    Returns:
        {p50, p90, p99, n, mean, std, min, max, ci95, ci95_method, correlation_time, drift, samples,
        warmup_samples} and key -> reason. ``ci95_method`` names for each percentile how its interval came about,
        ``correlation_time`` how many samples count as one independent one there.
    """
    series = Series(samples_s)
    n = len(samples_s)
    unmeasured: Dict[str, str] = {}
    figures: Dict[str, Any] = {}
    ci95: Dict[str, Optional[List[float]]] = {}
    methods: Dict[str, Optional[str]] = {}
    times: Dict[str, Optional[float]] = {}
    for name, q in PERCENTILES:
        if name == "p99" and n < P99_MIN_SAMPLES:
            figures[name] = ci95[name] = methods[name] = times[name] = None
            unmeasured["latency_s.p99"] = (
                f"{n} samples; a 99th percentile needs at least {P99_MIN_SAMPLES} (raise --repetitions)"
            )
            continue
        figures[name] = percentile(series.ordered, q)
        found = series.quantile(q)
        ci95[name] = None if found.bounds is None else list(found.bounds)
        methods[name], times[name] = found.method, round(found.correlation_time, 2)
        if found.reason is not None:
            unmeasured[f"latency_s.ci95.{name}"] = found.reason
    mean, std = moments(samples_s)
    if std is None:
        unmeasured["latency_s.std"] = "one sample has no spread"
    figures.update(n=n, mean=mean, std=std, min=series.ordered[0], max=series.ordered[-1])
    figures.update(ci95=ci95, ci95_method=methods, correlation_time=times)
    figures["drift"] = drift(samples_s)
    if figures["drift"] is None:
        unmeasured["latency_s.drift"] = f"{n} samples are too few to compare the first third with the last"
    figures.update(samples=list(samples_s), warmup_samples=list(warmup_s))
    return figures, unmeasured


def throughput(samples_s: Sequence[float], batch_size: int) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The ``throughput`` part of a record of batches run back to back, and the reasons of its nulls.

    Args:
        samples_s: Seconds of every batch, in order, at least one.
        batch_size: Samples in each.

    Returns:
        {samples_per_s, ci95, ci95_method, batch_size, batches} and key -> reason. The rate is batch size / mean
        seconds of a batch, its interval that of the mean.
    """
    mean, _ = moments(samples_s)
    if mean <= 0:
        reason = "the clock of the device saw no time pass"
        empty: Dict[str, Any] = {"samples_per_s": None, "ci95": None, "ci95_method": None}
        return {**empty, "batch_size": batch_size, "batches": len(samples_s)}, {"throughput.samples_per_s": reason}
    found = Series(samples_s).mean()
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
