"""What an export promises: whole or nothing, gated by parity, described inside the file, refused when damaged."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kdedge.bundle import Bundle
from kdedge.errors import ArtifactError, ParityError, UserError
from kdedge.files import sha256_file
from tests import bundles

import kdedge_exporters
from kdedge_exporters import ExportOptions, ExportResult, export, load_artifact, parity, tflite_file
from kdedge_exporters.metadata import METADATA_KEY
from kdedge_exporters.parity import ParityRecord

SAMPLES = bundles.images_of((3, 16, 16), 320)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("bundle") / "bundle", size=16, model="mlp")


@pytest.fixture(scope="module", params=["onnx", "tflite"])
def result(request: pytest.FixtureRequest, bundle: Bundle) -> ExportResult:
    return export(bundle, request.param, samples=SAMPLES)


def test_result_says_what_was_made(result: ExportResult, bundle: Bundle) -> None:
    document = json.loads(json.dumps(result.to_dict()))
    assert result.artifact == bundle.path.parent / f"student-int8.{result.format}"
    assert document["sha256"] == sha256_file(result.artifact)
    assert document["size_bytes"] == result.artifact.stat().st_size
    assert document["float_ops"] == []
    parity = document["parity"]
    assert parity["n"] == 320 and parity["agreement"] >= 0.99 and parity["difference_unit"] == "steps"
    assert abs(parity["accuracy_student"] - parity["accuracy_artifact"]) <= 0.005


def test_parity_record_lies_beside_the_artifact(result: ExportResult) -> None:
    record = json.loads(result.artifact.with_name(f"{result.artifact.name}.parity.json").read_text())
    assert record["sha256"] == result.sha256
    assert record["parity"]["agreement"] == result.to_dict()["parity"]["agreement"]


def test_metadata_travels_inside(result: ExportResult, bundle: Bundle) -> None:
    artifact = load_artifact(result.artifact)
    assert artifact.labels == bundle.labels
    assert artifact.metadata["preprocessing"] == bundle.preprocessing.to_dict()
    assert artifact.metadata["bundle_id"] == bundle.bundle_id
    assert artifact.metadata["format_version"] == 1
    assert (artifact.precision, artifact.format) == ("int8", result.format)


def test_predict_takes_any_number_of_images(result: ExportResult) -> None:
    artifact = load_artifact(result.artifact)
    images = SAMPLES[0][:5].numpy()
    together = artifact.predict(images)
    assert together.shape == (5, bundles.CLASSES) and together.dtype == np.float32
    assert np.array_equal(np.concatenate([artifact.predict(images[i : i + 1]) for i in range(5)]), together)
    assert artifact.predict(images[:0]).shape == (0, bundles.CLASSES)


def test_images_of_another_size_are_refused(result: ExportResult) -> None:
    with pytest.raises(ArtifactError, match="shape"):
        load_artifact(result.artifact).predict(np.zeros((1, 3, 20, 20), np.float32))


def test_artifact_cut_in_half_is_refused(result: ExportResult, tmp_path: Path) -> None:
    half = tmp_path / result.artifact.name
    half.write_bytes(result.artifact.read_bytes()[: result.size_bytes // 2])
    with pytest.raises(ArtifactError) as caught:
        load_artifact(half)
    assert "\n" not in str(caught.value) and str(half) in str(caught.value)


@pytest.mark.parametrize("name", ["foreign.onnx", "foreign.tflite"])
@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x07" + b"\xff" * 4096])
def test_foreign_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, says", [("model.pt", "ends in"), ("gone.onnx", "no such file"), ("gone", "no such file")]
)
def test_unknown_suffix_and_missing_file_are_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(ArtifactError, match=says):
        load_artifact(tmp_path / name)


def test_model_of_another_tool_is_refused_for_its_missing_description(bundle: Bundle, tmp_path: Path) -> None:
    torch.onnx.export(
        bundle.float_student(), (torch.zeros(1, 3, 16, 16),), tmp_path / "other.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(ArtifactError, match="no kdedge description"):
        load_artifact(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"precision": None, "inputs": {}}, "has no precision and no inputs"),
        ({"preprocessing": "none"}, "has no preprocessing"),
    ],
)
def test_a_description_that_is_newer_or_was_changed_is_refused(
    changes: dict[str, Any], says: str, bundle: Bundle, tmp_path: Path
) -> None:
    made = export(bundle, "tflite", samples=None, out=tmp_path / "a.tflite")
    model = tflite_file.read(made.artifact.read_bytes())
    document = {**load_artifact(made.artifact).metadata, **changes}
    tflite_file.set_metadata(model, METADATA_KEY, json.dumps(document))
    made.artifact.write_bytes(tflite_file.pack(model))
    with pytest.raises(ArtifactError, match=says):
        load_artifact(made.artifact)


def departing(monkeypatch: pytest.MonkeyPatch, **figures: Any) -> None:
    """Have comparisons find these figures in place of their own."""
    found = parity.compare
    monkeypatch.setattr(parity, "compare", lambda *a, **k: dataclasses.replace(found(*a, **k), **figures))


def test_failed_parity_leaves_nothing_and_keeps_the_older_artifact(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "student.onnx"
    with monkeypatch.context() as patched:
        departing(patched, accuracy_artifact=0.1)
        with pytest.raises(ParityError, match="departs from the student on 320 samples: accuracy"):
            export(bundle, "onnx", samples=SAMPLES, out=out)
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"older")
    departing(monkeypatch, agreement=0.98)
    with pytest.raises(ParityError, match="agreement"):
        export(bundle, "onnx", samples=SAMPLES, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"] and out.read_bytes() == b"older"


def test_interrupted_export_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Bundle, __: ExportOptions, path: Path) -> list[dict[str, str]]:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(kdedge_exporters.EXPORTERS, "onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(bundle, "onnx", samples=SAMPLES, out=tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_a_swapped_student(bundle: Bundle, tmp_path: Path) -> None:
    """The gate compares with this bundle's student, not with whatever the file computes."""
    artifact = load_artifact(export(bundle, "onnx", samples=SAMPLES, out=tmp_path / "a.onnx").artifact)
    student = bundle.float_student()
    record = parity.compare(artifact, lambda x: student(x).roll(1, dims=1), *SAMPLES)
    assert record.agreement < 0.2
    with pytest.raises(ParityError, match="agreement"):
        record.require()


