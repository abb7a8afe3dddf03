"""Energy counters of x86 processors, by the kernel's powercap (Documentation/power/powercap/powercap.rst)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import PowerSource, SourceGone, number

ROOT = Path("/")


class Rapl(PowerSource):
    """Energy counters of the processor, as mean watts since the reading before; counters wrap around."""

    name = "rapl"
    averages = True

    def __init__(self, domains: Dict[str, Path], clock: Callable[[], int] = time.monotonic_ns) -> None:
        packages = [rail for rail in domains if rail.startswith("package")]
        total = packages + [rail for rail in domains if rail.startswith("dram")]
        covers = (
            "processor package and memory; not the board"
            if len(total) > len(packages)
            else ("processor package; neither memory nor board")
        )
        super().__init__(0.05, list(domains), total, covers)
        self._domains = domains
        self._clock = clock
        self._wrap = {rail: number(path / "max_energy_range_uj") for rail, path in domains.items()}
        self._last = self._counters()

    def _counters(self) -> Tuple[int, Dict[str, float]]:
        energy = {rail: number(path / "energy_uj") for rail, path in self._domains.items()}
        return self._clock(), energy

    def read(self) -> Dict[str, float]:
        """Mean watts by domain since the last call."""
        (t0, before), (t1, now) = self._last, self._counters()
        self._last = (t1, now)
        if t1 <= t0:
            raise SourceGone("two readings at the same instant")
        watts = {}
        for rail, energy in now.items():
            used_uj = energy - before[rail]
            if used_uj < 0:
                used_uj += self._wrap[rail]
                if used_uj > self._wrap[rail] / 2:  # no wrap: it began anew (suspend, driver bound again)
                    raise SourceGone(f"the counter of {rail} was set back")
            watts[rail] = used_uj * 1e3 / (t1 - t0)  # µJ per ns is kW
        return watts


def find_rapl(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """RAPL by powercap; mostly readable by root only since CVE-2020-8694."""
    domains: Dict[str, Path] = {}
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = sysfs.read_text(folder / "name")
        if name is None:
            continue
        counter = folder / "energy_uj"
        if sysfs.read_int(counter) is None:
            if not name.startswith("package"):
                continue
            return None, f"{sysfs.why_unreadable(counter)}; run as root or: sudo chmod a+r {counter}"
        package = folder.name.split(":")[1]
        domains[name if name.startswith("package") else f"{name}-{package}"] = folder
    if not domains:
        return None, "no RAPL counters under /sys/class/powercap"
    return Rapl(domains), None
