"""Two ways of the same work, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable


def ratios(seconds: Callable[[str], float], plain: str, ours: str, count: int) -> list[float]:
    """Seconds of ``plain`` / seconds of ``ours``, pair by pair after one warm-up of each; the order alternates."""
    for way in (plain, ours):
        seconds(way)
    found = []
    for number in range(count):
        first, second = (plain, ours) if number % 2 else (ours, plain)
        took = {first: seconds(first), second: seconds(second)}
        found.append(took[plain] / took[ours])
    return found
