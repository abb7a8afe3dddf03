"""Joules of an inference from sampled watts: a window under load between two windows of idle.

Power is sampled by the agent's own process while the worker runs, in a window in which nothing is timed; so the
sampler cannot slow what is timed. gross = E/N with E the integral over the load window; net = (E - P_idle*T)/N.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kdedge_agent.power_source import PowerSource, SourceGone

MIN_PERIODS = 100
"""A load window lasts at least so many periods of its sensor."""

Point = Tuple[float, float]


@dataclass(frozen=True)
class PowerSample:
    """One reading: seconds on the monotonic clock (middle of the reading), watts by rail."""

    at_s: float
    watts: Dict[str, float]


def window_s(asked_s: float, period_s: float) -> float:
    """Length of the load window in seconds: as asked, but at least 100 periods of the sensor."""
    return max(asked_s, MIN_PERIODS * period_s)


class Sampler:
    """Reads a source at its own rhythm in a thread, until stopped."""

    def __init__(self, source: PowerSource) -> None:
        self._source = source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._samples: List[PowerSample] = []
        self.failures: List[str] = []

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> List[PowerSample]:
        """End, and hand over every sample, in order."""
        self._stop.set()
        self._thread.join()
        return list(self._samples)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            begin = time.monotonic()
            try:
                watts = self._source.read()
            except SourceGone as error:
                self.failures.append(str(error))
            else:
                # A counter's mean ends when it was read; another sensor's value lies somewhere within the reading.
                end = time.monotonic()
                self._samples.append(PowerSample(end if self._source.averages else (begin + end) / 2, watts))
            due = max(due + self._source.period_s, time.monotonic())
            self._stop.wait(due - time.monotonic())


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


@dataclass(frozen=True)
class Windows:
    """Seconds on the monotonic clock that bound idle before, load and idle after; inferences of the load."""

    idle_before: Tuple[float, float]
    load: Tuple[float, float]
    idle_after: Tuple[float, float]
    inferences: int


def _mean_w(points: Sequence[Point], bounds: Tuple[float, float], averages: bool) -> Optional[float]:
    inside = [point for point in points if bounds[0] <= point[0] <= bounds[1]]
    joules = integrate(points, bounds[0], bounds[1], averages) if len(inside) >= 2 else None
    return None if joules is None else joules / (bounds[1] - bounds[0])


def account(source: PowerSource, samples: Sequence[PowerSample], windows: Windows) -> Dict[str, Any]:
    """The record's ``power`` part.

    Returns:
        source, covers, period_s, rails_w (mean under load by rail), load_w, idle_before_w, idle_after_w,
        idle_drift_w, window_s, inferences, gross_j_per_inference, net_j_per_inference, net_error_j_per_inference
        (what the drift of the idle power alone makes uncertain), samples [[seconds since the load began, watts]],
        reasons key -> why it is None.
    """
    begin, end = windows.load
    result: Dict[str, Any] = {
        "source": source.name,
        "covers": source.covers,
        "period_s": source.period_s,
        "window_s": end - begin,
        "inferences": windows.inferences,
    }
    rails = {rail: [(s.at_s, s.watts[rail]) for s in samples] for rail in source.rails}
    result["rails_w"] = {rail: _mean_w(p, windows.load, source.averages) for rail, p in rails.items()}
    points = [(s.at_s, total) for s in samples for total in [source.total(s.watts)] if total is not None]
    result["samples"] = [[round(at_s - begin, 6), round(watts, 6)] for at_s, watts in points]
    load_w = _mean_w(points, windows.load, source.averages)
    before_w = _mean_w(points, windows.idle_before, source.averages)
    after_w = _mean_w(points, windows.idle_after, source.averages)
    result.update(load_w=load_w, idle_before_w=before_w, idle_after_w=after_w)
    result.update(_per_inference(load_w, before_w, after_w, end - begin, windows.inferences))
    result["reasons"] = _reasons(source, result)
    return result


def _per_inference(
    load_w: Optional[float], before_w: Optional[float], after_w: Optional[float], seconds: float, count: int
) -> Dict[str, Optional[float]]:
    gross = net = error = drift = None
    if load_w is not None and count > 0:
        gross = load_w * seconds / count
        if before_w is not None and after_w is not None:
            drift = after_w - before_w
            net = (load_w - (before_w + after_w) / 2) * seconds / count
            error = abs(drift) / 2 * seconds / count
    return {
        "gross_j_per_inference": gross,
        "net_j_per_inference": net,
        "net_error_j_per_inference": error,
        "idle_drift_w": drift,
    }


def _reasons(source: PowerSource, result: Dict[str, Any]) -> Dict[str, str]:
    reasons: Dict[str, str] = {}
    if result["load_w"] is None:
        why = source.covers if not source.total_rails else "the sensor gave too few readings in the window"
        reasons["load_w"] = reasons["gross_j_per_inference"] = why
    if result["net_j_per_inference"] is None:
        reasons["net_j_per_inference"] = reasons.get("load_w", "no idle windows (idle_s too short for the sensor)")
    return reasons
