"""Boards as the kernel is told of them: what they are called, and the current monitor on their I2C bus.

Nodes as in Documentation/devicetree/bindings/hwmon/ti,ina3221.yaml and ti,ina2xx.yaml (INA238, too).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.drivers import STUB_NODE
from tests.lab.packages import call

ADDRESS = 0x40


@dataclass(frozen=True)
class Rail:
    """One channel of a current monitor.

    Attributes:
        label: As the board's maker calls it; empty where the maker says nothing.
        volts: That it carries.
        shunt_uohm: Of its shunt, in microohms.
        share: Of the board's power.
        noise_w: Standard deviation of its power from one moment to the next.
    """

    label: str
    volts: float
    shunt_uohm: int
    share: float
    noise_w: float


@dataclass(frozen=True)
class Board:
    """A board with one current monitor.

    Attributes:
        kind: As in ``kdedge device add --kind``.
        model: Of the device tree's root.
        compatible: Likewise.
        chip: The monitor, without its maker.
        rails: Its channels; of a chip with one channel the only one.
    """

    kind: str
    model: str
    compatible: tuple[str, ...]
    chip: str
    rails: tuple[Rail, ...]

    @property
    def driver(self) -> str:
        """Name of the kernel's driver for the monitor."""
        return "ina2xx" if self.chip == "ina219" else self.chip


AGX_ORIN = Board(
    "jetson",
    "NVIDIA Jetson AGX Orin Developer Kit",
    ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234"),
    "ina3221",
    (
        Rail("VDD_GPU_SOC", 20.0, 2000, 0.5, 0.15),
        Rail("VDD_CPU_CV", 20.0, 2000, 0.2, 0.15),
        Rail("VIN_SYS_5V0", 5.0, 2000, 0.3, 0.05),
    ),
)
AGX_THOR = Board(
    "jetson",
    "NVIDIA Jetson AGX Thor Developer Kit",
    ("nvidia,p3971-0089+p3834-0008", "nvidia,tegra264"),
    "ina238",
    (Rail("VIN", 20.0, 5000, 1.0, 0.3),),
)
PI4 = Board(
    "pi",
    "Raspberry Pi 4 Model B Rev 1.4",
    ("raspberrypi,4-model-b", "brcm,bcm2711"),
    "ina219",
    (Rail("", 5.1, 100_000, 1.0, 0.15),),
)


def compile_tree(board: Board, plain: Path, made: Path) -> None:
    """Write the device tree of a board whose other parts are those of qemu's machine.

    Args:
        board: What to add.
        plain: qemu's own tree, as it dumps it.
        made: The tree to write.
    """
    source = made.with_suffix(".dts")
    text = call("dtc", "-q", "-I", "dtb", "-O", "dts", str(plain))
    names = ", ".join(f'"{name}"' for name in board.compatible)
    source.write_text(f'{text}\n/ {{\n model = "{board.model}";\n compatible = {names};\n{_bus(board)}}};\n')
    call("dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(made), str(source))


def _bus(board: Board) -> str:
    chip = f'{board.chip}@{ADDRESS:x} {{ compatible = "ti,{board.chip}"; reg = <{ADDRESS:#x}>;'
    if board.chip == "ina3221":
        chip += " #address-cells = <1>; #size-cells = <0>;"
        for number, rail in enumerate(board.rails):
            chip += f' input@{number} {{ reg = <{number}>; label = "{rail.label}";'
            chip += f" shunt-resistor-micro-ohms = <{rail.shunt_uohm}>; }};"
    else:
        (rail,) = board.rails
        chip += f" shunt-resistor = <{rail.shunt_uohm}>;" + (f' label = "{rail.label}";' if rail.label else "")
    return f" {STUB_NODE[1:]} {{ #address-cells = <1>; #size-cells = <0>; {chip} }}; }};\n"
