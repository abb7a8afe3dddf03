"""Which source of watts a board has. None invents a total: a board that no rule knows gives rails and no sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from kdedge_agent import sysfs
from kdedge_agent.battery import find_battery
from kdedge_agent.ina import find_ina2xx, find_ina238, find_ina3221
from kdedge_agent.pmic import find_pi5_pmic
from kdedge_agent.power_source import PowerSource, SourceGone
from kdedge_agent.rapl import find_rapl

ROOT = Path("/")

Found = Tuple[Optional[PowerSource], Optional[str]]

FINDERS: Dict[str, Callable[[Path], Found]] = {
    "ina238": find_ina238,
    "ina3221": find_ina3221,
    "pi5-pmic": find_pi5_pmic,
    "ina2xx": find_ina2xx,
    "battery": find_battery,
    "rapl": find_rapl,
}
"""In the order of preference: what measures the whole board first, then parts of it."""


def _found(find: Callable[[Path], Found], root: Path) -> Found:
    try:
        return find(root)
    except SourceGone as error:
        return None, str(error)


def _look(root: Path) -> Dict[str, Found]:
    """What each finder says, in the order of preference."""
    return {name: _found(find, root) for name, find in FINDERS.items()}


def _choose(seen: Mapping[str, Found]) -> Optional[PowerSource]:
    """The first source that gives a total, else the first that gives rails."""
    sources = [source for source, _ in seen.values() if source is not None]
    return next((source for source in sources if source.total_rails), sources[0] if sources else None)


def discover(root: Path = ROOT) -> Found:
    """The first source that gives a total, else the first that gives rails; (None, reason) where none is there."""
    seen = _look(root)
    chosen = _choose(seen)
    if chosen is not None:
        return chosen, None
    return None, _advice(root, {name: reason for name, (_, reason) in seen.items() if reason})


def survey(root: Path = ROOT) -> List[Dict[str, Any]]:
    """Every source that is there, in the order of preference, and every one that is there and cannot be used.

    Returns:
        [{name, chosen, covers, total_rails, reason}]; covers and total_rails None where a reason says why it gives
        nothing.
    """
    seen = _look(root)
    chosen = _choose(seen)
    rows: List[Dict[str, Any]] = []
    for name, (source, reason) in seen.items():
        if source is not None:
            rows.append(
                {
                    "name": name,
                    "chosen": source is chosen,
                    "covers": source.covers,
                    "total_rails": list(source.total_rails),
                    "reason": None,
                }
            )
        elif reason and not reason.startswith("no "):
            rows.append({"name": name, "chosen": False, "covers": None, "total_rails": None, "reason": reason})
    return rows


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
        "no power sensor is here that kdedge can read (INA3221, INA238, INA219/226 by hwmon, a Pi 5's PMIC, RAPL, "
        "a battery): an INA219 or INA226 on I2C would measure it, or a wall or USB meter that the host reads "
        "(kdedge bench --meter)"
    )
