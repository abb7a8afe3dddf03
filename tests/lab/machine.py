"""A whole machine in qemu: Debian's arm64 kernel, a real SSH server, the kernel's own driver of a current monitor.

The host reaches it over a forwarded port of 127.0.0.1; it reaches nothing. What it writes is gone with it.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.device.sshd import free_port, make_key
from tests.lab import cpio, device_tree, player
from tests.lab.device_tree import Board
from tests.lab.image import MachineFiles, machine_files
from tests.lab.packages import call
from tests.lab.qmp import Monitor, connect

from kdedge_bench.devices import Device

# qemu's largest processor computes wrong sums in LiteRT (see tests/device/userland.py). The machine's clock counts
# its instructions, 16 ns each, and real time only while it idles: on a busy host it is slower, but sees no gaps.
_MACHINE = (
    "-icount", "shift=4,sleep=on", "-rtc", "clock=vm",
    "-M", "virt", "-cpu", "cortex-a72", "-smp", "1", "-m", "768", "-nodefaults", "-display", "none",
)  # fmt: skip
# Separate page tables for the kernel would flush the emulated TLB at every system call.
_KERNEL = "console=ttyAMA0 quiet panic=0 nokaslr kpti=off mitigations=off"
_BOOT_S = 180.0
_CACHE = "/root/.cache/kdedge"
_START = """
for mount in "proc proc /proc" "sysfs sysfs /sys" "devtmpfs dev /dev" "tmpfs tmpfs /tmp" "tmpfs tmpfs /run"; do
    busybox mount -t $mount
done
mkdir -p /run/sshd /dev/pts
busybox mount -t devpts devpts /dev/pts
date -s "@$(cat /lab/now)"
modprobe -a virtio_net i2c-dev ina2xx ina238 ina3221
modprobe i2c-stub chip_addr=0x40
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
"""
_SERVER = """HostKey /lab/host_key
AuthorizedKeysFile /lab/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp /usr/lib/openssh/sftp-server
SetEnv OMP_NUM_THREADS=1
"""
_CLIENT = """Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@dataclass
class Machine:
    """A machine that runs.

    Attributes:
        board: What it takes itself for.
        folder: Keys, log and sockets, on the host.
        port: Of its SSH server, on the host's 127.0.0.1.
        process: qemu.
        monitor: qemu's.
    """

    board: Board
    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    monitor: Monitor

    def device(self) -> Device:
        """The machine as a device."""
        return Device(
            name="lab",
            address="root@127.0.0.1",
            kind=self.board.kind,
            port=self.port,
            ssh_config=str(self.folder / "ssh_config"),
        )

    def ssh(self, command: str) -> list[str]:
        """The words that run a shell's command on it."""
        options = ["-F", str(self.folder / "ssh_config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=120"]
        return ["ssh", *options, "-p", str(self.port), "root@127.0.0.1", command]

    def run(self, command: str, timeout_s: float = 180) -> str:
        """What a shell's command prints there."""
        return subprocess.run(
            self.ssh(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=timeout_s
        ).stdout

    def log(self) -> str:
        """What its kernel and its SSH server have said so far."""
        return (self.folder / "console.log").read_text(errors="replace")

    def pids(self) -> dict[int, str]:
        """What kdedge has running there: pid -> command line."""
        lines = self.run("ps -eo pid,args").splitlines()[1:]
        rows = (line.split(None, 1) for line in lines)
        return {int(pid): words for pid, words in rows if "kdedge" in words}

    def left_over(self, seconds: float = 10.0) -> dict[int, str]:
        """What kdedge still has running there after at most ``seconds``."""
        until = time.monotonic() + seconds
        while (pids := self.pids()) and time.monotonic() < until:
            time.sleep(0.5)
        return pids

    def partial_files(self) -> list[str]:
        """Uploads that were not completed, samples, and folders of runs."""
        wanted = f"-name '*.part' -o -path '{_CACHE}/samples/*' -o -path '{_CACHE}/run-*'"
        return self.run(f"busybox find {_CACHE} -path {_CACHE}/venv -prune -o \\( {wanted} \\) -print").splitlines()

    def pull_cable(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self.monitor.ask("set_link", name="nic", up=False)

    def plug_cable(self) -> None:
        """It gets through again."""
        self.monitor.ask("set_link", name="nic", up=True)

    def freeze(self) -> None:
        """Its processors stand still, and its clock."""
        self.monitor.ask("stop")

    def thaw(self) -> None:
        """They go on, as if nothing had been."""
        self.monitor.ask("cont")

    def wait_until_up(self) -> None:
        """Until its SSH server greets.

        Raises:
            RuntimeError: it does not come up.
        """
        until = time.monotonic() + _BOOT_S
        while time.monotonic() < until and self.process.poll() is None:
            # qemu itself accepts the connection; a greeting comes from the server behind it.
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                client.settimeout(5)
                if client.recv(4) == b"SSH-":
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the machine did not come up:\n{self.log()[-3000:]}")

    def stop(self) -> None:
        """As if its plug were pulled."""
        self.monitor.close()
        self.process.kill()
        self.process.wait(10)


@contextmanager
def booted(board: Board) -> Iterator[Machine]:
    """A machine that runs for as long as the block; a skip where this host cannot have one."""
    files = machine_files()
    with tempfile.TemporaryDirectory(prefix="kdedge-test-") as name:
        machine = _start(board, files, Path(name))
        try:
            machine.wait_until_up()
            yield machine
        finally:
            machine.stop()


def _start(board: Board, files: MachineFiles, folder: Path) -> Machine:
    port = free_port()
    _write_keys(folder, port)
    own = {
        "lab/now": str(int(time.time())).encode(),
        "lab/start": _START.encode(),
        "lab/sshd_config": _SERVER.encode(),
        "lab/host_key": (folder / "host_key").read_bytes(),
        "lab/authorized_keys": (folder / "user_key.pub").read_bytes(),
        "lab/player.py": Path(player.__file__).read_bytes(),
    }
    archive = cpio.archive({path: (0o600, content) for path, content in own.items()})
    (folder / "initrd").write_bytes(files.initrd.read_bytes() + archive)
    plain, tree, socket_path = folder / "plain.dtb", folder / "board.dtb", folder / "monitor"
    hardware = [
        *_MACHINE,
        "-drive", f"if=none,id=disk,format=raw,snapshot=on,file={files.disk}",
        "-device", "virtio-blk-device,drive=disk",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-device,netdev=net,id=nic",
    ]  # fmt: skip
    call("qemu-system-aarch64", *hardware, "-machine", f"dumpdtb={plain}")
    device_tree.compile_tree(board, plain, tree)
    boot = [
        "-kernel", str(files.kernel), "-initrd", str(folder / "initrd"), "-dtb", str(tree),
        "-append", _KERNEL,
        "-serial", f"file:{folder}/console.log", "-qmp", f"unix:{socket_path},server=on,wait=off",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "qemu-system-aarch64", *hardware, *boot],  # it ends with the tests
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        return Machine(board, folder, port, process, connect(socket_path))
    except BaseException:
        process.kill()
        raise


def _write_keys(folder: Path, port: int) -> None:
    for name in ("host_key", "user_key"):
        make_key(folder / name)
    (folder / "ssh_config").write_text(_CLIENT.format(folder=folder))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