def test_gate_is_closed_just_below_its_bounds() -> None:
    record = ParityRecord(1000, 0.99, 0.9, 0.895, 0.1, 2.0, "steps", 0.0041, 0.99, {"name": "r", "version": "1"})
    assert record.failures == []
    assert len(dataclasses.replace(record, accuracy_artifact=0.894).failures) == 1
    assert len(dataclasses.replace(record, agreement=0.9899).failures) == 1


def test_no_samples_no_parity_and_the_result_says_so(bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, "onnx", samples=None, out=tmp_path / "a.onnx").to_dict()
    assert made["parity"] is None and "no samples" in made["unmeasured"]["parity"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_float32_artifact_agrees_with_the_float_student(format_: str, bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, format_, precision="float32", samples=SAMPLES, out=tmp_path / f"f.{format_}")
    assert made.parity is not None and made.parity.agreement == 1.0 and made.parity.difference_max < 1e-3
    assert load_artifact(made.artifact).precision == "float32"


def test_int8_borders_on_request(bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, "tflite", samples=SAMPLES, out=tmp_path / "a.tflite", io="int8")
    ops = [op.op for op in tflite_file.operations(tflite_file.read(made.artifact.read_bytes()))]
    assert "QUANTIZE" not in ops and "DEQUANTIZE" not in ops
    assert load_artifact(made.artifact).metadata["input"]["dtype"] == "int8"
    assert made.parity is not None and made.parity.agreement >= 0.99


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"format": "coreml"}, "unknown format 'coreml'"),
        ({"format": "onnx", "precision": "int4"}, "unknown precision 'int4'"),
        ({"format": "onnx", "io": "int8"}, "ONNX artifact takes float32"),
        ({"format": "tflite", "precision": "float32", "io": "int8"}, "no int8 input"),
        ({"format": "onnx", "accuracy_tolerance": math.nan}, "nan is no share (--tolerance)"),
        ({"format": "onnx", "accuracy_tolerance": -0.1}, "-0.1 is no share (--tolerance)"),
        ({"format": "onnx", "min_agreement": 99}, "99 is no share (--agreement)"),
    ],
)
def test_wrong_choices_are_the_users_mistake(
    arguments: dict[str, Any], says: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        export(bundle, samples=SAMPLES, out=tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_same_bundle_same_bytes(result: ExportResult, bundle: Bundle, tmp_path: Path) -> None:
    again = export(bundle, result.format, samples=SAMPLES, out=tmp_path / result.artifact.name)
    assert again.sha256 == result.sha256


def test_weights_lie_on_aligned_addresses(bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, "tflite", samples=None, out=tmp_path / "a.tflite")
    content = made.artifact.read_bytes()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    large = [model.Buffers(i) for i in range(model.BuffersLength()) if model.Buffers(i).DataLength() >= 16]
    offsets = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in large]
    assert len(offsets) >= 6 and all(offset % 16 == 0 for offset in offsets)


def test_folder_that_cannot_be_written_is_named(bundle: Bundle, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    shutil.copy(bundle.path / "manifest.json", blocker)
    with pytest.raises(UserError, match="cannot write"):
        export(bundle, "onnx", samples=None, out=blocker / "a.onnx")


@pytest.mark.parametrize(
    ("name", "says"), [("made", "is a folder"), ("student.onnx", "ends in .onnx is taken for onnx")]
)
def test_a_place_where_no_artifact_of_the_format_can_stand_is_refused_before_any_work(
    name: str, says: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object) -> list[dict[str, str]]:
        raise AssertionError

    (tmp_path / "made").mkdir()
    monkeypatch.setitem(kdedge_exporters.EXPORTERS, "tflite", worked)
    with pytest.raises(UserError, match=says) as caught:
        export(bundle, "tflite", samples=SAMPLES, out=tmp_path / name)
    assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_an_interruption_leaves_no_record_of_another_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.onnx"
    record = tmp_path / "a.onnx.parity.json"
    older = export(bundle, "onnx", samples=SAMPLES, out=out)
    rename = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(bundle, "onnx", precision="float32", samples=SAMPLES, out=out)
    assert sha256_file(out) == older.sha256
    assert not record.exists()
    newer = export(bundle, "onnx", precision="float32", samples=SAMPLES, out=out)
    assert json.loads(record.read_text())["sha256"] == newer.sha256 == sha256_file(out)


def test_a_file_that_a_runtime_refuses_is_named_as_it_was_asked_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kdedge_exporters.EXPORTERS["onnx"]

    def of_another_domain(bundle: Bundle, options: ExportOptions, path: Path) -> list[dict[str, str]]:
        float_ops = whole(bundle, options, path)
        model = onnx.load(str(path))
        model.graph.node[0].domain = "nowhere"
        model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
        onnx.save(model, str(path))
        return float_ops

    monkeypatch.setitem(kdedge_exporters.EXPORTERS, "onnx", of_another_domain)
    with pytest.raises(ArtifactError) as caught:
        export(bundle, "onnx", samples=SAMPLES, out=tmp_path / "a.onnx")
    assert caught.value.where == str(tmp_path / "a.onnx")
    assert ".part" not in str(caught.value) and "Export it again" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
