"""qemu's monitor: one command, one answer (QEMU Machine Protocol)."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any


class Monitor:
    """A connection to the monitor of one machine."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lines = self._socket.makefile("r")
        json.loads(self._lines.readline())  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Have a command done; what it returns (Any: a value of JSON)."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self._lines.readline():
            message = json.loads(line)
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]  # other messages are events
        raise RuntimeError(f"{command}: the machine has ended")

    def close(self) -> None:
        """End the connection."""
        self._lines.close()
        self._socket.close()


def connect(path: Path, seconds: float = 20.0) -> Monitor:
    """The monitor of a machine that has just been started, at its socket."""
    until = time.monotonic() + seconds
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return Monitor(connection)
