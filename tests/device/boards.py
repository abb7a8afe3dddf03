"""Trees of boards: each function fills a directory as ``/`` is on that board, as far as the agent reads it.

Layouts, names and units are those of the boards' kernels and firmware: kernel Documentation/hwmon (ina3221, ina2xx,
ina238), ABI/testing/sysfs-class-power, power/powercap; Jetson Linux Developer Guides of releases 32 (JetPack 4), 35 (5)
and 36 (6); raspberrypi.com on ``vcgencmd``. The values are plausible and made up. A tree can be read where it lies
(readers take a root) or its ``sys`` and ``proc`` be mounted over those of a namespace, with ``usr/bin`` on PATH.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Rail = tuple[str, int, int]
"""Label, mV, mA."""

VCGENCMD = """#!/bin/sh
# Answers as the board's firmware tool does, from the files beside the tree's root.
file=$(dirname "$0")/../../vcgencmd/$1
if [ -f "$file" ]; then cat "$file"; else echo 'error=1 error_msg="Command not registered"'; exit 255; fi
"""

PMIC_RAILS = (
    ("3V7_WL_SW", 0, 8, 0.09), ("3V3_SYS", 1, 9, 0.07), ("1V8_SYS", 2, 10, 0.17), ("DDR_VDD2", 3, 11, 0.03),
    ("DDR_VDDQ", 4, 12, 0.0), ("1V1_SYS", 5, 13, 0.19), ("0V8_SW", 6, 14, 0.35), ("VDD_CORE", 7, 15, 1.5),
    ("3V3_DAC", 17, 20, 0.0005), ("3V3_ADC", 18, 21, 0.0004), ("0V8_AON", 16, 19, 0.005), ("HDMI", 22, 23, 0.02),
)  # fmt: skip
"""Name, number of its current and of its voltage, A; 1 V each, so that the watts are the amperes."""


def write(root: Path, path: str, text: object) -> None:
    """A file of the tree, with the newline that the kernel ends it with."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{text}\n")


