"""The duplex channel to the agent: JSON lines over a child process's stdin and stdout.

The child is the SSH client or, on this machine, the agent itself. What comes from it is hostile until
proven otherwise: lines, messages and waiting have bounds, and strings are cleaned of escapes on arrival.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdedge.errors import KdedgeError, WireError

from kdedge_agent.protocol import MAX_LINE_BYTES, PROTOCOL_VERSION, REPLIES, ProtocolError, decode, encode
from kdedge_bench import waiting
from kdedge_bench.artifact_file import ArtifactFile
from kdedge_bench.devices import Device
from kdedge_bench.faults import from_agent
from kdedge_bench.text import clean, one_line

#: Lines before the greeting that a login script may print.
MAX_NOISE_LINES = 200
#: Of one answer, progress included: room for two of the longest lines.
MAX_ANSWER_BYTES = 2 * MAX_LINE_BYTES
#: Silence longer than this is a frozen device.
SILENCE_S = 60.0
GREETING_S = 60.0
_STDERR_LINES = 200
_GRACE_S = 5.0

if TYPE_CHECKING:
    from typing_extensions import Self

Message = dict[str, Any]


class AgentChannel:
    """A conversation with one agent; a context manager that leaves nothing running.

    Args:
        process: The child, with all three streams as pipes, in a session of its own.
        device: Whom it reaches, for messages.
        explain_end: From exit code and standard error of a child that ended too early to the error to raise.
        silence_s: Longest wait for the next message.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        device: Device,
        explain_end: Callable[[int, str], KdedgeError],
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._process = process
        self._device = device
        self._explain_end = explain_end
        self._silence_s = silence_s
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=16)
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._closing = threading.Event()
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.greeting: Message = {}

    def __enter__(self) -> Self:
        try:
            self.greeting = self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self,
        message: Mapping[str, Any],
        *,
        on_progress: Callable[[Message], None] | None = None,
        about: ArtifactFile | None = None,
        limit_s: float = 7200.0,
    ) -> Message:
        """Send one request and wait for its answer.

        Args:
            message: With its ``type``.
            on_progress: Called with every ``progress`` message, cleaned.
            about: The artifact as it is here, for what the agent says about it.
            limit_s: Seconds in which the agent has to come further, by what it tells, however lively it is.

        Returns:
            The ``result`` message, its strings cleaned.

        Raises:
            WireError: the connection broke, or carried what is no message of the protocol, or fell silent.
            AgentError: the agent answered with an error (ArtifactError if it blames the artifact).
        """
        self._send(message)
        until = time.monotonic() + limit_s
        budget, furthest = MAX_ANSWER_BYTES, None
        while True:
            if time.monotonic() >= until:
                raise WireError(
                    f"the device has come no further for {limit_s:.0f} s",
                    where=self._device.name,
                    cure="Ask for less in one measurement (--repetitions, --seconds), or look at the device",
                )
            line = self._next_line(min(self._silence_s, max(0.1, until - time.monotonic())))
            budget -= len(line)
            if budget < 0:
                raise self._refused(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            answer = self._parse(line)
            kind = answer["type"]
            if kind == "progress":
                now = answer.get("phase"), answer.get("done")
                if now != furthest:
                    until, furthest = time.monotonic() + limit_s, now
                if on_progress is not None:
                    on_progress(answer)
            elif kind == "result":
                return answer
            elif kind == "error":
                raise from_agent(answer, self._device, about)
            else:
                raise self._refused(f"an unexpected {one_line(kind, 40)!r} message")

    def close(self) -> None:
        """Say goodbye, and make sure that the child is gone: it removes what it made when its stdin ends."""
        self._closing.set()
        self._drain()
        with contextlib.suppress(OSError, ValueError, ProtocolError):
            if self._process.stdin is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._process.stdin.write(encode({"type": "bye"}))
                self._process.stdin.close()
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            try:
                self._process.wait(_GRACE_S)
                break
            except subprocess.TimeoutExpired:
                continue
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            # The SSH client hands its streams to the one that holds the connection; until that ends, a reader
            # may wait, and closing a stream that is being read would wait with it.
            reader.join(0.5)
            if stream is not None and not reader.is_alive():
                stream.close()

    def _greet(self) -> Message:
        until = time.monotonic() + GREETING_S
        for _ in range(MAX_NOISE_LINES):
            line = self._next_line(max(0.0, until - time.monotonic()))
            try:
                answer = decode(line)
            except ProtocolError:
                continue  # a login script's words
            if answer["type"] != "hello":
                continue
            if answer.get("protocol") != PROTOCOL_VERSION:
                spoken = one_line(str(answer.get("protocol")), 40)
                raise self._refused(f"an agent of protocol {spoken} (this kdedge speaks {PROTOCOL_VERSION})")
            return self._cleaned(answer)
        raise self._refused("no greeting from the agent, but other output")

    def _send(self, message: Mapping[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is None:
            raise WireError("the channel has no way to the device", where=self._device.name)
        try:
            stdin.write(encode(message))
            stdin.flush()
        except OSError:
            return  # the child is gone; what it said before that is still to be read, and says more than its code
        except ValueError:
            raise self._ended() from None
        except ProtocolError as error:
            raise WireError(f"the request cannot be sent: {error}", where=self._device.name) from None

    def _next_line(self, timeout_s: float) -> bytes:
        try:
            line = waiting.get(self._lines, timeout_s)
        except queue.Empty:
            raise WireError(
                f"no sign of life from the device for {timeout_s:.0f} s",
                where=self._device.name,
                cure="It may be frozen, out of memory, or off the network; look at it, then run again",
            ) from None
        if line is None:
            raise self._ended()
        if len(line) > MAX_LINE_BYTES:
            raise self._refused(f"a line of more than {MAX_LINE_BYTES} bytes")
        return line

    def _parse(self, line: bytes) -> Message:
        try:
            answer = decode(line)
        except ProtocolError as error:
            raise self._refused(f"what is no message ({one_line(str(error), 120)})") from None
        if answer["type"] not in REPLIES:
            raise self._refused(f"a message of unknown type {one_line(answer['type'], 40)!r}")
        return self._cleaned(answer)

    def _cleaned(self, answer: Message) -> Message:
        try:
            cleaned: Message = clean(answer)
        except ValueError as error:
            raise self._refused(f"a message {error}") from None
        return cleaned

    def _refused(self, what: str) -> WireError:
        return WireError(
            f"the device sent {what}",
            where=self._device.name,
            cure="The agent there may have been tampered with; kdedge device check says more",
        )

    def _ended(self) -> KdedgeError:
        """Why the child ended; its exit code is there soon after its streams close."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return WireError("the device closed the connection", where=self._device.name)
        self._readers[1].join(_GRACE_S)
        return self._explain_end(code, "".join(self._stderr))

    def _read_stdout(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            return
        with contextlib.suppress(OSError, ValueError):
            while line := stdout.readline(MAX_LINE_BYTES + 1):
                if len(line) <= MAX_LINE_BYTES and not line.endswith(b"\n"):
                    break  # the wire ended within a line: that is no message, and no lie either
                self._put(line)
                if len(line) > MAX_LINE_BYTES:
                    break
        self._put(None)
        with contextlib.suppress(OSError, ValueError):
            while self._closing.is_set() and stdout.read(65536):
                pass  # so that the child can end

    def _put(self, line: bytes | None) -> None:
        """Hand over one line; a full queue holds the device back, a closing channel throws away."""
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=0.2)
                return

    def _read_stderr(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):
            while line := stderr.readline(4096):
                self._stderr.append(line.decode("utf-8", "replace"))

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()
