"""A device's clock against the host's, by request and reply, as NTP does it (RFC 5905, section 8).

The host notes its clock before it asks and after it has the answer, and takes the device's stamp for the middle
between; however unequal the two ways are, the true offset lies within half a round trip of that. Of several pairs the
quickest counts. A pair before and one after the run show how the clocks drift apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PAIRS = 16
MAX_DRIFT = 1e-3
"""Quartz is within 100 ppm, and NTP slews a clock by at most 500 ppm, on either side; more is no drift."""


@dataclass(frozen=True)
class ClockOffset:
    """The device's clock less the host's, at one moment.

    Attributes:
        at_s: The moment, on the host's clock.
        offset_s: Device less host, in seconds.
        uncertainty_s: The true offset lies within this of ``offset_s``: half the round trip.
    """

    at_s: float
    offset_s: float
    uncertainty_s: float


def measure_offset(ask: Callable[[], float], pairs: int = PAIRS) -> ClockOffset:
    """The offset by the quickest of some pairs.

    Args:
        ask: Asks the device for its clock, in seconds.
        pairs: How often.
    """
    found = []
    for _ in range(pairs):
        asked_s = time.monotonic()
        device_s = ask()
        answered_s = time.monotonic()
        middle_s = (asked_s + answered_s) / 2
        found.append(ClockOffset(middle_s, device_s - middle_s, (answered_s - asked_s) / 2))
    return min(found, key=lambda offset: offset.uncertainty_s)


@dataclass(frozen=True)
class ClockMap:
    """From the device's clock to the host's, between two measured offsets."""

    before: ClockOffset
    after: ClockOffset

    @property
    def drift(self) -> float:
        """Seconds that the device's clock gains in a second of the host's."""
        return (self.after.offset_s - self.before.offset_s) / (self.after.at_s - self.before.at_s)

    @property
    def uncertainty_s(self) -> float:
        """How far a mapped moment may be off.

        Half a round trip, and the whole change of the offset: nothing says that it came evenly.
        """
        change_s = abs(self.after.offset_s - self.before.offset_s)
        return max(self.before.uncertainty_s, self.after.uncertainty_s) + change_s

    def to_host_s(self, device_s: float) -> float:
        """The moment on the host's clock, by the offset interpolated in time; by the first one where it jumped."""
        since_s = device_s - self.before.offset_s - self.before.at_s
        return self.before.at_s + since_s / (1 + self.drift if self.problem() is None else 1.0)

    def problem(self) -> str | None:
        """Why moments cannot be mapped: a clock was set, or stood still, between the two offsets; None if they can."""
        change_s = self.after.offset_s - self.before.offset_s
        known_s = self.before.uncertainty_s + self.after.uncertainty_s
        if abs(change_s) <= known_s + MAX_DRIFT * (self.after.at_s - self.before.at_s):
            return None
        return f"the clock of the device jumped by {change_s:+.3f} s against this machine's during the run"
