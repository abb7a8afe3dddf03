"""Joules of an inference from a meter on the host: its readings over windows that the device's clock stamps.

The agent holds idle, load and idle and says when each began and ended; those moments are mapped to the host's clock
(``clocks``), and the agent's own estimator (``kdedge_agent.energy``) integrates the meter's readings over them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from kdedge.errors import UserError

from kdedge_agent import energy
from kdedge_agent.power_source import PowerSource
from kdedge_bench.channel import AgentChannel, Message
from kdedge_bench.clocks import ClockMap, measure_offset
from kdedge_bench.collector import Collector
from kdedge_bench.devices import Device
from kdedge_bench.meter_error import MIN_READINGS, Bounds, Budget, Point, ci95, coverage_problem
from kdedge_bench.meters import Meter, MeterError, find_meter
from kdedge_bench.validate import not_a_result

POWER_WINDOW_S = 10.0
IDLE_S = 2.0
IDLE_PERIODS = 15
MAX_PERIOD_S = 10.0
MAX_MOMENT_S = 1e12
PATIENCE_S = 5.0
"""So long after the run a logger's last lines are waited for."""
COVERS = "edges of the window, clocks, silence and noise of the meter; not its accuracy"
COVERS_ACCURACY = "edges of the window, clocks, silence, noise and stated accuracy of the meter"
_FIGURES = (
    "load_w",
    "idle_before_w",
    "idle_after_w",
    "idle_drift_w",
    "gross_j_per_inference",
    "net_j_per_inference",
    "net_error_j_per_inference",
    "load_w_ci95",
    "gross_j_per_inference_ci95",
    "net_j_per_inference_ci95",
    "error_w",
    "net_error_w",
)


class Metering:
    """A run under the eyes of a meter.

    Args:
        meter: It, opened.
        collector: Of its readings, running.
        device: What is measured, for messages.
        accuracy: Of the meter, as a share of its reading; None where nobody states it.

    Attributes:
        period_s: Seconds between its readings, as measured.
    """

    def __init__(self, meter: Meter, collector: Collector, device: Device, accuracy: float | None) -> None:
        self._meter, self._collector, self._device = meter, collector, device
        self._accuracy = meter.accuracy if accuracy is None else accuracy
        self.period_s = collector.period_s()
        if self.period_s > MAX_PERIOD_S:
            raise MeterError(
                f"the meter gives a reading only every {self.period_s:.3g} s",
                where=meter.name,
                cure=f"Use one that reads every {MAX_PERIOD_S:g} s or faster; a window has {energy.MIN_PERIODS}",
            )

    def wishes(self) -> dict[str, Any]:
        """Of the ``RunRequest``: windows that are long enough for the meter's rate."""
        idle_s = IDLE_PERIODS * self.period_s + 2 * self._meter.time_error_s
        return {
            "external_meter": True,
            "power_window_s": energy.window_s(POWER_WINDOW_S, self.period_s),
            "idle_s": max(IDLE_S, idle_s),
        }

    def measured(self, agent: AgentChannel, measure: Callable[[], Message]) -> Message:
        """The agent's answer to ``measure``, with the meter's figures in place of a sensor's.

        Raises:
            KdedgeError: what ``measure`` raises; never because of the meter, whose failure is a reason in the answer.
        """
        before = measure_offset(lambda: self._clock_s(agent))
        answer = measure()
        clocks = ClockMap(before, measure_offset(lambda: self._clock_s(agent)))
        windows = self._windows(answer)
        if not isinstance(answer.get("unmeasured"), dict):
            raise not_a_result("it does not say what was not measured", self._device)
        mapped = _mapped(windows, clocks)
        self._collector.wait_past(mapped.idle_after[1], patience_s=max(PATIENCE_S, 3 * self.period_s))
        readings = self._collector.stop()
        power, problem = self._account(readings, mapped, clocks)
        return _with_power(answer, power, problem)

    def _clock_s(self, agent: AgentChannel) -> float:
        value = agent.request({"type": "clock"}).get("clock_s")
        if not _is_moment(value):
            raise not_a_result("its clock is no number", self._device)
        return float(value)

    def _windows(self, answer: Mapping[str, Any]) -> energy.Windows:
        """The windows as the device stamped them.

        Raises:
            WireError: there are none, or they are none.
        """
        found = answer.get("power_windows")
        bounds = [found.get(key) for key in ("idle_before", "load", "idle_after")] if isinstance(found, dict) else []
        moments = [moment for pair in bounds if isinstance(pair, list) and len(pair) == 2 for moment in pair]
        count, batch = (_count(found.get(key)) if isinstance(found, dict) else 0 for key in ("inferences", "batch"))
        in_order = len(moments) == 6 and all(map(_is_moment, moments)) and moments == sorted(moments)
        if not in_order or count < 1 or batch < 1:
            raise not_a_result("it does not say when its windows under load and idle were", self._device)
        before, load, after = ((float(a), float(b)) for a, b in zip(moments[::2], moments[1::2], strict=True))
        return energy.Windows(before, load, after, count, batch)

    def _account(
        self, readings: Sequence[Point], windows: energy.Windows, clocks: ClockMap
    ) -> tuple[dict[str, Any], str | None]:
        """The record's ``power`` part, and why it holds no figure (None if it does)."""
        source = PowerSource(self.period_s, ["total"], ["total"], self._meter.covers)
        source.name = f"meter: {self._meter.name}"
        margin_s = self.period_s + clocks.uncertainty_s + self._meter.time_error_s
        idle_before, idle_after = (
            _read_part(_trimmed(bounds, margin_s), readings) for bounds in (windows.idle_before, windows.idle_after)
        )
        inner = energy.Windows(idle_before, windows.load, idle_after, windows.inferences, windows.batch)
        power = energy.account(source, [energy.PowerSample(t_s, {"total": w}) for t_s, w in readings], inner)
        if power["load_w"] is not None and power["net_j_per_inference"] is None:
            power["reasons"]["net_j_per_inference"] = f"{self._meter.name}: too few readings while the device was idle"
        problem = self._problem(readings, windows, clocks)
        if problem is None and power["load_w"] is not None:
            shift_s = clocks.uncertainty_s + self._meter.time_error_s
            budget = Budget.of(readings, windows.load, self.period_s, shift_s, clocks.uncertainty_s, self._accuracy)
            power.update(ci95(power, budget, readings, inner))
            power["error_j"] = budget.to_dict()
            power["error_w"] = budget.watts(power["window_s"])
            power["net_error_w"] = None  # idle's part stands in the interval alone
            power["ci95_covers"] = COVERS if self._accuracy is None else COVERS_ACCURACY
        begin_s = windows.load[0]
        power["windows_s"] = {
            "idle_before": [t_s - begin_s for t_s in inner.idle_before],
            "load": [0.0, windows.load[1] - begin_s],
            "idle_after": [t_s - begin_s for t_s in inner.idle_after],
        }
        power["clock"] = {
            "offset_s": clocks.before.offset_s,
            "uncertainty_s": clocks.uncertainty_s,
            "drift": clocks.drift,
            "round_trip_s": [2 * clocks.before.uncertainty_s, 2 * clocks.after.uncertainty_s],
        }
        power["meter"] = {
            "name": self._meter.name,
            "period_s": self.period_s,
            "accuracy": self._accuracy,
            "time_error_s": self._meter.time_error_s,
            "readings": len(readings),
        }
        return power, problem

    def _problem(self, readings: Sequence[Point], windows: energy.Windows, clocks: ClockMap) -> str | None:
        if (jumped := clocks.problem()) is not None:
            return jumped
        slack_s = clocks.uncertainty_s
        if (
            not clocks.before.at_s - slack_s
            <= windows.idle_before[0]
            <= windows.idle_after[1]
            <= clocks.after.at_s + slack_s
        ):
            return "the device's clock was set during the run: it stamped its windows outside of it"
        missing = coverage_problem(readings, windows.load, self.period_s)
        if missing is None:
            return None
        failure = "" if self._collector.failure is None else f": {self._collector.failure}"
        return f"{self._meter.name}: {missing}{failure}"


