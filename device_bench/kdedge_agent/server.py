"""The agent's side of the wire: read requests, answer them one after the other, leave nothing behind.

The end of stdin means that the host is gone, at whatever moment: the worker is killed and the agent leaves.
"""

from __future__ import annotations

import os
import platform
import queue
import signal
import sys
import threading
import time
from collections import deque
from typing import IO, Any, Deque, Dict, Mapping, Optional

from kdedge_agent import __version__, facts, governor, workdir
from kdedge_agent.errors import AgentFailure, WireBroke
from kdedge_agent.process import Event, Worker
from kdedge_agent.protocol import PROTOCOL_VERSION, REQUESTS, ProtocolError, decode
from kdedge_agent.wire import Sender, lines

PROGRESS_EVERY_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_VERSIONS = "Use the same version of kdedge on both sides"
MAX_WAITING = 64
"""Requests that may wait while one is being done."""


class Desk:
    """What a running request needs of the session: its worker's messages, progress, and news of the wire."""

    def __init__(self, sender: Sender, scratch: workdir.Scratch) -> None:
        self.events: "queue.Queue[Event]" = queue.Queue()
        self.scratch = scratch
        self.worker: Optional[Worker] = None
        self._sender = sender
        self._waiting: Deque[Optional[bytes]] = deque()
        self._id: Any = None
        self._began_s = 0.0
        self._told: Dict[str, float] = {}

    def begin(self, request_id: Any) -> None:
        """A new request: its id goes into every reply."""
        self._id, self._began_s, self._told = request_id, time.monotonic(), {}

    def reply(self, message: Mapping[str, Any]) -> None:
        """Send a reply to the present request."""
        self._sender.send(message if self._id is None else {**message, "id": self._id})

    def progress(self, phase: str, done: int = 0, total: int = 0, text: str = "") -> None:
        """Tell the host how far the request is, not more often than twice a second for a phase."""
        now = time.monotonic()
        if now - self._told.get(phase, -PROGRESS_EVERY_S) < PROGRESS_EVERY_S:
            return
        self._told[phase] = now
        elapsed_s = round(now - self._began_s, 3)
        text = text or (f"{phase}: {done} of {total}" if total else phase)
        message = {"phase": phase, "done": done, "total": total, "elapsed_s": elapsed_s, "text": text}
        self.reply({"type": "progress", **message})

    def next_request(self) -> Optional[bytes]:
        """The next line, None for one that was too long.

        Raises:
            WireBroke: no more will come.
        """
        while not self._waiting:
            self._take(self.events.get())
        return self._waiting.popleft()

    def check(self) -> None:
        """Take note of what came meanwhile.

        Raises:
            WireBroke: the host is gone.
        """
        while not self.events.empty():
            self._take(self.events.get())

    def _take(self, event: Event) -> Optional[Dict[str, Any]]:
        """Put a line aside, or hand over what the worker said."""
        kind, content = event
        if kind == "end":
            raise WireBroke("stdin ended")
        if kind == "line":
            if len(self._waiting) >= MAX_WAITING:
                raise WireBroke(f"more than {MAX_WAITING} requests are waiting")
            self._waiting.append(content)
            return None
        return content if isinstance(content, dict) else {"type": "ended"}

    def start_worker(self, job: Mapping[str, Any]) -> Worker:
        """A worker process for a job; there is one at a time."""
        self.worker = Worker(job, self.events, self.scratch.path)
        return self.worker

    def worker_says(self, timeout_s: float) -> Optional[Dict[str, Any]]:
        """The worker's next message; None when it said nothing in that time.

        Raises:
            AgentFailure: it failed, or it died.
            WireBroke: the host is gone.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                message = self._take(self.events.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                return None
            if message is None or self.worker is None:
                continue
            if message["type"] == "doing":
                self.worker.doing = str(message["doing"])
                self.worker.phase = str(message["phase"])
            elif message["type"] == "ended":
                raise self.worker.death()
            elif message["type"] == "error":
                raise AgentFailure(str(message["kind"]), str(message["message"]), message.get("cure"))
            return message

    def end_worker(self) -> None:
        """Kill the worker, if there is one, and forget what it may still have said."""
        if self.worker is None:
            return
        self.worker.kill()
        self.worker = None
        kept = []
        while not self.events.empty():
            event = self.events.get()
            if event[0] != "worker":
                kept.append(event)
        for event in kept:
            self.events.put(event)


def _hello(scratch: workdir.Scratch) -> Dict[str, Any]:
    return {
        "type": "hello",
        "protocol": PROTOCOL_VERSION,
        "agent_version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "pid": os.getpid(),
        "work_dir": str(workdir.work_dir()),
        "scratch_dir": str(scratch.path) if scratch.path else None,
        "scratch_reason": scratch.reason,
    }


def _answer_facts() -> Dict[str, Any]:
    from kdedge_agent import power

    source, reason = power.discover()
    found: Dict[str, Any] = {**facts.device_facts(), **facts.snapshot(folder=workdir.work_dir().parent)}
    found["power_source"] = None if source is None else source.described()
    found["power_reason"] = reason
    return {"facts": found}


def _answer_remove(paths: object) -> Dict[str, Any]:
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise AgentFailure("protocol", "remove: paths must be a list of strings")
    return dict(workdir.remove(paths))


def _answer(desk: Desk, message: Mapping[str, Any]) -> Dict[str, Any]:
    """The result of one request; the modules that measure are imported when first needed."""
    kind = message["type"]
    if kind == "clock":
        return {"clock_s": time.monotonic()}
    if kind == "facts":
        return _answer_facts()
    if kind == "remove":
        return _answer_remove(message["paths"])
    from kdedge_agent import requests

    if kind == "probe":
        return {"runtimes": requests.probe(desk)}
    return (requests.measure if kind == "measure" else requests.score)(desk, message["request"])


_KEYS = {
    "facts": (),
    "probe": (),
    "measure": ("request",),
    "score": ("request",),
    "remove": ("paths",),
    "clock": (),
    "bye": (),
}


def _parse(line: Optional[bytes]) -> Dict[str, Any]:
    """A known request with exactly its keys (and an optional ``id``).

    Raises:
        ProtocolError: anything else.
    """
    if line is None:
        raise ProtocolError("the line is longer than a message may be")
    message = decode(line)
    kind = message["type"]
    if kind not in REQUESTS:
        raise ProtocolError(f"unknown request {kind[:80]!r}; known: {', '.join(REQUESTS)}")
    wanted = set(_KEYS[kind])
    keys = set(message) - {"type", "id"}
    if keys != wanted:
        odd = sorted(keys ^ wanted)[0]
        raise ProtocolError(f"{kind}: key {odd[:80]!r} is {'missing' if odd in wanted else 'unknown'}")
    if kind in ("measure", "score") and not isinstance(message["request"], dict):
        raise ProtocolError(f"{kind}: request must be an object")
    identity = message.get("id")
    if identity is not None and not (isinstance(identity, (str, int)) and len(str(identity)[:65]) <= 64):
        raise ProtocolError("id must be a short string or number")
    return message


def _do(desk: Desk, line: Optional[bytes]) -> bool:
    """Answer one request; False after ``bye``."""
    desk.begin(None)
    try:
        message = _parse(line)
        desk.begin(message.get("id"))
        if message["type"] == "bye":
            return False
        reply: Mapping[str, Any] = {"type": "result", "of": message["type"], **_answer(desk, message)}
    except ProtocolError as error:
        reply = AgentFailure("protocol", str(error)[:500], _VERSIONS).to_message()
    except AgentFailure as failure:
        reply = failure.to_message()
    except WireBroke:
        raise
    except Exception as error:  # a fault of the agent itself must not end the session, and must not be hidden
        reply = AgentFailure("internal", f"{type(error).__name__}: {str(error)[:300]}").to_message()
    desk.end_worker()  # before the answer: whoever has it may rely on a device at rest
    try:
        desk.reply(reply)
    except ProtocolError as error:  # a result that is too large to be sent
        desk.reply(AgentFailure("internal", f"the result cannot be sent: {error}").to_message())
    return True


def _read_requests(stream: IO[bytes], events: "queue.Queue[Event]") -> None:
    try:
        for line in lines(stream):
            events.put(("line", line))
    finally:
        events.put(("end", None))


def _leave(number: int, frame: object) -> None:
    del frame
    for other in _SIGNALS:  # the first one counts; a second must not disturb the cleaning up
        signal.signal(other, signal.SIG_IGN)
    raise WireBroke(f"signal {number}")


def serve(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Greet, then answer until ``bye`` (0), or until the host is gone (0 when idle, 1 in the midst of a request)."""
    for number in _SIGNALS:
        signal.signal(number, _leave)
    governor.recover(workdir.work_dir())
    scratch = workdir.Scratch()
    desk = Desk(Sender(stdout), scratch)
    busy = False
    try:
        stdout.write(b"\n")  # a login script may have left its last line without an end
        desk.reply(_hello(scratch))
        threading.Thread(target=_read_requests, args=(stdin, desk.events), daemon=True).start()
        going = True
        while going:
            busy = False
            line = desk.next_request()
            busy = True
            going = _do(desk, line)
    except WireBroke as broke:
        if busy:
            sys.stderr.write(f"kdedge agent: the host is gone ({broke}); the worker is ended\n")
        return 1 if busy else 0
    finally:
        desk.end_worker()
        scratch.close()
    return 0
