"""Joules of an inference from sampled watts: a window under load between two windows of idle.

Power is sampled by the agent's own process while the worker runs, in a window in which nothing is timed; so the
sampler cannot slow what is timed. gross = E/N with E the integral over the load window; net = (E - P_idle*T)/N with
P_idle the mean of the two idle windows. Where their intervals come from is in :mod:`kdedge_agent.power_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

from kdedge_agent import power_interval
from kdedge_agent.power_interval import MeanPower, interval, together
from kdedge_agent.power_readings import Readings, integrate
from kdedge_agent.power_source import PowerSource
from kdedge_agent.sampler import PowerSample, Sampler

__all__ = [
    "PowerSample",
    "Sampler",
    "Windows",
    "account",
    "integrate",
    "needed_s",
    "period_s",
    "settle_s",
    "wanted_s",
    "window_s",
]

MIN_PERIODS = 100
"""A load window lasts at least so many periods of its sensor."""
MIN_IDLE_PERIODS = 20
"""Likewise each window of idle."""
SETTLE_PERIODS = 3
MIN_SETTLE_S = 0.3
MAX_WINDOW_S = 300.0
"""A sensor slower than 3 s gives fewer periods, and an interval that says so."""
TARGET = 0.01
"""Half-width, relative to the mean, that a window grows for."""
SURPLUS = 1.25
"""A window grows by so much more, because its beginning knows the scatter no better."""
RATE_MARGIN = 1.02
"""A window is made so much longer than its periods: what is read after it may tell of a slightly slower sensor."""
COVERS_95 = (
    "sampling, sensor resolution, timing, bursts in step, gaps and drift of idle; not the calibration of the sensor"
)


@dataclass(frozen=True)
class Windows:
    """Seconds on the monotonic clock that bound idle, load and idle; inferences of the load, so many a call."""

    idle_before: Tuple[float, float]
    load: Tuple[float, float]
    idle_after: Tuple[float, float]
    inferences: int
    batch: int = 1

    @property
    def calls(self) -> float:
        """Of the runtime, whose bursts the sensor sees."""
        return self.inferences / self.batch


def window_s(asked_s: float, sensor_s: float, periods: int = MIN_PERIODS) -> float:
    """Length of a window in seconds: as asked, but at least so many periods of the sensor, as far as 300 s allow."""
    return max(asked_s, min(periods * sensor_s, MAX_WINDOW_S))


def wanted_s(source: PowerSource, samples: Sequence[PowerSample], bounds: Tuple[float, float]) -> float:
    """Length in seconds that a load window should have, from what was read in its beginning.

    100 periods of the sensor as it turned out to be, and as long as makes the interval of a varying power 1% of it to
    either side; 300 s at most. To be asked once (Stein, Annals of Mathematical Statistics 16, 1945): who looks again
    and again and stops at a narrow interval finds intervals that are too narrow.
    """
    seconds = bounds[1] - bounds[0]
    readings = Readings(source, samples)
    wanted = window_s(seconds, RATE_MARGIN * readings.rate.period_s)
    load = readings.mean_power(bounds) if source.total_rails else None
    if load is None or load.watts <= 0:
        return wanted
    return max(wanted, min(MAX_WINDOW_S, seconds * SURPLUS * (load.error_w["sampling"] / (TARGET * load.watts)) ** 2))


def needed_s(source: PowerSource, samples: Sequence[PowerSample], seconds: float) -> float:
    """Length in seconds of a window of so many seconds that has 100 periods of the sensor as it is read by now.

    May be asked again and again: it does not look at the power.
    """
    return window_s(seconds, RATE_MARGIN * period_s(source, samples))


def period_s(source: PowerSource, samples: Sequence[PowerSample]) -> float:
    """Seconds between two new values of the sensor, as the readings tell."""
    return Readings(source, samples).rate.period_s


def settle_s(sensor_s: float) -> float:
    """Seconds in which neither the sensor's last value nor the processor's clock still belong to what went before."""
    return max(MIN_SETTLE_S, min(SETTLE_PERIODS * sensor_s, MAX_WINDOW_S / 10))


def account(source: PowerSource, samples: Sequence[PowerSample], windows: Windows) -> Dict[str, Any]:
    """The record's ``power`` part.

    Returns:
        source, covers (what the total is of), total_rails, period_s (as declared), sensor_period_s, sensor_hz and
        sensor_rate_from (as found), window_s, window_monotonic_s ([begin, end] of the load window on the monotonic
        clock that stamped the readings), sensor_periods (in it, as long as they were until its end: later readings may
        come more slowly) and readings (in it), inferences, rails_w (mean under
        load by rail), load_w, idle_before_w, idle_after_w, idle_window_s (both), idle_drift_w, gross_, net_ and
        net_error_j_per_inference (what the drift of the idle power alone makes uncertain), load_w_ci95,
        gross_j_per_inference_ci95, net_j_per_inference_ci95, error_w and net_error_w (95% half-widths in W by
        cause), ci95_covers,
        gap_s (seconds of the load window without readings), samples [[seconds since the load began, watts]],
        reasons key -> why it is None.
    """
    begin, end = windows.load
    readings = Readings(source, samples)
    rate = readings.rate
    result: Dict[str, Any] = {
        "source": source.name,
        "covers": source.covers,
        "total_rails": list(source.total_rails),
        "period_s": source.period_s,
        "sensor_period_s": rate.period_s,
        "sensor_hz": 1.0 / rate.period_s,
        "sensor_rate_from": rate.how,
        "window_s": end - begin,
        "window_monotonic_s": [begin, end],
        "sensor_periods": (end - begin) / period_s(source, [sample for sample in samples if sample.at_s <= end]),
        "inferences": windows.inferences,
        "ci95_covers": COVERS_95,
        "rails_w": {rail: readings.mean_w(points, windows.load) for rail, points in readings.rails.items()},
        "samples": [[round(at_s - begin, 6), round(watts, 6)] for at_s, watts in readings.total],
    }
    known = bool(source.total_rails)
    load = readings.mean_power(windows.load, windows.calls) if known else None
    idle = [readings.mean_power(w) if known else None for w in (windows.idle_before, windows.idle_after)]
    result["idle_window_s"] = [b - a for a, b in (windows.idle_before, windows.idle_after)]
    result["readings"] = None if load is None else load.readings
    result["gap_s"] = None if load is None else load.gap_s
    result["reasons"] = _reasons(source, load, idle, end - begin, result["idle_window_s"])
    idle = [part if part and part.answered(seconds) else None for part, seconds in zip(idle, result["idle_window_s"])]
    result.update(_figures(None if "load_w" in result["reasons"] else load, idle, end - begin, windows))
    return result


def _figures(
    load: Optional[MeanPower], idle: Sequence[Optional[MeanPower]], seconds: float, windows: Windows
) -> Dict[str, Any]:
    """Watts, joules per inference and their intervals; None for what is not there."""
    before, after = idle
    found: Dict[str, Any] = {
        "load_w": None if load is None else load.watts,
        "idle_before_w": None if before is None else before.watts,
        "idle_after_w": None if after is None else after.watts,
    }
    found.update(dict.fromkeys(("gross_j_per_inference", "net_j_per_inference", "net_error_j_per_inference")))
    found.update(dict.fromkeys(("load_w_ci95", "gross_j_per_inference_ci95", "net_j_per_inference_ci95")))
    found.update(idle_drift_w=None, error_w=None, net_error_w=None)
    if load is None or windows.inferences < 1:
        return found
    each = seconds / windows.inferences
    found["error_w"] = dict(load.error_w)
    found["load_w_ci95"] = interval(load.watts, load.half_w)
    found["gross_j_per_inference"] = load.watts * each
    found["gross_j_per_inference_ci95"] = interval(load.watts * each, load.half_w * each)
    if before is None or after is None:
        return found
    drift = after.watts - before.watts
    errors = power_interval.net_errors(load, before, after)
    net = (load.watts - (before.watts + after.watts) / 2) * each
    half = together(list(errors.values())) * each
    found["net_error_w"] = errors
    found.update(idle_drift_w=drift, net_j_per_inference=net, net_error_j_per_inference=abs(drift) / 2 * each)
    found["net_j_per_inference_ci95"] = interval(net, half)
    return found


def _reasons(
    source: PowerSource,
    load: Optional[MeanPower],
    idle: Sequence[Optional[MeanPower]],
    seconds: float,
    idle_s: Sequence[float],
) -> Dict[str, str]:
    """Why a figure is None, by its key."""
    reasons: Dict[str, str] = {}
    why = None
    if not source.total_rails:
        why = source.covers
    elif load is None:
        why = "the sensor gave too few readings in the window"
    elif not load.answered(seconds):
        why = f"the sensor did not answer for {load.gap_s:.3g} s of the {seconds:.3g} s under load"
    elif load.watts <= 0:
        cause = "the counter stands still" if source.averages else "the sensor's shunt may be wired the other way round"
        why = f"the mean under load is {load.watts:.3g} W: {cause}"
    if why:
        reasons["load_w"] = reasons["gross_j_per_inference"] = reasons["net_j_per_inference"] = why
    elif any(part is None for part in idle):
        reasons["net_j_per_inference"] = "no idle windows, or too short for the sensor (idle_s)"
    elif not all(part.answered(length) for part, length in zip(idle, idle_s) if part):
        reasons["net_j_per_inference"] = "the sensor did not answer for much of the idle windows"
    return reasons
