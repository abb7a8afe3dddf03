"""A/A: the same artifact measured again and again on this machine, each run's intervals against what the others saw.

An interval of 95% of one start speaks of the run that it comes from; that of several starts is to hold what another run
finds. Runs of one start and of several (`kdedge bench --starts`) take turns, with equally many timed seconds. For p50
and p90 of each kind: in how many runs the interval holds the median of the other runs' figures, with a 95%
Clopper-Pearson interval, all runs and those with the verdict `steady`; and by how much the figures of two runs differ.

    python benchmarks/repeats.py [--runs 30] [--seconds 2] [--starts 5]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from scipy import stats  # type: ignore[import-untyped]
from tests.agent_tools import make_onnx

from kdedge_agent.run_record import RunRecord
from kdedge_bench.session import bench

QUANTITIES = ("p50", "p90")


def held(records: Sequence[RunRecord], quantity: str) -> tuple[int, int]:
    """How many of the intervals hold the median of the other runs' figures, and of how many there are."""
    holds = []
    for record in records:
        interval = record.latency_s["ci95"][quantity]
        others = [other.latency_s[quantity] for other in records if other is not record]
        if interval is not None and others:
            holds.append(interval[0] <= statistics.median(others) <= interval[1])
    return sum(holds), len(holds)


def said(count: int, n: int) -> str:
    """A share with its 95% interval."""
    if n == 0:
        return "no interval"
    found = stats.binomtest(count, n).proportion_ci(method="exact")
    return f"{count} of {n} = {count / n:.2f} [{found.low:.2f}, {found.high:.2f}]"


def told(records: Sequence[RunRecord]) -> None:
    """Print what the runs of one kind say of each other."""
    steady = [record for record in records if record.verdict == "steady"]
    verdicts = {word: sum(r.verdict == word for r in records) for word in sorted({r.verdict for r in records})}
    print(f"{len(records)} runs of {records[0].starts} start(s); verdicts {verdicts}")
    for quantity in QUANTITIES:
        figures = [record.latency_s[quantity] for record in records]
        gaps = sorted(abs(a / b - 1) for a, b in itertools.combinations(figures, 2)) or [0.0]
        ends = [(record.latency_s["ci95"][quantity], record.latency_s[quantity]) for record in records]
        widths = [(bounds[1] - bounds[0]) / figure for bounds, figure in ends if bounds is not None] or [math.nan]
        shares = (statistics.median(gaps), gaps[int(0.95 * len(gaps))], statistics.median(widths))
        usual, most, wide = (100 * share for share in shares)
        print(
            f"{quantity}: {1e3 * statistics.median(figures):.3f} ms; two runs differ by {usual:.2f}% (median), "
            f"{most:.2f}% (95%); an interval is {wide:.2f}% wide"
        )
        for title, chosen in (("all", records), ("steady", steady)):
            print(f"  intervals that hold the other runs' median, {title}: {said(*held(chosen, quantity))}")


def main() -> None:
    """Measure, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--starts", type=int, default=5)
    wishes = parser.parse_args()
    kinds: dict[int, list[RunRecord]] = {starts: [] for starts in (1, wishes.starts)}
    with tempfile.TemporaryDirectory() as name:
        model = make_onnx(Path(name) / "net.onnx", width=64, batch=1, size=224)
        for _ in range(wishes.runs):
            for starts, records in kinds.items():
                out = Path(name) / "runs"
                records.append(bench(model, min_duration_s=wishes.seconds, starts=starts, power=False, out_dir=out))
    print(f"{wishes.runs} runs of each kind in turn, {wishes.seconds:g} timed seconds each")
    for records in kinds.values():
        told(records)


if __name__ == "__main__":
    main()
