"""What reading the power costs the inferences meanwhile: their time with the sampler running against without.

A process of its own infers in a loop, as the agent's worker does in its power window; the agent's sampler reads a
board's sensor in this process, once on another processor and once on the very processor of the worker, which is a
board with one free core. Seconds with and without it take turns. The sensors are the trees of `tests/device/boards.py`:
an INA3221 (three files a rail), the PMIC of a Raspberry Pi 5 (a program started for each reading, though a shorter one
than its 23 ms), RAPL counters. Printed: ratio of the median and of the mean time of an inference, median over the
pairs with its 95% interval; a reading's processor time.

Timed samples never meet the sampler: power is read in a window of its own, after them.

    python benchmarks/sampler_effect.py [--pairs 20] [--block-s 1.0]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.agent_tools import make_onnx
from tests.device import boards

from kdedge_agent import power, runtimes, tensors, timing
from kdedge_agent.order_statistics import interval
from kdedge_agent.sampler import Sampler

SOURCES = ("orin_nano", "pi5", "x86_rapl")
RESTS_S = 0.05


class Worker:
    """A process that infers on request, on one processor."""

    def __init__(self, model: Path, cpu: int) -> None:
        command = [sys.executable, __file__, "--worker", str(model), str(cpu)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def block(self, seconds: float) -> tuple[float, float]:
        """Median and mean seconds of an inference over a block of so many seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        p50_s, mean_s = self._process.stdout.readline().split()
        return float(p50_s), float(mean_s)

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def work(model: str, cpu: int) -> None:
    """The worker: a block for each line."""
    os.sched_setaffinity(0, {cpu})
    session = runtimes.load(model, "onnx")
    session.set_inputs(tensors.random_inputs(session, 0))
    timing.warm_up(session.invoke, 2.0)
    for line in sys.stdin:
        samples = timing.time_calls(session.invoke, 1, float(line))
        print(statistics.median(samples), statistics.fmean(samples), flush=True)


def compare(root: Path, worker: Worker, pairs: int, block_s: float) -> tuple[list[float], list[float], Sampler]:
    """Ratios of medians and of means, with the sampler over without; the last sampler."""
    medians, means = [], []
    sampler = None
    for pair in range(pairs):
        found: dict[bool, tuple[float, float]] = {}
        for sampled in (True, False) if pair % 2 else (False, True):
            source, reason = power.discover(root)
            assert source is not None, reason
            current = Sampler(source)
            if sampled:
                current.start()
            time.sleep(RESTS_S)
            found[sampled] = worker.block(block_s)
            if sampled:
                current.stop()
                sampler = current
        medians.append(found[True][0] / found[False][0])
        means.append(found[True][1] / found[False][1])
    assert sampler is not None
    return medians, means, sampler


def said(ratios: list[float]) -> str:
    """Median and its 95% interval."""
    ordered = sorted(ratios)
    low, high = interval(ordered, 0.5) or (float("nan"), float("nan"))
    return f"{statistics.median(ordered):.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    """Every source on both processors."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--block-s", type=float, default=1.0)
    wishes = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    places = {"the worker's own processor": cpus[0], **({"another processor": cpus[1]} if len(cpus) > 1 else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = Worker(make_onnx(folder / "net.onnx", width=64, batch=1, size=224), cpus[0])
        p50_s, _ = worker.block(wishes.block_s)
        print(f"an inference takes {p50_s * 1e3:.2f} ms; n = {wishes.pairs} pairs of {wishes.block_s:g} s")
        for board in SOURCES:
            boards.BOARDS[board](folder / board)
            for place, cpu in places.items():
                os.sched_setaffinity(0, {cpu})
                medians, means, sampler = compare(folder / board, worker, wishes.pairs, wishes.block_s)
                cost = sampler.cost()
                print(
                    f"{board:10} sampler on {place:27} p50 {said(medians)}  mean {said(means)}  "
                    f"{cost['reads'] / wishes.block_s:.0f} readings/s, {100 * cost['cpu_share']:.2f}% of a core"
                )
        worker.end()


if __name__ == "__main__":
    main()
