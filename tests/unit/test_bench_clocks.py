from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge_bench.clocks import ClockMap, ClockOffset, measure_offset


def skewed(offset_s: float, rate: float = 1.0, there_s: float = 0.0, back_s: float = 0.0) -> Callable[[], float]:
    """A device whose clock is off, behind a wire whose two ways may differ."""

    def ask() -> float:
        time.sleep(there_s)
        stamp = offset_s + rate * time.monotonic()
        time.sleep(back_s)
        return stamp

    return ask


@settings(max_examples=25, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 0.002), st.floats(0, 0.002))
def test_the_true_offset_lies_within_what_is_stated_however_unequal_the_two_ways(
    offset_s: float, there_s: float, back_s: float
) -> None:
    found = measure_offset(skewed(offset_s, there_s=there_s, back_s=back_s), pairs=4)
    assert abs(found.offset_s - offset_s) <= found.uncertainty_s + 1e-9
    assert found.uncertainty_s >= (there_s + back_s) / 2


def test_the_quickest_pair_counts() -> None:
    delays = iter([0.2, 0.2, 0.0, 0.2])

    def ask() -> float:
        time.sleep(next(delays))
        return 100.0 + time.monotonic()

    found = measure_offset(ask, pairs=4)
    assert found.uncertainty_s < 0.1
    assert found.offset_s == pytest.approx(100.0, abs=found.uncertainty_s)


def clock_map(before_s: float, after_s: float, span_s: float = 100.0, uncertainty_s: float = 0.001) -> ClockMap:
    return ClockMap(ClockOffset(50.0, before_s, uncertainty_s), ClockOffset(50.0 + span_s, after_s, uncertainty_s))


@given(st.floats(-1e5, 1e5), st.floats(-5e-4, 5e-4), st.floats(0, 100))
def test_an_even_drift_is_mapped_back(offset_s: float, drift: float, since_s: float) -> None:
    clocks = clock_map(offset_s, offset_s + drift * 100.0)
    host_s = 50.0 + since_s
    assert clocks.problem() is None
    assert clocks.drift == pytest.approx(drift, abs=1e-9)
    assert clocks.to_host_s(host_s + offset_s + drift * since_s) == pytest.approx(host_s, abs=1e-6)
    assert clocks.uncertainty_s >= abs(drift) * 100.0


@pytest.mark.parametrize("jump_s", [0.5, -0.5, 3600.0])
def test_a_clock_that_jumped_is_no_drift(jump_s: float) -> None:
    problem = clock_map(7.0, 7.0 + jump_s).problem()
    assert problem is not None and f"jumped by {jump_s:+.3f} s" in problem


def test_a_clock_that_stood_still_is_mapped_without_a_division_by_zero() -> None:
    stopped = clock_map(0.0, -100.0)
    assert stopped.problem() is not None
    assert stopped.to_host_s(50.0) == 50.0
