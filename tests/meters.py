"""Meters for tests, at their outermost boundary: a logger into a file, a plug on loopback, an instrument on a pty."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.repeated import repeated


@dataclass(frozen=True)
class Trace:
    """Watts that are known at every moment: a constant, a slow sine and a ramp, on the monotonic clock."""

    base_w: float = 3.0
    sine_w: float = 0.8
    radians_per_s: float = 2.3
    ramp_w_per_s: float = 0.01
    zero_s: float = field(default_factory=time.monotonic)

    def watts(self, t_s: float) -> float:
        since = t_s - self.zero_s
        return self.base_w + self.sine_w * math.sin(self.radians_per_s * since) + self.ramp_w_per_s * since

    def joules(self, begin_s: float, end_s: float) -> float:
        """The true integral."""

        def antiderivative(t_s: float) -> float:
            since = t_s - self.zero_s
            waves = -self.sine_w / self.radians_per_s * math.cos(self.radians_per_s * since)
            return self.base_w * since + waves + self.ramp_w_per_s * since**2 / 2

        return antiderivative(end_s) - antiderivative(begin_s)


@contextmanager
def logger(
    path: Path, watts: Callable[[float], float], hz: float = 20.0, until: threading.Event | None = None
) -> Iterator[None]:
    """A program that appends a line at a rhythm, each at once; it falls silent once ``until`` is set."""
    path.write_text("timestamp,watts\n")

    def log() -> None:
        if until is not None and until.is_set():
            return
        with path.open("a") as file:
            file.write(f"{time.time():.6f},{watts(time.monotonic()):.6f}\n")

    with repeated(log, 1 / hz):
        yield


@dataclass
class Plug:
    """A Kasa plug that speaks TP-Link's protocol on loopback; tests change what it says while it runs."""

    watts: Callable[[float], float]
    model: str = "HS110(EU)"
    feature: str = "TIM:ENE"
    in_milliwatts: bool = True
    port: int = 0
    asked: int = 0
    drop: int = 0
    """So many of the next connections are closed instead of answered."""

    def reply(self, question: dict[str, Any]) -> dict[str, Any]:
        """Each command of each module answered for itself, as a plug does it."""
        now = self.watts(time.monotonic())
        figures: dict[str, Any] = {"voltage": 230.1, "current": now / 230.1, "power": now, "total": 1.5}
        if self.in_milliwatts:
            milli = {"voltage_mv": 230100, "current_ma": now / 0.2301, "power_mw": now * 1e3, "total_wh": 1500}
            figures = {key: round(value) for key, value in milli.items()}
        system = {"model": self.model, "feature": self.feature, "alias": "board", "relay_state": 1}
        known = {
            "get_sysinfo": {
                **system,
                "deviceId": "80",
                "type": "IOT.SMARTPLUGSWITCH",
                "sw_ver": "1.5.6 Build 1",
                "hw_ver": "4.0",
                "mac": "00:00:00:00:00:01",
                "err_code": 0,
            },
            "get_realtime": {**figures, "err_code": 0},
        }
        unknown = {"err_code": -1, "err_msg": "module not support"}
        return {module: {name: known.get(name, unknown) for name in part} for module, part in question.items()}


def _cipher(data: bytes, *, decode: bool) -> bytes:
    key, out = 171, bytearray()
    for byte in data:
        out.append(key ^ byte)
        key = byte if decode else key ^ byte
    return bytes(out)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def _serve(connection: socket.socket, plug: Plug) -> None:
    with connection, suppress(OSError):
        while True:
            (length,) = struct.unpack(">I", _exactly(connection, 4))
            question = json.loads(_cipher(_exactly(connection, length), decode=True))
            if plug.drop > 0:
                plug.drop -= 1
                return
            plug.asked += 1
            body = _cipher(json.dumps(plug.reply(question)).encode(), decode=False)
            connection.sendall(struct.pack(">I", len(body)) + body)


@contextmanager
def running_plug(plug: Plug) -> Iterator[Plug]:
    """The plug, listening on a port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        plug.port = server.getsockname()[1]
        connections: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    threading.Thread(target=_serve, args=(connection, plug), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield plug
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                connection.close()
            thread.join(5)


@contextmanager
def scpi_instrument(answers: Callable[[str], str | None]) -> Iterator[str]:
    """The port of an instrument on a pseudo-terminal; ``answers`` says what it replies, None for nothing."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    done = threading.Event()

    def speak() -> None:
        heard = b""
        with suppress(OSError):
            while not done.is_set():
                heard += os.read(ours, 256)
                *lines, heard = heard.split(b"\n")
                for line in lines:
                    answer = answers(line.decode().strip())
                    if answer is not None:
                        os.write(ours, answer.encode() + b"\n")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        done.set()
        os.write(theirs, b"\n")
        thread.join(5)
        os.close(theirs)
        os.close(ours)
