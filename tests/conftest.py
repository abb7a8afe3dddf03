"""Fixtures that several kinds of test share. Everything real; small, so that it is fast."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Two threads on a busy machine of two cores are far slower than one, and one gives the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from kdedge.bundle import Bundle

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

# A narrow MobileNetV2 without a teacher: real training on real digits in seconds. Too short for the agreement of
# 99% that a well-trained net reaches, hence the wider tolerance; the demo's test keeps the real one.
SMALL = (
    "distillation.alpha=0",
    "student.width=0.5",
    "student.training.epochs=8",
    "qat.training.epochs=1",
    "qat.calibration_batches=4",
    "tolerance.agreement=0.95",
    "tolerance.int8_drop=0.02",
    "tolerance.artifact_drop=0.02",
)


def shared_between_workers(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills, once for all workers of pytest-xdist."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An int8 MobileNetV2 (width 0.5) trained on the digits."""

    def make(folder: Path) -> None:
        import torch
        from kdedge.distillation import distill
        from kdedge.recipe_file import load_recipe

        torch.set_num_threads(1)
        distill(load_recipe("digits", SMALL), out=folder)

    return Bundle.load(shared_between_workers(tmp_path_factory, "small", make) / "bundle")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole `kdedge demo`, run as a user runs it."""

    def make(folder: Path) -> None:
        import subprocess
        import sys

        out = folder / "runs" / "demo"
        done = subprocess.run(
            [sys.executable, "-m", "kdedge", "demo", "--out", str(out)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert str(out / "report.html") in done.stdout

    return shared_between_workers(tmp_path_factory, "demo", make) / "runs" / "demo"
