"""A real OpenSSH server, on loopback unless told otherwise, with keys that live as long as a test."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdedge_bench.devices import Device

_CONFIG = """
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding no
MaxSessions 50
LogLevel VERBOSE
SetEnv {environment}
"""

_CLIENT = """
Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


def sshd_program() -> str:
    """The server's absolute path (it insists on one), or a skip that says how to get it."""
    for name in (shutil.which("sshd"), "/usr/sbin/sshd", "/usr/local/sbin/sshd"):
        if name and os.access(name, os.X_OK):
            return name
    pytest.skip("NOT TESTED over SSH: no sshd here; make test installs it where it may (apt install openssh-server)")


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path) -> Path:
    """A fresh key pair without passphrase; the public half lies beside it as ``.pub``."""
    for stale in (path, path.with_suffix(".pub")):
        stale.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kdedge-test", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=30)
    return path


@dataclass
class Sshd:
    """A server that runs; what it starts has ``home`` as its HOME."""

    folder: Path
    home: Path
    port: int
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def listener(self) -> int:
        """The server's process that the sessions are children of."""
        return self.process.pid

    @property
    def cache(self) -> Path:
        """kdedge's folder on this device."""
        return self.home / ".cache" / "kdedge"

    @property
    def known_hosts(self) -> Path:
        """Of the client's configuration."""
        return self.folder / "known_hosts"

    def device(self, name: str = "pi", python: str | None = None) -> Device:
        """This server as a device."""
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        return Device(
            name=name,
            address=f"{user}@{self.host}",
            kind="linux",
            port=self.port,
            python=python,
            ssh_config=str(self.folder / "ssh_config"),
        )

    def login_through(self, script: str) -> None:
        """Whoever logs in gets this shell script in place of what was asked for, which is in SSH_ORIGINAL_COMMAND."""
        quoted = script.replace('"', '\\"')
        key = (self.folder / "user_key.pub").read_text()
        (self.folder / "authorized_keys").write_text(f'command="{quoted}" {key}')

    def log(self) -> str:
        """What the server has said so far."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def pids(self) -> dict[int, str]:
        """Everything that runs on this device: pid -> command line (told by HOME in the environment)."""
        return processes_with_home(self.home)

    def cut(self) -> int:
        """Kill the server's processes of every open session, as a pulled plug would; how many there were."""
        sessions = [pid for pid in children(self.listener) if command_line(pid)]  # one that has ended has none
        for pid in sessions:
            for child in children(pid):  # sshd forks once more for an unprivileged user
                if "sshd" in command_line(child):
                    _kill(child)
            _kill(pid)
        return len(sessions)

    def left_over(self, seconds: float = 10.0) -> dict[int, str]:
        """What still runs on the device after at most ``seconds``."""
        until = time.monotonic() + seconds
        while (pids := self.pids()) and time.monotonic() < until:
            time.sleep(0.05)
        return pids

    def partial_files(self) -> list[Path]:
        """Uploads that were not completed, and samples."""
        return [p for p in self.cache.rglob("*") if p.name.endswith(".part") or p.parent.name == "samples"]

    def stop(self) -> None:
        """End the server and its sessions."""
        self.cut()
        self.process.terminate()
        self.process.wait(10)


def start_sshd(
    folder: Path,
    *,
    home: Path | None = None,
    path: str | None = None,
    environment: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    command: Sequence[str] = (),
    program: str | None = None,
) -> Sshd:
    """Start a server whose keys, configuration and (unless given) home folder lie in ``folder``.

    Args:
        folder: Absolute; made here.
        home: HOME on the device.
        path: PATH on the device; by default this Python's folder comes first.
        environment: More variables of the device.
        host: Address it listens on.
        command: What starts it; its own words are added at the end.
        program: The server, where it is not this machine's.
    """
    program = program or sshd_program()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    home = home or folder / "home"
    for made in (folder, home):
        made.mkdir(parents=True, exist_ok=True)
    for name in ("host_key", "user_key"):
        make_key(folder / name)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    default = {"HOME": str(home), "PATH": path or f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment = {**default, "OMP_NUM_THREADS": "1", **(environment or {})}
    port = free_port()
    words = " ".join(
        '"' + f"{key}={value}".replace("\\", "\\\\").replace('"', '\\"') + '"' for key, value in environment.items()
    )
    (folder / "sshd_config").write_text(_CONFIG.format(host=host, port=port, folder=folder, environment=words))
    (folder / "ssh_config").write_text(_CLIENT.format(folder=folder))
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[{host}]:{port} {host_key}")
    log = folder / "sshd.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=stderr, start_new_session=True
        )
    server = Sshd(folder, home, port, process, environment, host)
    _wait_until_up(server)
    return server


def _wait_until_up(server: Sshd) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and server.process.poll() is None:
        with suppress(OSError), socket.create_connection((server.host, server.port), timeout=1) as client:
            client.shutdown(socket.SHUT_WR)
            while client.recv(1024):  # until the process that was started for this question ends
                pass
            return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {server.log()}")


def command_line(pid: int) -> str:
    """The words of a process; empty if it is gone."""
    with suppress(OSError):
        return shlex.join(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
    return ""


def children(pid: int) -> list[int]:
    """Pids of the direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def processes_with_home(home: Path) -> dict[int, str]:
    """Living processes whose environment says that HOME is ``home``: pid -> command line."""
    wanted = b"HOME=" + os.fsencode(home)
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in environ.read_bytes().split(b"\0"):
                pid = int(environ.parent.name)
                found[pid] = command_line(pid)
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
