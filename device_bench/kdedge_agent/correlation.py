"""How long a series remembers: how many of its samples count as one independent one.

That correlation time is the largest of three estimates: what an AR(1) process with the lag-one correlation of the ranks
would have; (1+r)/(1-r) with the lag-one correlation r of the values themselves (of a percentile: 1 at or below it, else
0); and the variance of means of 2, 4, 8, ... neighbours against that of as many independent samples (Flyvbjerg and
Petersen 1989). The correlations are corrected for their bias in short series and taken one standard error up, or two
for what the time may be at most. Independent enough is a series with both correlations within one standard error of 0
(or below 0.02) and no variance of means more than two standard errors above that of independent samples.
"""

from __future__ import annotations

import math
from typing import Optional, Sequence, Tuple

_PAIRED_MEANS = 16
"""Block means are compared down to so many of them; fewer say nothing of a variance."""
_NEGLIGIBLE = 0.02


def correlation_times(
    values: Sequence[float], rank_correlation: float, q: Optional[float] = None
) -> Optional[Tuple[float, float]]:
    """How many samples count as one independent one, >= 1, and how many may; None where they are independent enough.

    Args:
        values: In order; with ``q`` 1 where a sample is at or below the q-quantile, else 0.
        rank_correlation: Of the samples.
        q: Which quantile; None for the mean.
    """
    n = len(values)
    correlations = [rank_correlation, lag_one(values)]
    blocks, alike = _block_variance(values)
    if not alike and all(r + 1 / n <= max(_NEGLIGIBLE, 1 / math.sqrt(n)) for r in correlations):
        return None

    def memory(errors: float) -> float:
        ranks, own = (_upper(r, n, errors) for r in correlations)
        return max(blocks, (1 + own) / (1 - own), _memory_of_quantile(ranks, q) if q else (1 + ranks) / (1 - ranks))

    return memory(1.0), memory(2.0)


def lag_one(values: Sequence[float]) -> float:
    """Correlation of neighbours, -1 to 1; 0 for values that are all alike."""
    mean = math.fsum(values) / len(values)
    centred = [value - mean for value in values]
    variance = math.fsum(value * value for value in centred)
    following = centred[1:]
    return math.fsum(a * b for a, b in zip(centred, following)) / variance if variance > 0 else 0.0


def _upper(r: float, n: int, errors: float) -> float:
    """A lag-one correlation, corrected for its bias in short series (Kendall 1954), so many standard errors up."""
    unbiased = min(max(0.0, r + (1 + 3 * r) / n), 1.0)
    return min(unbiased + errors * math.sqrt((1 - unbiased * unbiased) / n), 0.995)


def _memory_of_quantile(r: float, q: float) -> float:
    """Correlation time of "at or below the q-quantile" in a Gaussian AR(1) process of lag-one correlation r."""
    time, lagged = 1.0, r
    while lagged > _NEGLIGIBLE:
        time += 2 * _tetrachoric(lagged, q)
        lagged *= r
    return time


def _tetrachoric(rho: float, q: float) -> float:
    """Correlation of two indicators "below the q-quantile" of normal variables that correlate by rho >= 0.

    The chance that both are below is q^2 + 1/(2 pi) * the integral of exp(-z^2 / (1 + sin t)) from 0 to asin(rho)
    (Owen 1956), by Simpson's rule.
    """
    z_squared = _normal_quantile(q) ** 2
    step = math.asin(rho) / 8
    weights = (1, 4, 2, 4, 2, 4, 2, 4, 1)
    integral = sum(w * math.exp(-z_squared / (1 + math.sin(i * step))) for i, w in enumerate(weights)) * step / 3
    return integral / (2 * math.pi * q * (1 - q))


def _normal_quantile(q: float) -> float:
    """Of the standard normal distribution, 0 < q < 1, by bisection to 1e-9."""
    low, high = -10.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < 2 * q - 1 else (low, middle)
    return low


def _block_variance(values: Sequence[float]) -> Tuple[float, bool]:
    """Largest ratio of the variance of block means to that of independent samples; whether one is too large."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    largest, alike, length = 1.0, False, 1
    means = list(values)
    while variance > 0 and len(means) // 2 >= _PAIRED_MEANS:
        means = [(a + b) / 2 for a, b in zip(means[::2], means[1::2])]
        length *= 2
        count = len(means)
        centre = math.fsum(means) / count
        ratio = length * math.fsum((m - centre) ** 2 for m in means) / (count - 1) / variance
        alike = alike or ratio > 1 + 2 * math.sqrt(2 / (count - 1))
        largest = max(largest, ratio)
    return largest, alike
