"""How often a power sensor really has a new value, found from readings that repeat, and the readings it then has.

A sensor that is asked more often than it converts answers with the same value again. Such repeats are no new
knowledge: they count neither as readings nor as evidence that the power was constant.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from dataclasses import dataclass
from typing import Hashable, List, Optional, Sequence, Tuple

Point = Tuple[float, float]

MIN_CHANGES = 5
"""Fewer changes of the value than this say nothing about a rate."""
STRIDE = 10
"""Readings lie at random places in their periods: a distance over ten of them knows the period ten times better."""


@dataclass(frozen=True)
class SensorRate:
    """What the readings tell of the sensor.

    Attributes:
        period_s: Seconds between two new values, never less than ``polled_s``.
        polled_s: Seconds between two readings, whatever few of them come late.
        held: Whether one value is read several times over: the sensor has a slower clock of its own.
        how: In words, what the period rests on.
        unsure_s: 95% half-width of the period of a held value.
    """

    period_s: float
    polled_s: float
    held: bool
    how: str
    unsure_s: float = 0.0


def find_rate(times: Sequence[float], states: Sequence[Hashable], declared_s: float) -> SensorRate:
    """The rate of new values, from the moments of the readings and all that each of them said.

    Where at least half of the readings differ from the one before and none stays for long, the sensor has new values
    about as often as it is read. Where changes follow each other at neighbouring readings, but a value may stay for
    long as well, the sensor is fast and its steps are coarse. Else the value is held, and the period is the slope of
    a line through the moments of change: each distance of two changes counts as its multiple of the median distance,
    because a new value may equal the old one.
    """
    if len(times) < 2:
        return SensorRate(declared_s, declared_s, False, "declared by the source: too few readings to tell")
    polled_s = _between_readings(times)
    changes = [i for i in range(1, len(states)) if states[i] != states[i - 1]]
    if len(changes) < MIN_CHANGES:
        how = "declared by the source: its readings hardly change"
        return SensorRate(max(declared_s, polled_s), polled_s, False, how)
    share = len(changes) / (len(times) - 1)
    runs = [b - a for a, b in zip(changes, changes[1:])]
    if share >= 0.5 and max(runs) <= 3:
        return SensorRate(
            polled_s / share, polled_s, False, "its readings change as often as it is read: at least so fast"
        )
    if sum(run == 1 for run in runs) >= 0.1 * len(runs):
        return SensorRate(polled_s, polled_s, False, "its readings change from one to the next, in coarse steps")
    moments = [(times[i - 1] + times[i]) / 2 for i in changes]
    period_s, unsure_s = _line(moments)
    return SensorRate(max(period_s, polled_s), polled_s, True, "its readings repeat in between", unsure_s)


def _between_readings(times: Sequence[float]) -> float:
    """Median mean distance of ten readings that follow: of one alone, 140 readings leave it 2.5% unsure, not 0.3%."""
    stride = max(1, min(STRIDE, (len(times) - 1) // 5))
    return statistics.median(b - a for a, b in zip(times, times[stride:])) / stride


def _line(moments: Sequence[float]) -> Tuple[float, float]:
    """Slope of the line through moments over the periods between them, and its 95% half-width."""
    distances = [b - a for a, b in zip(moments, moments[1:])]
    typical = statistics.median(distances)
    numbers = [0]
    for distance in distances:
        numbers.append(numbers[-1] + max(1, round(distance / typical)))
    middle, centre = statistics.mean(numbers), statistics.mean(moments)
    spread = math.fsum((number - middle) ** 2 for number in numbers)
    slope = math.fsum((number - middle) * (at_s - centre) for number, at_s in zip(numbers, moments)) / spread
    rest = math.fsum((at_s - centre - slope * (number - middle)) ** 2 for number, at_s in zip(numbers, moments))
    return slope, 2 * math.sqrt(rest / (len(moments) - 2) / spread)


def updates(points: Sequence[Point], rate: SensorRate, bounds: Tuple[float, float]) -> List[float]:
    """One value a period of the sensor, of those that were read within the bounds, in order."""
    inside = [point for point in points if bounds[0] <= point[0] <= bounds[1]]
    if not rate.held or not inside:
        return [watts for _, watts in inside]
    times = [at_s for at_s, _ in inside]
    count = max(1, int((bounds[1] - bounds[0]) / rate.period_s))
    middle = [bounds[0] + (i + 0.5) * rate.period_s for i in range(count)]
    return [inside[max(0, bisect_right(times, at_s) - 1)][1] for at_s in middle]


def nodes(points: Sequence[Point], rate: SensorRate) -> List[Point]:
    """The points between which power is interpolated.

    A held value was true when the sensor made it. Of a run of equal readings, the first stands for the first of these
    moments, and the last moment is one period before the next value: between two moments lies a straight line, and
    within the run the value stands.
    """
    if not rate.held:
        return list(points)
    kept: List[Point] = []
    first: Optional[float] = None
    for i, (at_s, watts) in enumerate(points):
        if first is None:
            first = at_s
            kept.append((at_s, watts))
        following = points[i + 1] if i + 1 < len(points) else None
        if following is None or following[1] != watts:
            last_s = at_s if following is None else following[0] - rate.period_s
            if last_s > first:
                kept.append((last_s, watts))
            first = None
    return kept
