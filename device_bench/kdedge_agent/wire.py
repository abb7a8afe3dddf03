"""The two ends of the wire: a stdout that nothing else can print to, and lines of bounded length."""

from __future__ import annotations

import os
import sys
import threading
from typing import IO, Any, Iterator, Mapping, Optional

from kdedge_agent.errors import WireBroke
from kdedge_agent.protocol import MAX_LINE_BYTES, encode


def claim_stdout() -> IO[bytes]:
    """Keep the real stdout for messages, and let everything that prints reach stderr instead.

    File descriptor 1 itself is rebound, so that C++ libraries cannot corrupt the wire either.
    """
    sys.stdout.flush()
    wire = os.dup(1)  # not inheritable: no child can write to the wire
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(wire, "wb")


def lines(stream: IO[bytes], limit: int = MAX_LINE_BYTES) -> Iterator[Optional[bytes]]:
    """Each line of the stream, or None for a line longer than ``limit`` bytes (which is skipped, not held)."""
    while True:
        line = stream.readline(limit + 1)
        if not line:
            return
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(65536)
        yield None


class Sender:
    """Writes whole messages, from any thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message at once.

        Raises:
            WireBroke: nobody reads any more.
            ProtocolError: the message cannot be encoded or is too large.
        """
        line = encode(message)
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError) as error:
                raise WireBroke(f"cannot write: {error}") from None
