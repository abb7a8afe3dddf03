"""Joules that are known beforehand, measured by the agent's own estimator through sensors of many kinds.

Each kind of trial in turn (tests/power_traces.py): power of known energy, a synthetic sensor's readings of it, the
windows that the agent would take. Printed, gross and net of idle: the error (median, 95% of trials below, share of
trials within 1%), how often the stated 95% interval holds the true value, and its half-width (median, 95% of trials
below), all in percent. The last kinds are those that no readings can tell; there the interval has to be wide.

Run: OMP_NUM_THREADS=1 python benchmarks/energy_traces.py [--trials 100] [--kinds bursts noise]
"""

from __future__ import annotations

import argparse
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
from tests.power_traces import KINDS, LOCKED, Kind

from kdedge_agent.energy import account


@dataclass
class Tally:
    """Relative errors and half-widths of trials, and whether the interval held the true value."""

    errors: list[float] = field(default_factory=list)
    halves: list[float] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)

    def add(self, value: float, interval: list[float], true: float) -> None:
        """One trial."""
        self.errors.append(abs(value / true - 1))
        self.halves.append((interval[1] - interval[0]) / 2 / true)
        self.held.append(interval[0] <= true <= interval[1])

    def text(self) -> str:
        """Error, coverage, half-width."""
        errors, halves = (100 * np.quantile(values, (0.5, 0.95)) for values in (self.errors, self.halves))
        close = 100 * float(np.mean(np.asarray(self.errors) <= 0.01))
        return (
            f"error {errors[0]:5.2f} {errors[1]:6.2f} (<= 1: {close:5.1f})   "
            f"held {100 * float(np.mean(self.held)):5.1f}   half-width {halves[0]:6.2f} {halves[1]:6.2f}"
        )


def run(name: str, kind: Kind, trials: int) -> str:
    """One line of the table."""
    gross, net, periods = Tally(), Tally(), []
    for number in range(trials):
        trial = kind.trial(np.random.default_rng([zlib.crc32(name.encode()), number]))
        power = account(trial.source, trial.samples, trial.windows)
        gross.add(power["gross_j_per_inference"], power["gross_j_per_inference_ci95"], trial.gross_j)
        net.add(power["net_j_per_inference"], power["net_j_per_inference_ci95"], trial.net_j)
        periods.append(power["sensor_periods"])
    return f"{name:<34} gross: {gross.text()}   net: {net.text()}   periods {np.median(periods):5.0f}"


def main() -> None:
    """Run the kinds that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--kinds", nargs="*", default=[], help="words that the name has one of")
    asked = parser.parse_args()
    print(f"{asked.trials} trials a kind; figures in % (median, 95th percentile)")
    for name, kind in {**KINDS, **LOCKED}.items():
        if not asked.kinds or any(word in name for word in asked.kinds):
            begin = time.perf_counter()
            print(f"{run(name, kind, asked.trials)}   {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
