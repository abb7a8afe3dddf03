"""Plays a power trace into the registers of a current monitor; runs in the lab's machine, with Python alone.

``python3 player.py TRACE`` says that it plays, sets them until its input ends, and then prints what it set:
[[s, W], ...], seconds on the monotonic clock from which on the board drew so many watts. The registers hold what the
chip's converter would make of them: its steps, rounded. INA3221: data sheet SBOS576, 8.6.2; INA219: SBOS448, 8.6;
INA238: SBOSA20, 7.6.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

_I2C_SLAVE_FORCE, _I2C_SMBUS = 0x0706, 0x0720
_WRITE, _WORD, _BLOCK = 0, 3, 8


class Chip:
    """The registers of the chip at an address of the stub's bus."""

    def __init__(self, address: int) -> None:
        (name,) = (
            path.parent.name
            for path in Path("/sys/bus/i2c/devices").glob("i2c-*/name")
            if path.read_text().startswith("SMBus stub")
        )
        self._bus = os.open(f"/dev/{name}", os.O_RDWR)
        fcntl.ioctl(self._bus, _I2C_SLAVE_FORCE, address)  # a driver has it, too
        self._data = ctypes.create_string_buffer(34)

    def set(self, register: int, value: int) -> None:
        """Write 16 bits; the chips send the high byte first, SMBus the low one."""
        struct.pack_into(">H", self._data, 0, value & 0xFFFF)
        self._write(register, _WORD)

    def set_long(self, register: int, value: int) -> None:
        """Write 24 bits, the high byte first."""
        struct.pack_into(">B3s", self._data, 0, 3, value.to_bytes(3, "big"))
        self._write(register, _BLOCK)

    def _write(self, register: int, size: int) -> None:
        fcntl.ioctl(self._bus, _I2C_SMBUS, struct.pack("@BBIP", _WRITE, register, size, ctypes.addressof(self._data)))

    def set_ina3221(self, channel: int, volts: float, amperes: float, shunt_uohm: int) -> None:
        """Shunt voltage in steps of 40 uV and bus voltage in steps of 8 mV, both from bit 3 on."""
        self.set(1 + 2 * channel, round(amperes * shunt_uohm / 40) << 3)
        self.set(2 + 2 * channel, round(volts * 1e3 / 8) << 3)

    def set_ina219(self, channel: int, volts: float, amperes: float, shunt_uohm: int) -> None:
        """Shunt voltage in 10 uV, bus voltage in 4 mV from bit 3 on; current and power as the chip computes them."""
        del channel
        calibration = 4096  # as the driver sets it
        shunt, bus = round(amperes * shunt_uohm / 10), round(volts * 1e3 / 4)
        current = shunt * calibration // 4096
        self.set(1, shunt)
        self.set(2, bus << 3)
        self.set(4, current)
        self.set(3, current * bus // 5000)

    def set_ina238(self, channel: int, volts: float, amperes: float, shunt_uohm: int) -> None:
        """Shunt voltage in 5 uV, bus voltage in 3.125 mV; current and power as the chip computes them."""
        del channel
        calibration = 16384  # as the driver sets it: four steps of the shunt's voltage are one of the current
        shunt, bus = round(amperes * shunt_uohm / 5), round(volts * 1e6 / 3125)
        current = shunt * calibration // 65536
        self.set(4, shunt)
        self.set(5, bus)
        self.set(7, current)
        self.set_long(8, current * bus // 64)  # in fifths of a volt times a step of the current


def level_w(trace: dict[str, Any], at_s: float) -> float:
    """Watts of the board at a moment, noise apart: levels, and bursts on top of them."""
    levels = trace["levels_w"]
    level: float = levels[int(at_s / trace["level_s"]) % len(levels)]
    burst: float = trace["burst_w"]
    return level + (burst if at_s % trace["burst_s"] < trace["burst_s"] / 2 else -burst)


def play(trace: dict[str, Any], over: threading.Event) -> list[tuple[float, float]]:
    """Set the registers once a step until it is over; what was set."""
    chip = Chip(trace["address"])
    convert = {"ina3221": chip.set_ina3221, "ina219": chip.set_ina219, "ina238": chip.set_ina238}[trace["chip"]]
    noise = random.Random(trace["seed"])
    begin = time.monotonic()
    done: list[tuple[float, float]] = []
    step = 0
    while not over.wait(max(0.0, begin + step * trace["step_s"] - time.monotonic())):
        before = time.monotonic()
        wanted_w, watts = level_w(trace, before - begin), 0.0
        for channel, (volts, shunt_uohm, share, noise_w) in enumerate(trace["rails"]):
            rail_w = max(0.0, wanted_w * share + noise.gauss(0.0, noise_w))
            convert(channel, volts, rail_w / volts, shunt_uohm)
            watts += rail_w
        done.append(((before + time.monotonic()) / 2, watts))
        if len(done) == 1:
            sys.stdout.write("playing\n")
            sys.stdout.flush()
        step = max(step + 1, int((time.monotonic() - begin) / trace["step_s"]))
    return done


def main() -> None:
    """Play until the input ends."""
    os.nice(-10)  # a board's power does not wait for its processor
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    json.dump(play(json.loads(sys.argv[1]), over), sys.stdout)


if __name__ == "__main__":
    main()
