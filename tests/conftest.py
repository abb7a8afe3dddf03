"""Fixtures that several kinds of test share. Everything real; small, so that it is fast."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.float32_files import Float32Files

# Two threads on a busy machine of two cores are far slower than one, and one gives the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from kdedge.bundle import Bundle
from tests.shared_folders import shared_between_workers

ROOT = Path(__file__).parents[1]
WITH_TESTS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
"""PYTHONPATH of a process that is to find the tests' own students."""
SHARED_DATA = ROOT.parent / "shared" / "data"

# A small student without a teacher: real training on real digits in seconds. Too short for the agreement of
# 99% that a well-trained net reaches, hence the wider tolerance; the demo's test keeps the real one.
SMALL = (
    "distillation.alpha=0",
    "student.model=tests.small_nets:Mobile",
    "student.training.epochs=8",
    "qat.training.epochs=1",
    "qat.calibration_batches=4",
    "tolerance.agreement=0.95",
    "tolerance.int8_drop=0.02",
    "tolerance.artifact_drop=0.02",
)


# Workers take whole files in this order: the demo, which others wait for; what takes seconds, as all that is not named
# here; what takes minutes, the longest first, so that all workers end together.
MINUTES = (
    "test_quantize_properties", "test_readme_training", "test_readme", "test_lab_arm64", "test_cli",
    "test_teacher_cache", "test_text_export", "test_export_forms", "test_text_integer_ops", "test_layers",
    "test_resume", "test_other_precisions", "test_fleet", "test_reach", "test_integer_ops", "test_ranks",
    "test_dynamic", "test_bench_with_meter", "test_export_small_nets", "test_inspect", "test_agent_intervals",
    "test_export", "test_setup_and_check", "test_text", "test_questions", "test_device_faults",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return -1 if name == "test_demo" else MINUTES.index(name) + 1 if name in MINUTES else 0

    items.sort(key=place)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """``SMALL``, int8, trained on the digits. Other processes find its student with ``WITH_TESTS``."""

    def make(folder: Path) -> None:
        import torch
        from kdedge.distillation import distill
        from kdedge.recipe_file import load_recipe

        torch.set_num_threads(1)
        distill(load_recipe("digits", SMALL), out=folder)

    return Bundle.load(shared_between_workers(tmp_path_factory, "small", make) / "bundle")


@pytest.fixture(scope="session")
def float32_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Float32Files]:
    """Files by the name of the net, one of ``tests.float32_files.NETS``."""
    from tests import float32_files

    return lambda name: float32_files.make(name, tmp_path_factory)


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
