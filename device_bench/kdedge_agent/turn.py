"""One measurement at a time on a device: two at once would measure each other.

The turn is a locked file (flock) in the agent's folder. The kernel takes the lock back when its holder ends, however
that happens, so that a file which nobody holds is no obstacle. Its name holds the boot's id: boards that share a home
folder over the network do not wait for each other.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Optional

from kdedge_agent import journal, sysfs
from kdedge_agent.errors import AgentFailure

LOOK_EVERY_S = 0.3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST = 1000


@contextmanager
def taken(folder: Path, wait_s: float, pause: Callable[[float, str], None]) -> Iterator[None]:
    """The device for this agent alone, inside.

    Args:
        folder: The agent's. Where nothing can be written there, nobody else can have taken a turn, and none is taken.
        wait_s: At most so many seconds for others to end.
        pause: Lets so many seconds pass, and tells the host why.

    Raises:
        AgentFailure: another measurement still runs then.
    """
    file = _take(folder, wait_s, pause)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                _place(folder).unlink()
            file.close()


def _place(folder: Path) -> Path:
    boot = sysfs.read_text(_BOOT_ID) or platform.node()
    return folder / f"turn-{boot[:8]}.lock"


def _take(folder: Path, wait_s: float, pause: Callable[[float, str], None]) -> Optional[IO[str]]:
    place, until = _place(folder), time.monotonic() + wait_s
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = _attempt(place)
        while file is None:
            left = until - time.monotonic()
            what = f"another measurement runs on this device ({_holder(place)})"
            if left <= 0:
                raise AgentFailure("busy", what)
            pause(min(LOOK_EVERY_S, left), f"waiting: {what}")
            file = _attempt(place)
    except OSError:
        return None
    with suppress(OSError):  # a full disk: who it is will not be known, and the lock holds
        journal.write(file, json.dumps(_oneself()))
    return file


def _attempt(place: Path) -> Optional[IO[str]]:
    """The file, locked; None while another has it.

    Raises:
        OSError: it cannot be written there.
    """
    try:
        return journal.locked(place, create=True, wait=False)
    except BlockingIOError:
        return None


def _oneself() -> Dict[str, Any]:
    connection = (os.environ.get("SSH_CONNECTION") or "").split(" ")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    client = connection[0] if len(connection) == 4 else "the device itself"
    return {"client": client, "since": since, "pid": os.getpid()}


def _holder(place: Path) -> str:
    """Who has the turn, as far as the file tells; it may be written at this moment."""
    try:
        with place.open(encoding="utf-8", errors="replace") as file:
            said = json.loads(file.read(_MOST))
        return f"for {said['client']}, since {said['since']}, process {said['pid']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by whom is not known"
