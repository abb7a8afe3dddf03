"""Texas Instruments' current monitors: the INA3221 of Jetson boards, and one-channel chips on HATs.

Files and units: Documentation/hwmon/sysfs-interface.rst, ina3221.rst, ina2xx.rst, ina238.rst of the kernel; JetPack 4
has an iio driver of its own instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

from kdedge_agent import sysfs
from kdedge_agent.power_source import FileSource, PowerSource, Rail

ROOT = Path("/")

JETSON_TOTALS: Tuple[Tuple[str, str, Tuple[str, ...], str], ...] = (
    (
        r"agx orin|p3701",
        "AGX Orin",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        "sum of the module's rails; it has no input rail, and VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0",
    ),
    (
        r"agx xavier|jetson-agx|p2888",
        "AGX Xavier",
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        "sum of the module's rails",
    ),
    (r"orin (nano|nx)|p3767", "Orin Nano/NX", ("VDD_IN",), "the module's input rail"),
    (r"xavier nx|p3668", "Xavier NX", ("VDD_IN",), "the module's input rail"),
    (r"jetson[- ]nano|p3448|p3450", "Nano", ("POM_5V_IN",), "the module's 5 V input rail"),
)
"""Pattern on model and compatible -> board, rails of its total (a carrier's own are no part of it), in words."""

NO_RULE = "no rule knows which rails are the total of this board"
INA3221_SHUNT_STEP_UV = 40.0
"""Of the register (data sheet SBOS576, 8.6.2): the step of a current is this by the shunt, 8 mA at 5 milliohms."""


def _jetson_total(root: Path, rails: Sequence[str]) -> Tuple[Tuple[str, ...], str]:
    described = f"{sysfs.board_model(root) or ''} {sysfs.compatible(root)}".lower()
    for pattern, board, wanted, words in JETSON_TOTALS:
        if not re.search(pattern, described):
            continue
        if all(rail in rails for rail in wanted):
            return wanted, f"{board}: {words}"
        missing = ", ".join(rail for rail in wanted if rail not in rails)
        return (), f"{board}: {missing} of its total is not among {', '.join(rails)}"
    return (), NO_RULE


def _ina3221_hwmon(folder: Path, place: str) -> Dict[str, Rail]:
    """JetPack 5 and 6, and the mainline driver: channels 1 to 3; 4 to 7 are shunt voltages and their sum."""
    rails: Dict[str, Rail] = {}
    for channel in (1, 2, 3):
        label = sysfs.read_text(folder / f"in{channel}_label") or f"{place}-channel{channel}"
        volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        off = sysfs.read_int(folder / f"in{channel}_enable") == 0
        if label.upper() != "NC" and not off and volts.exists() and amperes.exists():
            shunt_uohm = sysfs.read_int(folder / f"shunt{channel}_resistor") or 0
            step_ma = INA3221_SHUNT_STEP_UV / shunt_uohm * 1e3 if shunt_uohm > 0 else 0.0
            rails[label] = Rail(1e-6, (volts, amperes), (8.0, step_ma))
    return rails


def _ina3221_iio(folder: Path) -> Dict[str, Rail]:
    """JetPack 4: power in mW by channel."""
    rails: Dict[str, Rail] = {}
    for path in sorted(folder.glob("rail_name_[0-9]")):
        label = sysfs.read_text(path) or path.name
        power = folder / f"in_power{path.name[-1]}_input"
        if label.upper() != "NC" and power.exists():
            rails[label] = Rail(1e-3, (power,))
    return rails


def _ina3221_rails(root: Path) -> Tuple[Dict[str, Rail], float, int]:
    """Rails, the chips' own interval in seconds (0: they do not say), how many chips; in any of the JetPack layouts."""
    rails: Dict[str, Rail] = {}
    period_s, chips = 0.0, 0
    for device in sorted((root / "sys/bus/i2c/devices").glob("*-00*")):
        if not (sysfs.read_text(device / "name") or "").startswith("ina3221"):
            continue
        chips += 1
        here: Dict[str, Rail] = {}
        for folder in sorted(device.glob("hwmon/hwmon*")):
            here.update(_ina3221_hwmon(folder, device.name))
            period_s = max(period_s, (sysfs.read_int(folder / "update_interval") or 0) * 1e-3)
        for folder in sorted(device.glob("iio:device*")):
            here.update(_ina3221_iio(folder))
        rails.update(
            {label if label not in rails else f"{label} ({device.name})": rail for label, rail in here.items()}
        )
    return rails, period_s, chips


def find_ina3221(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """Every INA3221 on the I2C buses."""
    rails, period_s, chips = _ina3221_rails(root)
    if not rails:
        return None, "an INA3221 without a readable channel" if chips else "no INA3221 on the I2C buses"
    total, covers = _jetson_total(root, list(rails))
    return FileSource("ina3221", _paced(period_s), rails, total, covers, lambda: _ina3221_rails(root)[0]), None


def _paced(period_s: float) -> float:
    """Seconds between readings: the sensor's own interval, no less than 20 ms; 100 ms where it does not say."""
    return max(period_s, 0.02) if period_s else 0.1


# INA219/220/226/230/231 (ina2xx driver) and INA238

_INA2XX = re.compile(r"ina(219|220|226|230|231|234|260)$")
_INA238 = re.compile(r"ina(237|238|228|780)$")


def _one_channel(root: Path, chips: "re.Pattern[str]") -> Tuple[Dict[str, Rail], float]:
    rails: Dict[str, Rail] = {}
    period_s = 0.0
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = sysfs.read_text(folder / "name") or ""
        power = folder / "power1_input"
        if not chips.match(chip) or not power.exists():
            continue
        label = (
            sysfs.read_text(folder / "label") or sysfs.read_text(folder / "in1_label") or _chip_address(folder, chip)
        )
        rails[label] = Rail(1e-6, (power,))
        period_s = max(period_s, (sysfs.read_int(folder / "update_interval") or 0) * 1e-3)
    return rails, _paced(period_s)


def _chip_address(folder: Path, chip: str) -> str:
    """``ina219 at 1-0040``: the chip and its place on the bus, which stays when hwmon numbers change."""
    try:
        place = (folder / "device").resolve().name
    except OSError:
        place = ""
    return f"{chip} at {place}" if re.fullmatch(r"\d+-[0-9a-f]{4}", place) else f"{chip} ({folder.name})"


def find_ina238(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """INA238 and its kin; Jetson Thor measures its input with one that is labelled VIN."""
    rails, period_s = _one_channel(root, _INA238)
    if not rails:
        return None, "no INA238 in hwmon"
    described = f"{sysfs.board_model(root) or ''} {sysfs.compatible(root)}".lower()
    known = re.search(r"thor|p3834", described) and "VIN" in rails
    covers = "Thor: the input rail" if known else NO_RULE
    total = ("VIN",) if known else ()
    return FileSource("ina238", period_s, rails, total, covers, lambda: _one_channel(root, _INA238)[0]), None


def find_ina2xx(root: Path = ROOT) -> Tuple[Optional[PowerSource], Optional[str]]:
    """INA219, INA226 and their kin on a HAT; alone on a Raspberry Pi it is taken to measure the supply."""
    rails, period_s = _one_channel(root, _INA2XX)
    if not rails:
        return None, "no INA219 or INA226 in hwmon (on I2C it needs the kernel's ina2xx driver: an overlay)"
    alone = len(rails) == 1 and "raspberry pi" in (sysfs.board_model(root) or "").lower()
    covers = (
        "the only sensor on a board that has none of its own: taken to be in the board's supply line"
        if alone
        else "no rule knows what this sensor is wired to"
    )
    total = list(rails) if alone else []
    return FileSource("ina2xx", period_s, rails, total, covers, lambda: _one_channel(root, _INA2XX)[0]), None
