"""What a whole `kdedge bench --device NAME` over SSH takes beyond the measurement itself.

The command is run as a user types it, against a real OpenSSH server on loopback, with an int8 .tflite file of 4 MB.
From its seconds are taken off: warm-up, timed calls, load and first inference, by the record. What is left is all else:
Python and its imports on both sides, the connection, uploads, hashes, the runtime's import, the worker's start and end,
the record. In turn: `cold`, nothing is on the device but the runtime; `warm`, agent and artifact are. Printed: median
and range of each, n, and the seconds in which a Python starts and imports the runtime.

    python benchmarks/bench_overhead.py [--runs 7] [--limits 2.5 5.0]

It exits with 1 if a median exceeds its limit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.agent_tools import make_tflite
from tests.device.sshd import Sshd, start_sshd

from kdedge_bench.devices import add_device

ARTIFACT_BYTES = 4_000_000
QUICK = ("--repetitions", "100", "--seconds", "0.5", "--no-power")


def overhead_s(artifact: Path, out: Path) -> float:
    """Seconds of one command beyond what it measured."""
    command = [sys.executable, "-m", "kdedge", "bench", str(artifact), "--device", "board", *QUICK, "--out", str(out)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    whole_s = time.perf_counter() - begin
    record = json.loads(done.stdout)
    latency = record["latency_s"]
    measured_s = math.fsum(latency["samples"]) + math.fsum(latency["warmup_samples"])
    return float(whole_s - measured_s - record["load_s"] - record["first_inference_s"])


def import_s(runs: int) -> float:
    """Median seconds in which a Python starts and imports the runtime."""
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import ai_edge_litert.interpreter"], check=True)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def measure(board: Sshd, artifact: Path, out: Path, runs: int) -> dict[str, list[float]]:
    """Seconds by kind; cold and warm take turns."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(runs):
        shutil.rmtree(board.cache, ignore_errors=True)
        found["cold"].append(overhead_s(artifact, out))
        found["warm"].append(overhead_s(artifact, out))
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--limits", type=float, nargs=2, default=(2.5, 5.0), metavar=("WARM", "COLD"))
    wishes = parser.parse_args()
    limits = dict(zip(("warm", "cold"), wishes.limits, strict=True))
    with tempfile.TemporaryDirectory(prefix="kdedge-overhead-") as name:
        folder = Path(name)
        os.environ["KDEDGE_CONFIG_DIR"] = str(folder / "config")
        width = math.isqrt(ARTIFACT_BYTES)
        artifact = make_tflite(folder / "net.tflite", metadata={}, inputs=width, outputs=width)
        board = start_sshd(folder / "board")
        try:
            add_device(board.device("board"))
            found = measure(board, artifact, folder / "runs", wishes.runs)
        finally:
            board.stop()
        print(f"{artifact.stat().st_size / 1e6:.1f} MB over SSH on loopback, n = {wishes.runs} of each in turn")
    for kind, seconds in found.items():
        spread = f"[{min(seconds):.2f}, {max(seconds):.2f}]"
        print(
            f"  {kind}: {statistics.median(seconds):.2f} s {spread} beyond the measurement (limit {limits[kind]:g} s)"
        )
    print(f"  of it a Python that imports the runtime: {import_s(wishes.runs):.2f} s")
    return int(any(statistics.median(seconds) > limits[kind] for kind, seconds in found.items()))


if __name__ == "__main__":
    sys.exit(main())
