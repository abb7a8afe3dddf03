from __future__ import annotations

import gc
import time

import pytest

from kdedge_agent import timing
from kdedge_agent.timing import is_steady


def test_at_least_the_repetitions_asked_for() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    samples = timing.time_calls(call, repetitions=137, min_duration_s=0.0)
    assert len(samples) == calls == 137
    assert all(sample >= 0 for sample in samples)


def test_at_least_the_seconds_asked_for() -> None:
    samples = timing.time_calls(lambda: time.sleep(0.002), repetitions=1, min_duration_s=0.05)
    assert sum(samples) >= 0.05
    assert min(samples) >= 0.002


def test_never_more_than_the_cap() -> None:
    assert len(timing.time_calls(lambda: None, repetitions=10, min_duration_s=60.0, max_samples=500)) == 500


def test_progress_tells_how_much_is_expected() -> None:
    told: list[tuple[int, int, float]] = []
    timing.time_calls(lambda: time.sleep(0.001), 5, 0.05, lambda *tick: told.append(tick))
    done, total, _ = told[-1]
    assert total >= done > 5


def test_the_garbage_collector_rests_and_comes_back() -> None:
    states: list[bool] = []
    timing.time_calls(lambda: states.append(gc.isenabled()), repetitions=3, min_duration_s=0.0)
    assert states == [False] * 3
    assert gc.isenabled()


def test_the_garbage_collector_comes_back_after_a_failure() -> None:
    def fails() -> None:
        raise RuntimeError("runtime")

    with pytest.raises(RuntimeError, match="runtime"):
        timing.time_calls(fails, repetitions=3, min_duration_s=0.0)
    assert gc.isenabled()


def test_steady_is_three_blocks_within_three_per_cent() -> None:
    assert not is_steady([1.0, 1.0])
    assert is_steady([5.0, 1.0, 1.02, 0.99])
    assert not is_steady([1.0, 1.0, 1.1])


def test_warm_up_ends_when_steady() -> None:
    warm = timing.warm_up(lambda: time.sleep(0.005), max_s=20.0)
    assert warm.steady
    assert 9 <= len(warm.samples_s) < 1000
    assert "within 3%" in warm.rule


def test_warm_up_has_a_cap() -> None:
    delays = iter(range(1, 1000))
    warm = timing.warm_up(lambda: time.sleep(next(delays) * 1e-3), max_s=0.3)
    assert not warm.steady
    assert len(warm.samples_s) <= 25  # 1 + 2 + ... + 24 ms are the 0.3 s; a busy machine gets through fewer


def test_warm_up_never_keeps_more_samples_than_the_cap() -> None:
    found = timing.warm_up(lambda: None, 60.0, max_samples=7)
    assert len(found.samples_s) == 7
    assert not found.steady


def test_no_warm_up_at_all() -> None:
    warm = timing.warm_up(lambda: None, max_s=0.0)
    assert warm.samples_s == []
    assert not warm.steady


def test_seconds_are_exact_to_the_nanosecond() -> None:
    assert timing.seconds([1, 103_217, 2_000_000_001]) == [1e-9, 0.000103217, 2.000000001]


def test_a_thread_that_waits_for_its_processor_is_seen() -> None:
    """By the scheduler's own count; a sleeping thread does not wait for one."""
    before = timing.waited_s()
    time.sleep(0.05)
    waited = timing.longest_wait_s(before, timing.waited_s())
    assert waited is None or waited >= 0
    assert timing.longest_wait_s({}, {"1": 2.0}) is None
    assert timing.longest_wait_s({"1": 1.0, "2": 1.0}, {"1": 1.5, "2": 3.0, "3": 9.0}) == 2.0
