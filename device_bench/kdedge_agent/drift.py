"""Whether latencies change while they are measured: the last third of a run against the first, in order."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kdedge_agent.between_starts import mean_and_error, split
from kdedge_agent.intervals import Series
from kdedge_agent.order_statistics import percentile
from kdedge_agent.student import student

_PARTS, _PART_SAMPLES = 10, 5
_MIN_THIRD = 3


def drift(samples: Sequence[float], starts: Sequence[int] = ()) -> Optional[Dict[str, Any]]:
    """The last third of the run against the first, in the order they were taken; None below 9 samples.

    Starts of the worker differ from each other, which is no drift: with several of them the run drifts where the
    starts drift inside, by their own thirds, the same way and far enough.

    Args:
        samples: In order, of several starts one after the other.
        starts: How many there are of each start; empty for one.

    Returns:
        first_p50, last_p50 in the unit of the samples; ratio last/first; significant: whether the two medians'
        95% intervals lie apart, or, where samples hang together too much for intervals, all medians of ten parts of
        the one third from all of the other's (None where a third is too short for either). Of several starts also
        inside: {ratio, significant}, the geometric mean of the starts' own ratios, and whether Student's t over the
        starts tells it from 1 (None where a start has less than 9 samples); significant then says whether inside is,
        and would make at least half of the whole's drift if one start went on where the last one ended.
    """
    third = len(samples) // 3
    if third < _MIN_THIRD:
        return None
    first, last = Series(samples[:third]), Series(samples[-third:])
    a, b = percentile(first.ordered, 0.5), percentile(last.ordered, 0.5)
    found = {"first_p50": a, "last_p50": b, "ratio": b / a if a else None}
    if len(starts) > 1:
        inside = _inside(split(samples, starts))
        return {**found, "significant": _explained(a, b, inside, len(starts)), "inside": inside}
    ranges = first.quantile(0.5).bounds, last.quantile(0.5).bounds
    if ranges[0] is None or ranges[1] is None:
        ranges = _range_of_parts(samples[:third]), _range_of_parts(samples[-third:])
    apart = None
    if ranges[0] is not None and ranges[1] is not None:
        apart = ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]
    return {**found, "significant": apart}


def _explained(first: float, last: float, inside: Dict[str, Any], starts: int) -> Optional[bool]:
    """Whether what happens inside the starts, one after the other, explains what lies between the ends of the run."""
    if inside["significant"] is None or min(first, last) <= 0:
        return None
    whole, carried = math.log(last / first), starts * math.log(inside["ratio"])
    return bool(inside["significant"] and whole * carried > 0 and abs(carried) >= abs(whole) / 2)


def _inside(parts: Sequence[Sequence[float]]) -> Dict[str, Any]:
    """Last third against first within each start."""
    logs: List[float] = []
    for part in parts:
        third = len(part) // 3
        medians = [percentile(sorted(own), 0.5) for own in (part[:third], part[-third:])] if third else [0.0]
        if third < _MIN_THIRD or min(medians) <= 0:
            return {"ratio": None, "significant": None}
        logs.append(math.log(medians[1] / medians[0]))
    mean, error = mean_and_error(logs)
    return {"ratio": math.exp(mean), "significant": abs(mean) > student(len(logs) - 1) * (error or 0.0)}


def _range_of_parts(samples: Sequence[float]) -> Optional[Tuple[float, float]]:
    """Least and greatest median of ten consecutive parts; None below five samples a part."""
    length = len(samples) // _PARTS
    if length < _PART_SAMPLES:
        return None
    medians = [percentile(sorted(samples[part * length : (part + 1) * length]), 0.5) for part in range(_PARTS)]
    return min(medians), max(medians)
