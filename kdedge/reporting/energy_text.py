"""What stands beside a figure of power or energy: source, window, sensor, idle, and what its interval is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdedge.reporting.cells import WATTS
from kdedge.reporting.check import is_interval, is_number
from kdedge.reporting.text import plain

_SMALL = 0.0005
"""Of the load: a cause of error below it is not recited."""


def power_notes(power: Mapping[str, Any], counted: str = "inferences") -> list[str]:
    """Lines about the ``power`` part of a record, as far as it tells; a device may have sent anything.

    Args:
        power: That part.
        counted: What its ``inferences`` are: the samples of ``offline``, several of which are one call.

    Returns:
        Source and rule of its total; inferences, window and sensor; idle and its drift; the 95% interval by cause;
        gaps; what reading costs; what the source offers as an estimate.
    """
    tellers = (_idle, _errors, _gap, _reading, _estimate)
    parts = [_source(power), _window(power, counted), *(tell(power) for tell in tellers)]
    return [part for part in parts if part]


def _source(power: Mapping[str, Any]) -> str:
    if not power.get("source"):
        return ""
    covers = f" ({plain(power['covers'])})" if power.get("covers") else ""
    return f"source: {plain(power['source'])}{covers}"


def _window(power: Mapping[str, Any], counted: str) -> str:
    if not is_number(power.get("inferences")) or not is_number(power.get("window_s")):
        return ""
    text = f"{power['inferences']} {counted} in {power['window_s']:.3g} s"
    if is_number(power.get("sensor_periods")) and is_number(power.get("sensor_hz")):
        how = f", {plain(power['sensor_rate_from'])}" if power.get("sensor_rate_from") else ""
        text += f" = {power['sensor_periods']:.0f} sensor periods ({power['sensor_hz']:.3g} Hz{how})"
    return text


def _idle(power: Mapping[str, Any]) -> str:
    before, after = power.get("idle_before_w"), power.get("idle_after_w")
    if not is_number(before) or not is_number(after):
        return ""
    return f"idle {WATTS.text(before)} before, {WATTS.text(after)} after, drift {after - before:+.3g} W"


def _errors(power: Mapping[str, Any]) -> str:
    """Half-widths by cause in percent of the power under load, the largest first."""
    errors, load_w = power.get("net_error_w") or power.get("error_w"), power.get("load_w")
    if not isinstance(errors, Mapping) or not is_number(load_w) or load_w <= 0:
        return ""
    shares = {str(key): float(half) / load_w for key, half in errors.items() if is_number(half)}
    told = sorted((item for item in shares.items() if item[1] >= _SMALL), key=lambda item: -item[1])
    causes = ", ".join(f"{plain(key).replace('_', ' ')} ±{100 * share:.2g}%" for key, share in told)
    covers = f"; covers {plain(power['ci95_covers'])}" if power.get("ci95_covers") else ""
    return f"95% intervals, of the load: {causes or 'below 0.05%'}{covers}"


def _gap(power: Mapping[str, Any]) -> str:
    gap_s = power.get("gap_s")
    return f"the sensor did not answer for {gap_s:.3g} s of the window" if is_number(gap_s) and gap_s > 0 else ""


def _reading(power: Mapping[str, Any]) -> str:
    reading = power.get("reading")
    if (
        not isinstance(reading, Mapping)
        or not is_number(reading.get("read_s"))
        or not is_number(reading.get("cpu_share"))
    ):
        return ""
    return f"a reading takes {1e3 * reading['read_s']:.3g} ms; reading took {100 * reading['cpu_share']:.2g}% of a core"


def _estimate(power: Mapping[str, Any]) -> str:
    estimate = power.get("estimate")
    if not isinstance(estimate, Mapping) or not is_number(estimate.get("watts")):
        return ""
    why = f": {plain(estimate['why_estimate'])}" if estimate.get("why_estimate") else ""
    return f"about {WATTS.text(estimate['watts'])} at {plain(estimate.get('of'))} (an estimate{why})"


def energy_text(power: Mapping[str, Any]) -> str:
    """Gross and net millijoules of an inference with their 95% intervals; empty without a gross figure."""
    words = [
        f"{name} {1e3 * power[key]:.4g} mJ{_interval(power.get(f'{key}_ci95'))}"
        for name, key in (("gross", "gross_j_per_inference"), ("net of idle", "net_j_per_inference"))
        if is_number(power.get(key))
    ]
    return ", ".join(words)


def _interval(ends: object) -> str:
    return f" [{1e3 * ends[0]:.4g}, {1e3 * ends[1]:.4g}]" if is_interval(ends) else ""
