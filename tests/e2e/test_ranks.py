"""One run in several processes: what it trains is what one process trains, and it can be harmed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.device.sshd import children

# Batch norm, cached views and QAT are in it, but neither of two things that make the last bit of a sum matter after a
# few steps: a deep, untrained net, whose batch norms divide by next to nothing (of MobileNetV2 one process
# and two agree to 2e-9 after six steps in float64, to 1e-2 in float32, as does one process with itself and weights that
# are 1e-7 larger), and Adam, whose first steps follow the sign of a gradient, be it no more than rounding.
RECIPE = [
    "digits",
    "--student=tests.small_nets:without_dropout",
    "--set=data.image_size=16",
    "--set=data.train_limit=320",
    "--set=teacher.model=mlp",
    "--set=teacher.dropout=0.0",
    "--set=teacher.training.epochs=4",
    "--set=student.training.epochs=6",
    "--set=student.training.optimizer=sgd",
    "--set=student.training.learning_rate=0.02",
    "--set=distillation.cached_views=2",
    "--set=qat.teacher=teacher",  # the loss on following oneself is next to nothing, and so are its digits
    "--set=qat.alpha=0.5",
    "--set=qat.training.epochs=2",
    "--set=qat.training.optimizer=sgd",
    "--set=qat.training.learning_rate=0.002",
    "--set=qat.calibration_batches=2",
]


def start(out: Path, *more: str, processes: int) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [*(launcher if processes > 1 else []), "-m", "kdedge", "distill", *RECIPE, "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    document: dict[str, Any] = json.loads(stdout)  # one document, however many processes
    return document


def events(out: Path) -> list[dict[str, Any]]:
    log = out / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(process: subprocess.Popen[str], out: Path, stage: str, epoch: int) -> None:
    """Until the log says that an epoch of a stage is done."""
    until = time.monotonic() + 300
    while not any(e.get("stage") == stage and e.get("epoch") == epoch for e in events(out)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"stage {stage} never reached epoch {epoch}"
        time.sleep(0.05)


def losses(out: Path, stages: Sequence[str] = ("teacher", "student", "qat")) -> list[float]:
    """The mean training loss of every epoch, the last run of each counting."""
    found = {(e["stage"], e["epoch"]): e["loss"] for e in events(out) if e["event"] == "epoch"}
    return [loss for (stage, _), loss in found.items() if stage in stages]


def ranges(out: Path) -> dict[str, Any]:
    """Every scale and zero point that was trained."""
    state = load_file(out / "checkpoints" / "qat.safetensors")
    return {name: value for name, value in state.items() if name.endswith(("min_val", "max_val", "scale"))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(out, processes=1))
    assert len(losses(out)) == 12
    return out


def assert_alike(out: Path, other: Path) -> None:
    """The same losses and ranges, but for the order of additions, which training makes grow."""
    assert losses(out) == pytest.approx(losses(other), rel=5e-4)
    ours, theirs = ranges(out), ranges(other)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    for name, value in ours.items():
        assert value.flatten().tolist() == pytest.approx(theirs[name].flatten().tolist(), rel=0.02, abs=1e-3), name


def test_two_processes_train_what_one_does_and_stop_and_go_on(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = start(out, processes=2)
    wait_for(stopped, out, "student", 2)
    os.killpg(stopped.pid, signal.SIGINT)  # Ctrl-C reaches launcher and processes alike
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert said.count("Stopped. Go on with: kdedge distill digits") == 1, said
    assert (out / "checkpoints" / "student.pt").exists(), said
    document = finish(start(out, "--resume", processes=2))
    assert document["metrics"]["student_int8"]["n"] == 592
    assert_alike(out, alone)
    assert [e["ranks"] for e in events(out) if e["event"] == "start"] == [2, 2]


def test_a_process_that_dies_ends_the_run_and_one_goes_on(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = start(out, processes=2)
    wait_for(broken, out, "student", 1)
    (victim,) = [pid for pid in children(broken.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(victim, signal.SIGKILL)
    _, said = broken.communicate(timeout=120)
    assert broken.returncode not in (0, None)
    assert "another process of this run ended, and this one with it (rank 0 of 2)" in said, said
    assert "Traceback" not in said.split("rank 0 of 2")[0].split("student")[-1], said
    finish(start(out, "--resume", processes=1))
    assert_alike(out, alone)


def test_batches_that_cannot_be_shared_out(tmp_path: Path) -> None:
    refused = start(tmp_path / "run", "--set=teacher.training.batch_size=63", processes=2)
    _, said = refused.communicate(timeout=300)
    assert refused.returncode != 0
    assert (
        "a batch of 63 samples cannot be shared out to 2 processes (teacher.training.batch_size). Set it to 62" in said
    )
