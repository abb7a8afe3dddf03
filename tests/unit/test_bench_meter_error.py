"""The stated interval holds the truth: known power, a meter of any rate and phase, clocks that are off."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge_agent import energy
from kdedge_agent.power_source import PowerSource
from kdedge_bench.meter_error import Budget, Point, ci95, coverage_problem, mean_error_w, noise_j

LOAD = (40.0, 140.0)
WINDOWS = energy.Windows((20.0, 38.0), LOAD, (142.0, 160.0), 1000)


def readings(
    watts: Callable[[float], float], period_s: float, phase: float = 0.0, late_s: float = 0.0, noise_w: float = 0.0
) -> list[Point]:
    """A meter's, from 0 to 180 s; each is of ``late_s`` before its stamp."""
    random_ = random.Random(7)
    count = int(180 / period_s)
    stamps = [(step + phase) * period_s for step in range(count)]
    return [(t_s, watts(t_s - late_s) + random_.gauss(0.0, noise_w)) for t_s in stamps]


def accounted(points: list[Point], windows: energy.Windows, budget: Budget) -> dict[str, list[float]]:
    source = PowerSource(1.0, ["total"], ["total"], "")
    power = energy.account(source, [energy.PowerSample(t_s, {"total": watts}) for t_s, watts in points], windows)
    return ci95(power, budget, points, windows)


@settings(deadline=None, max_examples=60)
@given(
    st.floats(0.05, 2.0), st.floats(0.0, 0.99), st.floats(0.5, 6.0), st.floats(0.5, 6.0), st.floats(-0.3, 0.3),
    st.floats(-0.3, 0.3),
)  # fmt: skip
def test_a_step_at_each_end_lies_within_whatever_the_phase_and_the_shift(
    period_s: float, phase: float, idle_w: float, load_w: float, late_s: float, clock_s: float
) -> None:
    def watts(t_s: float) -> float:
        return load_w if LOAD[0] <= t_s < LOAD[1] else idle_w

    points = readings(watts, period_s, phase, late_s)
    before, load, after = (
        (begin + clock_s, end + clock_s) for begin, end in (WINDOWS.idle_before, LOAD, WINDOWS.idle_after)
    )
    mapped = energy.Windows(before, load, after, WINDOWS.inferences)
    budget = Budget.of(points, mapped.load, period_s, abs(late_s) + abs(clock_s), abs(clock_s), None)
    found = accounted(points, mapped, budget)
    true = load_w * 100.0 / WINDOWS.inferences
    low, high = found["gross_j_per_inference_ci95"]
    assert low - 1e-9 <= true <= high + 1e-9
    assert found["load_w_ci95"][0] - 1e-9 <= load_w <= found["load_w_ci95"][1] + 1e-9
    net = (load_w - idle_w) * 100.0 / WINDOWS.inferences
    low, high = found["net_j_per_inference_ci95"]
    assert low - 1e-9 <= net <= high + 1e-9


def test_a_slow_meter_costs_certainty_and_says_how_much() -> None:
    def watts(t_s: float) -> float:
        return 5.0 if LOAD[0] <= t_s < LOAD[1] else 2.0

    def edges(period_s: float) -> float:
        return Budget.of(readings(watts, period_s, 0.5), LOAD, period_s, 0.0, 0.0, None).edges

    # A step of 3 W somewhere within a period at each end: 3 W times the period, of 500 J.
    assert [edges(period_s) for period_s in (0.1, 1.0, 5.0)] == pytest.approx([0.3, 3.0, 15.0])


def test_each_part_is_what_it_says() -> None:
    points = readings(lambda t_s: 4.0 + math.copysign(1.0, math.sin(t_s)), 0.5)
    budget = Budget.of(points, LOAD, 0.5, shift_s=0.2, clock_s=0.05, accuracy=0.01)
    joules = energy.integrate(points, *LOAD)
    assert joules is not None
    assert budget.edges == pytest.approx(2.0 * 0.5)
    assert budget.clock == pytest.approx(2.0 * 0.2 + 2 * 0.05 * joules / 100)
    assert budget.silence == 0.0
    assert budget.accuracy == pytest.approx(0.01 * joules)
    parts = budget.to_dict()
    assert parts.pop("total") == pytest.approx(sum(part for part in parts.values() if part is not None))
    unstated = Budget.of(points, LOAD, 0.5, 0.2, 0.05, None)
    assert unstated.accuracy is None
    assert unstated.total == pytest.approx(budget.total - 0.01 * joules)


def test_noise_of_a_meter_is_in_the_interval() -> None:
    """95% of 60 are 57; with fewer than 51 the interval would be none."""
    of_load, of_idle = 0, 0
    for seed in range(60):
        random_ = random.Random(seed)
        points = [(step / 2, 5.0 + math.sin(step / 30) + random_.gauss(0.0, 0.5)) for step in range(360)]
        true = 500.0 + 15 * (math.cos(LOAD[0] / 15) - math.cos(LOAD[1] / 15))
        of_load += abs((energy.integrate(points, *LOAD) or 0.0) - true) <= noise_j(points, LOAD)
        flat = [(t_s, watts - math.sin(t_s / 15)) for t_s, watts in points]
        of_idle += abs((energy.integrate(flat, *LOAD) or 0.0) / 100 - 5.0) <= mean_error_w(flat, LOAD)
    assert of_load >= 51
    assert of_idle >= 51
    assert noise_j(points, LOAD) == pytest.approx(1.96 * 0.5 * 0.5 * math.sqrt(200), rel=0.2)


def test_what_power_does_slowly_is_no_noise_and_what_it_does_between_readings_is() -> None:
    slow = readings(lambda t_s: 4.0 + math.sin(t_s / 4), 0.5)
    assert noise_j(slow, LOAD) < 0.1, "of 400 J"
    square = readings(lambda t_s: 4.0 + math.copysign(1.0, math.sin(t_s / 3)), 0.5)
    steps = 100 / (
        3 * math.pi
    )  # each lies anywhere between two readings: a standard deviation of 2 W * 0.5 s / sqrt(12)
    assert noise_j(square, LOAD) >= 1.96 * 2.0 * 0.5 / math.sqrt(12) * math.sqrt(steps)


def test_silence_widens_the_interval_and_much_of_it_leaves_no_figure() -> None:
    points = readings(lambda t_s: 3.0 + 0.5 * math.sin(t_s), 0.5)
    short = [point for point in points if not 60 < point[0] < 64]
    assert coverage_problem(short, LOAD, 0.5) is None
    assert Budget.of(short, LOAD, 0.5, 0, 0, None).silence == pytest.approx(1.0 * 4 / 2, rel=0.05)
    long = [point for point in points if not 60 < point[0] < 75]
    assert coverage_problem(long, LOAD, 0.5) == "it was silent for 15.0 s of the 100.0 s under load"


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "it gave no reading"),
        ([(50.0, 1.0), (150.0, 1.0)], "begin 10.0 s after the window under load did"),
        ([(30.0, 1.0), (100.0, 1.0)], "end 40.0 s before the window under load does"),
        ([(t_s, 1.0) for t_s in range(0, 200, 20)], "it gave 6 readings in the 100.0 s under load; 10 are needed"),
    ],
)
def test_readings_that_do_not_cover_the_window(points: list[Point], said: str) -> None:
    problem = coverage_problem(points, LOAD, 20.0)
    assert problem is not None
    assert said in problem
