"""A device in namespaces of its own: its own network, mounts and processes, and a board's tree over /sys and /proc.

Its SSH server is real, and is reached over a real (virtual) cable: a veth pair whose host end can be set down. What
the device is made of lies in a folder, and all that it mounts ends with it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from tests.device.sshd import Sshd, children, start_sshd

Tree = Callable[[Path], None]

# Files of /proc that stand for the whole machine; the rest of it stays the namespace's own.
_PROC = ("cpuinfo", "meminfo", "loadavg")
_count = itertools.count()
_ADDRESSES = Path(tempfile.gettempdir()) / "kdedge-test-addresses.lock"


@dataclass
class NamespacedSshd(Sshd):
    """An SSH server in namespaces of its own.

    Attributes:
        tree: The files that it has for its /sys and /proc.
        namespace: Name of its network.
        cable: Name of the host's end of its cable.
    """

    tree: Path = Path()
    namespace: str = ""
    cable: str = ""

    @property
    def listener(self) -> int:
        """The first process of its namespaces, which ``process`` waits for."""
        return children(self.process.pid)[0]

    def stop(self) -> None:
        """End everything that runs on it."""
        self.process.kill()  # takes the first process of the namespaces with it, and that one all others
        self.process.wait(10)

    def pull_cable(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug_cable(self) -> None:
        """It gets through again."""
        _ip("link", "set", self.cable, "up")


def why_no_namespaces() -> str | None:
    """What keeps this machine from making devices in namespaces; None where nothing does."""
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"no {program} here (Debian's iproute2 and util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"kdedge-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"ip netns add: {made.stderr.strip()}"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True, check=False
    )
    _ip("netns", "del", name)
    return f"unshare: {tried.stderr.strip()}" if tried.returncode != 0 else None


@contextmanager
def namespaced_device(
    tree: Tree | None = None, *, root: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[NamespacedSshd]:
    """A device that runs for as long as the block; a skip where this machine cannot have one.

    Args:
        tree: Writes the board's files, see ``boards.BOARDS``; None keeps the host's /sys and /proc.
        root: A userland that the device sees as ``/``, and that it cannot change; None keeps the host's.
        environment: Variables of the device, see ``start_sshd``.
    """
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(f"NOT TESTED on a device in namespaces: {reason}")
    with tempfile.TemporaryDirectory(prefix="kdedge-test-") as name, _network() as network:
        folder = Path(name)
        board = folder / "board"
        board.mkdir()
        if tree is not None:
            tree(board)
        device = _start(folder, board, network, root, environment)
        try:
            yield device
        finally:
            device.stop()


def _start(
    folder: Path, board: Path, network: tuple[str, str, str], root: Path | None, environment: dict[str, str] | None
) -> NamespacedSshd:
    name, host, cable = network
    server = folder / "server"
    script = folder / "enter.sh"
    script.write_text(_enter_script(board, server, root, folder / "root"))
    path = f"{board}/usr/bin:/usr/bin:/bin" if root else f"{board}/usr/bin:{Path(sys.executable).parent}:/usr/bin:/bin"
    enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    enter += ["--propagation", "private", "sh", str(script)]
    started = start_sshd(
        server, host=host, command=enter, program="/usr/sbin/sshd" if root else None, path=path, environment=environment
    )
    return NamespacedSshd(**vars(started), tree=board, namespace=name, cable=cable)


def _enter_script(board: Path, server: Path, root: Path | None, merged: Path) -> str:
    """What the first process of the namespaces does before it becomes its arguments, the SSH server."""
    lines = ["set -e"]
    slash = ""
    if root is not None:
        slash = str(merged)
        upper = f"{merged}-changes"  # kept in memory, and gone with the namespace
        lines += [
            f"mkdir -p {slash} {upper} && mount -t tmpfs tmpfs {upper} && mkdir {upper}/upper {upper}/work",
            f"mount -t overlay overlay -o lowerdir={root},upperdir={upper}/upper,workdir={upper}/work {slash}",
            f"for folder in {server} {board}; do mkdir -p {slash}$folder; mount --bind $folder {slash}$folder; done",
            f"mkdir -p {slash}/run/sshd {slash}/dev && mount --rbind /dev {slash}/dev",
        ]
    lines.append(f"mount -t proc proc {slash}/proc")
    lines += [f"mount --bind {board}/{file} {slash}/{file}" for file in _mounted_files(board)]
    lines.append('exec "$@"' if root is None else f'exec chroot {slash} "$@"')
    return "\n".join(lines) + "\n"


def _mounted_files(board: Path) -> list[str]:
    wanted = ["sys", *(f"proc/{name}" for name in _PROC), "etc/os-release"]
    return [name for name in wanted if (board / name).exists()]


@contextmanager
def _network() -> Iterator[tuple[str, str, str]]:
    """A network namespace with one cable to the host: its name, its address, the host's end of the cable."""
    name = f"kdedge-{os.getpid()}-{next(_count)}"
    with FileLock(_ADDRESSES):
        taken = _ip("-o", "-4", "address")
        number = next(n for n in range(1, 255) if f"10.77.{n}.1/" not in taken)
        cable = f"kdedge{number}"
        _ip("netns", "add", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"10.77.{number}.1/30", "dev", cable)
    try:
        _ip("link", "set", cable, "up")
        _ip("-n", name, "address", "add", f"10.77.{number}.2/30", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", name, "link", "set", link, "up")
        yield name, f"10.77.{number}.2", cable
    finally:
        _ip("link", "del", cable)
        _ip("netns", "del", name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
