"""The readings of a run: integrals over its windows, and their means with errors."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

from kdedge_agent import power_interval
from kdedge_agent.power_interval import MeanPower
from kdedge_agent.power_source import PowerSource
from kdedge_agent.sampler import PowerSample
from kdedge_agent.sensor_rate import Point, SensorRate, find_rate, nodes, updates


def integrate(points: Sequence[Point], begin_s: float, end_s: float, averages: bool = False) -> Optional[float]:
    """Joules between two moments, from (seconds, watts) in order; None without a point to go by.

    Trapezoids, with the ends interpolated and the first and last value held beyond them. With ``averages`` each
    value is the mean since the point before, so that steps are exact.
    """
    if not points or end_s <= begin_s:
        return None
    joules, last_s, last_w = 0.0, begin_s, _value_at(points, begin_s, averages)
    for at_s, watts in points:
        if at_s <= begin_s:
            continue
        if at_s >= end_s:
            break
        joules += (at_s - last_s) * (watts if averages else (last_w + watts) / 2)
        last_s, last_w = at_s, watts
    end_w = _value_at(points, end_s, averages)
    return joules + (end_s - last_s) * (end_w if averages else (last_w + end_w) / 2)


def _value_at(points: Sequence[Point], at_s: float, averages: bool) -> float:
    """Watts at a moment: interpolated, or of the interval it lies in."""
    before: Optional[Point] = None
    for point in points:
        if point[0] >= at_s:
            if averages or before is None or point[0] == before[0]:
                return point[1]
            share = (at_s - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return points[-1][1]


class Readings:
    """All readings of a run: points by rail and in total, and what they tell of the sensor."""

    def __init__(self, source: PowerSource, samples: Sequence[PowerSample]) -> None:
        self.source = source
        self.rails = {rail: [(s.at_s, s.watts[rail]) for s in samples] for rail in source.rails}
        self.total = [(s.at_s, total) for s in samples for total in [source.total(s.watts)] if total is not None]
        # Any rail that changes shows that the sensor converted.
        self.rate: SensorRate = find_rate(
            [s.at_s for s in samples], [tuple(s.watts.values()) for s in samples], source.period_s
        )
        steps = source.steps_w()
        self.steps = {rail: steps.get(rail, _step(self.rails[rail])) for rail in source.total_rails}

    def mean_w(self, points: Sequence[Point], bounds: Tuple[float, float]) -> Optional[float]:
        """Mean watts between the bounds; None with fewer than two readings in them."""
        line = points if self.source.averages else nodes(points, self.rate)
        # What lies outside belongs to another window: the ends are held, not interpolated.
        inside = [point for point in line if bounds[0] <= point[0] <= bounds[1]]
        joules = integrate(inside, bounds[0], bounds[1], self.source.averages) if len(inside) >= 2 else None
        return None if joules is None else joules / (bounds[1] - bounds[0])

    def mean_power(self, bounds: Tuple[float, float], calls: float = 0.0) -> Optional[MeanPower]:
        """Mean of the total with its errors; None with too few readings, or too few because the sensor was gone."""
        values = updates(self.total, self.rate, bounds)
        watts = self.mean_w(self.total, bounds)
        if watts is None or len(values) < power_interval.MIN_READINGS:
            return None
        seconds = bounds[1] - bounds[0]
        spread_w = max(values) - min(values)
        if self.source.averages:
            # A counter misses nothing but where in its intervals the window begins and ends.
            errors = dict.fromkeys(power_interval.CAUSES, 0.0)
            errors["timing"] = spread_w * self.rate.polled_s / seconds
            return MeanPower(watts, errors, len(values), 0.0)
        times = [at_s for at_s, _ in self.total]
        holes = power_interval.gaps(times, bounds, max(self.rate.polled_s, self.rate.period_s))
        gap_s = sum(b - a for a, b in holes)
        inside = [at_s for at_s in times if bounds[0] <= at_s <= bounds[1]]
        ends = max(1, len(values) // 20)
        edge_w = sum(values[:ends]) / ends - sum(values[-ends:]) / ends
        errors = {
            "sampling": power_interval.sampling_w(values, max(self.steps.values())),
            "resolution": self._resolution_w(bounds),
            "timing": abs(edge_w) * self.rate.period_s / 2 / seconds if self.rate.held else 0.0,
            "beat": power_interval.beat_w(inside, values, self.rate, calls, seconds),
            "gaps": spread_w * gap_s / seconds,
        }
        return MeanPower(watts, errors, len(values), gap_s)

    def _resolution_w(self, bounds: Tuple[float, float]) -> float:
        halves = []
        for rail in self.source.total_rails:
            values = updates(self.rails[rail], self.rate, bounds)
            halves.append(power_interval.resolution_w(values, self.steps[rail]))
        return power_interval.of_rails(halves)


def _step(points: Sequence[Point]) -> float:
    return power_interval.smallest_step([watts for _, watts in points])
