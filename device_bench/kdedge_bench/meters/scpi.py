"""Bench meters and supplies that answer ``MEAS:POW?`` over a serial or USB-serial line, or over a raw socket.

SCPI through pyserial (BSD-3-Clause; pure Python, no dependencies, the library that nearly all serial tools for Python
rest on) reaches instruments of many makers by one documented command, and pseudo-terminals in tests. The libraries for
single USB testers did not qualify: ppk2-api is GPL-2, km003c (MIT or Apache-2.0) holds the data structures of one
tester and needs raw USB access, usb-multimeter (FNIRSI) needs Python 3.12. Such a tester is read through a logger of
its own: ``--meter csv:FILE`` or ``--meter stdin``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from kdedge.errors import UserError

from kdedge_bench.meters.meter import MeterError, Reading, polled
from kdedge_bench.text import one_line

BAUD = 9600
TIMEOUT_S = 2.0
PERIOD_S = 0.1
MAX_ANSWER_BYTES = 256


class ScpiMeter:
    """An instrument that says its watts when asked, up to ten times a second.

    Args:
        place: ``PORT`` or ``PORT@BAUD``, as pyserial takes it: ``/dev/ttyUSB0``, ``/dev/ttyACM0@115200``, or
            ``socket://HOST:5025`` for one on the network.
    """

    accuracy: float | None = None
    covers = "what the meter's leads carry (at a supply's output, the board without the loss of a wall supply)"

    def __init__(self, place: str) -> None:
        port, _, baud = place.rpartition("@") if "@" in place else (place, "", str(BAUD))
        if not port or not baud.isdigit():
            raise UserError(f"{place!r} is no serial port", cure="Use scpi:PORT or scpi:PORT@BAUD")
        self._port, self._baud = port, int(baud)
        self.name = f"SCPI meter at {port}"
        self.time_error_s = 0.0
        self._line: Any = None

    def open(self) -> None:
        """Open the port and ask who is there.

        Raises:
            UserError: pyserial is not installed, or the port cannot be opened.
            MeterError: nobody answers in watts.
        """
        try:
            import serial
        except ImportError:
            raise UserError(
                "pyserial is not installed, which --meter scpi needs", cure="pip install 'kdedge[scpi]'"
            ) from None
        try:
            self._line = serial.serial_for_url(self._port, baudrate=self._baud, timeout=TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the meter's port cannot be opened: {one_line(str(error), 120)}",
                where=self._port,
                cure="Check the cable and the port's name; for permission join the group dialout",
            ) from None
        who = self._ask("*IDN?").split(",")
        self.name = f"SCPI meter {one_line(' '.join(who[:2]), 60)} at {self._port}"
        self._read()

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Up to ten readings a second, as fast as the instrument answers.

        Raises:
            MeterError: it does not answer any more.
        """
        return polled(self._read, PERIOD_S, stop)

    def close(self) -> None:
        """Close the port."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _read(self) -> Reading:
        begin_s = time.monotonic()
        answer = self._ask("MEAS:POW?")
        end_s = time.monotonic()
        try:
            watts = float(answer)
        except ValueError:
            watts = math.nan
        if not 0 <= watts < 1e6:  # SCPI says 9.9E37 for no number
            raise MeterError(
                f"MEAS:POW? was answered with {one_line(answer, 40)!r}",
                where=self._port,
                cure="Use a meter that measures power, and see that its output is on",
            )
        self.time_error_s = max(self.time_error_s, (end_s - begin_s) / 2)
        return Reading((begin_s + end_s) / 2, watts)

    def _ask(self, question: str) -> str:
        try:
            self._line.reset_input_buffer()
            self._line.write(f"{question}\n".encode("ascii"))
            answer: bytes = self._line.read_until(b"\n", MAX_ANSWER_BYTES)
        except OSError as error:
            raise MeterError(f"the meter's port failed: {one_line(str(error), 100)}", where=self._port) from None
        if not answer.endswith(b"\n"):
            raise MeterError(
                f"the meter did not answer {question} within {TIMEOUT_S:g} s",
                where=self._port,
                cure="Check that it speaks SCPI on this port, at this baud rate (scpi:PORT@BAUD)",
            )
        return answer.decode("ascii", "replace").strip()
