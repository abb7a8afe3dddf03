"""The files that the lab's machine is booted from, made once: kernel, first file system, disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from tests.device.userland import FILES, why_no_emulation
from tests.lab import cpio, drivers, packages
from tests.lab.packages import LabError, call

from kdedge_bench import remote, wheels

PROGRAMS = ("qemu-system-aarch64", "mmdebstrap", "mke2fs", "dtc", "make", "aarch64-linux-gnu-gcc", "ssh", "ssh-keygen")
REQUIREMENTS = ("onnxruntime", "ai-edge-litert")
PYTHON = (3, 11, 2)
"""Of Debian bookworm; byte code that this host's Python makes has to be of the same minor version."""
GLIBC = ("glibc", "2.36")

_FIRST_MODULES = ("virtio_mmio", "virtio_blk", "crc32c_generic", "ext4")
_LATER_MODULES = ("virtio_net", "i2c-dev", "sch_netem", *drivers.SOURCES)
_FOLDERS = ("proc", "sys", "dev", "tmp", "run", "root", "lab")
_NOT_NEEDED = (
    "boot",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/lib/locale",
    "var/cache",
    "var/lib/apt",
)
_NOT_COMPILED = r"/(tests?|transformers|quantization|tools|f2py|lib2to3|idlelib|ensurepip|distutils|pydoc_data)/"
_SPARE_MIB = 256
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /disk
/bin/busybox cp -a /lab/. /disk/lab
exec /bin/busybox switch_root /disk /sbin/init
"""
_FILES = {
    **FILES,
    "etc/inittab": "::sysinit:/bin/sh /lab/start\n::respawn:/usr/sbin/sshd -D -e -f /lab/sshd_config\n",
}
_RECIPE = (
    packages.PACKAGES,
    REQUIREMENTS,
    _NOT_COMPILED,
    _FIRST_MODULES,
    _LATER_MODULES,
    _FOLDERS,
    _NOT_NEEDED,
    _INIT,
    _FILES,
)


@dataclass(frozen=True)
class MachineFiles:
    """Where they lie, and which kernel it is."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The kernel, as Debian ships it."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its first file system, which mounts the disk."""
        return self.folder / "initrd"

    @property
    def disk(self) -> Path:
        """An ext4 file system; not to be written to."""
        return self.folder / "disk.img"


def machine_files() -> MachineFiles:
    """The files, made from Debian's packages where they are not there yet; a skip where that cannot be."""
    reason = _why_not()
    if reason is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdedge-tests"
        cache.mkdir(parents=True, exist_ok=True)
        recipe = hashlib.sha256((repr(_RECIPE) + Path(drivers.__file__).read_text()).encode()).hexdigest()[:12]
        with FileLock(cache / f"machine-{recipe}.lock"):
            there = sorted(cache.glob(f"machine-{recipe}-*-arm64"))
            try:
                return MachineFiles(there[-1] if there else _build(cache, recipe))
            except (LabError, wheels.WheelsError) as error:
                reason = str(error)
    pytest.skip(f"NOT TESTED on a machine with a kernel of its own: {reason}")


def _why_not() -> str | None:
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        return f"no {', '.join(missing)} here; make lab installs them where it may"
    if os.geteuid() != 0:
        return "its userland is unpacked by root"
    return why_no_emulation()


def _build(cache: Path, recipe: str) -> Path:
    """Make everything; the folder, whose name tells recipe and kernel."""
    with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as name:
        folder = Path(name)
        release = packages.unpack(folder)
        root = folder / "root"
        modules = _only(root, release, drivers.build(folder, release))
        made = folder / "machine"
        made.mkdir()
        shutil.move(root / f"boot/vmlinuz-{release}", made / "vmlinuz")
        (made / "initrd").write_bytes(_first_files(root, modules))
        _furnish(root)
        _install_runtimes(root, folder / "wheels")
        size_mib = int(call("du", "-sm", "--apparent-size", str(root)).split()[0]) * 5 // 4 + _SPARE_MIB
        call("/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(root), str(made / "disk.img"), f"{size_mib}M")
        place = cache / f"machine-{recipe}-{release}"
        made.rename(place)
    return place


def _only(root: Path, release: str, built: list[Path]) -> list[Path]:
    """Leave the modules that are needed, with the drivers that were built; those of the disk, in order of loading."""
    top = root / "lib/modules" / release
    (top / "updates").mkdir()
    for module in built:
        shutil.copy(module, top / "updates")
    call("chroot", str(root), "/sbin/depmod", release)
    needs: dict[str, list[str]] = {}
    for line in (top / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).stem: path for path in needs}
    lacking = [name for name in (*_FIRST_MODULES, *_LATER_MODULES) if name not in by_name]
    if lacking:
        raise LabError(f"kernel {release} has no module {', '.join(lacking)}")

    def in_order(names: tuple[str, ...]) -> list[str]:
        # modules.dep names what a module needs with the deepest need last.
        paths = [path for name in names for path in (*reversed(needs[by_name[name]]), by_name[name])]
        return list(dict.fromkeys(paths))

    kept = set(in_order((*_FIRST_MODULES, *_LATER_MODULES)))
    for path in needs:
        if path not in kept:
            (top / path).unlink()
    call("chroot", str(root), "/sbin/depmod", release)
    return [top / path for path in in_order(_FIRST_MODULES)]


def _first_files(root: Path, modules: list[Path]) -> bytes:
    files = {
        "init": (0o755, _INIT.encode()),
        "bin/busybox": (0o755, (root / "bin/busybox").read_bytes()),
        "modules/order": (0o644, "".join(f"{module.name}\n" for module in modules).encode()),
    }
    files.update({f"modules/{module.name}": (0o644, module.read_bytes()) for module in modules})
    return cpio.archive({**files, "dev/.keep": (0o644, b""), "disk/.keep": (0o644, b"")})


def _furnish(root: Path) -> None:
    for name in _NOT_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    root.chmod(0o755)


def _install_runtimes(root: Path, fetched: Path) -> None:
    """The runtimes' real aarch64 wheels, in the environment that ``kdedge device setup`` would make."""
    venv = "/root/.cache/kdedge/venv"
    call("chroot", str(root), "/usr/bin/python3", "-m", "venv", "--without-pip", venv)
    (place,) = (root / venv[1:] / "lib").glob("python3.*/site-packages")
    ground = remote.Ground("/usr/bin/python3", PYTHON, venv, machine="aarch64", system="Linux", libc=GLIBC)
    fetched.mkdir()
    for wheel in wheels.fetch(REQUIREMENTS, ground, fetched):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    _compile(root, "usr/lib/python3.11", str(place.relative_to(root)))


def _compile(root: Path, *folders: str) -> None:
    """Byte code for what is imported there: made at every start, it would take the emulated machine a minute."""
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-x", _NOT_COMPILED]
    if sys.version_info[:2] == PYTHON[:2]:
        python, places = [sys.executable], ["-s", str(root), "-p", "/", *(str(root / name) for name in folders)]
    else:
        python, places = ["chroot", str(root), "/usr/bin/python3"], [f"/{name}" for name in folders]
    call(*python, "-m", "compileall", *options, *places)
