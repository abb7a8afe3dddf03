"""One cell of a table: a figure with its n and spread, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdedge.reporting.check import is_interval, is_number

NO_REASON = "not measured; the record gives no reason"


@dataclass(frozen=True)
class Unit:
    """How a quantity in SI units is written: ``value * factor`` and ``symbol``.

    Attributes:
        symbol: Of the written unit; empty for a proportion.
        factor: Written units in one SI unit.
        digits: Significant digits; for a proportion, decimals.
        proportion: True for a value in 0..1 with fixed decimals.
    """

    symbol: str
    factor: float = 1.0
    digits: int = 3
    proportion: bool = False

    def number(self, value: float) -> str:
        """The value in this unit without its symbol; never in exponent form."""
        scaled = value * self.factor
        if self.proportion:
            return f"{scaled:.{self.digits}f}"
        return "0" if scaled == 0 else f"{scaled:.{self.decimals(value)}f}"

    def decimals(self, value: float) -> int:
        """Decimals that show this value's significant digits."""
        scaled = abs(value * self.factor)
        if self.proportion or scaled == 0:
            return self.digits
        return max(0, self.digits - 1 - math.floor(math.log10(scaled)))

    def text(self, value: float) -> str:
        """The value with its symbol."""
        return f"{self.number(value)} {self.symbol}".rstrip()


PROPORTION = Unit("", digits=4, proportion=True)
MILLISECONDS = Unit("ms", 1e3, digits=4)
SECONDS = Unit("s")
MEGABYTES = Unit("MB", 1e-6)
WATTS = Unit("W")
MILLIJOULES = Unit("mJ", 1e3)
JOULES = Unit("J")
SAMPLES_PER_S = Unit("samples/s", digits=4)


@dataclass(frozen=True)
class Cell:
    """A figure or the reason why there is none; ``value`` is None exactly if ``reason`` is not.

    Attributes:
        value: In SI units (seconds, bytes, watts, joules), samples per second, or a proportion.
        unit: How it is written.
        n: Values that it rests on.
        interval: 95% interval in the value's unit, or None.
        interval_kind: How the interval came about, or why there is none.
        reason: Why there is no value.
        note: What the reader must know beside it (for example, where it was measured).
    """

    value: float | None
    unit: Unit
    n: int | None = None
    interval: tuple[float, float] | None = None
    interval_kind: str = "no interval"
    reason: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError("either a value or the reason why there is none")

    @property
    def text(self) -> str:
        """The figure with its unit, or ``not measured``."""
        return "not measured" if self.value is None else self.unit.text(self.value)

    @property
    def interval_text(self) -> str:
        """The 95% interval in the figure's unit, or why there is none; empty where there is no figure."""
        if self.value is None:
            return ""
        if self.interval is None:
            return self.interval_kind
        decimals = self.unit.decimals(self.value)
        low, high = (f"{end * self.unit.factor:.{decimals}f}" for end in self.interval)
        return f"{low}–{high}"

    @property
    def n_text(self) -> str:
        """``n 360``; empty where there is no figure."""
        if self.value is None:
            return ""
        return "n not recorded" if self.n is None else f"n {self.n}"

    @property
    def spread_text(self) -> str:
        """Interval and n in one line; empty where there is no figure."""
        return ", ".join(part for part in (self.interval_text, self.n_text) if part)

    @property
    def detail(self) -> str:
        """Everything beside the figure in one line: spread, n, note; or the reason."""
        if self.reason is not None:
            return self.reason
        spread = f"95% {self.interval_text}" if self.interval else self.interval_text
        return " · ".join(part for part in (spread, self.n_text, self.note) if part)


def missing(unit: Unit, reason: str | None) -> Cell:
    """The cell of what was not measured, and why."""
    return Cell(None, unit, reason=reason or NO_REASON)


def single(value: object, unit: Unit, reason: str | None, *, why: str, n: int = 1) -> Cell:
    """A cell of a measured value without a spread, of one process or chosen of n; ``why`` says so in a few words."""
    if not is_number(value):
        return missing(unit, reason)
    return Cell(float(value), unit, n=n, interval_kind=why)


def proportion(value: object, n: object, reason: str | None, *, note: str | None = None) -> Cell:
    """A share of n independent cases with its Wilson 95% interval."""
    if not is_number(value):
        return missing(PROPORTION, reason)
    share = float(value)
    if not is_number(n) or n < 1:
        return Cell(share, PROPORTION, interval_kind="no interval without n", note=note)
    count = int(n)
    if not 0 <= share <= 1:
        return Cell(share, PROPORTION, n=count, interval_kind="no interval: not a share", note=note)
    return Cell(share, PROPORTION, count, wilson95(share, count), "Wilson", note=note)


def recorded(
    value: object,
    unit: Unit,
    n: object,
    interval: object,
    reason: str | None,
    *,
    no_interval: str | None = None,
    note: str | None = None,
) -> Cell:
    """A statistic whose 95% interval, or the reason for having none, stands in the record too."""
    if not is_number(value):
        return missing(unit, reason)
    count = int(n) if is_number(n) else None
    pair = (float(interval[0]), float(interval[1])) if is_interval(interval) else None
    kind = "recorded" if pair else no_interval or "no interval in the record"
    return Cell(float(value), unit, count, pair, kind, note=note)


def wilson95(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion.

    Args:
        share: Observed share of successes, 0..1.
        n: Cases, at least 1.

    Returns:
        Low and high end, within 0..1.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
        J. Am. Stat. Assoc. 22 (1927) 209–212.
    """
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
