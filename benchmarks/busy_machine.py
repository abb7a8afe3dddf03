"""What OMP_WAIT_POLICY=PASSIVE, which the command line sets, is worth on a busy machine and costs on an idle one.

Trains a MobileNetV2 on two threads in fresh processes, spinning (OpenMP's default) and passive in turn; once alone
and once beside as many busy processes as there are cores. Printed: steps/s passive / spinning per pair, with n,
median and spread.

Run: python benchmarks/busy_machine.py [--pairs 3] [--seconds 4]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

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


def steps_per_s(policy: str, seconds: float) -> float:
    """Steps a second of one fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment["OMP_WAIT_POLICY"] = policy
    if policy == "default":
        del environment["OMP_WAIT_POLICY"]
    command = [sys.executable, "-c", WORK, str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    for name, count in (("alone", 0), ("beside busy processes", os.cpu_count() or 1)):
        noise = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            found = []
            for number in range(options.pairs):
                order = ("PASSIVE", "default") if number % 2 else ("default", "PASSIVE")
                rate = {policy: steps_per_s(policy, options.seconds) for policy in order}
                found.append(rate["PASSIVE"] / rate["default"])
        finally:
            for process in noise:
                process.kill()
                process.wait()
        print(
            f"{name:<24} passive/spinning steps per s: median {statistics.median(found):.2f}  "
            f"[{min(found):.2f}, {max(found):.2f}]  n={len(found)}"
        )


if __name__ == "__main__":
    main()
