"""95% confidence intervals of percentiles and means that hold for series whose neighbours are alike.

Where a series is independent enough, a percentile's interval is that of order statistics: the q-quantile lies between
the l-th and u-th smallest of n independent samples with a probability that the binomial distribution B(n, q) gives,
whatever the distribution of the samples.

Elsewhere it comes from a circular block bootstrap (Politis and Romano 1992) of the share of samples at or below the
percentile, turned into ranks (Woodruff 1952): blocks of neighbours are drawn together, so that what hangs together
stays together. Blocks are twice as long as the series remembers (:mod:`kdedge_agent.correlation`). With few blocks a
bootstrap sees too little spread; it is widened to Student's t of so many blocks, to what the correlation time demands,
by 2/blocks because that time is an estimate too, and never given narrower than the order statistics. Where fewer than
ten blocks may be left there is no interval but the reason.

``benchmarks/latency_intervals.py`` counts how often the true value lies inside.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from kdedge_agent.correlation import correlation_times, lag_one
from kdedge_agent.order_statistics import CONFIDENCE, percentile, quantile_ranks
from kdedge_agent.student import Z, student

ORDER_STATISTICS = "order statistics"
BOOTSTRAP = "bootstrap"
BLOCK_BOOTSTRAP = "block bootstrap"

_RESAMPLES = 400
_MIN_BLOCKS = 10
_MAX_BLOCKS = 400
_ONE_BY_ONE = (0.5, 0.5)
"""Correlation times of independent samples: blocks of one."""
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A 95% interval, or the reason why there is none.

    Attributes:
        bounds: (low, high) in the unit of the samples, or None.
        method: ``order statistics``, ``bootstrap`` or ``block bootstrap``; None without bounds.
        reason: None exactly if bounds are there.
        correlation_time: How many samples count as one independent one; 1 where they are independent enough.
    """

    bounds: Optional[Tuple[float, float]]
    method: Optional[str]
    reason: Optional[str]
    correlation_time: float

    @staticmethod
    def too_few(n: int, q: float) -> str:
        """The reason where no ranks of so many samples bound the q-quantile."""
        return f"{n} samples are too few for a 95% interval of p{q * 100:g}"


class Series:
    """Samples in the order they were taken, with what several intervals of them need.

    Args:
        samples: At least one, in any unit.
    """

    def __init__(self, samples: Sequence[float]) -> None:
        self.samples = samples
        self.ordered = sorted(samples)
        self._rank_correlation: Optional[float] = None

    @property
    def rank_correlation(self) -> float:
        """Lag-one correlation of the ranks, which no outlier can hide."""
        if self._rank_correlation is None:
            self._rank_correlation = lag_one(_mid_ranks(self.samples, self.ordered))
        return self._rank_correlation

    def quantile(self, q: float) -> Interval:
        """Interval of the q-quantile, 0 < q < 1."""
        n = len(self.samples)
        ranks = quantile_ranks(n, q)
        if ranks is None:
            return Interval(None, None, Interval.too_few(n, q), 1.0)
        value = percentile(self.ordered, q)
        below = [1.0 if sample <= value else 0.0 for sample in self.samples]
        times = correlation_times(below, self.rank_correlation, q)
        if times is None:
            return Interval((self.ordered[ranks[0] - 1], self.ordered[ranks[1] - 1]), ORDER_STATISTICS, None, 1.0)
        shares = _deviations(below, times, math.sqrt(q * (1 - q) / n))
        if shares is not None:
            low = min(ranks[0], math.floor(n * (q - shares[1])))
            high = max(ranks[1], math.ceil(n * (q - shares[0])) + 1)
            if low >= 1 and high <= n:
                return Interval((self.ordered[low - 1], self.ordered[high - 1]), BLOCK_BOOTSTRAP, None, times[0])
        return Interval(None, None, _too_alike(n, times[1], f"p{q * 100:g}"), times[0])

    def mean(self) -> Interval:
        """Interval of the mean; a bootstrap of single samples where they are independent enough."""
        n = len(self.samples)
        if n < _MIN_BLOCKS:
            return Interval(None, None, f"{n} samples are too few for a 95% interval of the mean", 1.0)
        mean = math.fsum(self.samples) / n
        variance = math.fsum((sample - mean) ** 2 for sample in self.samples) / (n - 1)
        times = correlation_times(self.samples, self.rank_correlation)
        method = BOOTSTRAP if times is None else BLOCK_BOOTSTRAP
        times = times or _ONE_BY_ONE
        spread = _deviations(self.samples, times, math.sqrt(variance / n))
        if spread is None:
            return Interval(None, None, _too_alike(n, times[1], "the mean"), times[0])
        return Interval((mean - spread[1], mean - spread[0]), method, None, max(1.0, times[0]))


def _mid_ranks(samples: Sequence[float], ordered: Sequence[float]) -> List[float]:
    """Rank of every sample; equal ones, of which a coarse clock gives many, share the mean of theirs."""
    shared: Dict[float, float] = {}
    begin = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or ordered[end] != ordered[begin]:
            shared[ordered[begin]] = (begin + end - 1) / 2
            begin = end
    return [shared[sample] for sample in samples]


def _deviations(
    values: Sequence[float], times: Tuple[float, float], independent: float
) -> Optional[Tuple[float, float]]:
    """2.5% and 97.5% points of resampled mean minus mean, widened for few blocks; None where they may be too few.

    Args:
        values: In order.
        times: Correlation time, in samples, and what it may be; blocks are twice as long as the first, and there must
            be ten that are twice as long as the second.
        independent: Standard error of the mean if the samples were independent.
    """
    n = len(values)
    if n < _MIN_BLOCKS * math.ceil(2 * times[1]):
        return None
    length = max(1, math.ceil(2 * times[0]), -(-n // _MAX_BLOCKS))
    count = n // length
    total = 0.0
    sums = [0.0]
    for value in (*values, *values[:length]):
        total += value
        sums.append(total)
    blocks = [end - start for start, end in zip(sums[:n], sums[length:])]
    mean = math.fsum(values) / n
    generator = random.Random(_SEED)
    size = count * length
    found = sorted(math.fsum(generator.choices(blocks, k=count)) / size - mean for _ in range(_RESAMPLES))
    seen = math.sqrt(math.fsum(d * d for d in found) / len(found))
    wanted = independent * math.sqrt(max(1.0, times[0]))
    widened = max(1.0, wanted / seen if seen > 0 else 1.0) * student(count - 1) / Z * (1 + 2 / count)
    tail = (1 - CONFIDENCE) / 2
    return widened * percentile(found, tail), widened * percentile(found, 1 - tail)


def _too_alike(n: int, time: float, what: str) -> str:
    return (
        f"{n} samples count as about {max(1, round(n / time))} independent ones, which are too few for a 95% interval "
        f"of {what} (raise --repetitions or --seconds)"
    )
