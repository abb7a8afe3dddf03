"""The Raspberry Pi 5's power management chip, through the firmware tool ``vcgencmd pmic_read_adc``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import PowerSource, SourceGone

ROOT = Path("/")

_PMIC_LINE = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]")


def parse_pmic(text: str) -> Dict[str, float]:
    """Watts by rail from ``vcgencmd pmic_read_adc``: volts times amperes of the rails that have both."""
    values: Dict[str, Dict[str, float]] = {"A": {}, "V": {}}
    for rail, unit, number in _PMIC_LINE.findall(text):
        values[unit][rail] = float(number)
    return {rail: amperes * values["V"][rail] for rail, amperes in values["A"].items() if rail in values["V"]}


class Pi5Pmic(PowerSource):
    """The Raspberry Pi 5's own measurement of its rails; a reading costs about 23 ms."""

    name = "pi5-pmic"

    def __init__(self, tool: str, rails: Sequence[str]) -> None:
        super().__init__(
            0.1, rails, rails, "sum of the PMIC's rails; without the 5 V loads (USB, HAT, NVMe) and its own losses"
        )
        self._tool = tool

    def read(self) -> Dict[str, float]:
        """Watts by rail, now."""
        text, reason = sysfs.vcgencmd(self._tool, "pmic_read_adc")
        watts = parse_pmic(text or "")
        if set(watts) != set(self.rails):
            raise SourceGone(reason or "pmic_read_adc left rails out")
        return watts


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