@contextlib.contextmanager
def metering(
    meter: Meter | str, device: Device, *, accuracy: float | None = None, tell: Callable[[str], None]
) -> Iterator[Metering]:
    """Open a meter and measure its rate; on leaving, let go of it.

    Args:
        meter: A meter, or what ``--meter`` says.
        device: What is to be measured.
        accuracy: Of the meter, as a share of its reading.
        tell: Told what goes on, in a line.

    Raises:
        UserError: no such meter, or an accuracy that is none.
        MeterError: it does not answer, or is too slow.
    """
    if accuracy is not None and not 0 <= accuracy < 1:
        raise UserError(f"a meter's accuracy of {accuracy:g} is none", cure="Give a share: 0.01 for ±1% of the reading")
    found = find_meter(meter) if isinstance(meter, str) else meter
    with Collector(found) as collector:
        tell(f"measuring the rate of the {found.name}")
        yield Metering(found, collector, device, accuracy)


def _mapped(windows: energy.Windows, clocks: ClockMap) -> energy.Windows:
    pairs = [
        (clocks.to_host_s(begin), clocks.to_host_s(end))
        for begin, end in (windows.idle_before, windows.load, windows.idle_after)
    ]
    return energy.Windows(pairs[0], pairs[1], pairs[2], windows.inferences, windows.batch)


def _trimmed(bounds: Bounds, margin_s: float) -> Bounds:
    """An idle window without its ends, at which a meter may still (or again) see the load; never less than nothing."""
    middle = (bounds[0] + bounds[1]) / 2
    return min(bounds[0] + margin_s, middle), max(bounds[1] - margin_s, middle)


def _read_part(bounds: Bounds, readings: Sequence[Point]) -> Bounds:
    """What of a window the readings span; an empty one where too few of them lie in it."""
    inside = [t_s for t_s, _ in readings if bounds[0] <= t_s <= bounds[1]]
    return (inside[0], inside[-1]) if len(inside) >= MIN_READINGS else (bounds[0], bounds[0])


def _with_power(answer: Message, power: dict[str, Any], problem: str | None) -> Message:
    """The answer with the meter's figures, and the reasons of those that are missing."""
    reasons = power.pop("reasons")
    if problem is not None:
        power.update(dict.fromkeys(_FIGURES))
        power["rails_w"] = {"total": None}
        reasons = dict.fromkeys(("load_w", "gross_j_per_inference", "net_j_per_inference"), problem)
    unmeasured = {**answer["unmeasured"], **{f"power.{key}": reason for key, reason in reasons.items()}}
    for key, name in (("load_w", "power_w"), ("gross_j_per_inference", "energy_j_per_inference")):
        unmeasured.pop(name, None)
        if power[key] is None:
            unmeasured[name] = reasons[key]
    return {
        **answer,
        "power": power,
        "power_w": power["load_w"],
        "energy_j_per_inference": power["gross_j_per_inference"],
        "unmeasured": unmeasured,
    }


def _count(value: object) -> int:
    """A whole number; 0 of what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_moment(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_MOMENT_S