def link(root: Path, path: str, target: str) -> None:
    """A symbolic link of the tree, relative to the folder it lies in."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def _arm(root: Path, model: str, compatible: Sequence[str], part: str, release: str) -> None:
    """Device tree, four cores of a kind, a governor, a thermal zone."""
    tree = root / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True, exist_ok=True)
    link(root, "proc/device-tree", "../sys/firmware/devicetree/base")
    (tree / "model").write_text(f"{model}\0")
    (tree / "compatible").write_text("".join(f"{name}\0" for name in compatible))
    cores = [f"processor\t: {i}\nFeatures\t: fp asimd crc32 cpuid asimdrdm\nCPU part\t: {part}\n" for i in range(4)]
    write(root, "proc/cpuinfo", "\n".join(cores) + f"\nModel\t\t: {model}")
    write(root, "etc/os-release", f'PRETTY_NAME="{release}"')
    _common(root, "cpu-thermal", 1_800_000)


def _jetson(root: Path, model: str, compatible: Sequence[str], part: str, release: str) -> None:
    """A board whose GPU shares the memory, and says how much of it it has."""
    _arm(root, model, compatible, part, release)
    with (root / "proc/meminfo").open("a") as file:
        file.write("NvMapMemFree:           0 kB\nNvMapMemUsed:      65536 kB\n")


def _common(root: Path, zone: str, khz: int) -> None:
    write(root, "proc/meminfo", "MemTotal:        8000000 kB\nMemAvailable:    6000000 kB\nSwapTotal:             0 kB")
    write(root, "proc/loadavg", "0.10 0.08 0.05 1/200 1234")
    write(root, "sys/class/thermal/thermal_zone0/type", zone)
    write(root, "sys/class/thermal/thermal_zone0/temp", 45000)
    policy = "sys/devices/system/cpu/cpufreq/policy0"
    write(root, f"{policy}/scaling_governor", "performance")
    for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq"):
        write(root, f"{policy}/{name}", khz)


def _firmware_tool(root: Path, answers: dict[str, str]) -> None:
    write(root, "usr/bin/vcgencmd", VCGENCMD)
    (root / "usr/bin/vcgencmd").chmod(0o755)
    for name, text in answers.items():
        write(root, f"vcgencmd/{name}", text)


def _i2c_hwmon(root: Path, bus: str, place: str, chip: str, hwmon: int) -> str:
    """An I2C chip with a hwmon driver, in the device tree of sysfs and in both classes; the folder of its files."""
    device = f"sys/devices/platform/{bus}/i2c-{place.split('-', maxsplit=1)[0]}/{place}"
    folder = f"{device}/hwmon/hwmon{hwmon}"
    write(root, f"{device}/name", chip)
    write(root, f"{folder}/name", chip)
    link(root, f"{folder}/device", f"../../../{place}")
    link(root, f"sys/bus/i2c/devices/{place}", f"../../../../{device}")
    link(root, f"sys/class/hwmon/hwmon{hwmon}", f"../../../{folder}")
    return folder


def ina3221_hwmon(root: Path, place: str, hwmon: int, rails: Sequence[Rail | None], bus: str = "c240000.i2c") -> None:
    """JetPack 5 and 6 and the mainline driver: mV and mA of three channels; None is a channel that is not wired."""
    folder = _i2c_hwmon(root, bus, place, "ina3221", hwmon)
    for channel, rail in enumerate(rails, 1):
        label, millivolts, milliamperes = rail or ("NC", 0, 0)
        for name, value in (
            (f"in{channel}_label", label), (f"in{channel}_enable", 1), (f"in{channel}_input", millivolts),
            (f"curr{channel}_input", milliamperes), (f"shunt{channel}_resistor", 5000),
            (f"in{channel + 3}_input", milliamperes * 5),
        ):  # fmt: skip
            write(root, f"{folder}/{name}", value)
    write(root, f"{folder}/in7_label", "sum of shunt voltages")
    write(root, f"{folder}/in7_input", 5 * sum(rail[2] for rail in rails if rail))
    write(root, f"{folder}/curr4_input", sum(rail[2] for rail in rails if rail))


def ina3221_iio(root: Path, place: str, number: int, rails: Sequence[Rail | None], bus: str) -> None:
    """JetPack 4: NVIDIA's iio driver, power in mW."""
    device = f"sys/devices/{bus}/i2c-{place.split('-', maxsplit=1)[0]}/{place}"
    write(root, f"{device}/name", "ina3221x")
    link(root, f"sys/bus/i2c/devices/{place}", f"../../../../{device}")
    folder = f"{device}/iio:device{number}"
    write(root, f"{folder}/name", "ina3221x")
    for channel, rail in enumerate(rails):
        label, millivolts, milliamperes = rail or ("NC", 0, 0)
        for name, value in (
            (f"rail_name_{channel}", label), (f"in_voltage{channel}_input", millivolts),
            (f"in_current{channel}_input", milliamperes),
            (f"in_power{channel}_input", millivolts * milliamperes // 1000),
        ):  # fmt: skip
            write(root, f"{folder}/{name}", value)


def one_channel_hwmon(root: Path, chip: str, hwmon: int, watts: float, label: str | None = None) -> None:
    """INA219, INA226, INA238: power in µW of one channel."""
    folder = _i2c_hwmon(root, "soc/fe804000.i2c", "1-0040", chip, hwmon)
    for name, value in (
        ("in1_input", 5000), ("curr1_input", round(watts * 200)), ("power1_input", round(watts * 1e6)),
        ("update_interval", 17), ("shunt_resistor", 10000),
    ):  # fmt: skip
        write(root, f"{folder}/{name}", value)
    if label:
        write(root, f"{folder}/label", label)


def pi4(root: Path) -> None:
    """Raspberry Pi 4: no sensor."""
    _arm(
        root,
        "Raspberry Pi 4 Model B Rev 1.4",
        ("raspberrypi,4-model-b", "brcm,bcm2711"),
        "0xd08",
        "Debian GNU/Linux 12",
    )
    _firmware_tool(root, {"get_throttled": "throttled=0x0"})


def pi5(root: Path) -> None:
    """Raspberry Pi 5: twelve rails of its PMIC by vcgencmd, and two voltages without a current."""
    _arm(
        root,
        "Raspberry Pi 5 Model B Rev 1.0",
        ("raspberrypi,5-model-b", "brcm,bcm2712"),
        "0xd0b",
        "Debian GNU/Linux 13",
    )
    lines = [f"{name}_A current({a})={amperes:.8f}A" for name, a, _, amperes in PMIC_RAILS]
    lines += [f"{name}_V volt({v})=1.00000000V" for name, _, v, _ in PMIC_RAILS]
    lines += ["EXT5V_V volt(24)=5.09984000V", "BATT_V volt(25)=0.00683760V"]
    _firmware_tool(root, {"get_throttled": "throttled=0x0", "pmic_read_adc": "\n".join(lines)})


def pi4_ina219_hat(root: Path) -> None:
    """Raspberry Pi 4 with an INA219 HAT in its supply line."""
    pi4(root)
    one_channel_hwmon(root, "ina219", 2, 3.12)


def pi5_ina219_hat(root: Path) -> None:
    """Raspberry Pi 5 with an INA219 HAT beside its own PMIC."""
    pi5(root)
    one_channel_hwmon(root, "ina219", 3, 5.5)


def pi4_ina3221_hat(root: Path) -> None:
    """Raspberry Pi 4 with a three-channel HAT that nothing says the wiring of."""
    pi4(root)
    ina3221_hwmon(root, "1-0041", 2, [("CH1", 5000, 600), ("CH2", 3300, 100), None], "soc/fe804000.i2c")


def jetson_nano(root: Path) -> None:
    """Jetson Nano, JetPack 4."""
    names = ("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210")
    _jetson(root, "NVIDIA Jetson Nano Developer Kit", names, "0xd07", "Ubuntu 18.04.6 LTS")
    rails = [("POM_5V_IN", 5000, 440), ("POM_5V_GPU", 5000, 40), ("POM_5V_CPU", 5000, 120)]
    ina3221_iio(root, "6-0040", 0, rails, "7000c400.i2c")


_NX_RAILS = (("VDD_IN", 5000, 870), ("VDD_CPU_GPU_CV", 5000, 120), ("VDD_SOC", 5000, 250))


def _xavier_nx(root: Path, release: str) -> None:
    names = ("nvidia,p3509-0000+p3668-0001", "nvidia,tegra194")
    _jetson(root, "NVIDIA Jetson Xavier NX Developer Kit", names, "0x004", release)


def xavier_nx_jetpack4(root: Path) -> None:
    """Jetson Xavier NX, JetPack 4."""
    _xavier_nx(root, "Ubuntu 18.04.6 LTS")
    ina3221_iio(root, "7-0040", 0, _NX_RAILS, "c240000.i2c")


def xavier_nx_jetpack5(root: Path) -> None:
    """Jetson Xavier NX, JetPack 5."""
    _xavier_nx(root, "Ubuntu 20.04.6 LTS")
    ina3221_hwmon(root, "7-0040", 4, _NX_RAILS)


_XAVIER_RAILS = (("GPU", 19000, 40), ("CPU", 19000, 30), ("SOC", 19000, 60))
_XAVIER_MORE = (("CV", 19000, 0), ("VDDRQ", 19000, 25), ("SYS5V", 5000, 420))


def _agx_xavier(root: Path, release: str) -> None:
    _jetson(root, "Jetson-AGX", ("nvidia,p2972-0000", "nvidia,tegra194", "nvidia,p2888-0001"), "0x004", release)


def agx_xavier_jetpack4(root: Path) -> None:
    """Jetson AGX Xavier, JetPack 4: two chips, six rails."""
    _agx_xavier(root, "Ubuntu 18.04.6 LTS")
    ina3221_iio(root, "1-0040", 0, _XAVIER_RAILS, "c240000.i2c")
    ina3221_iio(root, "1-0041", 1, _XAVIER_MORE, "c240000.i2c")


def agx_xavier_jetpack5(root: Path) -> None:
    """Jetson AGX Xavier, JetPack 5."""
    _agx_xavier(root, "Ubuntu 20.04.6 LTS")
    ina3221_hwmon(root, "1-0040", 3, _XAVIER_RAILS)
    ina3221_hwmon(root, "1-0041", 4, _XAVIER_MORE)


def orin_nano(root: Path) -> None:
    """Jetson Orin Nano, JetPack 6."""
    names = ("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234")
    _jetson(root, "NVIDIA Jetson Orin Nano Developer Kit", names, "0xd42", "Ubuntu 22.04.4 LTS")
    ina3221_hwmon(root, "1-0040", 1, _NX_RAILS)


def agx_orin(root: Path) -> None:
    """Jetson AGX Orin, JetPack 5 and 6: two chips, two channels of which are not wired; no input rail."""
    names = ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234")
    _jetson(root, "Jetson AGX Orin Developer Kit", names, "0xd42", "Ubuntu 22.04.4 LTS")
    ina3221_hwmon(
        root, "1-0040", 3, [("VDD_GPU_SOC", 20000, 160), ("VDD_CPU_CV", 20000, 40), ("VIN_SYS_5V0", 5000, 640)]
    )
    ina3221_hwmon(root, "1-0041", 4, [None, ("VDDQ_VDD2_1V8AO", 5000, 80), None])


def thor(root: Path) -> None:
    """Jetson AGX Thor, JetPack 7: an INA238 at the input (µW), an INA3221 at the module."""
    names = ("nvidia,p3971-0089+p3834-0008", "nvidia,tegra264")
    _jetson(root, "NVIDIA Jetson AGX Thor Developer Kit", names, "0xd83", "Ubuntu 24.04.2 LTS")
    one_channel_hwmon(root, "ina238", 5, 32.4, "VIN")
    ina3221_hwmon(
        root, "2-0041", 6, [("VDD_GPU", 12000, 300), ("VDD_CPU_SOC_MSS", 12000, 700), ("VIN_SYS_5V0", 5000, 800)]
    )


def unknown_board(root: Path) -> None:
    """A board with sensors that no rule knows."""
    _arm(root, "Example Systems SBC-9", ("example,sbc-9",), "0xd05", "Debian GNU/Linux 12")
    ina3221_hwmon(root, "1-0040", 0, [("VBUS", 5000, 600), ("V3V3", 3300, 120), None])


def _pc(root: Path, vendor: str, product: str) -> None:
    write(root, "sys/class/dmi/id/sys_vendor", vendor)
    write(root, "sys/class/dmi/id/product_name", product)
    write(root, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Example CPU @ 3.00GHz\nflags\t\t: fpu sse4_2 avx2")
    write(root, "etc/os-release", 'PRETTY_NAME="Ubuntu 24.04.1 LTS"')
    _common(root, "x86_pkg_temp", 3_000_000)


def x86_rapl(root: Path) -> None:
    """A PC whose RAPL counters this user may read."""
    _pc(root, "Example", "Workstation 7")
    for folder, name, energy_uj in (
        ("intel-rapl:0", "package-0", 262_143_328_000), ("intel-rapl:0/intel-rapl:0:0", "core", 5_000_000),
        ("intel-rapl:0/intel-rapl:0:1", "dram", 7_000_000),
    ):  # fmt: skip
        place = f"sys/devices/virtual/powercap/intel-rapl/{folder}"
        write(root, f"{place}/name", name)
        write(root, f"{place}/energy_uj", energy_uj)
        write(root, f"{place}/max_energy_range_uj", 262_143_328_850)
        link(root, f"sys/class/powercap/{folder.rpartition('/')[2]}", f"../../../{place}")


def _battery(root: Path, name: str, files: dict[str, object]) -> None:
    place = f"sys/devices/LNXSYSTM:00/PNP0C0A:00/power_supply/{name}"
    for file, value in {"type": "Battery", "present": 1, **files}.items():
        write(root, f"{place}/{file}", value)
    link(root, f"sys/class/power_supply/{name}", f"../../../{place}")


def laptop(root: Path) -> None:
    """A laptop on its battery: current and voltage; a mouse has a battery too."""
    _pc(root, "Example", "Laptop 14")
    _battery(root, "BAT0", {"status": "Discharging", "current_now": 800_000, "voltage_now": 12_000_000})
    _battery(root, "hidpp_battery_0", {"status": "Discharging", "scope": "Device", "voltage_now": 3_900_000})


def laptop_power(root: Path) -> None:
    """A laptop whose gauge tells power instead."""
    _pc(root, "Example", "Laptop 13")
    _battery(root, "BAT1", {"status": "Discharging", "power_now": 7_250_000, "voltage_now": 11_000_000})


def laptop_charging(root: Path) -> None:
    """A laptop on its charger."""
    _pc(root, "Example", "Laptop 14")
    _battery(root, "BAT0", {"status": "Charging", "current_now": 800_000, "voltage_now": 12_000_000})


BOARDS: dict[str, Callable[[Path], None]] = {
    build.__name__: build
    for build in (
        pi4, pi5, pi4_ina219_hat, pi5_ina219_hat, pi4_ina3221_hat, jetson_nano, xavier_nx_jetpack4, xavier_nx_jetpack5,
        agx_xavier_jetpack4, agx_xavier_jetpack5, orin_nano, agx_orin, thor, unknown_board, x86_rapl, laptop,
        laptop_power, laptop_charging,
    )
}  # fmt: skip
