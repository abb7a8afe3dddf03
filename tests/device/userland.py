"""An arm64 Debian userland that this machine runs through qemu-user: real aarch64 wheels on a device without a board.

Its figures of time mean nothing (12 to 550 times slower than native); what is computed, and how it is set up, does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PACKAGES = (
    "python3", "python3-venv", "openssh-server", "openssh-sftp-server", "dash", "bash", "coreutils", "grep", "sed",
    "procps", "libc-bin", "libstdc++6",
)  # fmt: skip
# Packages are unpacked, not configured: their scripts would run under emulation, and write little that is needed.
FILES = {
    "etc/passwd": "root:*:0:0:root:/root:/bin/bash\nsshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n",
    "etc/group": "root:*:0:\nnogroup:*:65534:\n",
    "etc/shells": "/bin/sh\n/bin/bash\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}
ENVIRONMENT = {"QEMU_CPU": "cortex-a72"}
"""Of the device: qemu's default processor computes wrong sums in LiteRT."""

_HANDLERS = Path("/proc/sys/fs/binfmt_misc")
_HANDLER = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_FOLDERS = ("proc", "sys", "dev", "tmp", "root", "run/sshd")


def arm64_root() -> Path:
    """The userland, made from Debian's packages where it is not there yet; a skip where that cannot be."""
    reason = why_no_emulation()
    if reason is None:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdedge-tests" / _name()
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            reason = None if place.is_dir() else _build(place)
        if reason is None:
            return place
    pytest.skip(f"NOT TESTED on arm64: {reason}")


def why_no_emulation() -> str | None:
    """What keeps this machine from running arm64 programs; None where nothing does (any more)."""
    if shutil.which("mmdebstrap") is None:
        return "no mmdebstrap here; make test installs it where it may"
    if platform.machine() == "aarch64":
        return None
    if os.geteuid() != 0:
        return "qemu-user has to be registered by root"
    if not _HANDLER.is_file():
        return "no qemu-user-static here; make test installs it where it may"
    if not (_HANDLERS / "register").exists():
        mounted = subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _HANDLERS], check=False, timeout=30)
        if mounted.returncode != 0:
            return "binfmt_misc cannot be mounted"
    if not (_HANDLERS / "qemu-aarch64").exists():
        try:
            (_HANDLERS / "register").write_text(_HANDLER.read_text())
        except OSError as error:
            return f"binfmt_misc: {error}"
    return None


def _name() -> str:
    recipe = repr((SUITE, MIRROR, PACKAGES, FILES, _FOLDERS))
    return f"arm64-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _build(place: Path) -> str | None:
    """Make the userland at ``place``; why it could not be made, or None."""
    made = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        options = ["--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}"]
        done = subprocess.run(
            ["mmdebstrap", *options, SUITE, str(made / "root"), MIRROR],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        if done.returncode != 0:
            return f"mmdebstrap: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
        for name in _FOLDERS:
            (made / "root" / name).mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (made / "root" / name).write_text(text)
        (made / "root").chmod(0o755)
        (made / "root").rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return None
