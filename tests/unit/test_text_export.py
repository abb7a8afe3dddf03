"""Text nets through both exporters: token inputs, small files, the integers of torch in both runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdedge.bundle import Bundle
from kdedge.errors import ArtifactError
from tests import text_nets
from tests.text_nets import LENGTH

from kdedge_agent import runtimes, tensors
from kdedge_exporters import ExportResult, export, load_artifact, parity

FORMATS = ("onnx", "tflite")


@pytest.fixture(scope="module", params=text_nets.KINDS, ids=lambda kind: kind[0])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    net = text_nets.trained(*request.param)
    return text_nets.write(tmp_path_factory.mktemp("text") / "bundle", net, text_nets.quantised(net))


def samples(bundle: Bundle, count: int = 320) -> Any:
    return text_nets.texts(bundle.float_student(), count, seed=11)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=FORMATS)
def result(request: pytest.FixtureRequest, bundle: Bundle) -> ExportResult:
    return export(bundle, request.param, samples=samples(bundle))


def test_artifact_is_the_student_to_a_fraction_of_a_step(result: ExportResult) -> None:
    assert result.parity is not None and result.parity.difference_unit == "steps"
    assert result.parity.accuracy_student > 0.95 and result.parity.agreement >= 0.99
    assert result.parity.difference_mean < 0.2


def test_weights_are_a_byte_each(result: ExportResult, bundle: Bundle) -> None:
    parameters = sum(p.numel() for p in bundle.float_student().parameters())
    assert result.size_bytes < 1.1 * parameters + 120_000, "float weights would be four bytes each"


def test_inputs_are_described_and_loaded_as_int32(result: ExportResult, bundle: Bundle) -> None:
    artifact = load_artifact(result.artifact)
    batch = -1 if result.format == "onnx" else 1
    names = [spec.name for spec in bundle.inputs]
    assert "input" not in artifact.metadata
    assert artifact.metadata["inputs"] == [
        {"name": name, "layout": "NL", "dtype": "int32", "shape": [batch, LENGTH]} for name in names
    ]
    tail = [2, LENGTH] if bundle.task == "question-answering" else [text_nets.CLASSES]
    classes = tail[0]
    assert artifact.metadata["output"] == {
        "name": "logits",
        "kind": "logits",
        "classes": classes,
        "shape": [batch, *tail],
    }
    session = runtimes.load(str(result.artifact), result.format)
    found = {info.name: (info.dtype, info.shape) for info in session.inputs}
    assert found == dict.fromkeys(names, ("int32", (batch, LENGTH)))
    assert [(info.name, info.dtype) for info in session.outputs] == [("logits", "float32")]


def test_float_ops_are_layer_norms_and_what_a_runtime_lacks(result: ExportResult) -> None:
    """With the sums before layer norms. TFLite takes a layer norm apart; ONNX Runtime has no integer GELU and tanh."""
    found = {op["op"] for op in result.float_ops}
    allowed = {
        "onnx": {"Sum", "LayerNormalization", "Gelu", "Tanh"},
        "tflite": {"MEAN", "SQUARED_DIFFERENCE", "RSQRT", "ADD", "SUB", "MUL"},
    }
    assert found <= allowed[result.format]
    reasons = {op["reason"] for op in result.float_ops if op["op"] == "Sum"}
    assert reasons == ({"only layer norms read it, which are float"} if result.format == "onnx" else set())


def test_any_number_of_texts_in_the_order_of_the_names(result: ExportResult, bundle: Bundle) -> None:
    inputs, _ = samples(bundle, 70)
    artifact = load_artifact(result.artifact)
    assert artifact.input_names == tuple(spec.name for spec in bundle.inputs)
    whole = artifact.predict([tensor.numpy() for tensor in inputs])
    single = artifact.predict(tuple(tensor[5:6].numpy().astype(np.int32) for tensor in inputs))
    assert whole.dtype == np.float32 and np.array_equal(whole[5:6], single)
    assert artifact.predict([tensor[:0].numpy() for tensor in inputs]).shape == (0, *whole.shape[1:])


def test_inputs_that_do_not_fit_are_refused_in_one_line(result: ExportResult, bundle: Bundle) -> None:
    inputs = [tensor.numpy() for tensor in samples(bundle, 2)[0]]
    artifact = load_artifact(result.artifact)
    wrong = [inputs[:1], [*inputs, inputs[0]], [inputs[0][:1], *inputs[1:]], [values[:, :9] for values in inputs]]
    for arrays in wrong:
        with pytest.raises(ArtifactError) as caught:
            artifact.predict(arrays)
        assert "\n" not in str(caught.value) and str(result.artifact) in str(caught.value)


def test_the_agents_inputs_for_timing_run(result: ExportResult) -> None:
    session = runtimes.load(str(result.artifact), result.format)
    (logits,) = session.run(tensors.random_inputs(session, seed=0))
    assert np.isfinite(logits).all() and len(logits) == 1


def test_same_bundle_same_bytes(result: ExportResult, bundle: Bundle, tmp_path: Path) -> None:
    again = export(bundle, result.format, samples=None, out=tmp_path / result.artifact.name)
    assert again.sha256 == result.sha256


@pytest.mark.parametrize("format_", FORMATS)
def test_float32_artifact_is_the_float_student(format_: str, bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, format_, precision="float32", samples=samples(bundle), out=tmp_path / f"f.{format_}")
    assert made.parity is not None and made.parity.agreement == 1.0 and made.parity.difference_max < 1e-3


def test_int8_borders_leave_token_ids_alone(bundle: Bundle, tmp_path: Path) -> None:
    made = export(bundle, "tflite", samples=samples(bundle), out=tmp_path / "a.tflite", io="int8")
    session = runtimes.load(str(made.artifact), "tflite")
    assert {info.dtype for info in session.inputs} == {"int32"}
    assert session.outputs[0].dtype == "int8"
    assert made.parity is not None and made.parity.agreement >= 0.99


def test_every_row_of_the_logits_counts(result: ExportResult, bundle: Bundle) -> None:
    inputs, labels = samples(bundle, 40)
    student = bundle.float_student()

    def spoilt(*x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = student(*x)
        if logits.ndim == 2:
            return logits.roll(1, dims=-1)
        return torch.stack([logits[:, 0], logits[:, 1].roll(1, dims=-1)], 1)  # the ends alone are wrong

    record = parity.compare(load_artifact(result.artifact), spoilt, inputs, labels)
    assert abs(record.agreement - (0.5 if bundle.task == "question-answering" else 0.0)) < 0.1
