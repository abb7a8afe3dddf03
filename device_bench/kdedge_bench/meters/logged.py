"""Meters whose readings a logger writes: into a file that grows, or into standard input."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdedge.errors import UserError

from kdedge_bench.meters.lines import LineReader, Stamped
from kdedge_bench.meters.meter import MeterError, Reading

POLL_S = 0.02
MAX_CLOCK_JUMP_S = 0.25
MAX_CLOCK_GAP_S = 30.0
COVERS = "whatever the logged meter measures"


class LoggerClock:
    """From a logger's timestamps to the host's monotonic clock.

    The stamps are of the wall clock. A reading cannot arrive before it was made, so the shortest delay between stamp
    and arrival bounds how far the logger's clock runs ahead of this machine's; where lines are written at once, that
    delay is near 0 if the clocks agree, and its size is taken as the error of the stamps.

    Attributes:
        time_error_s: As in ``Meter``.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._wall_less_monotonic_s = time.time() - time.monotonic()
        self._shortest_delay_s: float | None = None
        self.time_error_s = 0.0

    def reading(self, stamped: Stamped, resolution_s: float) -> Reading:
        """A reading that has just arrived, with a stamp that is cut off at a resolution.

        Raises:
            MeterError: this machine's wall clock was set meanwhile, or the logger's is far from it.
        """
        now_s = time.monotonic()
        jump_s = abs(time.time() - now_s - self._wall_less_monotonic_s)
        if jump_s > MAX_CLOCK_JUMP_S:
            raise MeterError(
                f"the wall clock of this machine was set by {jump_s:.1f} s during the run",
                where=self._where,
                cure="Timestamps cannot be trusted across that: run it again",
            )
        t_s = stamped.unix_s - self._wall_less_monotonic_s
        delay_s = now_s - t_s
        if self._shortest_delay_s is None or delay_s < self._shortest_delay_s:
            self._shortest_delay_s = delay_s
        if abs(self._shortest_delay_s) > MAX_CLOCK_GAP_S:
            raise MeterError(
                f"the newest timestamp is {abs(delay_s):.0f} s {'old' if delay_s > 0 else 'in the future'}",
                where=self._where,
                cure="Set the logger's clock, let it write each line at once, or write the time zone (…Z)",
            )
        self.time_error_s = abs(self._shortest_delay_s) + jump_s + resolution_s
        return Reading(t_s, stamped.watts)


class CsvMeter:
    """A file of ``timestamp,watts`` to which a logger appends; what it held before is checked and passed over.

    Args:
        path: The file.
    """

    accuracy: float | None = None
    covers = COVERS

    def __init__(self, path: str) -> None:
        self.name = f"log {path}"
        self._path = Path(path)
        self._file: IO[bytes] | None = None
        self._lines = LineReader(path)
        self._clock = LoggerClock(path)

    @property
    def time_error_s(self) -> float:
        """As in ``Meter``."""
        return self._clock.time_error_s

    def open(self) -> None:
        """Open the file and read past what is there.

        Raises:
            UserError: it is not there or cannot be read.
            DataError: a line in it is none.
        """
        if self._path.exists() and not self._path.is_file():
            raise UserError("the meter's log is no file", where=self._path, cure="Read a pipe with --meter stdin")
        try:
            self._file = self._path.open("rb")
            while chunk := self._file.read(1 << 20):
                self._lines.feed(chunk)
        except OSError as error:
            raise UserError(
                f"the meter's log cannot be read: {error.strerror or error}",
                where=self._path,
                cure="Start the logger first; it appends lines of timestamp,watts",
            ) from None

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """What is appended from now on.

        Raises:
            MeterError: the file shrank, or the clocks do not fit.
            DataError: a line that is none.
        """
        if self._file is None:
            return
        while not stop.is_set():
            if os.fstat(self._file.fileno()).st_size < self._file.tell():
                raise MeterError(
                    "the meter's log was cut short during the run", where=self._path, cure="Let it grow, and run again"
                )
            for stamped in self._lines.feed(self._file.read()):
                yield self._clock.reading(stamped, self._lines.resolution_s)
            stop.wait(POLL_S)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class StdinMeter:
    """Lines of ``timestamp,watts`` from a pipe, by default standard input.

    Args:
        stream: File descriptor; None takes that of standard input.
    """

    accuracy: float | None = None
    covers = COVERS
    name = "log on standard input"

    def __init__(self, stream: int | None = None) -> None:
        self._stream = stream
        self._lines = LineReader("standard input")
        self._clock = LoggerClock("standard input")

    @property
    def time_error_s(self) -> float:
        """As in ``Meter``."""
        return self._clock.time_error_s

    def open(self) -> None:
        """See that there is something to read from.

        Raises:
            UserError: standard input is closed or a terminal.
        """
        if self._stream is None:
            try:
                self._stream = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError):
                self._stream = None
        if self._stream is None or os.isatty(self._stream):
            raise UserError(
                "no meter is piped into standard input",
                cure="Pipe its logger: LOGGER | kdedge bench ARTIFACT --meter stdin",
            )

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Lines as they come, until the pipe ends.

        Raises:
            MeterError: the clocks do not fit.
            DataError: a line that is none.
        """
        while self._stream is not None and not stop.is_set():
            if not select.select([self._stream], [], [], 0.1)[0]:
                continue
            data = os.read(self._stream, 1 << 16)
            if not data:
                return
            for stamped in self._lines.feed(data):
                yield self._clock.reading(stamped, self._lines.resolution_s)

    def close(self) -> None:
        """Leave the pipe as it is: it is not this meter's."""
