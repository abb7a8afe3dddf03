from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge_agent import energy
from kdedge_agent.energy import PowerSample, Windows
from kdedge_agent.power_source import FileSource, SourceGone


def sampled(power_w: Callable[[float], float], until_s: float, hz: float, offset_s: float = 0.0) -> list[PowerSample]:
    count = int(until_s * hz) + 1
    return [PowerSample(offset_s + i / hz, {"VIN": power_w(offset_s + i / hz)}) for i in range(count)]


def source(total: bool = True, averages: bool = False) -> FileSource:
    made = FileSource("test", 0.1, {"VIN": lambda: 1.0}, ["VIN"] if total else [], "the input rail")
    made.averages = averages
    return made


def test_window_is_at_least_a_hundred_periods() -> None:
    assert energy.window_s(10.0, 0.05) == 10.0
    assert energy.window_s(1.0, 0.1) == pytest.approx(10.0)


@given(st.floats(0.01, 50.0), st.floats(0.0, 3.0), st.floats(0.1, 5.0))
def test_constant_power_is_exact_wherever_the_samples_lie(watts: float, begin: float, length: float) -> None:
    points = [(s.at_s, s.watts["VIN"]) for s in sampled(lambda _: watts, 10.0, 7.3)]
    assert energy.integrate(points, begin, begin + length) == pytest.approx(watts * length, rel=1e-9)


@given(st.floats(-2.0, 2.0), st.floats(0.05, 3.0), st.floats(0.1, 5.0))
def test_a_ramp_is_exact_by_trapezoids(slope: float, begin: float, length: float) -> None:
    points = [(i / 9.1, 30 + slope * i / 9.1) for i in range(100)]
    end = begin + length
    true = 30 * length + slope * (end**2 - begin**2) / 2
    assert energy.integrate(points, begin, end) == pytest.approx(true, rel=1e-9)


def test_a_sine_is_within_one_per_cent() -> None:
    points = [(i / 50, 5 + 2 * math.sin(i / 50 * 11)) for i in range(51 * 10)]
    true = 5 * 8.0 + 2 / 11 * (math.cos(11 * 1.0) - math.cos(11 * 9.0))
    assert energy.integrate(points, 1.0, 9.0) == pytest.approx(true, rel=0.01)


def test_counters_are_exact_over_steps() -> None:
    """A counter's reading is the mean since the one before: a step between two readings loses nothing."""
    points = [(1.0, 2.0), (2.0, 6.0), (4.0, 1.0)]  # 2 J, then 6 J, then 2 J
    assert energy.integrate(points, 0.0, 4.0, averages=True) == pytest.approx(10.0)
    assert energy.integrate(points, 0.5, 3.0, averages=True) == pytest.approx(1.0 + 6.0 + 1.0)


def test_nothing_to_go_by_is_none() -> None:
    assert energy.integrate([], 0.0, 1.0) is None
    assert energy.integrate([(0.0, 1.0)], 1.0, 1.0) is None


def steps(at_s: float) -> float:
    return 5.0 if 10.0 <= at_s < 30.0 else 2.0 if at_s < 10.0 else 2.2


def test_gross_and_net_joules_with_idle_drift() -> None:
    windows = Windows((2.0, 9.0), (10.5, 29.5), (31.0, 38.0), inferences=1000)
    power = energy.account(source(), sampled(steps, 40.0, 10.0), windows)
    assert power["load_w"] == pytest.approx(5.0)
    assert power["idle_before_w"] == pytest.approx(2.0)
    assert power["idle_after_w"] == pytest.approx(2.2)
    assert power["gross_j_per_inference"] == pytest.approx(5.0 * 19 / 1000)
    assert power["net_j_per_inference"] == pytest.approx((5.0 - 2.1) * 19 / 1000)
    assert power["idle_drift_w"] == pytest.approx(0.2)
    assert power["net_error_j_per_inference"] == pytest.approx(0.1 * 19 / 1000)
    assert power["reasons"] == {}
    assert power["samples"][0] == [-10.5, 2.0]
    assert power["window_monotonic_s"] == [10.5, 29.5]


def test_without_a_total_rule_the_rails_stay_and_the_total_is_none_with_the_reason() -> None:
    power = energy.account(source(total=False), sampled(steps, 40.0, 10.0), Windows((2, 9), (11, 29), (31, 38), 10))
    assert power["rails_w"] == pytest.approx({"VIN": 5.0})
    assert power["load_w"] is None
    assert power["gross_j_per_inference"] is None
    assert power["reasons"]["load_w"] == "the input rail"


def test_the_bursts_of_batches_are_counted_by_calls() -> None:
    def pulses(at_s: float) -> float:
        return 3.0 if at_s % 0.1 < 0.05 else 1.0

    def beat(inferences: int, batch: int) -> float:
        windows = Windows((2, 9), (10.0, 30.0), (31, 38), inferences, batch)
        return float(energy.account(source(), sampled(pulses, 40.0, 10.0), windows)["error_w"]["beat"])

    assert beat(200, 1) > 0.5, "read at the rate of the calls"
    assert beat(64 * 200, 64) == pytest.approx(beat(200, 1))


def test_no_idle_no_net() -> None:
    power = energy.account(source(), sampled(steps, 40.0, 10.0), Windows((2, 2), (11, 29), (31, 31), 10))
    assert power["gross_j_per_inference"] is not None
    assert power["net_j_per_inference"] is None
    assert "idle" in power["reasons"]["net_j_per_inference"]


def test_a_sensor_without_readings_in_the_window_gives_none() -> None:
    power = energy.account(source(), [], Windows((0, 1), (1, 2), (2, 3), 10))
    assert power["load_w"] is None
    assert "too few readings" in power["reasons"]["load_w"]


def test_the_sampler_keeps_on_after_a_failed_reading() -> None:
    readings = iter([1.0, None, 3.0])
    enough = threading.Event()

    def read() -> float:
        value = next(readings, 4.0)
        if value == 4.0:
            enough.set()
        if value is None:
            raise SourceGone("bus error")
        return value

    flaky = FileSource("flaky", 0.005, {"VIN": read}, ["VIN"], "")
    sampler = energy.Sampler(flaky)
    sampler.start()
    assert enough.wait(60)
    samples = sampler.stop()
    assert sampler.failures == ["bus error"]
    assert [s.watts["VIN"] for s in samples[:3]] == [1.0, 3.0, 4.0]
    assert all(a.at_s < b.at_s for a, b in pairwise(samples))
