"""The battery of a laptop or HAT, by the kernel's power_supply class (Documentation/ABI/testing/sysfs-class-power).

What a battery gives is what the machine takes only while nothing charges or feeds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import FileSource, PowerSource, Rail, SourceGone

ROOT = Path("/")
_SUPPLIES = "sys/class/power_supply"
PERIOD_S = 1.0
"""Gauges differ, from a quarter of a second to half a minute; the real rate is found from the readings."""


class Battery(FileSource):
    """Batteries, one of which at least discharges; a charger that is plugged in during the run ends the readings."""

    def __init__(self, root: Path, folders: List[Path], rails: Dict[str, Rail]) -> None:
        covers = "what the battery gives: the whole machine, its screen too"
        super().__init__("battery", PERIOD_S, rails, list(rails), covers)
        self._root, self._folders = root, folders

    def read(self) -> Dict[str, float]:
        """Watts by battery, now; drivers that sign the current give it below zero while it discharges."""
        states = _states(self._folders)
        if fed := _fed(self._root, states):
            raise SourceGone(fed)
        # Of two batteries one waits while the other gives; what its gauge then shows is nothing it gives.
        watts = super().read()
        return {folder.name: abs(watts[folder.name]) if states[folder] == _GIVES else 0.0 for folder in self._folders}


_GIVES = "Discharging"


def _states(folders: List[Path]) -> Dict[Path, str]:
    return {folder: sysfs.read_text(folder / "status") or "of unknown state" for folder in folders}


def _fed(root: Path, states: Dict[Path, str]) -> Optional[str]:
    """Why the machine does not live on its batteries now; None if it does."""
    for folder, state in states.items():
        if state == "Charging":
            return f"the battery {folder.name} is charging"
    for supply in sorted((root / _SUPPLIES).glob("*")):
        kind, scope = sysfs.read_text(supply / "type"), sysfs.read_text(supply / "scope")
        if kind in ("Mains", "USB") and scope != "Device" and sysfs.read_int(supply / "online") == 1:
            return f"{supply.name} feeds the machine"
    if _GIVES not in states.values():
        folder, state = next(iter(states.items()))
        return f"the battery {folder.name} is {state.lower()}"
    return None


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
        for folder in sorted((root / _SUPPLIES).glob("*"))
        if sysfs.read_text(folder / "type") == "Battery"
        and sysfs.read_text(folder / "scope") != "Device"
        and sysfs.read_int(folder / "present") != 0
    ]
    if not folders:
        return None, "no battery under /sys/class/power_supply"
    rails = {folder.name: rail for folder in folders for rail in [_rail(folder)] if rail is not None}
    silent = [folder for folder in folders if folder.name not in rails]
    states = _states(folders)
    if fed := _fed(root, states):
        return None, f"{fed}: unplug the charger, and it measures the machine"
    if giving := [folder.name for folder in silent if states[folder] == _GIVES]:
        return None, f"the battery {giving[0]} tells neither power nor current"
    return Battery(root, [folder for folder in folders if folder.name in rails], rails), None
