"""Latency: warm up until steady, then time every call.

A sample is two readings of ``time.perf_counter_ns`` around the runtime's own call and nothing else; the garbage
collector rests meanwhile, and progress is told between blocks, never between the readings.
"""

from __future__ import annotations

import gc
import time
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence

from kdedge_agent.protocol import MAX_SAMPLES
from kdedge_agent.statistics import percentile

BLOCK_S = 0.05
"""A block of the warm-up lasts at least so long ..."""
BLOCK_CALLS = 3
"""... and has at least so many calls."""
STEADY_BLOCKS = 3
STEADY_SPREAD = 0.03
"""Steady: the medians of the last three blocks lie within 3% of their mean."""
TICK_S = 0.5
"""Timed calls between two tellings of progress last about so long."""

Call = Callable[[], Any]
Tick = Callable[[int, int, float], None]


@dataclass(frozen=True)
class WarmUp:
    """The calls before the timed ones.

    Attributes:
        samples_s: Seconds of each, in order.
        steady: Whether the test was met before the cap.
        rule: The test, in words.
    """

    samples_s: List[float]
    steady: bool
    rule: str


def seconds(samples_ns: Sequence[int]) -> List[float]:
    """Nanoseconds to seconds, rounded to what the clock gave."""
    return [round(sample * 1e-9, 9) for sample in samples_ns]


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection inside."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_once(call: Call) -> float:
    """Seconds of one call."""
    begin = time.perf_counter_ns()
    call()
    return round((time.perf_counter_ns() - begin) * 1e-9, 9)


def time_block(call: Call, samples_ns: array[int], start: int, stop: int) -> None:
    """Time calls into ``samples_ns[start:stop]`` (nanoseconds, allocated before)."""
    clock = time.perf_counter_ns
    for index in range(start, stop):
        begin = clock()
        call()
        samples_ns[index] = clock() - begin


def is_steady(medians: Sequence[float]) -> bool:
    """Whether the last three block medians lie within 3% of their mean."""
    last = medians[-STEADY_BLOCKS:]
    mean = sum(last) / len(last) if last else 0.0
    return len(last) == STEADY_BLOCKS and all(abs(m - mean) <= STEADY_SPREAD * mean for m in last)


def warm_up(call: Call, max_s: float, tick: Optional[Tick] = None) -> WarmUp:
    """Call until steady or until ``max_s`` seconds have passed; with ``max_s`` 0 not at all."""
    rule = (
        f"medians of {STEADY_BLOCKS} blocks in a row (each >= {BLOCK_S} s and >= {BLOCK_CALLS} calls) "
        f"within {STEADY_SPREAD:.0%} of their mean, at most {max_s:g} s"
    )
    clock = time.perf_counter_ns
    all_ns: List[int] = []
    medians: List[float] = []
    begin = clock()
    limit = begin + int(max_s * 1e9)
    with undisturbed():
        while clock() < limit and not is_steady(medians):
            block: List[int] = []
            block_end = min(clock() + int(BLOCK_S * 1e9), limit)
            while (clock() < block_end or len(block) < BLOCK_CALLS) and clock() < limit:
                start = clock()
                call()
                block.append(clock() - start)
            all_ns += block
            if len(block) >= BLOCK_CALLS:
                medians.append(percentile(sorted(block), 0.5))
            if tick is not None:
                tick(len(all_ns), 0, (clock() - begin) * 1e-9)
    return WarmUp(seconds(all_ns), is_steady(medians), rule)


def time_calls(
    call: Call,
    repetitions: int,
    min_duration_s: float,
    tick: Optional[Tick] = None,
    max_samples: int = MAX_SAMPLES,
) -> List[float]:
    """Seconds of each call, in order: at least ``repetitions`` calls and ``min_duration_s`` of timed seconds.

    It ends at ``max_samples`` in any case, so that a record stays of bounded size.
    """
    samples_ns: array[int] = array("q")
    measured_ns, target_ns = 0, int(min_duration_s * 1e9)
    block = 1
    with undisturbed():
        while len(samples_ns) < max_samples and (len(samples_ns) < repetitions or measured_ns < target_ns):
            done = len(samples_ns)
            stop = min(done + block, max_samples)
            if measured_ns >= target_ns:
                stop = min(stop, max(repetitions, done + 1))
            samples_ns.extend([0] * (stop - done))
            time_block(call, samples_ns, done, stop)
            measured_ns += sum(samples_ns[done:stop])
            block = max(1, int(TICK_S * 1e9 * stop / max(1, measured_ns)))
            if measured_ns < target_ns:
                left = (target_ns - measured_ns) * stop // max(1, measured_ns) + 1
                block = min(block, max(left, repetitions - stop, 1))
            if tick is not None:
                expected = max(repetitions, stop * target_ns // max(1, measured_ns), stop)
                tick(stop, min(expected, max_samples), measured_ns * 1e-9)
    return seconds(samples_ns)
