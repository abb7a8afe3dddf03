"""Texas Instruments' current monitors: the INA3221 of Jetson boards, and one-channel chips on HATs.

Files and units: Documentation/hwmon/sysfs-interface.rst, ina3221.rst, ina2xx.rst, ina238.rst of the kernel; JetPack 4
has an iio driver of its own instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import FileSource, PowerSource, Reading, product, scaled

ROOT = Path("/")

JETSON_TOTALS: Tuple[Tuple[str, str, Optional[Tuple[str, ...]], str], ...] = (
    (r"agx orin|p3701", "AGX Orin", None, "it has no input rail: VIN_SYS_5V0 is the I/O rail, not the total"),
    (r"agx xavier|jetson-agx|p2888", "AGX Xavier", (), "sum of the module's rails"),
    (r"orin (nano|nx)|p3767", "Orin Nano/NX", ("VDD_IN",), "the module's input rail"),
    (r"xavier nx|p3668", "Xavier NX", ("VDD_IN",), "the module's input rail"),
    (r"jetson[- ]nano|p3448|p3450", "Nano", ("POM_5V_IN",), "the module's 5 V input rail"),
)
"""Pattern on model and compatible -> board, rails of its total (empty: all; None: no rule gives one), in words."""


def _jetson_total(root: Path, rails: Sequence[str]) -> Tuple[Tuple[str, ...], str]:
    described = f"{sysfs.board_model(root) or ''} {sysfs.compatible(root)}".lower()
    for pattern, board, wanted, words in JETSON_TOTALS:
        if not re.search(pattern, described):
            continue
        if wanted is None:
            return (), f"{board}: {words}"
        if all(rail in rails for rail in wanted):
            return wanted or tuple(rails), f"{board}: {words}"
        return (), f"{board}: its input rail {', '.join(wanted)} is not among {', '.join(rails)}"
    return (), "no rule knows which rails are the total of this board"


def _ina3221_hwmon(folder: Path) -> Dict[str, Reading]:
    """JetPack 5 and 6, and the mainline driver: channels 1 to 3; 4 to 7 are shunt voltages and their sum."""
    readings: Dict[str, Reading] = {}
    for channel in (1, 2, 3):
        label = sysfs.read_text(folder / f"in{channel}_label") or f"{folder.name}-channel{channel}"
        volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        off = sysfs.read_int(folder / f"in{channel}_enable") == 0
        if label.upper() != "NC" and not off and volts.exists() and amperes.exists():
            readings[label] = product(volts, amperes)
    return readings


def _ina3221_iio(folder: Path) -> Dict[str, Reading]:
    """JetPack 4: power in mW by channel."""
    readings: Dict[str, Reading] = {}
    for path in sorted(folder.glob("rail_name_[0-9]")):
        label = sysfs.read_text(path) or path.name
        power = folder / f"in_power{path.name[-1]}_input"
        if label.upper() != "NC" and power.exists():
            readings[label] = scaled(power, 1e-3)
    return readings


def find_ina3221(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """Every INA3221 on the I2C buses, in any of the JetPack layouts."""
    readings: Dict[str, Reading] = {}
    period_s = 0.0
    chips = 0
    for device in sorted((root / "sys/bus/i2c/devices").glob("*-00*")):
        if not (sysfs.read_text(device / "name") or "").startswith("ina3221"):
            continue
        chips += 1
        for folder in sorted(device.glob("hwmon/hwmon*")):
            readings.update(_ina3221_hwmon(folder))
            period_s = max(period_s, (sysfs.read_int(folder / "update_interval") or 0) * 1e-3)
        for folder in sorted(device.glob("iio:device*")):
            readings.update(_ina3221_iio(folder))
    if not readings:
        return None, "an INA3221 without a readable channel" if chips else "no INA3221 on the I2C buses"
    total, covers = _jetson_total(root, list(readings))
    return FileSource("ina3221", max(period_s, 0.02) if period_s else 0.1, readings, total, covers), None


# INA219/220/226/230/231 (ina2xx driver) and INA238

_INA2XX = re.compile(r"ina(219|220|226|230|231|234|260)$")
_INA238 = re.compile(r"ina(237|238|228|780)$")


def _one_channel(root: Path, chips: "re.Pattern[str]") -> Tuple[Dict[str, Reading], float]:
    readings: Dict[str, Reading] = {}
    period_s = 0.0
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = sysfs.read_text(folder / "name") or ""
        power = folder / "power1_input"
        if not chips.match(chip) or not power.exists():
            continue
        label = (
            sysfs.read_text(folder / "label") or sysfs.read_text(folder / "in1_label") or _chip_address(folder, chip)
        )
        readings[label] = scaled(power, 1e-6)
        period_s = max(period_s, (sysfs.read_int(folder / "update_interval") or 0) * 1e-3)
    return readings, max(period_s, 0.02) if period_s else 0.1


def _chip_address(folder: Path, chip: str) -> str:
    """``ina219 at 1-0040``: the chip and its place on the bus, which stays when hwmon numbers change."""
    try:
        place = (folder / "device").resolve().name
    except OSError:
        place = ""
    return f"{chip} at {place}" if re.fullmatch(r"\d+-[0-9a-f]{4}", place) else f"{chip} ({folder.name})"


def find_ina238(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """INA238 and its kin; Jetson Thor measures its input with one that is labelled VIN."""
    readings, period_s = _one_channel(root, _INA238)
    if not readings:
        return None, "no INA238 in hwmon"
    described = f"{sysfs.board_model(root) or ''} {sysfs.compatible(root)}".lower()
    known = re.search(r"thor|p3834", described) and "VIN" in readings
    covers = "Thor: the input rail" if known else "no rule knows which rails are the total of this board"
    return FileSource("ina238", period_s, readings, ("VIN",) if known else (), covers), None


def find_ina2xx(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """INA219, INA226 and their kin on a HAT; alone on a Raspberry Pi it is taken to measure the supply."""
    readings, period_s = _one_channel(root, _INA2XX)
    if not readings:
        return None, "no INA219 or INA226 in hwmon (on I2C it needs the kernel's ina2xx driver: an overlay)"
    alone = len(readings) == 1 and "raspberry pi" in (sysfs.board_model(root) or "").lower()
    covers = (
        "the only sensor on a board that has none of its own: taken to be in the board's supply line"
        if alone
        else "no rule knows what this sensor is wired to"
    )
    return FileSource("ina2xx", period_s, readings, list(readings) if alone else [], covers), None
