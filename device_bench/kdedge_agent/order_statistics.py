"""Percentiles, and the ranks of independent samples that bound them.

The q-quantile lies between the l-th and u-th smallest of n independent samples with a probability that the binomial
distribution B(n, q) gives, whatever the distribution of the samples (David and Nagaraja, Order Statistics, 3rd ed.,
section 7.1).
"""

from __future__ import annotations

import math
from typing import Optional, Sequence, Tuple

CONFIDENCE = 0.95


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile, 0 <= q <= 1, of ascending samples, linear between neighbours (numpy's default).

    Raises:
        ValueError: no samples.
    """
    if not ordered:
        raise ValueError("no samples")
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _log_pmf(k: int, n: int, q: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(q) + (n - k) * math.log1p(-q)


def quantile_ranks(n: int, q: float, confidence: float = CONFIDENCE) -> Optional[Tuple[int, int]]:
    """Ranks (1-based) of the independent samples that bound the q-quantile with at least the given confidence.

    The lower rank is the largest l with P(B < l) <= alpha/2, the upper one the smallest u with P(B >= u) <= alpha/2.
    None where n is too small for such a pair.
    """
    tail = (1.0 - confidence) / 2.0
    # Beyond 12 standard deviations the mass is below 1e-30: nothing to add up there, however large n is.
    reach = int(12 * math.sqrt(n * q * (1 - q))) + 12
    first, last = max(0, int(n * q) - reach), min(n, int(n * q) + reach)
    masses = [math.exp(_log_pmf(k, n, q)) for k in range(first, last + 1)]
    below, low = 0.0, 0
    for k, mass in zip(range(first, last + 1), masses):
        below += mass
        if below > tail:
            low = k
            break
    above, high = 0.0, n + 1
    for k, mass in zip(range(last, first - 1, -1), reversed(masses)):
        above += mass
        if above > tail:
            high = k + 1
            break
    return (low, high) if low >= 1 and high <= n else None


def interval(ordered: Sequence[float], q: float, confidence: float = CONFIDENCE) -> Optional[Tuple[float, float]]:
    """Interval of the q-quantile of independent ascending samples, in their unit; None for too few samples."""
    ranks = quantile_ranks(len(ordered), q, confidence)
    return None if ranks is None else (ordered[ranks[0] - 1], ordered[ranks[1] - 1])
