"""Whether the 95% intervals of latencies hold: how often the true percentile lies inside, and how wide they are.

Series of known distribution are drawn again and again, and the very code that a record is made with gives each its
intervals. Printed for each kind of series, each n and each percentile: how often the true value lay inside an interval
that was given, the share of trials in which one was given, the share that came from order statistics, and the mean
width, in probability, against the best there could be: what the estimate itself scatters by over the trials, or would
by with independent samples if that is more. Then A/A: two runs of the same kind, and how often their intervals lie
wholly apart, which would call alike things different.

    python benchmarks/latency_intervals.py [--trials 1000] [--sizes 50 200 1000] [--json]

It exits with 1 if a true percentile lies inside in less than 93% of the intervals of a row (rows with fewer than 100
intervals are printed, and not judged), if its intervals are on average more than three times as wide as the best, or if
more than 2% of at least 100 pairs lie apart.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "device_bench"))

import numpy as np

from kdedge_agent.intervals import ORDER_STATISTICS, Series
from kdedge_agent.statistics import P99_MIN_SAMPLES, PERCENTILES

COVERAGE = 0.93
WIDTH = 3.0
APART = 0.02
MIN_INTERVALS = 100
_DRAWS = 2_000_000

Generator = np.random.Generator
Floats = np.ndarray[Any, np.dtype[np.float64]]


def independent(rng: Generator, n: int) -> Floats:
    """Log-normal, 20% of spread."""
    return rng.lognormal(0.0, 0.2, n)


def autoregressive(phi: float) -> Callable[[Generator, int], Floats]:
    """Log-normal of a stationary AR(1) process: every sample resembles its neighbour."""

    def draw(rng: Generator, n: int) -> Floats:
        noise = rng.normal(size=n) * math.sqrt(1 - phi * phi)
        state = rng.normal()
        values = np.empty(n)
        for index in range(n):
            state = phi * state + noise[index]
            values[index] = state
        return np.exp(0.1 * values)

    return draw


def bimodal(rng: Generator, n: int) -> Floats:
    """Three in ten take half as long again, at random: two clock rates, two cores."""
    return np.where(rng.random(n) < 0.3, 1.5, 1.0) * rng.lognormal(0.0, 0.02, n)


def heavy_tail(rng: Generator, n: int) -> Floats:
    """Pareto's tail with infinite variance (exponent 1.2) above a floor."""
    return 1.0 + 0.01 * rng.pareto(1.2, n)


def interrupted(period: int, length: int) -> Callable[[Generator, int], Floats]:
    """Every ``period`` samples, ``length`` in a row take twice as long: a timer, a daemon."""

    def draw(rng: Generator, n: int) -> Floats:
        phase = (np.arange(n) + rng.integers(period)) % period
        return np.where(phase < length, 2.0, 1.0) * rng.lognormal(0.0, 0.05, n)

    return draw


SERIES: dict[str, Callable[[Generator, int], Floats]] = {
    "independent log-normal": independent,
    "AR(1), 0.3": autoregressive(0.3),
    "AR(1), 0.6": autoregressive(0.6),
    "AR(1), 0.9": autoregressive(0.9),
    "bimodal": bimodal,
    "heavy tail": heavy_tail,
    "interrupted 1 in 20": interrupted(20, 1),
    "interrupted 3 in 40": interrupted(40, 3),
}


@functools.lru_cache
def population(name: str) -> Floats:
    """Two million draws from the marginal distribution of a series, ascending: its quantiles are the true ones."""
    rng = np.random.default_rng(99)
    if name.startswith("AR"):
        return np.sort(np.exp(0.1 * rng.normal(size=_DRAWS)))
    return np.sort(SERIES[name](rng, _DRAWS))


def trial_rows(name: str, n: int, trials: int, seed: int = 1) -> list[dict[str, Any]]:
    """One row for each percentile.

    {series, n, percentile, trials, given, inside, order_statistics, width, pairs, apart}: ``inside`` is a share of the
    intervals that were given, ``apart`` of the pairs of runs that both gave one, ``width`` a multiple of the best; each
    is None where nothing was given.
    """
    rng = np.random.default_rng([seed, n])
    asked = [(label, q) for label, q in PERCENTILES if label != "p99" or n >= P99_MIN_SAMPLES]
    runs = [Series(SERIES[name](rng, n).tolist()) for _ in range(trials)]
    everything = population(name)
    rows = []
    for label, q in asked:
        true = float(np.quantile(everything, q))
        intervals = [run.quantile(q) for run in runs]
        bounds = [found.bounds for found in intervals]
        given = [found for found in bounds if found is not None]
        shares = np.searchsorted(everything, given, side="right") / len(everything)
        estimates = np.searchsorted(everything, [np.quantile(run.ordered, q) for run in runs]) / len(everything)
        scatter = float(np.quantile(estimates, 0.975) - np.quantile(estimates, 0.025))
        best = max(scatter, 2 * 1.96 * math.sqrt(q * (1 - q) / n))
        pairs = [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False) if a is not None and b is not None]
        ordered = sum(found.method == ORDER_STATISTICS for found in intervals)
        rows.append(
            {
                "series": name,
                "n": n,
                "percentile": label,
                "trials": trials,
                "given": len(given) / trials,
                "inside": sum(low <= true <= high for low, high in given) / len(given) if given else None,
                "order_statistics": ordered / trials,
                "width": float(np.mean(shares[:, 1] - shares[:, 0])) / best if given else None,
                "pairs": len(pairs),
                "apart": sum(a[1] < b[0] or b[1] < a[0] for a, b in pairs) / len(pairs) if pairs else None,
            }
        )
    return rows


def fails(row: dict[str, Any]) -> bool:
    """Whether a row with enough intervals misses the truth too often, is wide without use, or tells like from like."""
    if row["pairs"] >= MIN_INTERVALS and row["apart"] > APART:
        return True
    if row["given"] * row["trials"] < MIN_INTERVALS:
        return False
    return bool(row["inside"] < COVERAGE or row["width"] > WIDTH)


def _line(row: dict[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "    -" if value is None else f"{value:5.3f}"

    return (
        f"{row['series']:24}{row['n']:>6} {row['percentile']}  {share(row['inside'])}  {share(row['given'])}  "
        f"{share(row['order_statistics'])}  {share(row['width'])}  {share(row['apart'])}"
        f"{'   <- outside the limits' if fails(row) else ''}"
    )


def main() -> int:
    """Draw, count, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    if not wishes.json:
        print(f"{'series':24}{'n':>6} of   inside  given  order  width  apart   ({wishes.trials} trials a row)")
    rows = []
    for name in SERIES:
        for n in wishes.sizes:
            for row in trial_rows(name, n, wishes.trials):
                rows.append(row)
                if not wishes.json:
                    print(_line(row), flush=True)
    if wishes.json:
        print(json.dumps({"coverage": COVERAGE, "width": WIDTH, "rows": rows}, indent=2))
    return 1 if any(map(fails, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
