"""Memory of a process by phase, from /proc (Linux): peak, resident, proportional, private; in bytes.

The kernel keeps the peak of the resident set (VmHWM); writing 5 to ``clear_refs`` sets it back to the present
size, so that each phase has a peak of its own (Documentation/filesystems/proc.rst). PSS shares out the pages that
several processes map; private dirty is what would be free if the process ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple

PHASES = ("start", "import", "load", "first", "steady")
ROOT = Path("/")


def _process(root: Path, pid: str) -> Path:
    return root / "proc" / pid


def _kib_lines(path: Path) -> Tuple[Dict[str, int], Optional[str]]:
    """``Key:  123 kB`` lines in bytes, or the reason why there are none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return {}, f"{path} is not there (no Linux /proc, or a kernel without it)"
    except OSError as error:
        return {}, f"{path}: {error.strerror}"
    values = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            values[key] = int(words[0]) * 1024
    return values, None


def status_bytes(field: str, root: Path = ROOT, pid: str = "self") -> Tuple[Optional[int], Optional[str]]:
    """One field of /proc/PID/status such as VmHWM or VmRSS: (bytes, None) or (None, reason)."""
    path = _process(root, pid) / "status"
    values, reason = _kib_lines(path)
    if reason is None and field not in values:
        reason = f"{path} has no {field}"
    return values.get(field), reason


def reset_peak(root: Path = ROOT, pid: str = "self") -> Optional[str]:
    """Set VmHWM back to the present resident size; None, or the reason why that is not possible."""
    path = _process(root, pid) / "clear_refs"
    try:
        with path.open("r+") as file:  # r+: a file that is not there must not be made
            file.write("5")
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def rollup(root: Path = ROOT, pid: str = "self") -> Tuple[Dict[str, Optional[int]], Optional[str]]:
    """{pss, private, private_dirty} bytes of the process now, and the reason where they are None."""
    values, reason = _kib_lines(_process(root, pid) / "smaps_rollup")
    if reason is not None:
        return {"pss": None, "private": None, "private_dirty": None}, reason
    dirty = values.get("Private_Dirty", 0)
    return {
        "pss": values.get("Pss"),
        "private": dirty + values.get("Private_Clean", 0),
        "private_dirty": dirty,
    }, None


def nvmap_used(root: Path = ROOT) -> Optional[int]:
    """Bytes that a Jetson's GPU holds of the memory it shares with the processor, of all processes; None elsewhere."""
    return _kib_lines(root / "proc/meminfo")[0].get("NvMapMemUsed")


def largest(found: Sequence[Mapping[str, Optional[int]]]) -> Dict[str, Optional[int]]:
    """The largest of each size over several processes; None where none of them knows it."""
    keys = dict.fromkeys(key for sizes in found for key in sizes)
    known = {key: [size for size in (sizes.get(key) for sizes in found) if size is not None] for key in keys}
    return {key: max(sizes) if sizes else None for key, sizes in known.items()}


class PhaseMemory:
    """Peak by phase of one process: ``end(phase)`` at the end of each."""

    def __init__(self, root: Path = ROOT, pid: str = "self") -> None:
        self._root, self._pid = root, pid
        self._peaks: Dict[str, Optional[int]] = {}
        self._reasons: Dict[str, str] = {}
        self._total: Optional[int] = None
        self._reset_reason: Optional[str] = None
        self._nvmap = nvmap_used(root)

    def end(self, phase: str) -> None:
        """Keep the phase's peak and set the mark back for the next one."""
        peak, reason = status_bytes("VmHWM", self._root, self._pid)
        if peak is not None:
            self._total = max(peak, self._total or 0)
        if self._reset_reason is not None:
            # Without a reset the mark is the whole process's so far: right for the first phase alone.
            peak, reason = None, f"the peak cannot be set back between phases ({self._reset_reason})"
        self._peaks[phase] = peak
        if peak is None:
            self._reasons[f"memory_bytes.{phase}"] = reason or "not known"
        self._reset_reason = self._reset_reason or reset_peak(self._root, self._pid)

    def result(self) -> Tuple[Dict[str, Optional[int]], Dict[str, str]]:
        """The record's ``memory_bytes`` and the reasons of its nulls; PSS, private and the GPU's are of this moment."""
        memory: Dict[str, Optional[int]] = {"peak": self._total}
        reasons = dict(self._reasons)
        if self._total is None:
            reasons["memory_bytes.peak"] = status_bytes("VmHWM", self._root, self._pid)[1] or "not known"
        for phase in PHASES:
            memory[phase] = self._peaks.get(phase)
            if phase not in self._peaks:
                reasons[f"memory_bytes.{phase}"] = "the run did not come to this phase"
        shares, reason = rollup(self._root, self._pid)
        memory.update(shares)
        for key, value in shares.items():
            if value is None:
                reasons[f"memory_bytes.{key}"] = reason or "not known"
        nvmap = nvmap_used(self._root)
        if nvmap is not None and self._nvmap is not None:
            memory["gpu_shared"] = max(0, nvmap - self._nvmap)
        return memory, reasons
