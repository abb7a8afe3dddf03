"""What a source of watts is; the sources themselves are in pmic.py, ina.py and rapl.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

Reading = Callable[[], float]


class SourceGone(Exception):  # noqa: N818 - reads as the fact it states
    """The sensor could not be read this time."""


class PowerSource:
    """A way to read watts by rail.

    Attributes:
        name: Kind of the source, such as ``jetson-ina3221``.
        period_s: Seconds between two readings that the sensor really makes.
        rails: Names, in a fixed order.
        total_rails: The rails whose sum is the board's (or, for RAPL, the processor's) power; empty where no rule
            knows this board.
        covers: What the total is of, in words; or why there is none.
        averages: Whether a reading is the mean since the one before (a counter), not the value of an instant.
    """

    name = ""
    averages = False

    def __init__(self, period_s: float, rails: Sequence[str], total_rails: Sequence[str], covers: str) -> None:
        self.period_s = period_s
        self.rails = tuple(rails)
        self.total_rails = tuple(total_rails)
        self.covers = covers

    def read(self) -> Dict[str, float]:
        """Watts by rail, now.

        Raises:
            SourceGone: the sensor did not answer.
        """
        raise NotImplementedError

    def described(self) -> Dict[str, Any]:
        """Name, rails and total in words, for the facts of a device."""
        return {
            "name": self.name,
            "period_s": self.period_s,
            "rails": list(self.rails),
            "total_rails": list(self.total_rails),
            "covers": self.covers,
        }

    def total(self, watts: Dict[str, float]) -> Optional[float]:
        """Watts of ``total_rails`` together; None where no rule knows the board."""
        return sum(watts[rail] for rail in self.total_rails) if self.total_rails else None


class FileSource(PowerSource):
    """Rails that are read from files, each by a small function."""

    def __init__(
        self,
        name: str,
        period_s: float,
        readings: Dict[str, Reading],
        total_rails: Sequence[str],
        covers: str,
    ) -> None:
        super().__init__(period_s, list(readings), total_rails, covers)
        self.name = name
        self._readings = readings

    def read(self) -> Dict[str, float]:
        """Watts by rail, now."""
        return {rail: reading() for rail, reading in self._readings.items()}


def number(path: Path) -> float:
    """The number in a sensor's file.

    Raises:
        SourceGone: the file is gone, or holds none.
    """
    try:
        return float(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceGone(f"{path}: {error}") from None


def product(volts_milli: Path, amperes_milli: Path) -> Reading:
    """MV times mA, in W."""
    return lambda: number(volts_milli) * number(amperes_milli) * 1e-6


def scaled(path: Path, factor: float) -> Reading:
    """The number in a file times a factor, in W."""
    return lambda: number(path) * factor
