"""int8-dynamic from float32: a byte for each weight, layers that quantise their input as they run, the same answers."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kdedge.inputs import token_inputs
from onnx import TensorProto, helper, numpy_helper
from tests.float32_files import NETS, Float32Files, agreement, logits_of
from torch import nn

from kdedge_exporters import tflite, tflite_file
from kdedge_exporters.dynamic import onnx_dynamic, onnx_float_ops, tflite_dynamic, tflite_float_ops

FLOAT_ONLY = {"Add", "Clip", "Div", "Erf", "LayerNormalization", "Mul", "ReduceMean", "Softmax", "Sum", "Tanh"}


@pytest.fixture(scope="module", params=NETS)
def files(request: pytest.FixtureRequest, float32_files: Callable[[str], Float32Files]) -> Float32Files:
    return float32_files(request.param)


@pytest.fixture(scope="module")
def model(files: Float32Files) -> onnx.ModelProto:
    return onnx_dynamic(onnx.load_from_string(files.onnx))


def layers(model: onnx.ModelProto) -> Counter[str]:
    """Ops by type."""
    return Counter(node.op_type for node in model.graph.node)


def test_a_byte_a_weight_and_the_same_answers(files: Float32Files, model: onnx.ModelProto, tmp_path: Path) -> None:
    made = {"onnx": (files.onnx, [model.SerializeToString()])}
    made["tflite"] = (files.tflite, [tflite_dynamic(files.tflite, per_channel=flag) for flag in (True, False)])
    for kind, (before, contents) in made.items():
        for content in contents:
            assert files.weights < len(content) < 0.45 * len(before)
            found = logits_of(content, kind, files.inputs, tmp_path)
            assert agreement(found, files.logits) >= 0.98
            assert np.abs(found - files.logits).mean() < 0.03 * np.abs(files.logits).mean()


def test_head_of_the_file_and_the_model_given_stay(files: Float32Files) -> None:
    given = onnx.load_from_string(files.onnx)
    before = given.SerializeToString(deterministic=True)
    made = onnx_dynamic(given)
    assert given.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made, full_check=True)
    for name in ("opset_import", "metadata_props", "ir_version", "producer_name", "producer_version"):
        assert getattr(made, name) == getattr(given, name), name
    assert made.graph.input == given.graph.input and made.graph.output == given.graph.output
    assert made.graph.name == given.graph.name


def test_same_input_same_bytes(files: Float32Files, model: onnx.ModelProto) -> None:
    assert onnx_dynamic(onnx.load_from_string(files.onnx)).SerializeToString() == model.SerializeToString()
    for flag in (True, False):
        assert tflite_dynamic(files.tflite, per_channel=flag) == tflite_dynamic(files.tflite, per_channel=flag)


def test_no_float_weight_that_is_worth_it_is_left(model: onnx.ModelProto) -> None:
    left = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1]
    scales = {name for node in model.graph.node if node.op_type == "Mul" for name in node.input}
    positions = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    sizes = {t.name: np.prod(t.dims) for t in left if t.name not in scales | positions}
    assert max(sizes.values()) < 1024, sizes
    kinds = Counter(TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer if len(t.dims) > 1)
    assert kinds["INT8"] >= 13 and set(kinds) <= {"INT8", "UINT8", "FLOAT"}


def test_products_are_dynamic_and_convolutions_unfolded(float32_files: Callable[[str], Float32Files]) -> None:
    mobilenet = onnx_dynamic(onnx.load_from_string(float32_files("mobilenet").onnx))
    assert layers(mobilenet)["MatMulInteger"] == layers(mobilenet)["DynamicQuantizeLinear"] == 1
    assert layers(mobilenet)["Conv"] == 52 and layers(mobilenet)["ConvInteger"] == 0
    bert = onnx_dynamic(onnx.load_from_string(float32_files("bert").onnx))
    assert layers(bert)["MatMulInteger"] == 13  # six in each of two layers, and a pooler; the classifier is too small
    (table,) = [t for t in bert.graph.initializer if t.name.endswith("word_embeddings.weight_quantized")]
    assert table.data_type == TensorProto.UINT8


def test_onnx_runtime_unfolds_convolutions_once_and_fuses_products(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["MatMulInteger"] == counts["Cast"] == 0
    fused = counts["DynamicQuantizeMatMul"] + counts["MatMulIntegerToFloat"]
    assert fused == layers(model)["MatMulInteger"]
    if layers(model)["Conv"]:
        assert counts["Conv"] == 52 and counts["Mul"] == 0


def test_float_ops_of_onnx_are_all_there_with_reasons(files: Float32Files, model: onnx.ModelProto) -> None:
    ops = onnx_float_ops(model)
    counts = Counter(op["op"] for op in ops)
    assert set(counts) <= FLOAT_ONLY | {"Conv", "MatMul"}
    given = layers(onnx.load_from_string(files.onnx))
    for op in ("Conv", "Clip", "Softmax", "LayerNormalization", "ReduceMean", "Erf"):
        assert counts[op] == given[op], op
    assert counts["Mul"] == given["Mul"] and counts["Add"] + counts["Sum"] == given["Add"] + given["Gemm"]
    assert counts["MatMul"] == given["MatMul"] + given["Gemm"] - layers(model)["MatMulInteger"]
    assert len({op["name"] for op in ops}) == len(ops)
    reasons = {op["op"]: Counter(o["reason"].partition(":")[0] for o in ops if o["op"] == op["op"]) for op in ops}
    if given["Conv"]:
        assert set(reasons["Conv"]) == {"weights are int8, and unfolded when the file is loaded", _FEW}
    else:
        assert reasons["MatMul"] == {"both factors are computed while the net runs": 4, _FEW: 1}


_FEW = "fewer than 1024 weights"


@pytest.mark.parametrize("per_channel", [True, False])
def test_tflite_ops_take_int8_and_state_the_versions_that_need_it(files: Float32Files, per_channel: bool) -> None:
    model = tflite_file.read(tflite_dynamic(files.tflite, per_channel=per_channel))
    before = tflite_file.read(files.tflite)
    ops = tflite_file.operations(model)
    given = Counter(op.op for op in tflite_file.operations(before))
    added = Counter(op.op for op in ops if op.op != "DEQUANTIZE") - given
    if per_channel:
        assert added == Counter()
    else:  # factors of rows: one for each of 13 layers, and two ops for the table of words
        assert added == ({"MUL": 1} if "image" in files.inputs else {"MUL": 14, "EMBEDDING_LOOKUP": 1})
    found = Counter((op.op, op.version) for op in ops if op.inputs[-1] == "INT8" or "INT8" in op.inputs)
    if "image" in files.inputs:  # the classifier is the only layer of its kind
        assert found == {("DEQUANTIZE", 5): 37, ("FULLY_CONNECTED", 12 if per_channel else 5): 1}
    else:
        layer, table = (12, 4) if per_channel else (5, 1)
        assert found[("FULLY_CONNECTED", layer)] == 13 and found[("EMBEDDING_LOOKUP", table)] >= 1
        assert set(found) == {("FULLY_CONNECTED", layer), ("EMBEDDING_LOOKUP", table)}
    assert [entry.name for entry in model.metadata] == [entry.name for entry in before.metadata]
    assert tflite_file.inputs(model) == tflite_file.inputs(before)
    assert tflite_file.output_shape(model) == tflite_file.output_shape(before)
    assert all(not buffer.offset for buffer in model.buffers)


def test_one_scale_a_tensor_loses_no_more_than_one_a_row(tmp_path: Path) -> None:
    """Rows that differ by a factor of a hundred, as trained layers and tables have them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(200, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Embedding | nn.Linear):
                layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight))[:, None])
    content = tflite._translate(net.eval(), token_inputs(8, token_types=False)[:1], "float32")
    ids = torch.randint(0, 200, (50, 8), generator=torch.Generator().manual_seed(1))
    expected = net(ids).detach().numpy()
    inputs = {info: ids.numpy().astype(np.int32) for info in tflite_file.inputs(tflite_file.read(content))}
    errors = [
        np.abs(logits_of(tflite_dynamic(content, per_channel=flag), "tflite", inputs, tmp_path) - expected).mean((0, 1))
        for flag in (True, False)
    ]
    assert (errors[1] < 1.5 * errors[0]).all(), errors


