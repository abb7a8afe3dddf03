"""What is timed of a file that leaves sizes open or takes several samples, and what stays where scoring breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdedge.cli.bench_text import show_record
from kdedge.cli.conditions import input_shapes
from kdedge.errors import ArtifactError, KdedgeError, UserError
from tests.agent_tools import make_onnx

from kdedge_bench.artifact_file import check_artifact
from kdedge_bench.session import bench

QUICK: dict[str, Any] = {"repetitions": 20, "min_duration_s": 0.0, "power": False}


def test_open_sizes_are_asked_for_and_kept_in_the_record(tmp_path: Path) -> None:
    artifact = make_onnx(tmp_path / "open.onnx", size="side")
    with pytest.raises(ArtifactError, match=r"leaves sizes of its input x open.*--input-shape x="):
        bench(artifact, **QUICK, out_dir=tmp_path)
    small, large = (
        bench(artifact, **QUICK, input_shapes={"": [1, 3, side, side]}, out_dir=tmp_path) for side in (8, 96)
    )
    assert small.inputs == [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert large.inputs[0]["shape"] == [1, 3, 96, 96]


def test_a_fixed_batch_is_remarked_where_samples_were_to_be_timed_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = make_onnx(tmp_path / "eight.onnx", batch=8)
    single = bench(artifact, **QUICK, out_dir=tmp_path)
    assert any("a call takes 8x3x8x8" in reason and "--scenario offline" in reason for reason in single.verdict_reasons)
    offline = bench(artifact, **QUICK, scenario="offline", out_dir=tmp_path)
    assert offline.throughput is not None and offline.throughput["batch_size"] == 8
    assert not any("a call takes" in reason for reason in offline.verdict_reasons)
    show_record(offline, tmp_path / "record.json")
    shown = capsys.readouterr().out
    assert "of a batch of 8  (n=" in shown and "first inference of a batch of 8" in shown


def test_the_provider_that_was_asked_for_scores_too(tmp_path: Path) -> None:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    record = bench(
        make_onnx(tmp_path / "a.onnx"), **QUICK, provider="cpu", accuracy_data=(images, np.zeros(4, np.int64)),
        accuracy_about={"source": "zeros", "split": "test", "sha256": "0" * 64}, out_dir=tmp_path,
    )  # fmt: skip
    assert record.accuracy is not None
    assert record.accuracy["runtime"]["provider"] == record.runtime["provider"]
    assert record.accuracy["data"]["source"] == "zeros"


def test_what_was_measured_stays_where_scoring_breaks(tmp_path: Path) -> None:
    artifact = make_onnx(tmp_path / "a.onnx")
    wrong = np.zeros((4, 3, 9, 9), np.float32)
    with pytest.raises(KdedgeError, match=r"What was measured before is kept, without accuracy: .*a-onnx.*json"):
        bench(artifact, **QUICK, accuracy_data=(wrong, np.zeros(4, np.int64)), out_dir=tmp_path / "runs")
    (file,) = (tmp_path / "runs").glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["latency_s"]["n"] >= 20
    assert (kept["accuracy"], kept["unmeasured"]["accuracy"]) == (None, "asked for, and not scored to the end")


def test_a_file_that_was_changed_meanwhile_is_not_measured_for_the_old_one(tmp_path: Path) -> None:
    seen = check_artifact(make_onnx(tmp_path / "a.onnx"))
    make_onnx(tmp_path / "a.onnx", width=4)
    with pytest.raises(ArtifactError, match="the file was changed while others were measured"):
        bench(seen, **QUICK, out_dir=tmp_path)


def test_a_folder_that_takes_no_files_is_noticed_first(tmp_path: Path) -> None:
    said: list[Any] = []
    with pytest.raises(UserError, match="cannot write records"):
        bench(make_onnx(tmp_path / "a.onnx"), **QUICK, out_dir="/proc", progress=said.append)
    assert said == []


def test_shapes_as_they_are_typed() -> None:
    assert input_shapes(None) is None
    assert input_shapes("1x3x224x224") == {"": [1, 3, 224, 224]}
    assert input_shapes("ids=1x128, mask=1x128") == {"ids": [1, 128], "mask": [1, 128]}
    for text in ("", "1x", "x=0x3", "x=1x3,x=1x4", "1,3,224,224", "x=axb"):
        with pytest.raises(UserError, match="names no shapes"):
            input_shapes(text)
