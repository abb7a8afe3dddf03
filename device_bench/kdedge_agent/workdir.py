"""The agent's own folder on the device, ``~/.cache/kdedge``, and the one rule about it: nothing outside is touched."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, ContextManager, Dict, List, Optional

from kdedge_agent import journal
from kdedge_agent.errors import AgentFailure

_SCRATCH = re.compile(r"run-(\d+)-[0-9a-f]{8}$")
_LOCK = "lock"


def work_dir() -> Path:
    """``~/.cache/kdedge`` of the user that the agent runs as (not made here).

    Whatever XDG_CACHE_HOME says: one login may have it and another not, and measurements of all take turns by a lock
    in this folder.
    """
    return Path("~/.cache/kdedge").expanduser()


class Scratch:
    """A folder of this session alone; it and everything in it is gone when the agent ends.

    Its agent holds a lock in it, which the kernel takes back however the agent ends: a process number alone says
    nothing after a reboot, when another process has it, nor in a home that several boards share.

    Attributes:
        path: The folder, or None where it cannot be made (read-only home, full disk).
        reason: Why there is none.
    """

    def __init__(self, home: Optional[Path] = None) -> None:
        self._home = home or work_dir()
        self.path: Optional[Path] = None
        self.reason: Optional[str] = None
        self._lock: Optional[IO[str]] = None
        path = self._home / f"run-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            path.mkdir(parents=True, mode=0o700)
            self._lock = journal.locked(path / _LOCK, create=True, wait=True)
        except OSError as error:
            self.reason = f"{path}: {error.strerror}"
            shutil.rmtree(str(path), ignore_errors=True)
            return
        self.path = path
        self._sweep()

    def _sweep(self) -> None:
        """Remove what agents left behind that were killed before they could clean up."""
        for folder in self._home.glob("run-*"):
            match = _SCRATCH.match(folder.name)
            if match and folder != self.path:
                with suppress(OSError), _claimed(folder, int(match.group(1))):
                    shutil.rmtree(str(folder), ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        if self.path is not None:
            shutil.rmtree(str(self.path), ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _claimed(folder: Path, pid: int) -> ContextManager[object]:
    """That folder for us, since nobody has it.

    Raises:
        OSError: somebody has it, or may be about to.
    """
    try:
        return journal.locked(folder / _LOCK, create=False, wait=False)
    except FileNotFoundError:  # killed, or only begun, between the folder and its lock
        if _alive(pid):
            raise
        return nullcontext()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def inside(path: str, home: Optional[Path] = None) -> Path:
    """The path, if it lies strictly inside the agent's folder once links on the way are followed.

    The last component itself is not followed: a link is removed, never what it points to.

    Raises:
        AgentFailure: it lies elsewhere.
    """
    folder = Path(os.path.realpath(str(home or work_dir())))
    if not path or "\0" in path:
        raise AgentFailure("refused", "a path to remove is needed")
    asked = Path(path)
    if not asked.is_absolute():
        asked = folder / asked
    if asked.name in ("", ".", ".."):
        raise AgentFailure("refused", f"{path[:200]!r} names no file")
    real = Path(os.path.realpath(str(asked.parent))) / asked.name
    if folder not in real.parents:
        raise AgentFailure(
            "refused", f"{path[:200]!r} lies outside {folder}", "Only what lies in the agent's own folder is removed"
        )
    return real


def remove(paths: List[str], home: Optional[Path] = None) -> Dict[str, List[str]]:
    """Remove files and folders inside the agent's folder; all paths are checked before any is touched.

    Returns:
        {"removed": [...], "missing": [...]} as they were named.

    Raises:
        AgentFailure: a path outside, or one that cannot be removed.
    """
    checked = [(path, inside(path, home)) for path in paths]
    outcome: Dict[str, List[str]] = {"removed": [], "missing": []}
    for name, path in checked:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path))
            else:
                path.unlink()
        except FileNotFoundError:  # noqa: PERF203 - a handful of files
            outcome["missing"].append(name)
        except OSError as error:
            raise AgentFailure("disk", f"{name[:200]}: {error.strerror}") from None
        else:
            outcome["removed"].append(name)
    return outcome