def test_float_ops_of_tflite_are_all_there_with_reasons(files: Float32Files) -> None:
    content = tflite_dynamic(files.tflite, per_channel=True)
    ops = tflite_float_ops(content)
    counts = Counter(op["op"] for op in ops)
    given = Counter(op.op for op in tflite_file.operations(tflite_file.read(files.tflite)))
    arithmetic = set(given) - {"RESHAPE", "TRANSPOSE", "SLICE", "PAD", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"}
    assert {op: counts[op] for op in arithmetic} == {op: given[op] for op in arithmetic}
    reasons = Counter(op["reason"].partition(":")[0] for op in ops if op["op"] in ("CONV_2D", "FULLY_CONNECTED"))
    if given["CONV_2D"]:
        assert set(reasons) == {"weights are int8, and unfolded when the file is loaded", _FEW}
    else:
        assert reasons == {_FEW: 1}
        assert {op["reason"] for op in ops if op["op"] == "BATCH_MATMUL"} == {
            "both factors are computed while the net runs"
        }


def test_nodes_without_names_and_products_that_cannot_be_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "plain"], ["a"]),
        helper.make_node("Gemm", ["a", "plain", "biases"], ["b"], alpha=0.5),
        helper.make_node("MatMul", ["b", "cube"], ["c"]),
        helper.make_node("Conv", ["c", "kernel"], ["d"], kernel_shape=[1, 1]),
        helper.make_node("Conv", ["c", "kernel"], ["e"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    values = {
        "plain": rng.normal(size=(32, 32)),
        "biases": rng.normal(size=32),
        "cube": rng.normal(size=(1, 32, 32, 32)),
        "kernel": np.where(
            np.arange(64)[:, None, None, None] == 3, 0, rng.normal(size=(64, 32, 1, 1))
        ),  # a dead channel
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    made = onnx_dynamic(given)
    onnx.checker.check_model(made, full_check=True)
    counts = layers(made)
    assert (counts["MatMulInteger"], counts["Gemm"], counts["MatMul"], counts["Conv"]) == (1, 1, 1, 2)
    reasons = {op["name"]: op["reason"] for op in onnx_float_ops(made)}
    assert set(reasons) == {"b", "c", "d", "e", "y"}
    assert "no form" in reasons["b"] and "no form" in reasons["c"] and reasons["d"] == reasons["e"]
    x = rng.normal(size=(32, 32)).astype(np.float32)
    expected, found = (_run(m, x) for m in (given, made))
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()
    assert sum(t.name.startswith("kernel") and t.data_type == TensorProto.INT8 for t in made.graph.initializer) == 1


def _run(model: onnx.ModelProto, x: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_nothing_is_printed_and_no_file_left(
    files: Float32Files, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    onnx_dynamic(onnx.load_from_string(files.onnx))
    tflite_dynamic(files.tflite, per_channel=True)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
