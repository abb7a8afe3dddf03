"""TP-Link's Kasa plugs with an energy meter: HS110, KP115, KP125, EP25 of older firmware.

They answer JSON on TCP port 9999 without a login, each byte XORed with the one before it on the wire (the first with
171), after four bytes of length; softScheck published it ("Reverse Engineering the TP-Link HS110", 2016). That is
spoken here directly, and needs nothing installed: python-kasa, the usual library, is GPL-3.0-or-later, which this
project does not depend on. Plugs that ask for an account speak another protocol: for Tapo's see ``tapo.py``; let any
program log a Kasa plug of newer firmware, and read its lines with ``--meter stdin``.

TP-Link states neither accuracy nor rate; HS110 and its kin renew their figure about once a second, so a reading is
taken to be of the middle of the second before it, give or take half of that.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeGuard

from kdedge.errors import UserError

from kdedge_bench.meters.meter import MeterError, Reading, polled
from kdedge_bench.text import one_line

PORT = 9999
TIMEOUT_S = 3.0
RENEWED_S = 1.0
MAX_ANSWER_BYTES = 1 << 16
_FIRST_KEY = 171
_READ: dict[str, Any] = {"emeter": {"get_realtime": {}}}


class KasaMeter:
    """A Kasa plug, read once a second.

    Args:
        address: Host or address, with ``:PORT`` where it is not 9999.
    """

    accuracy: float | None = None
    covers = "the whole board at the wall, with the loss of its power supply"

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        if not host or (port and not (port.isdigit() and 0 < int(port) < 65536)):
            raise UserError(f"{address!r} is no address of a plug", cure="Use kasa:HOST, such as kasa:192.168.1.20")
        self._place = (host, int(port) if port else PORT)
        self.name = f"kasa plug at {address}"
        self.time_error_s = 0.0
        self._address = address
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Ask the plug who it is, and whether it measures.

        Raises:
            MeterError: it does not answer, or has no meter.
        """
        system = self._part(self._ask({"system": {"get_sysinfo": {}}}), "system", "get_sysinfo")
        model = one_line(str(system.get("model", "of unknown model")), 40)
        self.name = f"kasa plug {model} at {self._address}"
        if "ENE" not in str(system.get("feature", "")).split(":"):
            raise MeterError(
                f"the plug {model} has no energy meter",
                where=self._address,
                cure="Use one that has: HS110, KP115, KP125, EP25",
            )
        self._read()

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """A reading each second.

        Raises:
            MeterError: it does not answer any more.
        """
        return polled(self._read, RENEWED_S, stop)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self) -> Reading:
        begin_s = time.monotonic()
        now = self._part(self._ask(_READ), "emeter", "get_realtime")
        end_s = time.monotonic()
        # Older hardware answers in W, newer in mW.
        milliwatts = now.get("power_mw")
        watts = milliwatts * 1e-3 if _is_number(milliwatts) else now.get("power")
        if not _is_number(watts) or watts < 0:
            raise MeterError(f"the plug said no watts: {one_line(str(now), 80)}", where=self._address)
        self.time_error_s = max(self.time_error_s, (end_s - begin_s + RENEWED_S) / 2)
        return Reading((begin_s + end_s - RENEWED_S) / 2, watts)

    def _ask(self, question: dict[str, Any]) -> Any:
        """The plug's answer; a connection that broke is opened anew for the next question."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._place, timeout=TIMEOUT_S)
            body = _scrambled(json.dumps(question).encode())
            self._socket.sendall(struct.pack(">I", len(body)) + body)
            (length,) = struct.unpack(">I", self._receive(4))
            return json.loads(_plain(self._receive(length)))
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise MeterError(
                f"the plug does not answer: {one_line(str(error), 100)}",
                where=self._address,
                cure="Check its address; a Tapo plug is read with --meter tapo:HOST, one of newer Kasa firmware by a "
                "program of its own that writes timestamp,watts into --meter stdin",
            ) from None

    def _receive(self, count: int) -> bytes:
        if count > MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {count} bytes")
        data = b""
        while self._socket is not None and len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("it closed the connection")
            data += part
        return data

    def _part(self, answer: Any, module: str, command: str) -> dict[str, Any]:
        part = answer.get(module) if isinstance(answer, dict) else None
        part = part.get(command) if isinstance(part, dict) else None
        if not isinstance(part, dict) or part.get("err_code", 0) != 0:
            said = one_line(json.dumps(answer), 80)
            raise MeterError(f"the plug does not know {module}.{command}: {said}", where=self._address)
        return part


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _scrambled(plain: bytes) -> bytes:
    """Each byte XORed with the scrambled one before it."""
    key, made = _FIRST_KEY, bytearray()
    for byte in plain:
        key ^= byte
        made.append(key)
    return bytes(made)


def _plain(scrambled: bytes) -> bytes:
    return bytes(before ^ byte for before, byte in pairwise(bytes([_FIRST_KEY]) + scrambled))
