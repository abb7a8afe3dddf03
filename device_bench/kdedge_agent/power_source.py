"""What a source of watts is; the sources themselves are in pmic.py, ina.py and rapl.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Set

from kdedge_agent.power_interval import smallest_step

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

    def find_again(self) -> None:
        """Look for the sensor anew after a reading failed: a driver that was bound again may have other paths."""

    def steps_w(self) -> Dict[str, float]:
        """Smallest steps of the readings by rail, where the source knows better than the sums of watts can tell."""
        return {}

    def estimate(self, watts: Optional[float]) -> Optional[Dict[str, Any]]:
        """{"watts", "of", "why_estimate"} of something that the source does not measure; None where it offers none."""
        del watts
        return None

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


class Seen:
    """The different values that one register of a sensor has given, at most some hundreds.

    Attributes:
        last: The value that was read last.
    """

    def __init__(self, known_step: float = 0.0) -> None:
        self._known_step = known_step
        self._values: Set[float] = set()
        self.last = 0.0

    def add(self, value: float) -> float:
        """Remember a value; hands it back."""
        if len(self._values) < 500:
            self._values.add(value)
        self.last = value
        return value

    @property
    def step(self) -> float:
        """The register's step: as known, or as its values tell; 0 where neither does."""
        return self._known_step or smallest_step(list(self._values))


class Rail:
    """Watts of one rail: the product of the numbers in one or two files and a factor.

    Args:
        factor: Watts in one unit of the product.
        paths: Files, one or two.
        known_steps: Smallest steps of the files' numbers where the chip's data sheet tells them, else 0.
    """

    def __init__(self, factor: float, paths: Sequence[Path], known_steps: Sequence[float] = (0.0, 0.0)) -> None:
        self._factor = factor
        self._paths = list(paths)
        self._seen = [Seen(step) for _, step in zip(paths, known_steps)]

    def __call__(self) -> float:
        """Watts, now.

        Raises:
            SourceGone: a file is gone, or holds no number.
        """
        watts = self._factor
        for path, seen in zip(self._paths, self._seen):
            watts *= seen.add(number(path))
        return watts

    def step_w(self) -> float:
        """The smallest step of the rail's watts, about where they were last."""
        return abs(self._factor) * product_step(self._seen)


def product_step(seen: Sequence[Seen]) -> float:
    """Step of the product of registers: every step of one times the others' last values."""
    total = 0.0
    for one in seen:
        step = one.step
        for other in seen:
            step *= abs(other.last) if other is not one else 1.0
        total += step
    return total


class FileSource(PowerSource):
    """Rails that are read from files, each by a small function.

    Args:
        name: Kind of the source.
        period_s: Seconds between two readings.
        readings: By rail.
        total_rails: As in PowerSource.
        covers: As in PowerSource.
        search: Looks for the same rails anew.
    """

    def __init__(
        self,
        name: str,
        period_s: float,
        readings: Mapping[str, Reading],
        total_rails: Sequence[str],
        covers: str,
        search: Optional[Callable[[], Mapping[str, Reading]]] = None,
    ) -> None:
        super().__init__(period_s, list(readings), total_rails, covers)
        self.name = name
        self._readings = dict(readings)
        self._search = search

    def read(self) -> Dict[str, float]:
        """Watts by rail, now."""
        return {rail: reading() for rail, reading in self._readings.items()}

    def find_again(self) -> None:
        """Take the rails from where they are now, if all of them are there."""
        found = self._search() if self._search is not None else {}
        if set(found) == set(self.rails):
            self._readings = {rail: found[rail] for rail in self.rails}

    def steps_w(self) -> Dict[str, float]:
        """Smallest steps of the rails that are read from files."""
        return {rail: reading.step_w() for rail, reading in self._readings.items() if isinstance(reading, Rail)}


def number(path: Path) -> float:
    """The number in a sensor's file.

    Raises:
        SourceGone: the file is gone, or holds none.
    """
    try:
        return float(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceGone(f"{path}: {error}") from None
