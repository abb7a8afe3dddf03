"""An interrupted run that goes on ends in the very weights of one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kdedge.files import sha256_file

# Dropout is on, so that the random state has to survive too; the cached views must survive as well.
RECIPE = [
    "digits",
    "--set=data.image_size=16",
    "--set=teacher.model=mlp",
    "--set=teacher.dropout=0.1",
    "--set=teacher.training.epochs=6",
    "--set=student.model=tests.small_nets:Mobile",
    "--set=student.training.epochs=8",
    "--set=distillation.cached_views=2",
    "--set=qat.training.epochs=4",
    "--set=qat.calibration_batches=2",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def distill(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdedge", "distill", *RECIPE, "--out", str(out), "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert isinstance(document, dict)
    return document


def wait_for(process: subprocess.Popen[str], log: Path, stage: str, epoch: int) -> None:
    """Until the log says that an epoch of a stage is done."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        lines = log.read_text().splitlines() if log.exists() else []
        events = [json.loads(line) for line in lines]
        if any(e.get("stage") == stage and e.get("epoch") == epoch for e in events):
            return
        time.sleep(0.05)
    pytest.fail(f"stage {stage} never reached epoch {epoch}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(distill(out))


def test_ctrl_c_in_every_stage_then_resume(uninterrupted: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = distill(out)
    for stage, epoch in (("teacher", 2), ("student", 1), ("student", 3), ("qat", 1)):
        wait_for(process, out / "log.jsonl", stage, epoch)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 130, stderr
        assert stdout == ""
        assert "--resume" in stderr
        assert "Traceback" not in stderr
        process = distill(out, "--resume")
    assert_equal(out, finish(process), uninterrupted)


def assert_equal(out: Path, document: dict[str, object], uninterrupted: tuple[Path, dict[str, object]]) -> None:
    """The run in ``out`` ended as the uninterrupted one, bit for bit."""
    whole, expected = uninterrupted
    assert document["metrics"] == expected["metrics"]
    for name in (
        "bundle/student.safetensors", "bundle/student-int8.safetensors", "teacher/teacher.safetensors"
    ):  # fmt: skip
        assert sha256_file(out / name) == sha256_file(whole / name), name


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_in_every_stage_then_resume(
    uninterrupted: tuple[Path, dict[str, object]], tmp_path: Path, seed: int
) -> None:
    """At a random moment of the teacher, the student, QAT, and the writing of the bundle."""
    out, generator = tmp_path / "run", random.Random(seed)
    process = distill(out)
    for finished, within_s in ((set(), 6.0), ({"teacher"}, 6.0), ({"student"}, 4.0), ({"qat"}, 0.5)):
        wait_until_finished(process, out / "state.json", finished)
        time.sleep(generator.uniform(0.0, within_s))
        process.kill()
        process.communicate()
        process = distill(out, "--resume")
    assert_equal(out, finish(process), uninterrupted)


def wait_until_finished(process: subprocess.Popen[str], state: Path, stages: set[str]) -> None:
    """Until the run's state exists and says that these stages are done."""
    deadline = time.monotonic() + 300
    while not (state.exists() and stages <= set(json.loads(state.read_text())["finished"])):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{stages} never ended"
        time.sleep(0.01)


def test_a_finished_run_resumes_to_its_results(uninterrupted: tuple[Path, dict[str, object]]) -> None:
    out, expected = uninterrupted
    assert finish(distill(out, "--resume")) == expected


def test_a_folder_that_holds_a_run_is_not_overwritten(uninterrupted: tuple[Path, dict[str, object]]) -> None:
    process = distill(uninterrupted[0])
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert json.loads(stdout)["error"]["exit_code"] == 2
    assert "--resume" in stderr
    assert "--overwrite" in stderr


def test_resume_with_another_recipe_is_refused(uninterrupted: tuple[Path, dict[str, object]]) -> None:
    process = distill(uninterrupted[0], "--resume", "--set=seed=5")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "another recipe" in stderr
