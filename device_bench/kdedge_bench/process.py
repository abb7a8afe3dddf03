"""A step on a device as a child process: words, input, output, each with bounds.

Both transports rest on this; they differ in which child it is (the program itself, or the SSH client).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import selectors
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.errors import AgentError, KdedgeError, WireError

from kdedge_bench import remote, waiting
from kdedge_bench.channel import SILENCE_S, AgentChannel
from kdedge_bench.devices import Device
from kdedge_bench.faults import NoPythonError, PythonTooOldError, device_write_failure
from kdedge_bench.text import last_line, one_line

if TYPE_CHECKING:
    from typing_extensions import Self

_COMMAND_S = 120.0
_STALL_S = 60.0
_CHUNK_BYTES = 1 << 18
MAX_OUTPUT_BYTES = 8 << 20

OnBytes = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all)."""


@dataclass(frozen=True)
class Completed:
    """A command that ended on the device."""

    code: int
    stdout: bytes
    stderr: str


class Transport(ABC):
    """A way to a device; use it as a context manager.

    Every step is a child process with words, input and output; the two ways differ in which child.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - without a wire there is nothing to close
        """Leave nothing behind; may be called twice."""

    @abstractmethod
    def _argv(self, words: Sequence[str]) -> list[str]:
        """The child that runs ``words`` on the device."""

    @abstractmethod
    def _pythons(self) -> list[str]:
        """Interpreters to try, in order."""

    @abstractmethod
    def _explain_end(self, code: int, stderr: str) -> KdedgeError:
        """Why a child ended that should have answered."""

    def run(self, words: Sequence[str], *, timeout_s: float = _COMMAND_S) -> Completed:
        """Run a command without input; its exit code is returned, only the wire raises.

        Raises:
            WireError: the connection broke, or nothing came for ``timeout_s``.
        """
        process = self._spawn(words, stdin=subprocess.DEVNULL)
        try:
            stdout, stderr = self._collect(process, timeout_s)
        finally:
            stop(process, grace_s=0.2)
        return self._completed(process.returncode, stdout, stderr)

    def run_guarded(self, words: Sequence[str], ground: remote.Ground, *, timeout_s: float) -> Completed:
        """Run a long command that is killed on the device when this process or the connection ends.

        Raises:
            WireError: the connection broke, or it was not done after ``timeout_s``.
        """
        process = self._spawn([ground.python, "-c", remote.GUARD, *words], stdin=subprocess.PIPE)
        try:
            stdout, stderr = self._collect(process, timeout_s)
        finally:
            stop(process)
        return self._completed(process.returncode, stdout, stderr)

    def look_around(self, files: Mapping[str, str], *, own_venv: bool = True, tidy: bool = True) -> remote.Ground:
        """Find the device's Python, and which files are there.

        Args:
            files: Name in the device's cache -> SHA-256 it must have; one with another hash is removed.
            own_venv: Prefer the environment that kdedge made there.
            tidy: Remove what kdedge left there and nobody used for a month.

        Raises:
            NoPythonError: no interpreter, or not where the device's entry says.
            PythonTooOldError: older than the agent can use.
        """
        request = json.dumps({"files": dict(files), "tidy": tidy})
        pythons = [python for python in self._pythons() if own_venv or python != remote.OWN_VENV]
        done = self.run(["sh", "-c", remote.FIND_PYTHON, "kdedge", remote.LOOK_AROUND, request, *pythons])
        answer = remote.parse_answer(done.stdout)
        if answer is None:
            said = last_line(done.stderr) or f"exit code {done.code}"
            raise AgentError(
                f"cannot look around on the device: {said}",
                where=self.device.name,
                cure="The login shell there is a restricted one; the user needs an ordinary one (chsh -s /bin/sh)"
                if "restricted" in said
                else None,
            )
        if answer.get("error") == "no-python":
            raise self._no_python()
        try:
            ground = remote.parse_ground(answer)
        except ValueError as error:
            raise WireError(str(error), where=self.device.name) from None
        if ground.version < remote.OLDEST_PYTHON:
            raise PythonTooOldError(
                f"the device's Python is {ground.version_text}; the agent needs 3.8 or newer",
                where=f"{self.device.name}: {ground.python}",
                cure=f"Name a newer one: {self._again()} --python PATH",
            )
        return ground

    def put(
        self,
        data: Path | bytes,
        path: str,
        sha256: str,
        *,
        ground: remote.Ground,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Store a file on the device whole or not at all, readable by its user alone, checked by hash.

        Args:
            data: A file here, or its bytes.
            path: Absolute, on the device; its folder is made.
            sha256: Of the data.
            ground: With the Python that does it there.
            on_bytes: Told how much has been sent.

        Raises:
            DiskFullError: no space left there.
            AgentError: it cannot be written there, or arrived damaged.
            WireError: the connection broke or stands still.
        """
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        what = Path(path).name if isinstance(data, bytes) else data.name
        words = [ground.python, "-c", remote.STORE, path, sha256, str(size)]
        process = self._spawn(words, stdin=subprocess.PIPE)
        try:
            self._feed(process, data, size, on_bytes)
            stdout, stderr = self._collect(process, _COMMAND_S)
        finally:
            stop(process)
        answer = remote.parse_answer(stdout)
        if answer is None:
            raise self._explain_end(process.returncode, stderr.decode("utf-8", "replace"))
        if answer.get("ok") is not True:
            raise device_write_failure(
                str(answer.get("error", "")), str(answer.get("detail", "")), self.device, one_line(what, 80)
            )

    def open_agent(self, ground: remote.Ground, agent_path: str) -> AgentChannel:
        """Start the agent there; the channel is a context manager that greets and ends it."""
        process = self._spawn([ground.python, agent_path], stdin=subprocess.PIPE)
        return AgentChannel(process, self.device, self._explain_end, silence_s=SILENCE_S)

    def _collect(self, process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
        try:
            return collect(process, timeout_s)
        except TimeoutError:
            raise self._silent(timeout_s) from None
        except OverflowError:
            raise WireError(
                f"the device sent more than {MAX_OUTPUT_BYTES} bytes where one line was asked for",
                where=self.device.name,
            ) from None

    def _feed(self, process: subprocess.Popen[bytes], data: Path | bytes, size: int, on_bytes: OnBytes | None) -> None:
        """Write the file into the child; stop early if it no longer reads (it says why on stdout)."""
        stdin = process.stdin
        if stdin is None:
            return
        os.set_blocking(stdin.fileno(), False)
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            source = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            selector.register(stdin, selectors.EVENT_WRITE)
            sent, chunk = 0, memoryview(source.read(_CHUNK_BYTES))
            while chunk and sent < size:  # a file that shrank meanwhile is found out by its hash
                if not waiting.select(selector, _STALL_S):
                    raise self._silent(_STALL_S)
                try:
                    written = os.write(stdin.fileno(), chunk)
                except BrokenPipeError:
                    break
                sent += written
                chunk = chunk[written:] or memoryview(source.read(_CHUNK_BYTES))
                if on_bytes is not None:
                    on_bytes(sent, size)

    def _spawn(self, words: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
        """The child, in a session of its own: Ctrl-C reaches kdedge alone, which then ends it in order."""
        try:
            return subprocess.Popen(
                self._argv(words),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=self._environment(),
            )
        except OSError as error:
            raise AgentError(f"cannot start {words[0]}: {error.strerror}", where=self.device.name) from None

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _completed(self, code: int, stdout: bytes, stderr: bytes) -> Completed:
        return Completed(code, stdout, stderr.decode("utf-8", "replace"))

    def _silent(self, seconds: float) -> WireError:
        return WireError(
            f"no sign of life from the device for {seconds:.0f} s",
            where=self.device.name,
            cure="It may be frozen or off the network; look at it, then run again",
        )

    def _again(self) -> str:
        return f"kdedge device add {self.device.name} {self.device.address} --replace"

    def _no_python(self) -> NoPythonError:
        asked = self.device.python
        if asked is not None:
            return NoPythonError(
                f"there is no Python at {one_line(asked)} on the device",
                where=self.device.name,
                cure=f"Correct it: {self._again()} --python PATH",
            )
        return NoPythonError(
            "there is no Python 3 on the device",
            where=self.device.name,
            cure="Install it there (Debian and its kin: sudo apt install python3 python3-venv), "
            f"or name one: {self._again()} --python PATH",
        )


def collect(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
    """Read a child's stdout and stderr to their ends and wait for it.

    Raises:
        TimeoutError: not done after ``timeout_s``.
        OverflowError: more than ``MAX_OUTPUT_BYTES``.
    """
    until = time.monotonic() + timeout_s
    parts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    with selectors.DefaultSelector() as selector:
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = waiting.select(selector, max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                parts[key.data] += chunk
            if sum(map(len, parts.values())) > MAX_OUTPUT_BYTES:
                raise OverflowError
    try:
        process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return bytes(parts["stdout"]), bytes(parts["stderr"])


def stop(process: subprocess.Popen[bytes], grace_s: float = 2.0) -> None:
    """End a child that may still run: close its input, wait, then ask, then force; close its streams."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for step in (None, process.terminate, process.kill):
        if process.poll() is None and step is not None:
            step()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            continue
        break
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
