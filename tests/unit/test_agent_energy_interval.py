"""The stated 95% interval: whether it holds the truth, on traces whose energy is known, and what widens it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.power_traces import KINDS, LOCKED, Kind

from kdedge_agent import energy, power_interval
from kdedge_agent.energy import PowerSample, Sampler, Windows, account
from kdedge_agent.power_source import FileSource, Rail
from kdedge_agent.sensor_rate import find_rate, nodes, updates

HZ = 10.0
WINDOWS = Windows((1.0, 3.0), (4.0, 14.0), (15.0, 17.0), inferences=500)


def trials(kind: Kind, count: int, seed: int) -> list[tuple[dict[str, Any], float, float]]:
    made = [kind.trial(np.random.default_rng([seed, number])) for number in range(count)]
    return [(account(t.source, t.samples, t.windows), t.gross_j, t.net_j) for t in made]


def check(kind: Kind, count: int, seed: int, share: float) -> None:
    seen = trials(kind, count, seed)
    for key, index in (("gross_j_per_inference", 1), ("net_j_per_inference", 2)):
        held = [row[0][f"{key}_ci95"][0] <= row[index] <= row[0][f"{key}_ci95"][1] for row in seen]
        assert np.mean(held) >= share, f"{key}: {np.mean(held):.3f}"
    errors = [abs(power["gross_j_per_inference"] / gross - 1) for power, gross, _ in seen]
    halves = [(p["gross_j_per_inference_ci95"][1] - p["gross_j_per_inference"]) / gross for p, gross, _ in seen]
    assert np.median(errors) <= 0.005
    assert np.quantile(errors, 0.9) <= 0.012
    assert np.median(halves) <= 0.0125, "an interval that says nothing"


@pytest.mark.parametrize("name", KINDS)
def test_within_one_per_cent_and_within_the_interval(name: str) -> None:
    kind = KINDS[name]
    check(kind, 20 if kind.grows else 100, 1, 0.8 if kind.grows else 0.9)


@pytest.mark.nightly
@pytest.mark.parametrize("name", KINDS)
def test_within_the_interval_in_a_thousand_trials(name: str) -> None:
    check(KINDS[name], 1000, 2, 0.93)


@pytest.mark.parametrize("name", LOCKED)
def test_what_no_reading_can_tell_is_not_claimed(name: str) -> None:
    for power, gross, _ in trials(LOCKED[name], 25, 3):
        low, high = power["gross_j_per_inference_ci95"]
        assert low <= gross <= high
        assert high - low > 0.5 * gross
        assert power["error_w"]["beat"] > 0.2 * power["load_w"]


def samples(
    missing: tuple[float, float] = (99.0, 99.0), load_w: float = 5.0, noise_w: float = 0.1
) -> list[PowerSample]:
    rng = np.random.default_rng(5)
    times = [i / HZ for i in range(180) if not missing[0] <= i / HZ < missing[1]]
    watts = [(load_w if 3.5 <= at_s < 14.5 else 2.0) + noise_w * rng.normal() for at_s in times]
    return [PowerSample(at_s, {"VIN": float(w)}) for at_s, w in zip(times, watts, strict=True)]


def source() -> FileSource:
    return FileSource("test", 1 / HZ, {"VIN": lambda: 1.0}, ["VIN"], "the input rail")


def test_a_gap_is_stated_and_enters_the_error() -> None:
    whole, holed = account(source(), samples(), WINDOWS), account(source(), samples((6.0, 7.0)), WINDOWS)
    assert whole["gap_s"] == 0.0
    assert holed["gap_s"] == pytest.approx(1.0, abs=0.11)
    assert holed["error_w"]["gaps"] > 0.0 == whole["error_w"]["gaps"]
    assert holed["gross_j_per_inference"] == pytest.approx(5.0 * 10 / 500, rel=0.01)


def test_a_sensor_that_was_gone_for_long_gives_no_figure() -> None:
    power = account(source(), samples((6.0, 9.0)), WINDOWS)
    assert power["load_w"] is None
    assert power["gross_j_per_inference_ci95"] is None
    assert "did not answer for 3" in power["reasons"]["gross_j_per_inference"]


def test_a_sensor_that_was_gone_while_idle_gives_gross_alone() -> None:
    power = account(source(), samples((15.5, 16.5)), WINDOWS)
    assert power["gross_j_per_inference"] is not None
    assert power["net_j_per_inference"] is None
    assert "idle" in power["reasons"]["net_j_per_inference"]


def test_a_shunt_that_is_wired_the_other_way_round_is_said() -> None:
    power = account(source(), samples(load_w=-5.0), WINDOWS)
    assert power["load_w"] is None
    assert "the other way round" in power["reasons"]["load_w"]


def test_the_record_names_what_an_engineer_asks_for() -> None:
    power = account(source(), samples(), WINDOWS)
    assert power["total_rails"] == ["VIN"]
    assert power["sensor_hz"] == pytest.approx(HZ)
    assert power["sensor_periods"] == pytest.approx(100)
    assert power["idle_window_s"] == [2.0, 2.0]
    assert set(power["error_w"]) == {"sampling", "resolution", "timing", "beat", "gaps"}
    assert set(power["net_error_w"]) == {*power["error_w"], "idle", "idle_drift"}
    low, high = power["load_w_ci95"]
    assert low < power["load_w"] < high
    assert (high - low) / 2 == pytest.approx(power_interval.together(list(power["error_w"].values())))
    assert "not the calibration" in power["ci95_covers"]


@pytest.mark.parametrize(("freedom", "point"), [(3, 3.1824), (5, 2.5706), (9, 2.2622), (19, 2.0930), (60, 2.0003)])
def test_students_distribution(freedom: int, point: float) -> None:
    assert power_interval.t975(freedom) == pytest.approx(point, rel=0.005)


def polled(values: list[float], every: int, hz: float = 20.0) -> tuple[list[float], list[float]]:
    return [i / hz for i in range(len(values) * every)], [value for value in values for _ in range(every)]


def test_values_that_repeat_show_the_sensors_own_rate() -> None:
    rng = np.random.default_rng(6)
    times, watts = polled([float(w) for w in rng.normal(5.0, 0.1, 60)], every=20)
    rate = find_rate(times, watts, 0.05)
    assert rate.held
    assert rate.period_s == pytest.approx(1.0)
    assert len(updates(list(zip(times, watts, strict=True)), rate, (0.0, 60.0))) == 60


def test_equal_neighbours_do_not_make_a_slow_sensor_of_a_fast_one() -> None:
    rng = np.random.default_rng(7)
    times, watts = polled([float(round(w, 1)) for w in rng.normal(5.0, 0.06, 400)], every=1)
    rate = find_rate(times, watts, 0.05)
    assert not rate.held
    assert rate.period_s == pytest.approx(0.05, rel=0.01)


def test_a_constant_reading_tells_nothing_of_the_rate() -> None:
    rate = find_rate([i / 10 for i in range(100)], [5.0] * 100, 0.1)
    assert rate.period_s == pytest.approx(0.1)
    assert not rate.held
    assert "declared" in rate.how


def test_a_held_value_stands_from_its_first_reading_until_a_period_before_the_next() -> None:
    rate = find_rate(*polled([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 7.0], every=10), 0.05)
    points = nodes(list(zip(*polled([5.0, 5.0, 6.0], every=10), strict=True)), rate)
    assert [at_s for at_s, _ in points][:3] == pytest.approx([0.0, 0.5, 1.0], abs=0.03)
    assert [watts for _, watts in points][:3] == [5.0, 5.0, 6.0]


def test_windows_grow_for_slow_sensors_and_for_bursts() -> None:
    slow = [PowerSample(i / 10, {"VIN": 5.0 + (i // 10 % 7) * 0.01}) for i in range(200)]
    assert energy.wanted_s(source(), slow, (0.0, 19.9)) == pytest.approx(100.0, rel=0.02)
    rng = np.random.default_rng(8)
    rough = [PowerSample(i / 10, {"VIN": float(rng.choice([3.0, 7.0]))}) for i in range(101)]
    assert 100.0 < energy.wanted_s(source(), rough, (0.0, 10.0)) <= energy.MAX_WINDOW_S
    calm = [PowerSample(i / 10, {"VIN": 5.0 + 0.001 * (i % 2)}) for i in range(101)]
    assert energy.wanted_s(source(), calm, (0.0, 10.0)) == pytest.approx(10.2)
    assert energy.needed_s(source(), calm, 10.0) == pytest.approx(10.2)
    late = calm + [PowerSample(10.0 + i / 8, {"VIN": 5.0 + 0.001 * (i % 2)}) for i in range(1, 130)]
    assert energy.needed_s(source(), late, 26.0) == 26.0
    assert energy.needed_s(source(), late, 11.0) == pytest.approx(12.75)


def test_the_rate_of_readings_at_random_places_is_known_within_two_per_cent() -> None:
    """Readings of an idle board lie anywhere in their periods; their distances then scatter by 40%."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        times = (np.arange(140) + rng.random(140)) / HZ
        times[70:] += 3.0  # a sensor that was away for a while
        assert find_rate(list(times), [5.0] * 140, 0.05).polled_s == pytest.approx(0.1, rel=0.02), seed


@pytest.mark.parametrize("noise_steps", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_resolution_bounds_what_a_quantiser_does_to_the_mean(noise_steps: float) -> None:
    rng = np.random.default_rng(9)
    for level in np.linspace(0.0, 1.0, 21):
        values = np.round(level + noise_steps * rng.normal(size=20000))
        half = power_interval.resolution_w([float(v) for v in values], 1.0)
        assert abs(values.mean() - level) <= half + 3 * noise_steps / math.sqrt(20000) + 1e-9
    assert half <= 0.5
    assert noise_steps < 1.0 or half < 1e-3, "noise of a step averages the steps out"


def test_reading_states_what_it_costs(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("5000")
    sampler = Sampler(FileSource("file", 0.01, {"VIN": Rail(1e-3, [tmp_path / "power"])}, ["VIN"], ""))
    sampler.start()
    time.sleep(0.3)
    assert all(sample.watts == {"VIN": 5.0} for sample in sampler.stop())
    cost = sampler.cost()
    assert cost["reads"] >= 10
    assert 0 < cost["read_s"] < 0.01
    assert 0 < cost["cpu_share"] < 1
