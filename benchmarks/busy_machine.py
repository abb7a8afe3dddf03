"""How waiting threads should wait: spin for a moment, as the command line sets it, spin on, or sleep at once.

Trains a MobileNetV2 on two threads in fresh processes, by the three ways in turn; once alone and once beside as many
busy processes as there are cores. Printed: steps/s of the command line's way against libgomp's default (long spinning)
and against OMP_WAIT_POLICY=PASSIVE (sleep at once) per round, with n, median and spread.

Run: python benchmarks/busy_machine.py [--rounds 3] [--seconds 4]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from kdedge.cli.entry import SPIN_COUNT

WORK = """
import sys, time
import kdedge.torchvision_compat
import torch
from torchvision import models
torch.set_num_threads(2)
net = models.mobilenet_v2(num_classes=10).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
x = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
y = torch.randint(0, 10, (64,))
def step():
    loss = torch.nn.functional.cross_entropy(net(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
step()
started, done = time.perf_counter(), 0
while time.perf_counter() - started < float(sys.argv[1]):
    step(); done += 1
print(done / (time.perf_counter() - started))
"""
BUSY = "while True: pass"


WAYS = {
    "spin, then sleep": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def steps_per_s(way: str, seconds: float) -> float:
    """Steps a second of one fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", WORK, str(seconds)]
    done = subprocess.run(command, env=environment | WAYS[way], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    ours, *others = WAYS
    for name, count in (("alone", 0), ("beside busy processes", os.cpu_count() or 1)):
        noise = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            rounds = [{way: steps_per_s(way, options.seconds) for way in WAYS} for _ in range(options.rounds)]
        finally:
            for process in noise:
                process.kill()
                process.wait()
        for other in others:
            found = [rate[ours] / rate[other] for rate in rounds]
            print(
                f"{name:<22} '{ours}' / {other:<8} steps per s: median {statistics.median(found):.2f}  "
                f"[{min(found):.2f}, {max(found):.2f}]  n={len(found)}"
            )


if __name__ == "__main__":
    main()
