"""Which other work used the processors during a measurement: by process where /proc shows it, else in sum."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from kdedge_agent import sysfs

MIN_SHARE = 0.05
"""A process that used less than this share of one processor is not named."""
MAX_NAMED = 5
_AFTER_NAME = 2
"""Fields of /proc/PID/stat that stand before the state: pid and name."""
_UTIME, _STIME, _START, _PROCESSOR = (field - 1 - _AFTER_NAME for field in (14, 15, 22, 39))


class Process(NamedTuple):
    """One process: its short name, CPU seconds since its start, the processor it ran on last, and when it started."""

    name: str
    cpu_s: float
    processor: int
    started: int


class Census(NamedTuple):
    """What every process has used until now, and what every processor has done; seconds."""

    processes: Dict[int, Process]
    busy_s: Dict[int, float]
    stolen_s: Dict[int, float]


def _tick_s() -> float:
    return 1.0 / os.sysconf("SC_CLK_TCK")


def _process(text: str) -> Optional[Process]:
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    try:
        used = (int(fields[_UTIME]) + int(fields[_STIME])) * _tick_s()
        return Process(head.partition("(")[2], used, int(fields[_PROCESSOR]), int(fields[_START]))
    except (IndexError, ValueError):
        return None


def census(root: Path) -> Census:
    """A look at all of /proc: about 50 µs a process, so never while the clock runs."""
    processes = {}
    for folder in (root / "proc").glob("[0-9]*"):
        found = _process(sysfs.read_text(folder / "stat") or "")
        if found is not None and folder.name.isdigit():
            processes[int(folder.name)] = found
    busy: Dict[int, float] = {}
    stolen: Dict[int, float] = {}
    for line in (sysfs.read_text(root / "proc/stat") or "").splitlines():
        words = line.split()
        if words and words[0][:3] == "cpu" and words[0][3:].isdigit() and all(word.isdigit() for word in words[1:]):
            ticks = [int(word) * _tick_s() for word in (*words[1:], *"00000000")]
            number = int(words[0][3:])
            busy[number] = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]
            stolen[number] = ticks[7]
    return Census(processes, busy, stolen)


def compare(
    before: Census, after: Census, seconds: float, cpus: Optional[Sequence[int]], own: Collection[int], own_s: float
) -> Dict[str, Any]:
    """Other work between two censuses.

    Args:
        before: When timing began.
        after: When it ended.
        seconds: Between them.
        cpus: Processors that the measurement may use; None where that is not known.
        own: Process ids of the measurement itself.
        own_s: CPU seconds that these used.

    Returns:
        processes: the busiest, [{pid, name, share (of one processor), processor}]; others_share: of the time of the
        measured processors that other work used, None where /proc/stat is not there; stolen_share: of that time, what
        the host of a virtual machine kept for itself.
    """
    watched = [cpu for cpu in before.busy_s if cpu in after.busy_s and (cpus is None or cpu in cpus)]
    whole = seconds * len(watched)
    others = stolen = None
    if whole > 0:
        used = sum(after.busy_s[cpu] - before.busy_s[cpu] for cpu in watched) - own_s
        others = min(1.0, max(0.0, used / whole))
        stolen = min(1.0, max(0.0, sum(after.stolen_s[cpu] - before.stolen_s[cpu] for cpu in watched) / whole))
    return {"processes": _busiest(before, after, seconds, own), "others_share": others, "stolen_share": stolen}


def _busiest(before: Census, after: Census, seconds: float, own: Collection[int]) -> List[Dict[str, Any]]:
    used: List[Tuple[float, int, Process]] = []
    for pid, process in after.processes.items():
        earlier = before.processes.get(pid)
        cpu_s = process.cpu_s - (earlier.cpu_s if earlier is not None and earlier.started == process.started else 0.0)
        if pid not in own and seconds > 0 and cpu_s / seconds >= MIN_SHARE:
            used.append((cpu_s / seconds, pid, process))
    return [
        {"pid": pid, "name": process.name, "share": round(share, 3), "processor": process.processor}
        for share, pid, process in sorted(used, reverse=True)[:MAX_NAMED]
    ]


def merged(found: Sequence[Tuple[float, Mapping[str, Any]]]) -> Dict[str, Any]:
    """What :func:`compare` said of several spans of time, as of one.

    Args:
        found: Seconds of each span, and what was said of it; at least one.
    """
    whole = math.fsum(seconds for seconds, _ in found) or 1.0

    def share(key: str) -> Optional[float]:
        given = [(seconds, said[key]) for seconds, said in found]
        if any(value is None for _, value in given):
            return None
        return math.fsum(seconds / whole * value for seconds, value in given)

    processes: Dict[int, Dict[str, Any]] = {}
    for seconds, said in found:
        for entry in said["processes"]:
            earlier = processes.get(entry["pid"], {"share": 0.0})
            processes[entry["pid"]] = {**entry, "share": earlier["share"] + entry["share"] * (seconds / whole)}
    busiest = sorted(processes.values(), key=lambda entry: -float(entry["share"]))[:MAX_NAMED]
    return {
        "processes": [{**entry, "share": round(entry["share"], 3)} for entry in busiest],
        "others_share": share("others_share"),
        "stolen_share": share("stolen_share"),
    }


def named(found: Mapping[str, Any], cpus: Optional[Sequence[int]]) -> str:
    """``python3 (pid 7, 98% of processor 0)`` of each; empty for none.

    Those that ran last on a measured processor; where none did, all: what is not pinned wanders.
    """
    processes = found.get("processes") or []
    there = [entry for entry in processes if cpus is None or entry["processor"] in cpus]
    return ", ".join(
        f"{entry['name']} (pid {entry['pid']}, {entry['share']:.0%} of processor {entry['processor']})"
        for entry in there or processes
    )
