"""Collects a meter's readings in a thread of its own while a device works."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from kdedge.errors import KdedgeError

from kdedge_bench import waiting
from kdedge_bench.meters import Meter, MeterError, Reading
from kdedge_bench.text import one_line

if TYPE_CHECKING:
    from typing_extensions import Self

READINGS_FOR_RATE = 6
FIRST_READINGS_S = 30.0
_GLANCE_S = 0.05


class Collector:
    """Opens a meter, and gathers what it reads; a context manager that leaves nothing running.

    Args:
        meter: The meter, not opened yet.

    Attributes:
        failure: What ended the readings, None while they go on or where the meter just ended.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._readings: list[Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self.failure: KdedgeError | None = None

    def __enter__(self) -> Self:
        try:
            self._meter.open()
            self._thread.start()
        except BaseException:
            self._meter.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            for reading in self._meter.readings(self._stop):
                self._readings.append(reading)
        except KdedgeError as error:
            self.failure = error
        except Exception as error:  # whatever a meter's library raises ends the readings, not the run
            self.failure = MeterError(f"{type(error).__name__}: {one_line(str(error), 120)}", where=self._meter.name)

    def stop(self) -> list[Reading]:
        """End the readings, let go of the meter, and hand over all of them, in order of time."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(OSError):
            self._meter.close()
        return self.so_far()

    def so_far(self) -> list[Reading]:
        """What was read until now, in order of time."""
        return list(self._readings)

    def period_s(self) -> float:
        """Seconds between two readings, the median of the first few; waits for them.

        Raises:
            MeterError: it gives none, or too few within half a minute.
            KdedgeError: what the meter failed with.
        """
        until = time.monotonic() + FIRST_READINGS_S
        while len(self._readings) < READINGS_FOR_RATE and self._thread.is_alive() and time.monotonic() < until:
            waiting.check()
            self._thread.join(_GLANCE_S)
        if self.failure is not None:
            raise self.failure
        if len(self._readings) < READINGS_FOR_RATE:
            seconds = f"in {FIRST_READINGS_S:g} s" if self._thread.is_alive() else "and then ended"
            raise MeterError(
                f"the meter gave {len(self._readings)} readings {seconds}; its rate needs {READINGS_FOR_RATE}",
                where=self._meter.name,
                cure="Start it or its logger first, at one reading a second or more, each written at once",
            )
        return statistics.median(_steps(self._readings[:READINGS_FOR_RATE]))

    def wait_past(self, t_s: float, patience_s: float) -> None:
        """Wait for a reading later than ``t_s``; what a logger holds back may still come, within ``patience_s``."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until and self._thread.is_alive():
            waiting.check()
            if self._readings and self._readings[-1].t_s > t_s:
                return
            self._thread.join(_GLANCE_S)


def _steps(readings: Sequence[Reading]) -> list[float]:
    return [after.t_s - before.t_s for before, after in pairwise(readings)]
