"""Watch the worker measure: what it says, the condition of the board, and what else runs meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from kdedge_agent import facts, neighbours
from kdedge_agent.errors import AgentFailure
from kdedge_agent.server import Desk

GLANCE_EVERY_S = 1.0


def measured_cpus(pin: Optional[List[int]]) -> Optional[List[int]]:
    """Processors that the worker will have; None where the system does not tell.

    Raises:
        AgentFailure: it is to be pinned to one that is not there, or not to be had.
    """
    if not hasattr(os, "sched_getaffinity"):
        if pin is not None:
            raise AgentFailure("request", "this system pins no process to a processor", "Leave --pin out")
        return None
    allowed = sorted(os.sched_getaffinity(0))
    missing = sorted(set(pin or []) - set(allowed))
    if missing:
        have = ", ".join(map(str, allowed))
        raise AgentFailure("request", f"processor {missing[0]} is not there, or not ours to use", f"There is: {have}")
    return allowed if pin is None else sorted(set(pin))


def relay(desk: Desk, message: Mapping[str, Any], start: int = 0, starts: int = 1) -> None:
    """The worker's progress to the host; in its silence, at least what it does."""
    if message["type"] == "progress":
        total = int(message["total"])
        desk.progress(str(message["phase"]), int(message["done"]) + start * total, total * starts)
    elif desk.worker is not None:
        desk.progress(desk.worker.phase, text=desk.worker.doing)


def watch(
    desk: Desk, root: Path, start: int = 0, starts: int = 1
) -> Tuple[Dict[str, Any], List[Dict[str, Any]], Dict[str, Any]]:
    """The worker's measurement, a glance at the board for about every second of it, and what else ran meanwhile.

    It is start number ``start`` of ``starts``, which progress is told in shares of.
    """
    during: List[Dict[str, Any]] = []
    counts: List[neighbours.Census] = []
    begin_s = end_s = time.monotonic()
    own_begin_s = time.process_time()
    while True:
        message = desk.worker_says(GLANCE_EVERY_S) or {"type": "silence"}
        worker = desk.worker
        if message["type"] == "timed" and worker is not None:
            cpus, own = message["cpus"], (os.getpid(), worker.pid)
            used_s = float(message["used_s"]) + time.process_time() - own_begin_s
            return message, during, neighbours.compare(counts[0], counts[-1], end_s - begin_s, cpus, own, used_s)
        if message["type"] != "look" or worker is None:
            relay(desk, message, start, starts)
            continue
        during.append({"samples": int(message["done"]), **facts.glance(root, worker.pid)})
        if not counts:
            counts.append(neighbours.census(root))
            begin_s, own_begin_s = time.monotonic(), time.process_time()
        elif message["last"]:
            end_s = time.monotonic()
            counts.append(neighbours.census(root))
        worker.send({"type": "go"})
