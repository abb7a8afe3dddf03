"""Which source of watts a board has. None invents a total: a board that no rule knows gives rails and no sum."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

from kdedge_agent import sysfs
from kdedge_agent.ina import find_ina2xx, find_ina238, find_ina3221
from kdedge_agent.pmic import find_pi5_pmic
from kdedge_agent.power_source import PowerSource, SourceGone
from kdedge_agent.rapl import find_rapl

ROOT = Path("/")

FINDERS: Dict[str, Callable[[Path], Tuple[Optional[PowerSource], Optional[str]]]] = {
    "ina238": find_ina238,
    "ina3221": find_ina3221,
    "pi5-pmic": find_pi5_pmic,
    "ina2xx": find_ina2xx,
    "rapl": find_rapl,
}
"""In the order of preference: what measures the whole board first."""


def discover(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """The first source that gives a total, else the first that gives rails; (None, reason) where none is there."""
    partial: Optional[PowerSource] = None
    reasons: Dict[str, str] = {}
    for name, find in FINDERS.items():
        try:
            source, reason = find(root)
        except SourceGone as error:
            source, reason = None, str(error)
        if source is not None and source.total_rails:
            return source, None
        partial = partial or source
        if source is None and reason:
            reasons[name] = reason
    if partial is not None:
        return partial, None
    return None, _advice(root, reasons)


def _advice(root: Path, reasons: Dict[str, str]) -> str:
    """Why nothing is measured, and what would change that; what is merely not there is not recited one by one."""
    model = sysfs.board_model(root) or ""
    if "raspberry pi 5" in model.lower():
        return f"{model}: {reasons['pi5-pmic']}"
    if "raspberry pi" in model.lower():
        return (
            f"{model} has no power sensor of its own: an INA219 or INA226 on I2C with the kernel's ina2xx driver "
            "would measure it, or a wall or USB meter that the host reads (kdedge bench --meter)"
        )
    present = [reason for reason in reasons.values() if not reason.startswith("no ")]
    return "; ".join(present) or (
        "no power sensor is here that kdedge can read (INA3221, INA238, INA219/226 by hwmon, a Pi 5's PMIC, RAPL); "
        "a wall or USB meter can be read on the host (kdedge bench --meter)"
    )
