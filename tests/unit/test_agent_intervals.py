"""Intervals against series whose truth is known: by the very script that a user can run for longer."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from kdedge_agent.correlation import _memory_of_quantile, correlation_times, lag_one
from kdedge_agent.intervals import BLOCK_BOOTSTRAP, BOOTSTRAP, ORDER_STATISTICS, Series
from kdedge_agent.statistics import throughput
from kdedge_agent.student import student

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency_intervals.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("latency_intervals", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


latency_intervals = _script()
TRIALS = 1000


@pytest.mark.parametrize("name", list(latency_intervals.SERIES))
def test_the_true_percentile_lies_in_its_interval_for_50_samples(name: str) -> None:
    judge(latency_intervals.trial_rows(name, 50, TRIALS, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(latency_intervals.SERIES))
def test_the_true_percentile_lies_in_its_interval_for_200_samples(name: str) -> None:
    rows = latency_intervals.trial_rows(name, 200, TRIALS, seed=7)
    judge(rows)
    if name != "AR(1), 0.9":  # its 200 samples are worth 17
        assert rows[0]["given"] > 0.95


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(latency_intervals.SERIES))
def test_the_true_percentile_lies_in_its_interval_for_1000_samples(name: str) -> None:
    judge(latency_intervals.trial_rows(name, 1000, TRIALS, seed=7))


def judge(rows: list[dict[str, Any]]) -> None:
    """At least 93% of the intervals hold the truth; runs of the same kind are not called different; none is useless."""
    assert rows
    for row in rows:
        assert not latency_intervals.fails(row), row


def autoregressive(phi: float, n: int, seed: int = 0) -> list[float]:
    return [float(value) for value in latency_intervals.autoregressive(phi)(np.random.default_rng(seed), n)]


def test_independent_samples_get_order_statistics_and_their_neighbours_do_not_matter() -> None:
    samples = np.random.default_rng(3).lognormal(0, 0.3, 400).tolist()
    found = Series(samples).quantile(0.5)
    assert found.method == ORDER_STATISTICS
    ordered = sorted(samples)
    assert found.bounds == (ordered[180 - 1], ordered[221 - 1])  # ranks of the sign test for n = 400


def test_alike_neighbours_widen_the_interval() -> None:
    samples = autoregressive(0.8, 2000)
    alike = Series(samples).quantile(0.5)
    shuffled = Series(np.random.default_rng(0).permutation(samples).tolist()).quantile(0.5)
    assert alike.method == BLOCK_BOOTSTRAP
    assert alike.correlation_time > 5
    assert alike.bounds is not None
    assert shuffled.bounds is not None
    assert alike.bounds[1] - alike.bounds[0] > 2 * (shuffled.bounds[1] - shuffled.bounds[0])


def test_a_series_that_is_worth_few_samples_is_refused_with_the_reason() -> None:
    found = Series(autoregressive(0.99, 300)).quantile(0.5)
    assert found.bounds is None
    assert found.method is None
    assert found.reason is not None
    assert "300 samples count as about" in found.reason
    assert "--seconds" in found.reason


def test_a_clock_that_ticks_coarsely_does_not_look_like_a_memory() -> None:
    ticks = np.random.default_rng(2).integers(3, 6, 1000) * 1e-6
    assert Series(ticks.tolist()).quantile(0.5).correlation_time < 1.3
    constant = Series([1e-3] * 1000).quantile(0.9)
    assert (constant.bounds, constant.method) == ((1e-3, 1e-3), ORDER_STATISTICS)


def test_a_burst_that_only_the_tail_sees_widens_only_the_tail() -> None:
    samples = latency_intervals.interrupted(600, 6)(np.random.default_rng(5), 6000).tolist()
    series = Series(samples)
    assert series.quantile(0.5).correlation_time < 2
    assert series.quantile(0.99).correlation_time > 4
    assert series.quantile(0.5).correlation_time < 2


def test_intervals_repeat() -> None:
    samples = autoregressive(0.5, 800)
    assert Series(samples).quantile(0.9) == Series(samples).quantile(0.9)


def test_the_memory_of_a_percentile_is_that_of_simulated_processes() -> None:
    """Correlation time of "below the q-quantile" of an AR(1) process: the formula against a long simulation."""
    values = np.log(latency_intervals.autoregressive(0.8)(np.random.default_rng(1), 400_000)) / 0.1
    for q in (0.5, 0.9):
        below = (values <= stats.norm.ppf(q)).astype(float)
        blocks = below[: len(below) // 1000 * 1000].reshape(-1, 1000).mean(axis=1)
        simulated = 1000 * blocks.var(ddof=1) / below.var()
        assert _memory_of_quantile(0.8, q) == pytest.approx(simulated, rel=0.2)


def test_correlation_of_neighbours_is_numpys() -> None:
    values = autoregressive(0.6, 500)
    expected = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert lag_one(values) == pytest.approx(expected, abs=0.01)
    assert lag_one([2.0, 2.0, 2.0]) == 0.0
    assert correlation_times([1.0, 0.0] * 100, 0.0) is None  # alternation makes intervals no wider


@pytest.mark.parametrize("freedom", [*range(1, 12), 20, 49, 100, 399])
def test_students_t_is_scipys(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_throughput_is_batch_over_mean_and_its_interval_holds() -> None:
    rng, hits = np.random.default_rng(11), 0
    for _ in range(300):
        rate, reasons = throughput(rng.lognormal(math.log(0.01), 0.2, 120).tolist(), 16)
        assert reasons == {}
        low, high = rate["ci95"]
        assert low <= rate["samples_per_s"] <= high
        hits += low <= 16 / (0.01 * math.exp(0.02)) <= high
    assert hits / 300 >= 0.93
    rate, _ = throughput([0.1] * 20, 4)
    assert (rate["samples_per_s"], rate["batch_size"], rate["batches"]) == (pytest.approx(40.0), 4, 20)
    assert rate["ci95_method"] == BOOTSTRAP


def test_throughput_of_few_batches_has_no_interval_but_the_reason() -> None:
    rate, reasons = throughput([0.1, 0.2], 4)
    assert rate["ci95"] is None
    assert "2 samples are too few" in reasons["throughput.ci95"]
    rate, reasons = throughput([0.0], 4)
    assert rate["samples_per_s"] is None
    assert "throughput.samples_per_s" in reasons
