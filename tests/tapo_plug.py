"""A Tapo plug on loopback: TP-Link's KLAP, a handshake of two seeds and AES-128-CBC within HTTP.

The cipher is the openssl program's, so that nothing has to be installed for it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

USER, PASSWORD = "board@example.org", "correct horse"


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _aes(data: bytes, key: bytes, iv: bytes, *words: str) -> bytes:
    command = ["openssl", "enc", "-aes-128-cbc", *words, "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=30).stdout


@dataclass
class Session:
    """The keys that both seeds and the account's hash make."""

    local: bytes
    remote: bytes
    auth: bytes

    def _derived(self, name: bytes) -> bytes:
        return _sha256(name, self.local, self.remote, self.auth)

    def _iv(self, seq: int) -> bytes:
        return self._derived(b"iv")[:12] + seq.to_bytes(4, "big", signed=True)

    def opened(self, body: bytes, seq: int) -> dict[str, Any]:
        """The request in a body, after its signature of 32 bytes."""
        plain = _aes(body[32:], self._derived(b"lsk")[:16], self._iv(seq), "-d")
        question: dict[str, Any] = json.loads(plain)
        return question

    def sealed(self, answer: dict[str, Any], seq: int) -> bytes:
        """An answer, signed."""
        cipher = _aes(json.dumps(answer).encode(), self._derived(b"lsk")[:16], self._iv(seq))
        signature = _sha256(self._derived(b"ldk")[:28], seq.to_bytes(4, "big", signed=True), cipher)
        return signature + cipher


@dataclass
class TapoPlug:
    """What the plug says; tests change it while it runs."""

    watts: Callable[[float], float]
    port: int = 0
    asked: list[str] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def auth(self) -> bytes:
        """Hash of the account."""
        sha1 = [hashlib.sha1(word.encode()).digest() for word in (USER, PASSWORD)]
        return _sha256(*sha1)

    def reply(self, question: dict[str, Any]) -> dict[str, Any]:
        """The result of a method."""
        method = str(question["method"])
        self.asked.append(method)
        if method == "get_device_info":
            return {"error_code": 0, "result": {"model": "P110", "device_on": True}}
        if method == "get_energy_usage":
            now = round(self.watts(time.monotonic()) * 1e3)
            usage = {"today_runtime": 1, "month_runtime": 1, "today_energy": 1, "month_energy": 1}
            return {"error_code": 0, "result": {**usage, "local_time": "2026-10-05 12:00:00", "current_power": now}}
        return {"error_code": -1}


def _handler(plug: TapoPlug) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
            del format, args

        def do_POST(self) -> None:
            url = urlparse(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            session = plug.sessions.get(self.headers.get("Cookie", "").partition("=")[2].partition(";")[0])
            if url.path == "/app/handshake1":
                name, remote = f"S{len(plug.sessions)}", b"r" * 16
                plug.sessions[name] = Session(body, remote, plug.auth)
                self._answer(200, remote + _sha256(body, remote, plug.auth), f"TP_SESSIONID={name};TIMEOUT=86400")
            elif url.path == "/app/handshake2" and session is not None:
                good = body == _sha256(session.remote, session.local, plug.auth)
                self._answer(200 if good else 403, b"")
            elif url.path == "/app/request" and session is not None:
                seq = int(parse_qs(url.query)["seq"][0])
                self._answer(200, session.sealed(plug.reply(session.opened(body, seq)), seq))
            else:
                self._answer(200, json.dumps({"error_code": 1003}).encode())

        def _answer(self, status: int, body: bytes, cookie: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if cookie:
                self.send_header("Set-Cookie", cookie)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def running_tapo(plug: TapoPlug) -> Iterator[TapoPlug]:
    """The plug, listening on a port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(plug))
    plug.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield plug
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
