"""Figures of several starts of one process, with 95% intervals that hold what the next start will find.

Some conditions a process keeps for its life: where its memory came to lie, which pages it got, where its threads
landed. They make all its samples faster or slower together, so that more samples of one process do not tell of them;
more processes do (Georges, Buytaert and Eeckhout, Statistically rigorous Java performance evaluation, OOPSLA 2007;
Kalibera and Jones, Rigorous benchmarking in reasonable time, ISMM 2013). Hence the start is what is sampled. A figure
is the geometric mean of the starts' own, its interval Student's t with one degree of freedom less than there are
starts, on their logarithms, so that no bound falls below zero. A bootstrap of few starts would be too narrow: three of
them have ten different resamples. Of two starts t would give twelve standard errors to either side, which says nothing:
there is no interval then, but the reason.

Few starts can agree by chance. The interval of the order statistics of all samples together is therefore always part of
a percentile's interval, as if starts did not differ.

A percentile is that of a start, not of all samples poured together: where starts differ as much as samples within one,
the p90 of the pool is the p90 of its slow starts, and a few starts cannot bound it.
"""

from __future__ import annotations

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

from kdedge_agent.student import student

METHOD = "t over starts"
MIN_STARTS = 3


class AcrossStarts(NamedTuple):
    """A figure of several starts.

    Attributes:
        figure: Geometric mean of the starts' own; arithmetic where one of them is zero.
        bounds: Its 95% interval, or None.
        reason: Why there is none; None exactly if bounds are there.
    """

    figure: float
    bounds: Optional[Tuple[float, float]]
    reason: Optional[str]


def split(samples: Sequence[float], starts: Sequence[int]) -> List[Sequence[float]]:
    """The samples of each start, in order.

    Args:
        samples: Of all starts, one start after the other.
        starts: How many there are of each.
    """
    parts, begin = [], 0
    for count in starts:
        parts.append(samples[begin : begin + count])
        begin += count
    return parts


def across(figures: Sequence[float], pooled: Optional[Tuple[float, float]] = None) -> AcrossStarts:
    """One figure of several starts.

    Args:
        figures: Of each start, none negative.
        pooled: An interval that is to be part of the interval.
    """
    n = len(figures)
    if min(figures) <= 0:
        return AcrossStarts(
            math.fsum(figures) / n, None, "a start's figure is 0: the clock of the device is too coarse"
        )
    mean, error = mean_and_error([math.log(figure) for figure in figures])
    if n < MIN_STARTS or error is None:
        return AcrossStarts(
            math.exp(mean), None, f"{n} starts do not tell how much starts differ (--starts {MIN_STARTS} or more)"
        )
    half = student(n - 1) * error
    low, high = math.exp(mean - half), math.exp(mean + half)
    if pooled is not None:
        low, high = min(low, pooled[0]), max(high, pooled[1])
    return AcrossStarts(math.exp(mean), (low, high), None)


def mean_and_error(values: Sequence[float]) -> Tuple[float, Optional[float]]:
    """Mean and its standard error; no error below two values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
