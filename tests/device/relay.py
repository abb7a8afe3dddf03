"""A cable between SSH client and server that breaks at a chosen place: a TCP relay on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from tests.device.sshd import Sshd

from kdedge_bench.devices import Device


@dataclass
class Relay:
    """What went through it.

    Attributes:
        device: The server, as reached through the relay.
        breaks_after: Bytes from the server after which both ends are cut off.
        received: Bytes from the server so far.
        is_broken: Whether it came to that.
    """

    device: Device
    breaks_after: int
    received: int = 0
    is_broken: bool = False
    ends: list[socket.socket] = field(default_factory=list, repr=False)

    def carry(self, source: socket.socket, target: socket.socket, *, from_server: bool) -> None:
        """Pass bytes on until an end is gone, or the cable breaks."""
        with suppress(OSError):
            while data := source.recv(16384):
                if from_server:
                    self.received += len(data)
                    if self.received > self.breaks_after:
                        self.is_broken = True
                        break
                target.sendall(data)
        self.cut()

    def cut(self) -> None:
        """Both ends find out, as they do when a router between them forgets the connection."""
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(server: Sshd, breaks_after: int) -> Iterator[Relay]:
    """A way to ``server`` that ends after so many bytes from it."""
    with socket.create_server((server.host, 0)) as listener:
        port = listener.getsockname()[1]
        host_key = (server.folder / "host_key.pub").read_text()
        with server.known_hosts.open("a") as known:
            known.write(f"[{server.host}]:{port} {host_key}")
        way = Relay(replace(server.device(), port=port), breaks_after)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    there = socket.create_connection((server.host, server.port))
                    way.ends += [client, there]
                    for pair, from_server in (((client, there), False), ((there, client), True)):
                        threading.Thread(
                            target=way.carry, args=pair, kwargs={"from_server": from_server}, daemon=True
                        ).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield way
        finally:
            way.cut()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
