"""The whole way as `make demo` goes it: every figure that the demo promises, on real digits, with the real gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kdedge.bundle import Bundle

pytestmark = pytest.mark.slow


def test_it_leaves_what_readme_says(demo_run: Path) -> None:
    for name in ("bundle", "student-int8.onnx", "student-int8.tflite", "report.html", "records", "log.jsonl"):
        assert (demo_run / name).exists(), name
    assert len(list((demo_run / "records").glob("*.json"))) == 4


def test_int8_is_as_good_as_float_on_images_never_seen(demo_run: Path) -> None:
    metrics = Bundle.load(demo_run / "bundle").manifest["metrics"]
    assert metrics["student_int8"]["n"] == 592
    assert metrics["student_int8"]["accuracy"] >= 0.97
    assert metrics["student_float"]["accuracy"] - metrics["student_int8"]["accuracy"] <= 0.005


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_each_artifact_is_the_student(demo_run: Path, format_: str) -> None:
    record = json.loads((demo_run / f"student-int8.{format_}.parity.json").read_text())
    float_accuracy = Bundle.load(demo_run / "bundle").manifest["metrics"]["student_float"]["accuracy"]
    assert record["parity"]["n"] == 592
    assert record["parity"]["agreement"] >= 0.99
    assert record["parity"]["accuracy_artifact"] >= 0.97
    assert float_accuracy - record["parity"]["accuracy_artifact"] <= 0.005
    assert record["float_ops"] == []


def test_records_hold_figures_or_reasons(demo_run: Path) -> None:
    for file in (demo_run / "records").glob("*.json"):
        record: dict[str, Any] = json.loads(file.read_text())
        latency = record["latency_s"]
        assert latency["n"] == len(latency["samples"]) >= (200 if record["artifact"]["format"] == "torch" else 1000)
        assert (latency["p99"] is None) == (latency["n"] < 1000)
        assert record["memory_bytes"]["peak"] is not None
        assert record["accuracy"]["n"] == 592
        assert (record["energy_j_per_inference"] is None) == ("energy_j_per_inference" in record["unmeasured"])
        assert record["facts"]
