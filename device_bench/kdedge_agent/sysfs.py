"""Small readers of /sys and /proc files under a root, so that recorded trees of real boards can be read too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import List, Optional, Tuple

ROOT = Path("/")
VCGENCMD_TIMEOUT_S = 5.0


def read_text(path: Path) -> Optional[str]:
    """Content without the NULs of device-tree strings and without surrounding space; None if unreadable."""
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return None


def read_int(path: Path) -> Optional[int]:
    """The whole number in a file; None if there is none."""
    text = read_text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def why_unreadable(path: Path) -> str:
    """Why a file cannot be read, in words that name who may."""
    try:
        path.read_bytes()
    except PermissionError:
        try:
            status = path.stat()
            return f"{path} is not readable by this user (mode {status.st_mode & 0o777:o}, owner {status.st_uid})"
        except OSError:
            return f"{path} is not readable by this user"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{path} holds no number"


def _device_tree(root: Path, name: str) -> Optional[str]:
    """A property of the device tree's root; where /proc has no link to the tree, from the tree itself."""
    return read_text(root / "proc/device-tree" / name) or read_text(root / "sys/firmware/devicetree/base" / name)


def board_model(root: Path = ROOT) -> Optional[str]:
    """What the device tree calls the board; on a PC what the firmware calls it; None where neither speaks."""
    model = _device_tree(root, "model")
    if model:
        return model
    parts = [read_text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def compatible(root: Path = ROOT) -> str:
    """The device tree's list of compatible names, separated by spaces; empty where there is none."""
    return _device_tree(root, "compatible") or ""


def find_vcgencmd(root: Path = ROOT) -> Optional[str]:
    """The Raspberry Pi's firmware tool: on PATH, or in the tree of another root."""
    if root == ROOT:
        return shutil.which("vcgencmd")
    path = root / "usr/bin/vcgencmd"
    return str(path) if os.access(str(path), os.X_OK) else None


def vcgencmd(tool: str, *words: str) -> Tuple[Optional[str], Optional[str]]:
    """Output of one call of the firmware tool: (text, None) or (None, reason)."""
    command: List[str] = [tool, *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=VCGENCMD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{' '.join(words)}: {error}"
    text = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0 or text.startswith("error="):
        detail = (text or done.stderr.decode("utf-8", "replace").strip())[:200]
        return None, f"vcgencmd {' '.join(words)} says: {detail or f'exit {done.returncode}'}"
    return text, None
