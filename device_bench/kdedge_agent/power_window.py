"""Idle, load, idle: the windows that power is measured in, by a source of the device or for a meter on the host."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from kdedge_agent import energy, power
from kdedge_agent.errors import AgentFailure
from kdedge_agent.observe import GLANCE_EVERY_S
from kdedge_agent.power_source import PowerSource
from kdedge_agent.run_request import RunRequest
from kdedge_agent.server import Desk

Bounds = Tuple[float, float]


def measured(desk: Desk, asked: RunRequest, unmeasured: Dict[str, str]) -> Optional[Dict[str, Any]]:
    """Idle, load, idle under the eyes of the power source; None and the reason in ``unmeasured`` without one."""
    if not asked.power:
        reason: Optional[str] = "not asked for"
        source = None
    else:
        source, reason = power.discover()
    if source is None or desk.worker is None:
        unmeasured["power_w"] = unmeasured["energy_j_per_inference"] = reason or "no power source"
        return None
    sampler = energy.Sampler(source)
    sampler.start()
    try:
        windows = _windows(desk, asked, source, sampler)
    finally:
        samples = sampler.stop()
    powered = energy.account(source, samples, windows)
    powered.update(
        failed_readings=len(sampler.failures),
        reading=sampler.cost(),
        sources_found=power.survey(),
        estimate=source.estimate(powered["load_w"]),
    )
    reasons = powered.pop("reasons")
    if sampler.failures:
        reasons = {key: f"{reason}; {source.name} said: {sampler.failures[-1]}" for key, reason in reasons.items()}
    for key, name in (("load_w", "power_w"), ("gross_j_per_inference", "energy_j_per_inference")):
        if powered[key] is None:
            unmeasured[name] = reasons[key]
    unmeasured.update({f"power.{key}": reason for key, reason in reasons.items()})
    return powered


def work_done(powered: Optional[Mapping[str, Any]], windows: Optional[Mapping[str, Any]]) -> Tuple[int, float]:
    """Inferences in the window under load, and its seconds, from what either of the two gave."""
    if powered is not None:
        return int(powered["inferences"]), float(powered["window_s"])
    begin, end = (windows or {})["load"]
    return int((windows or {})["inferences"]), float(end - begin)


def held_for_meter(desk: Desk, asked: RunRequest) -> energy.Windows:
    """Idle, load, idle, as long as the host wants them; their bounds on this machine's monotonic clock."""
    idle_before = _idle(desk, asked.idle_s, "idle before")
    loaded = _load(desk, asked.power_window_s, 0.0, lambda _: asked.power_window_s, lambda seconds: seconds)
    idle_after = _idle(desk, asked.idle_s, "idle after")
    return _bounded(idle_before, loaded, idle_after)


def _windows(desk: Desk, asked: RunRequest, source: PowerSource, sampler: energy.Sampler) -> energy.Windows:
    """Idle, load, idle, each as long as the sensor needs; their bounds on this machine's monotonic clock."""
    settle_s = energy.settle_s(source.period_s)
    idle_s = energy.window_s(asked.idle_s, source.period_s, energy.MIN_IDLE_PERIODS) if asked.idle_s else 0.0
    _idle(desk, settle_s, "idle before")
    idle_before = _idle(desk, idle_s, "idle before")
    # A sensor that turns out to be slower than it declares gets longer windows.
    period_s = max(source.period_s, energy.period_s(source, sampler.samples()))
    settle_s = energy.settle_s(period_s)
    longer_s = energy.window_s(idle_s, period_s, energy.MIN_IDLE_PERIODS) if asked.idle_s else 0.0
    if longer_s > idle_s:
        idle_before = idle_before[0] + settle_s, _idle(desk, longer_s + settle_s - idle_s, "idle before")[1]
    first_s = energy.window_s(asked.power_window_s, period_s)
    loaded = _load(
        desk,
        first_s,
        settle_s,
        lambda bounds: energy.wanted_s(source, sampler.samples(), bounds),
        # On a busy board readings come late, and later still while the window grows.
        lambda seconds: energy.needed_s(source, sampler.samples(), seconds),
    )
    _idle(desk, settle_s, "idle after")
    idle_after = _idle(desk, longer_s, "idle after")
    return _bounded(idle_before, loaded, idle_after)


def _bounded(before: Tuple[float, float], loaded: Mapping[str, Any], after: Tuple[float, float]) -> energy.Windows:
    bounds = (float(loaded["begin_s"]), float(loaded["end_s"]))
    return energy.Windows(before, bounds, after, int(loaded["inferences"]), int(loaded["batch"]))


def _idle(desk: Desk, seconds: float, phase: str) -> Tuple[float, float]:
    """Let so many seconds pass while the worker waits; the moments they began and ended."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        desk.progress(phase)
        desk.worker_says(min(GLANCE_EVERY_S, max(0.0, begin + seconds - time.monotonic())))
    return begin, time.monotonic()


def _load(
    desk: Desk, seconds: float, settle_s: float, longer_s: Callable[[Bounds], float], needed_s: Callable[[float], float]
) -> Dict[str, Any]:
    """Let the worker infer for so many seconds, or as many as are wanted then; how often it did, between which moments.

    ``longer_s`` is asked once, when the window is ``seconds`` long. ``needed_s`` is asked at every end that the window
    seems to have: it may not look at the power, only at what makes a window of that length too short.
    Before and after them it infers for ``settle_s`` seconds more.
    """
    worker = desk.worker
    if worker is None:
        raise AgentFailure("internal", "no worker for the power window")
    worker.send({"type": "load", "settle_s": settle_s})
    begin = float(_said(desk, "loading", seconds)["begin_s"])
    _pass(desk, begin, seconds)
    seconds = longer_s((begin, begin + seconds))
    _pass(desk, begin, seconds)
    needed = needed_s(seconds)
    while needed > seconds:
        seconds = needed
        _pass(desk, begin, seconds)
        needed = needed_s(seconds)
    worker.send({"type": "stop"})
    return _said(desk, "loaded", seconds, seconds)


def _said(desk: Desk, kind: str, seconds: float, done_s: float = 0.0) -> Dict[str, Any]:
    """The worker's next message of a kind, waited for."""
    while True:
        message = desk.worker_says(GLANCE_EVERY_S)
        if message is not None and message["type"] == kind:
            return message
        desk.progress("power", int(done_s), int(seconds))


def _pass(desk: Desk, begin: float, seconds: float) -> None:
    """Let time pass until so many seconds after a moment, telling how many have."""
    while time.monotonic() < begin + seconds:
        desk.progress("power", int(time.monotonic() - begin), int(seconds))
        desk.worker_says(min(GLANCE_EVERY_S, max(0.0, begin + seconds - time.monotonic())))
