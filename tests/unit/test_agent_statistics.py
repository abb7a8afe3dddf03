from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from kdedge_agent import statistics


@given(st.lists(st.floats(1e-7, 10.0), min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_numpys(samples: list[float], q: float) -> None:
    assert statistics.percentile(sorted(samples), q) == pytest.approx(float(np.quantile(samples, q)), rel=1e-12)


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.percentile([], 0.5)


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([0.5, 0.9, 0.99]))
def test_ranks_are_those_of_the_binomial_distribution(n: int, q: float) -> None:
    """Against scipy: the tails outside the ranks hold no more than 2.5% each, and one rank closer would hold more."""
    ranks = statistics.quantile_ranks(n, q)
    binomial = stats.binom(n, q)
    lowest_possible = binomial.cdf(0) <= 0.025
    highest_possible = binomial.sf(n - 1) <= 0.025
    assert (ranks is not None) == (lowest_possible and highest_possible)
    if ranks is not None:
        low, high = ranks
        assert binomial.cdf(low - 1) <= 0.025 < binomial.cdf(low)
        assert binomial.sf(high - 1) <= 0.025 < binomial.sf(high - 2)


def test_ranks_known_from_the_tables() -> None:
    # The classical sign-test interval of the median.
    assert statistics.quantile_ranks(10, 0.5) == (2, 9)
    assert statistics.quantile_ranks(100, 0.5) == (40, 61)
    assert statistics.quantile_ranks(5, 0.5) is None


def test_large_n_costs_little_and_stays_right() -> None:
    low, high = statistics.quantile_ranks(1_000_000, 0.9) or (0, 0)
    assert low == int(stats.binom(1_000_000, 0.9).ppf(0.025))
    assert 899_400 < low < 900_000 < high < 900_600


def test_interval_holds_the_true_quantile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true_p90 = stats.lognorm.ppf(0.9, 0.5)
    hits = 0
    for _ in range(400):
        low, high = statistics.interval(sorted(rng.lognormal(0, 0.5, 200).tolist()), 0.9) or (0.0, 0.0)
        hits += low <= true_p90 <= high
    assert hits / 400 >= 0.93  # stated: at least 0.95; three standard errors of 400 trials below it


def test_p99_is_refused_below_1000_samples_with_the_reason() -> None:
    summary, unmeasured = statistics.latency_summary([0.001] * 999)
    assert summary["p99"] is None
    assert summary["ci95"]["p99"] is None
    assert "999 samples" in unmeasured["latency_s.p99"]
    assert "1000" in unmeasured["latency_s.p99"]
    summary, unmeasured = statistics.latency_summary([0.001] * 1000)
    assert summary["p99"] == 0.001
    assert unmeasured == {}


def test_summary_keeps_every_raw_value_in_order() -> None:
    samples = [0.003, 0.001, 0.002]
    summary, unmeasured = statistics.latency_summary(samples, [0.009])
    assert summary["samples"] == samples
    assert summary["warmup_samples"] == [0.009]
    assert (summary["n"], summary["min"], summary["max"], summary["p50"]) == (3, 0.001, 0.003, 0.002)
    assert summary["mean"] == pytest.approx(0.002)
    assert summary["std"] == pytest.approx(float(np.std(samples, ddof=1)))
    assert set(unmeasured) == {
        "latency_s.p99",
        "latency_s.ci95.p50",
        "latency_s.ci95.p90",
        "latency_s.drift",
    }


def test_one_sample_has_no_spread() -> None:
    summary, unmeasured = statistics.latency_summary([0.5])
    assert summary["std"] is None
    assert "latency_s.std" in unmeasured


def test_drift_tells_a_slower_end_from_noise() -> None:
    rng = np.random.default_rng(1)
    flat = rng.normal(1.0, 0.02, 300)
    thirds = statistics.drift(flat.tolist())
    assert thirds is not None
    assert abs(thirds["ratio"] - 1) < 0.02
    slower = statistics.drift((flat * np.linspace(1.0, 1.3, 300)).tolist())
    assert slower is not None
    assert slower["significant"] is True
    assert 1.15 < slower["ratio"] < 1.25
    assert statistics.drift([1.0] * 8) is None
