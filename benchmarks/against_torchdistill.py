"""kdedge's distillation schedule against torchdistill's, from PyPI and in an environment of its own.

ResNet-50 to MobileNetV2, the same nets, images, loss and optimizer (`torchdistill_worker.py`); its teacher looks on in
every step, since it keeps no logits of augmented views. kdedge's side is that of `schedule_time.py`, which says how a
schedule is added up. The two take turns on one machine. Printed: kdedge / torchdistill of the whole schedule and of a
step in which both have the teacher look on, with n rounds, median and spread (below 1: kdedge is faster).

Run: OMP_NUM_THREADS=1 python benchmarks/against_torchdistill.py [--rounds 5] [--steps 8] [--stem cifar-stride2]
         [--epochs 50] [--views 8] [--environment DIR]
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.schedule_time import SIZE, Schedules, arguments, show

ROOT = Path(__file__).parents[1]
TORCHDISTILL = "torchdistill==1.1.5"
# Of ours the same versions; what our nets and images are made with, beside torch.
SHARED = ("torch", "torchvision", "torchao", "numpy", "safetensors", "tokenizers")


def environment(folder: Path) -> Path:
    """The Python of an environment with torchdistill in it, made where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        ours = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in SHARED]
        subprocess.run([python, "-m", "pip", "install", "--quiet", TORCHDISTILL, *ours], check=True)
        (folder / "complete").touch()
    return python


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "kdedge-torchdistill")
    options = parser.parse_args()
    epochs, views = options.epochs, options.views
    schedules = Schedules(options.stem, options.steps, options.batch)
    worker = ROOT / "benchmarks" / "torchdistill_worker.py"
    sizes = [options.stem, str(options.steps), str(options.batch)]
    theirs = subprocess.Popen(
        [environment(options.environment), worker, *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)},
    )
    asked, answered = theirs.stdin, theirs.stdout
    assert asked is not None and answered is not None

    def epoch() -> float:
        print("go", file=asked, flush=True)
        return float(answered.readline())

    try:
        assert answered.readline() == "ready\n", "torchdistill's worker did not start"
        print(
            f"MobileNetV2 from ResNet-50, stem {options.stem}, batch {options.batch}, {SIZE} px, {epochs} epochs with "
            f"{views} views; {TORCHDISTILL}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
            f"{platform.machine()}"
        )
        epoch()
        whole, steps = [], []
        for number in range(options.rounds):
            before = epoch() if number % 2 else 0.0
            ours = schedules.cached()
            peer = before or epoch()
            whole.append((views * ours["building"] + (epochs - views) * ours["replaying"]) / (epochs * peer))
            steps.append(ours["building"] / peer)
        show("whole schedule, kdedge/torchdistill", whole)
        show("step with the teacher on the fly, kdedge/torchdistill", steps)
    finally:
        theirs.kill()
        theirs.wait()


if __name__ == "__main__":
    main()
