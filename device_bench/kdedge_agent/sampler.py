"""Reads a power source in a thread, at moments that no rhythm of the load can follow, and states what that costs."""

from __future__ import annotations

import random
import resource
import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from kdedge_agent.power_source import PowerSource, SourceGone


@dataclass(frozen=True)
class PowerSample:
    """One reading: seconds on the monotonic clock (middle of the reading), watts by rail."""

    at_s: float
    watts: Dict[str, float]


class Sampler:
    """Reads a source once a period, until stopped.

    Each reading lies at a random place within its period (stratified sampling): whatever repeats in the load, at
    whatever rate, is then seen at all its phases, and its mean is free of bias.

    Attributes:
        failures: What was said by readings that failed.
    """

    def __init__(self, source: PowerSource) -> None:
        self._source = source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._samples: List[PowerSample] = []
        self._reading_s = self._cpu_s = self._elapsed_s = 0.0
        self._reads = 0
        self.failures: List[str] = []

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def samples(self) -> List[PowerSample]:
        """What there is until now, in order."""
        return list(self._samples)

    def stop(self) -> List[PowerSample]:
        """End, and hand over every sample, in order."""
        self._stop.set()
        self._thread.join()
        return self.samples()

    def cost(self) -> Dict[str, Any]:
        """What reading costs: reads, read_s (mean duration), share (of the time), cpu_share (of one core).

        The processor's share counts this thread, and the processes that it started and waited for. The power of the
        reading is in all three windows; so it cancels in net figures, and is part of gross ones.
        """
        return {
            "reads": self._reads,
            "read_s": self._reading_s / self._reads if self._reads else None,
            "share": self._reading_s / self._elapsed_s if self._elapsed_s else None,
            "cpu_share": self._cpu_s / self._elapsed_s if self._elapsed_s else None,
        }

    def _run(self) -> None:
        begin, cpu_s = time.monotonic(), _cpu_s()
        period_s = self._source.period_s
        cell = 0
        while not self._stop.is_set():
            place = 0.5 if self._source.averages else random.random()
            due = begin + (cell + place) * period_s
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            self._read()
            cell = max(cell + 1, int((time.monotonic() - begin) / period_s))
        self._elapsed_s, self._cpu_s = time.monotonic() - begin, _cpu_s() - cpu_s

    def _read(self) -> None:
        begin = time.monotonic()
        watts: Optional[Dict[str, float]] = None
        try:
            watts = self._source.read()
        except SourceGone as error:
            self.failures.append(str(error))
            self._source.find_again()
        end = time.monotonic()
        self._reads += 1
        self._reading_s += end - begin
        if watts is not None:
            # A counter's mean ends when it was read; another sensor's value lies somewhere within the reading.
            self._samples.append(PowerSample(end if self._source.averages else (begin + end) / 2, watts))


def _cpu_s() -> float:
    """Seconds of processor time of this thread and of the processes it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime
