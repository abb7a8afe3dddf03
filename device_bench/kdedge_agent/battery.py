"""The battery of a laptop or HAT, by the kernel's power_supply class (Documentation/ABI/testing/sysfs-class-power).

What a battery gives is what the machine takes only while nothing charges or feeds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import FileSource, PowerSource, Rail, SourceGone

ROOT = Path("/")
PERIOD_S = 1.0
"""Gauges differ, from a quarter of a second to half a minute; the real rate is found from the readings."""


class Battery(FileSource):
    """Batteries that all discharge; a charger that is plugged in during the run ends the readings."""

    def __init__(self, folders: List[Path], rails: Dict[str, Rail]) -> None:
        covers = "what the battery gives: the whole machine, its screen too"
        super().__init__("battery", PERIOD_S, rails, list(rails), covers)
        self._folders = folders

    def read(self) -> Dict[str, float]:
        """Watts by battery, now; drivers that sign the current give it below zero while it discharges."""
        for folder in self._folders:
            status = sysfs.read_text(folder / "status")
            if status != "Discharging":
                raise SourceGone(f"{folder.name} is {(status or 'gone').lower()}")
        return {rail: abs(watts) for rail, watts in super().read().items()}


def _rail(folder: Path) -> Optional[Rail]:
    """From power_now in µW, else from current_now in µA and voltage_now in µV."""
    power, amperes, volts = (folder / f"{name}_now" for name in ("power", "current", "voltage"))
    if sysfs.read_int(power) is not None:
        return Rail(1e-6, (power,))
    if sysfs.read_int(amperes) is not None and sysfs.read_int(volts) is not None:
        return Rail(1e-12, (volts, amperes))
    return None


def find_battery(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """The machine's batteries while they discharge; those of mice and headsets are left out."""
    folders = [
        folder
        for folder in sorted((root / "sys/class/power_supply").glob("*"))
        if sysfs.read_text(folder / "type") == "Battery"
        and sysfs.read_text(folder / "scope") != "Device"
        and sysfs.read_int(folder / "present") != 0
    ]
    if not folders:
        return None, "no battery under /sys/class/power_supply"
    for folder in folders:
        status = sysfs.read_text(folder / "status") or "of unknown state"
        if status != "Discharging":
            return (
                None,
                f"the battery {folder.name} is {status.lower()}: unplug the charger, and it measures the machine",
            )
    rails = {folder.name: rail for folder in folders for rail in [_rail(folder)] if rail is not None}
    if len(rails) < len(folders):
        return None, f"the battery {folders[0].name} tells neither power nor current"
    return Battery(folders, rails), None
