"""The Raspberry Pi 5's power management chip, through the firmware tool ``vcgencmd pmic_read_adc``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import PowerSource, Seen, SourceGone, product_step

ROOT = Path("/")

_PMIC_LINE = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]")


WALL_FIT = (1.1451, 0.5879)
"""Slope and W of a line that one user fitted to one board and its USB-C meter."""


def parse_registers(text: str) -> Dict[str, Tuple[float, float]]:
    """(volts, amperes) by rail from ``vcgencmd pmic_read_adc``; EXT5V and BATT have no amperes and are left out."""
    values: Dict[str, Dict[str, float]] = {"A": {}, "V": {}}
    for rail, unit, number in _PMIC_LINE.findall(text):
        values[unit][rail] = float(number)
    return {rail: (values["V"][rail], amperes) for rail, amperes in values["A"].items() if rail in values["V"]}


def parse_pmic(text: str) -> Dict[str, float]:
    """Watts by rail from ``vcgencmd pmic_read_adc``: volts times amperes of the rails that have both."""
    return {rail: volts * amperes for rail, (volts, amperes) in parse_registers(text).items()}


class Pi5Pmic(PowerSource):
    """The Raspberry Pi 5's own measurement of its rails; a reading costs about 23 ms."""

    name = "pi5-pmic"

    def __init__(self, tool: str, rails: Sequence[str]) -> None:
        super().__init__(
            0.1, rails, rails, "sum of the PMIC's rails; without the 5 V loads (USB, HAT, NVMe) and its own losses"
        )
        self._tool = tool
        self._seen = {rail: (Seen(), Seen()) for rail in rails}

    def read(self) -> Dict[str, float]:
        """Watts by rail, now."""
        text, reason = sysfs.vcgencmd(self._tool, "pmic_read_adc")
        registers = parse_registers(text or "")
        if set(registers) != set(self.rails):
            raise SourceGone(reason or "pmic_read_adc left rails out")
        for rail, values in registers.items():
            for seen, value in zip(self._seen[rail], values):
                seen.add(value)
        return {rail: registers[rail][0] * registers[rail][1] for rail in self.rails}

    def steps_w(self) -> Dict[str, float]:
        """Smallest steps of the rails, from the volts and amperes that were read."""
        return {rail: product_step(seen) for rail, seen in self._seen.items()}

    def estimate(self, watts: Optional[float]) -> Optional[Dict[str, Any]]:
        """Watts at the board's USB-C socket, by a fit that was made on another board."""
        if watts is None:
            return None
        slope, offset_w = WALL_FIT
        return {
            "watts": slope * watts + offset_w,
            "of": "the board's 5 V input",
            "why_estimate": f"{slope:g} times the rails + {offset_w:g} W fitted one board; calibrate your own",
        }


def find_pi5_pmic(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """The Pi 5's PMIC, or why not."""
    tool = sysfs.find_vcgencmd(root)
    if tool is None:
        return None, "no vcgencmd here (it comes with Raspberry Pi OS)"
    text, reason = sysfs.vcgencmd(tool, "pmic_read_adc")
    rails = list(parse_pmic(text or ""))
    if not rails:
        return None, reason or "vcgencmd pmic_read_adc names no rails"
    return Pi5Pmic(tool, rails), None
