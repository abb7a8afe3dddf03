"""Two ways to a device: a child process on this machine, and the OpenSSH client.

The user's own SSH set-up counts: ``~/.ssh/config``, jump hosts, keys, the key agent and known_hosts work as
they are. kdedge only makes it stricter: no prompts, no unknown host keys, no agent forwarding.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.errors import KdedgeError, WireError

from kdedge_bench import remote, waiting
from kdedge_bench.agent_zip import AgentZip
from kdedge_bench.devices import Device
from kdedge_bench.faults import SshClientError, agent_ended, explain_ssh
from kdedge_bench.process import Completed, Transport, stop
from kdedge_bench.text import last_line

if TYPE_CHECKING:
    from typing_extensions import Self

SSH_OPTIONS_VARIABLE = "KDEDGE_SSH_OPTIONS"
_READY = "kdedge-ready"
_SOCKETS = "kdedge-ssh-"
_CONNECT_S = 15


def open_transport(device: Device, *, accept_new_host_key: bool = False) -> Transport:
    """The way to ``device``; use it as a context manager.

    Args:
        device: Where to.
        accept_new_host_key: Put an unknown host key on record instead of refusing it; a changed one is
            refused all the same.
    """
    if device.is_local:
        return LocalTransport(device)
    return SshTransport(device, accept_new_host_key=accept_new_host_key)


class LocalTransport(Transport):
    """This machine: the same agent from the same file, without a wire."""

    def _argv(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def _pythons(self) -> list[str]:
        return [self.device.python or sys.executable]

    def _explain_end(self, code: int, stderr: str) -> KdedgeError:
        return agent_ended(code, stderr, self.device)


class SshTransport(Transport):
    """A device over SSH: one connection, shared by every step through a private control socket.

    The connection's own session runs ``cat`` on a pipe that this process holds: when kdedge dies, however
    that is, the pipe closes and the connection with it.
    """

    def __init__(self, device: Device, *, accept_new_host_key: bool = False) -> None:
        super().__init__(device)
        self._accept_new = accept_new_host_key
        self._folder: Path | None = None
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # /tmp and not TMPDIR: a socket's path has a limit of about 100 characters.
        _sweep_sockets()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_SOCKETS}{os.getpid()}-", dir="/tmp"))
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the connection and remove its socket."""
        if self._master is not None:
            stop(self._master, grace_s=3.0)
            self._master = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _connect(self) -> None:
        folder = self._folder_or_fail()
        log = folder / "stderr"
        argv = [
            *self._client(),
            "-o",
            "ControlMaster=yes",
            *self._target(),
            f"echo {_READY}; exec cat >/dev/null",
        ]
        with log.open("wb") as stderr:
            try:
                self._master = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
                )
            except OSError as error:
                raise SshClientError(
                    f"cannot start ssh: {error.strerror}",
                    cure="Install the OpenSSH client: sudo apt install openssh-client",
                ) from None
        if not self._is_ready(self._master):
            stop(self._master, grace_s=1.0)
            said = log.read_text(errors="replace")
            raise explain_ssh(said or "timed out", self.device, known_host=self._known_host())

    def _is_ready(self, master: subprocess.Popen[bytes]) -> bool:
        """Wait for the word that the login worked; a login script may speak before it."""
        until = time.monotonic() + 4 * _CONNECT_S
        seen = b""
        with selectors.DefaultSelector() as selector:
            if master.stdout is None:
                return False
            selector.register(master.stdout, selectors.EVENT_READ)
            while len(seen) < 1 << 20 and waiting.select(selector, max(0.0, until - time.monotonic())):
                chunk = os.read(master.stdout.fileno(), 65536)
                if not chunk:
                    return False
                seen += chunk
                if _READY.encode() in seen.split(b"\n")[:-1]:
                    return True
        return False

    def _client(self) -> list[str]:
        """The SSH client with kdedge's options; what the user injects comes first: the first counts."""
        config = ["-F", os.path.expanduser(self.device.ssh_config)] if self.device.ssh_config else []  # noqa: PTH111
        try:
            injected = shlex.split(os.environ.get(SSH_OPTIONS_VARIABLE, ""))
        except ValueError as error:
            raise SshClientError(f"{SSH_OPTIONS_VARIABLE} cannot be read: {error}") from None
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new" if self._accept_new else "yes",
            # It rewrites known_hosts, and would lose what connections beside it put on record meanwhile.
            "UpdateHostKeys": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "ConnectTimeout": str(_CONNECT_S),
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
            "ControlPath": str(self._folder_or_fail() / "s"),
            "LogLevel": "ERROR",
        }
        words = [f"-o{key}={value}" for key, value in options.items()]
        return ["ssh", *config, *injected, *words]

    def _target(self) -> list[str]:
        port = ["-p", str(self.device.port)] if self.device.port else []
        user = ["-l", self.device.user] if self.device.user else []
        return [*port, *user, "--", self.device.host]

    def _folder_or_fail(self) -> Path:
        if self._folder is None:
            raise WireError("the connection is not open", where=self.device.name)
        return self._folder

    def _argv(self, words: Sequence[str]) -> list[str]:
        command = " ".join(shlex.quote(word) for word in words)
        return [*self._client(), "-oControlMaster=no", *self._target(), f"exec {command}"]

    def _pythons(self) -> list[str]:
        if self.device.python is not None:
            return [self.device.python]
        return [remote.OWN_VENV, "python3"]

    def _completed(self, code: int, stdout: bytes, stderr: bytes) -> Completed:
        done = super()._completed(code, stdout, stderr)
        if code == 255:
            raise self._explain_end(code, done.stderr)
        return done

    def _explain_end(self, code: int, stderr: str) -> KdedgeError:
        """255 is the client's own code: the wire broke. Any other is the remote program's."""
        if code == 255 or code < 0:
            said = last_line(stderr)
            return WireError(
                "the connection broke during the run" + (f": {said}" if said else ""),
                where=f"{self.device.name}: {self.device.address}",
                cure="The agent there stops by itself; check network and power of the device, then run again",
            )
        return agent_ended(code, stderr, self.device)

    def _known_host(self) -> str | None:
        """The words after ``ssh-keygen -R`` that forget this host, by what ``ssh -G`` resolves."""
        done = subprocess.run(
            [*self._client(), "-G", *self._target()],
            capture_output=True,
            text=True,
            check=False,
            timeout=_CONNECT_S,
        )
        settings: dict[str, str] = {}
        for line in done.stdout.splitlines():
            key, _, value = line.partition(" ")
            settings.setdefault(key, value)
        host = settings.get("hostkeyalias") or settings.get("hostname")
        if not host:
            return None
        port = settings.get("port", "22")
        entry = host if port == "22" or "hostkeyalias" in settings else f"[{host}]:{port}"
        file = settings.get("userknownhostsfile", "").split(" ")[0]
        usual = str(Path.home() / ".ssh" / "known_hosts")
        chosen = [] if file in ("", "~/.ssh/known_hosts", usual) else ["-f", file]
        return shlex.join([entry, *chosen])


def ensure_agent(transport: Transport, ground: remote.Ground, agent: AgentZip) -> str:
    """The agent's path on the device; sent only if it is not there with the right hash."""
    path = ground.path(agent.file_name)
    if agent.file_name not in ground.have:
        transport.put(agent.data, path, agent.sha256, ground=ground)
    return path


def _sweep_sockets() -> None:
    """Remove the socket folders of this user's runs that were killed before they could do it."""
    import psutil

    for folder in Path("/tmp").glob(f"{_SOCKETS}*"):  # noqa: S108 - made there by mkdtemp
        pid = folder.name[len(_SOCKETS) :].partition("-")[0]
        with contextlib.suppress(OSError):
            is_mine = folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
            if is_mine and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)
