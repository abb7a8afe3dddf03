"""A worker process of its own for each measurement, so that a runtime that dies takes nothing else with it."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import kdedge_agent
from kdedge_agent.errors import AgentFailure, WireBroke
from kdedge_agent.protocol import ProtocolError, decode
from kdedge_agent.wire import Sender, lines

_STDERR_TAIL_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_EXIT_TIMEOUT_S = 10.0

Event = Tuple[str, Any]

_CURES = {
    "SIGILL": "The wheel uses instructions that this processor lacks: install an older version or another runtime",
    "SIGKILL": "Most often the kernel ran out of memory: free some, or use a smaller model or fewer threads",
    "SIGBUS": "A file ended while it was read: check the disk and send the artifact again",
}
_CURE = "Install another version of the runtime, or try another runtime"


def die_with_parent() -> None:
    """Linux: be killed when the process that started this one ends, however it ends.

    Elsewhere the worker notices that its stdin ended, which says the same a little later.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def agent_command(*words: str) -> Tuple[List[str], Dict[str, str]]:
    """Command and environment of another process of this very package, zip or folder."""
    home = Path(kdedge_agent.__path__[0]).parent
    environment = dict(os.environ)
    if home.is_file():
        return [sys.executable, str(home), *words], environment
    paths = [str(home), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return [sys.executable, "-m", "kdedge_agent", *words], environment


def _command(threads: int) -> Tuple[List[str], Dict[str, str]]:
    """Command and environment of a worker; numpy starts no threads in it."""
    command, environment = agent_command("--worker")
    # ONNX Runtime (1.32, Linux) would write into ~/.cache and start a thread that uploads. It reads this as it is
    # imported; its function for the same comes too late.
    quiet = {"ORT_DISABLE_TELEMETRY": "1"}
    return command, {**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads), **quiet}


def oom_kills() -> Optional[int]:
    """How many processes the kernel has killed for lack of memory since boot; None where it does not count."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


class Worker:
    """One worker process; what it says arrives in the agent's queue of events as ``("worker", message)``.

    The last event of a worker is ``("worker", None)``: it has closed its stdout.

    Attributes:
        doing: What it said it was doing last, for the words about its death.
        phase: The same in one word: start, import, load, first, warm-up, timing, power, scoring.
    """

    def __init__(self, job: Mapping[str, Any], events: "queue.Queue[Event]", folder: Optional[Path]) -> None:
        self.doing, self.phase = "starting", "start"
        self._events = events
        self._tail = b""
        self._oom_before = oom_kills()
        command, environment = _command(int(job.get("threads", 1)))
        try:
            # A session of its own: one signal reaches whatever the runtime may have started.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=str(folder) if folder else None,
                start_new_session=True,
            )
        except OSError as error:
            raise AgentFailure("internal", f"cannot start a worker process: {error.strerror}") from None
        self.pid = self._process.pid
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe just above
        self._sender = Sender(self._process.stdin)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read_messages, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()
        self.send(job)

    def send(self, message: Mapping[str, Any]) -> None:
        """A command to the worker; a dead one does not hear it, which its end will tell."""
        try:
            self._sender.send(message)
        except WireBroke:
            return

    def _read_messages(self) -> None:
        stream = self._process.stdout
        if stream is not None:
            for line in lines(stream):
                try:
                    message = decode(line) if line is not None else {"type": "garbage"}
                except ProtocolError:
                    message = {"type": "garbage"}
                self._events.put(("worker", message))
        self._events.put(("worker", None))

    def _read_stderr(self) -> None:
        stream = self._process.stderr
        while stream is not None:
            part = os.read(stream.fileno(), 65536)
            if not part:
                return
            self._tail = (self._tail + part)[-_STDERR_TAIL_BYTES:]

    def kill(self) -> None:
        """End the worker and whatever it started, at once, and wait until it is gone."""
        if self._process.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(_EXIT_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue

    def death(self) -> AgentFailure:
        """How it ended, after it closed its stdout without an answer."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return AgentFailure("runtime-died", f"the worker fell silent while {self.doing}", _CURE)
        said = self._last_words()
        if code >= 0:
            return AgentFailure("runtime-died", f"the worker ended with code {code} while {self.doing}{said}", _CURE)
        name = signal_name(-code)
        oom = self._oom_before is not None and (oom_kills() or 0) > self._oom_before
        why = " (the kernel was out of memory)" if oom and name == "SIGKILL" else ""
        return AgentFailure(
            "out-of-memory" if why else "runtime-died",
            f"the runtime died with signal {name}{why} while {self.doing}{said}",
            _CURES.get(name, _CURE),
        )

    def _last_words(self) -> str:
        self._threads[1].join(1.0)
        lines_: List[str] = [line.strip() for line in self._tail.decode("utf-8", "replace").splitlines()]
        lines_ = [line for line in lines_ if line]
        return f"; its last words: {lines_[-1][:300]}" if lines_ else ""


def signal_name(number: int) -> str:
    """``SIGILL`` of 4."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"number {number}"
