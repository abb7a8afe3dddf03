"""Two ways to a device: a child process on this machine, and the OpenSSH client.

The user's own SSH set-up counts: ``~/.ssh/config``, jump hosts, keys, the key agent and known_hosts work as
they are. kdedge only makes it stricter: no prompts, no unknown host keys, no agent forwarding.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.errors import KdedgeError, WireError

from kdedge_bench import remote, waiting
from kdedge_bench.agent_zip import AgentZip
from kdedge_bench.devices import Device
from kdedge_bench.faults import SshClientError, agent_ended, explain_login, explain_ssh
from kdedge_bench.process import Completed, Transport, stop
from kdedge_bench.text import last_line, one_line

if TYPE_CHECKING:
    from typing_extensions import Self

SSH_OPTIONS_VARIABLE = "KDEDGE_SSH_OPTIONS"
_READY = "kdedge-ready"
_SOCKETS = "kdedge-ssh-"
_CONNECT_S = 15
_MAX_NOISE_BYTES = 1 << 20


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


@dataclass(frozen=True)
class _Login:
    """What came of a login.

    Attributes:
        is_ready: The device runs commands.
        has_ended: The client, or what it had logged in to, ended instead.
        heard: What was said on stdout.
    """

    is_ready: bool
    has_ended: bool
    heard: str


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
            # The first echo ends a line that a login script left without an end.
            f"echo; echo {_READY}; exec cat >/dev/null",
        ]
        with log.open("wb") as stderr:
            try:
                self._master = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                    env=self._environment(),
                )
            except OSError as error:
                raise SshClientError(
                    f"cannot start ssh: {error.strerror}",
                    cure="Install the OpenSSH client: sudo apt install openssh-client",
                ) from None
        login = self._log_in(self._master)
        if login.is_ready:
            return
        has_socket = (folder / "s").exists()  # made once the login has worked
        stop(self._master, grace_s=1.0)
        said = log.read_text(errors="replace")
        # The client's own faults have the code 255; any other is that of what it had logged in to.
        has_logged_in = self._master.returncode not in (255, -15, -9) if login.has_ended else has_socket
        if has_logged_in:
            raise explain_login(login.heard, said, self.device, has_ended=login.has_ended)
        raise explain_ssh(said if login.has_ended else f"{said}\ntimed out", self.device, way=self._way())

    def _log_in(self, master: subprocess.Popen[bytes]) -> _Login:
        """Wait for the word that commands run; a login script may speak before it."""
        until = time.monotonic() + 4 * _CONNECT_S
        seen = b""
        with selectors.DefaultSelector() as selector:
            if master.stdout is None:
                return _Login(is_ready=False, has_ended=True, heard="")
            selector.register(master.stdout, selectors.EVENT_READ)
            while len(seen) < _MAX_NOISE_BYTES and waiting.select(selector, max(0.0, until - time.monotonic())):
                chunk = os.read(master.stdout.fileno(), 65536)
                seen += chunk
                if not chunk or _READY.encode() in seen.split(b"\n")[:-1]:
                    return _Login(is_ready=bool(chunk), has_ended=not chunk, heard=seen.decode("utf-8", "replace"))
        return _Login(is_ready=False, has_ended=False, heard=seen.decode("utf-8", "replace"))

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
            # The connection is to end with kdedge.
            "ControlPersist": "no",
            "LogLevel": "ERROR",
            **self._session_options,
        }
        words = [f"-o{key}={value}" for key, value in options.items()]
        return ["ssh", *config, *injected, *words]

    @functools.cached_property
    def _session_options(self) -> dict[str, str]:
        """Against settings that leave no session to talk to; clients before OpenSSH 8.7 have none of them.

        IgnoreUnknown would do without asking for the version, but take the place of the user's own.
        """
        done = self._asked(["ssh", "-V"])
        version = re.match(r"OpenSSH_(\d+)\.(\d+)", "" if done is None else done.stderr)
        if version is None or (int(version[1]), int(version[2])) < (8, 7):
            return {}
        return {"StdinNull": "no", "SessionType": "default", "ForkAfterAuthentication": "no"}

    def _asked(self, argv: list[str]) -> subprocess.CompletedProcess[str] | None:
        """What the client says of itself; None where it does not in time, as where the user's Match exec is slow."""
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_CONNECT_S,
                env=self._environment(),
            )
        except (OSError, subprocess.TimeoutExpired):
            return None

    def _environment(self) -> dict[str, str]:
        """Without dialogs: BatchMode does not reach the client that logs in to a jump host.

        Clients before OpenSSH 8.4 do not know the first variable, and have a program of their own where the second
        names none.
        """
        return {**super()._environment(), "SSH_ASKPASS_REQUIRE": "never", "SSH_ASKPASS": "/bin/false"}

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

    def _way(self) -> str | None:
        """The jump host or proxy on the way, by what ``ssh -G`` resolves; None where there is none, or no telling."""
        done = self._asked([*self._client(), "-G", *self._target()])
        names = {"proxyjump": "ProxyJump", "proxycommand": "ProxyCommand"}
        for line in ("" if done is None else done.stdout).splitlines():
            key, _, value = line.partition(" ")
            if key in names and value != "none":
                return one_line(f"{names[key]} {value}", 100)
        return None


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
