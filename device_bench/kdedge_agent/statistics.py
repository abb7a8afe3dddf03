"""Figures from raw samples: percentiles, intervals, drift. Host and agent share them.

The intervals are of order statistics: the q-quantile lies between the l-th and u-th smallest of n independent
samples with a probability that the binomial distribution B(n, q) gives, whatever the distribution of the samples
(David and Nagaraja, Order Statistics, 3rd ed., section 7.1). Neighbouring latencies are not quite independent, so
the intervals are somewhat narrow on a device whose clock wanders; the drift test looks at exactly that.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

CONFIDENCE = 0.95
P99_MIN_SAMPLES = 1000
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


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
    """Ranks (1-based) of the samples that bound the q-quantile with at least the given confidence.

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
    """Confidence interval of the q-quantile of ascending samples, in their unit; None for too few samples."""
    ranks = quantile_ranks(len(ordered), q, confidence)
    return None if ranks is None else (ordered[ranks[0] - 1], ordered[ranks[1] - 1])


def drift(samples: Sequence[float]) -> Optional[Dict[str, Any]]:
    """The last third of the run against the first, in the order they were taken; None below 9 samples.

    Returns:
        first_p50, last_p50 in the unit of the samples; ratio last/first; significant: whether the two medians'
        95% intervals lie apart (None where a third is too short for an interval).
    """
    third = len(samples) // 3
    if third < 3:
        return None
    first, last = sorted(samples[:third]), sorted(samples[-third:])
    a, b = percentile(first, 0.5), percentile(last, 0.5)
    ranges = interval(first, 0.5), interval(last, 0.5)
    apart = None
    if ranges[0] is not None and ranges[1] is not None:
        apart = ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]
    return {"first_p50": a, "last_p50": b, "ratio": b / a if a else None, "significant": apart}


def moments(samples: Sequence[float]) -> Tuple[float, Optional[float]]:
    """Mean, and standard deviation with n-1 (None below two samples)."""
    mean = math.fsum(samples) / len(samples)
    if len(samples) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in samples) / (len(samples) - 1))


def latency_summary(
    samples_s: Sequence[float], warmup_s: Sequence[float] = ()
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The ``latency_s`` part of a record, and the reasons of its nulls.

    Args:
        samples_s: Seconds of every timed inference, in order, at least one.
        warmup_s: Seconds of every inference before them; kept, and in no figure.

    Returns:
        {p50, p90, p99, n, mean, std, min, max, ci95, drift, samples, warmup_samples} and key -> reason.
    """
    ordered = sorted(samples_s)
    n = len(ordered)
    unmeasured: Dict[str, str] = {}
    figures: Dict[str, Any] = {}
    ci95: Dict[str, Optional[List[float]]] = {}
    for name, q in PERCENTILES:
        if name == "p99" and n < P99_MIN_SAMPLES:
            reason = f"{n} samples; a 99th percentile needs at least {P99_MIN_SAMPLES} (raise --repetitions)"
            figures[name], ci95[name] = None, None
            unmeasured["latency_s.p99"] = reason
            continue
        figures[name] = percentile(ordered, q)
        bounds = interval(ordered, q)
        ci95[name] = None if bounds is None else list(bounds)
        if bounds is None:
            unmeasured[f"latency_s.ci95.{name}"] = f"{n} samples are too few for a 95% interval of {name}"
    mean, std = moments(ordered)
    if std is None:
        unmeasured["latency_s.std"] = "one sample has no spread"
    figures.update(n=n, mean=mean, std=std, min=ordered[0], max=ordered[-1], ci95=ci95)
    figures["drift"] = drift(samples_s)
    if figures["drift"] is None:
        unmeasured["latency_s.drift"] = f"{n} samples are too few to compare the first third with the last"
    figures.update(samples=list(samples_s), warmup_samples=list(warmup_s))
    return figures, unmeasured
