"""What a power meter on the host is: watts with the moment they were read, on this machine's monotonic clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from kdedge.errors import DeviceError

FAILURES_IN_A_ROW = 3
"""So many readings of a polled meter may fail one after the other; a lost packet is no end."""


class MeterError(DeviceError):
    """A meter that cannot be reached, or whose words are no watts: exit code 3."""


class Reading(NamedTuple):
    """One reading.

    Attributes:
        t_s: Seconds on the host's monotonic clock (``time.monotonic``).
        watts: Power at that moment.
    """

    t_s: float
    watts: float


class Meter(Protocol):
    """A power meter that the host reads while a device works.

    One thread calls ``open``, another goes through ``readings`` until it sets ``stop``, then ``close`` is called;
    ``close`` also follows an ``open`` that failed.

    Attributes:
        name: What it is and where, such as ``kasa plug HS110(EU) at 10.0.0.7``; complete after ``open``.
        covers: Whose power it reads, in words.
        accuracy: What its maker states, as a share of the reading (0.01 is ±1%); None where nothing is stated.
        time_error_s: How far a reading's ``t_s`` may be off, the worst seen so far, in seconds.
    """

    name: str
    covers: str
    accuracy: float | None

    @property
    def time_error_s(self) -> float:
        """As said above."""

    def open(self) -> None:
        """Reach the meter.

        Raises:
            UserError: it cannot be there as asked for.
            MeterError: it does not answer.
        """

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Readings in order of time as they come, until ``stop`` is set or the meter ends.

        Raises:
            MeterError: it fell silent, or failed.
            DataError: its words are no watts.
        """

    def close(self) -> None:
        """Let go of the meter; may be called more than once."""


def polled(read: Callable[[], Reading], period_s: float, stop: threading.Event) -> Iterator[Reading]:
    """Ask a meter at a rhythm; single failures leave a gap, more than three in a row end it.

    Raises:
        MeterError: the last of the failures.
    """
    failed, due = 0, time.monotonic()
    while not stop.is_set():
        try:
            reading = read()
        except MeterError:
            failed += 1
            if failed > FAILURES_IN_A_ROW:
                raise
        else:
            failed = 0
            yield reading
        due = max(due + period_s, time.monotonic())
        stop.wait(due - time.monotonic())
