"""Debian's packages of the lab's machine: its userland, its kernel, and what drivers for that kernel are built from."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.device import userland

PACKAGES = (*userland.PACKAGES, "linux-image-arm64", "kmod", "busybox-static", "iproute2")
# Fetched, not installed: as packages of the machine they would draw in compilers for arm64.
_FETCH = """
set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
release=$(ls "$1/lib/modules")
version=$(echo "$release" | cut -d. -f1,2)
cd "$2"
apt-get download -q "linux-headers-$release" "linux-headers-${release%-arm64}-common" \\
    "linux-kbuild-$version" "linux-source-$version"
"""


class LabError(Exception):
    """What this machine cannot do, or Debian's mirror did not give."""


def unpack(folder: Path) -> str:
    """Fetch and unpack everything: ``folder/root`` is the userland, ``folder/build`` headers and kernel source.

    Returns:
        The kernel's release, such as ``6.1.0-50-arm64``.

    Raises:
        LabError: a package is not to be had.
    """
    root, packages, build = folder / "root", folder / "packages", folder / "build"
    packages.mkdir()
    packages.chmod(0o777)  # apt fetches as a user of its own
    script = folder / "fetch.sh"
    script.write_text(_FETCH)
    hook = f'sh {shlex.quote(str(script))} "$1" {shlex.quote(str(packages))}'
    options = ["--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}"]
    call("mmdebstrap", *options, f"--extract-hook={hook}", userland.SUITE, str(root), userland.MIRROR)
    for package in sorted(packages.glob("*.deb")):
        call("dpkg-deb", "-x", str(package), str(build))
    return next((root / "lib/modules").iterdir()).name


def call(*words: str, env: dict[str, str] | None = None, timeout_s: float = 600) -> str:
    """Run a program; what it printed.

    Raises:
        LabError: it failed; with its last line.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout_s, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{words[0]}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "failed").splitlines()
        raise LabError(f"{words[0]}: {said[-1]}")
    return done.stdout
