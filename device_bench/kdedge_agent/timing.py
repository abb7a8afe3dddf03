"""Latency: warm up until steady, then time every call.

A sample is two readings of ``time.perf_counter_ns`` around the runtime's own call and nothing else; the garbage
collector rests meanwhile. Progress is told, and the board is looked at, between blocks, never between the readings;
after such a look one call is not timed, because it finds its caches cold.
"""

from __future__ import annotations

import gc
import time
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from kdedge_agent import sysfs
from kdedge_agent.order_statistics import percentile
from kdedge_agent.protocol import MAX_SAMPLES

BLOCK_S = 0.05
"""A block of the warm-up lasts at least so long ..."""
BLOCK_CALLS = 3
"""... and has at least so many calls."""
STEADY_BLOCKS = 3
STEADY_SPREAD = 0.03
"""Steady: the medians of the last three blocks lie within 3% of their mean."""
TICK_S = 0.5
"""Timed calls between two tellings of progress last about so long."""

LOOK_S = 1.0
"""The board is looked at after so many timed seconds ..."""
LOOK_SHARE = 1 / 300
"""... or after this share of those already timed, so that a record of a whole day stays of bounded size."""

Call = Callable[[], Any]
Look = Callable[[int, bool], None]
"""Called with the number of samples so far, and whether it is the last look."""
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


def waited_s(process: Path = Path("/proc/self")) -> Dict[str, float]:
    """Seconds that each thread of a process has stood ready and was given no processor; empty where Linux does not say.

    By thread id. https://docs.kernel.org/scheduler/sched-stats.html, the second number of ``schedstat``.
    """
    found = {}
    for task in process.glob("task/*/schedstat"):
        words = (sysfs.read_text(task) or "").split()
        if len(words) == 3 and words[1].isdigit():
            found[task.parent.name] = int(words[1]) * 1e-9
    return found


def longest_wait_s(before: Dict[str, float], after: Dict[str, float]) -> Optional[float]:
    """The longest that one thread waited for a processor between two readings; None where neither says."""
    waits = [waited - before[thread] for thread, waited in after.items() if thread in before]
    return max(waits, default=None)


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


def warm_up(call: Call, max_s: float, tick: Optional[Tick] = None, max_samples: int = MAX_SAMPLES) -> WarmUp:
    """Call until steady or until ``max_s`` seconds have passed; with ``max_s`` 0 not at all.

    It ends at ``max_samples`` in any case, so that a record stays of bounded size.
    """
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
        while clock() < limit and len(all_ns) < max_samples and not is_steady(medians):
            block: List[int] = []
            room = max_samples - len(all_ns)
            block_end = min(clock() + int(BLOCK_S * 1e9), limit)
            while (clock() < block_end or len(block) < BLOCK_CALLS) and clock() < limit and len(block) < room:
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
    look: Optional[Look] = None,
) -> List[float]:
    """Seconds of each call, in order: at least ``repetitions`` calls and ``min_duration_s`` of timed seconds.

    It ends at ``max_samples`` in any case, so that a record stays of bounded size. ``look`` is called before the first
    block, about once a second between blocks, and after the last.
    """
    samples_ns: array[int] = array("q")
    measured_ns, target_ns, next_look_ns = 0, int(min_duration_s * 1e9), 0
    block = 1
    with undisturbed():
        while len(samples_ns) < max_samples and (len(samples_ns) < repetitions or measured_ns < target_ns):
            done = len(samples_ns)
            if look is not None and measured_ns >= next_look_ns:
                look(done, False)
                call()
                next_look_ns = measured_ns + int(max(LOOK_S * 1e9, LOOK_SHARE * measured_ns))
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
    if look is not None:
        look(len(samples_ns), True)
    return seconds(samples_ns)
