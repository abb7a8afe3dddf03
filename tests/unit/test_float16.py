"""float16 from float32: half the bytes, the same answers, and nothing lost of what float16 cannot hold."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.float32_files import NETS, Float32Files, agreement, logits_of

from kdedge_exporters import tflite_file
from kdedge_exporters.float16 import onnx_float16, onnx_float32_ops, tflite_float16, tflite_float32_ops

F = np.float32
X = np.linspace(-2, 2, 16, dtype=F).reshape(2, 8)
node = helper.make_node


@pytest.fixture(scope="module", params=NETS)
def files(request: pytest.FixtureRequest, float32_files: Callable[[str], Float32Files]) -> Float32Files:
    return float32_files(request.param)


def graph(nodes: Sequence[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """A model x float32 [2, 8] -> y of some nodes, which have no names."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="test")
    onnx.checker.check_model(model, full_check=True)
    return model


def in_runtime(model: onnx.ModelProto, x: Any) -> Any:
    """In ONNX Runtime, which computes most of it in float32 whatever the file says."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def in_reference(model: onnx.ModelProto, x: Any) -> Any:
    """As the standard has it: in numpy's float16 from op to op."""
    with np.errstate(all="ignore"):
        (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    return found


def masked() -> onnx.ModelProto:
    """softmax(x + (1 - mask) · -1e9), as transformers' masks are."""
    nodes = [
        node("Sub", ["one", "mask"], ["hidden"]),
        node("Mul", ["hidden", "large"], ["bias"]),
        node("Unsqueeze", ["bias", "axes"], ["row"]),
        node("Add", ["x", "row"], ["scores"]),
        node("Softmax", ["scores"], ["chances"]),
        node("Mul", ["chances", "one"], ["y"]),
    ]
    mask = np.asarray([1, 1, 1, 0, 0, 0, 0, 0], F)
    return graph(nodes, one=F(1), mask=mask, large=F(-1e9), axes=np.asarray([0]))


def all_masked() -> onnx.ModelProto:
    """A row of which nothing is attended to: -inf everywhere would make it NaN."""
    model = masked()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, F), "mask"))
    return model


def layer_norm_of_parts() -> onnx.ModelProto:
    """x / sqrt(mean(x²) - mean(x)² + 1e-12), as older exporters write a layer norm."""
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Pow", ["centred", "two"], ["squares"]),
        node("ReduceMean", ["squares", "axes"], ["variance"]),
        node("Add", ["variance", "epsilon"], ["positive"]),
        node("Sqrt", ["positive"], ["deviation"]),
        node("Div", ["centred", "deviation"], ["y"]),
    ]
    return graph(nodes, axes=np.asarray([1]), two=F(2), epsilon=F(1e-12))


def normalised() -> onnx.ModelProto:
    """torch.nn.functional.normalize: x / max(|x|, 1e-12)."""
    nodes = [
        node("ReduceL2", ["x", "axes"], ["norm"]),
        node("Clip", ["norm", "epsilon"], ["positive"]),
        node("Div", ["x", "positive"], ["y"]),
    ]
    return graph(nodes, axes=np.asarray([1]), epsilon=F(1e-12))


def root_mean_square() -> onnx.ModelProto:
    """x · 1/sqrt(mean(x·x) + 1e-6)."""
    nodes = [
        node("Mul", ["x", "x"], ["squares"]),
        node("ReduceMean", ["squares", "axes"], ["mean"]),
        node("Add", ["mean", "epsilon"], ["positive"]),
        node("Sqrt", ["positive"], ["root"]),
        node("Reciprocal", ["root"], ["inverse"]),
        node("Mul", ["x", "inverse"], ["y"]),
    ]
    return graph(nodes, axes=np.asarray([1]), epsilon=F(1e-6))


def large_weights() -> onnx.ModelProto:
    """Weights of a million, taken back by weights of a millionth."""
    nodes = [
        node("MatMul", ["x", "up"], ["far"]),
        node("MatMul", ["far", "down"], ["near"]),
        node("Tanh", ["near"], ["y"]),
    ]
    return graph(nodes, up=np.eye(8, dtype=F) * F(1e6), down=np.eye(8, dtype=F) * F(1e-6))


CASES: dict[str, tuple[Any, Any]] = {
    "mask": (masked, X),
    "all masked": (all_masked, X),
    "layer norm": (layer_norm_of_parts, 1000 * X),
    "layer norm of equal values": (layer_norm_of_parts, np.asarray([[3.0] * 8, [0.0] * 8], F)),
    "normalise": (normalised, np.asarray([[0.0] * 8, [300.0] * 8], F)),
    "root mean square": (root_mean_square, np.asarray([[1e-4] * 8, [1000.0] * 8], F)),
    "weights": (large_weights, X),
}


@pytest.mark.parametrize("case", CASES)
def test_what_float16_cannot_hold_stays_in_float32(case: str) -> None:
    make, x = CASES[case]
    model = make()
    expected = in_runtime(model, x)
    converted = onnx_float16(model)
    onnx.checker.check_model(converted, full_check=True)
    for found in (in_runtime(converted, x), in_reference(converted, x)):
        assert found.dtype == np.float32 and np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("case", ["layer norm", "normalise", "weights"])
def test_the_converter_alone_loses_it(case: str) -> None:
    """Or these tests would prove nothing. It saves the others by what it makes of constants: -65504 and 6e-08."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    make, x = CASES[case]
    found = in_reference(_sorted(convert_float_to_float16(make(), keep_io_types=True, op_block_list=[])), x)
    assert not np.allclose(found, in_reference(make(), x), rtol=4e-3, atol=4e-3)


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir

    copy = ir.from_proto(model)
    copy.graph.sort()
    return ir.to_proto(copy)


def test_kept_ops_are_named_with_their_reasons() -> None:
    kept = {op["name"]: (op["op"], op["reason"]) for op in onnx_float32_ops(masked())}
    assert list(kept) == ["bias", "row", "scores", "chances"]
    assert kept["bias"] == ("Mul", "a constant of 1e+09 is beyond float16's 65504")
    assert "bias" in kept["scores"][1] and kept["chances"][0] == "Softmax"
    kept = {op["name"]: (op["op"], op["reason"]) for op in onnx_float32_ops(layer_norm_of_parts())}
    assert set(kept) == {"mean", "squares", "variance", "positive", "deviation", "y"}  # but not the subtraction
    assert "sums before it divides" in kept["mean"][1] and "powers" in kept["squares"][1]
    kept = {op["name"]: (op["op"], op["reason"]) for op in onnx_float32_ops(large_weights())}
    assert kept["far"] == ("MatMul", "a constant of 1e+06 is beyond float16's 65504")
    assert "far" in kept["near"][1] and kept["y"][0] == "Tanh"


def test_ordinary_constants_keep_nothing_in_float32() -> None:
    nodes = [
        node("Clip", ["x", "low", "high"], ["a"]),  # bounds that bound nothing
        node("Add", ["a", "biases"], ["b"]),  # biases so small that they do not matter
        node("Where", ["hidden", "infinite", "b"], ["c"]),
        node("Softmax", ["c"], ["y"]),
    ]
    bounds = {"low": F(0), "high": F(3.4e38), "biases": np.full(8, 1e-6, F), "infinite": F(-np.inf)}
    model = graph(nodes, hidden=np.asarray([True] + [False] * 7), **bounds)
    assert onnx_float32_ops(model) == []
    converted = onnx_float16(model)
    assert Counter(n.op_type for n in converted.graph.node)["Cast"] == 2
    np.testing.assert_allclose(in_reference(converted, X), in_runtime(model, X), atol=2e-3)


def test_layer_normalization_computes_in_float32_by_the_standard() -> None:
    """So its epsilon, an attribute of 1e-12, and squares beyond 65504 do no harm: seen in ONNX Runtime."""
    nodes = [node("LayerNormalization", ["x", "scale"], ["y"], epsilon=1e-12)]
    model = graph(nodes, scale=np.ones(8, F))
    x = np.asarray([[3.0] * 8, np.linspace(-3000, 3000, 8)], F)
    converted = onnx_float16(model)
    assert onnx_float32_ops(model) == []
    np.testing.assert_allclose(in_runtime(converted, x), in_runtime(model, x), rtol=2e-3, atol=2e-3)


def test_head_of_the_file_and_the_model_given_stay(files: Float32Files) -> None:
    model = onnx.load_from_string(files.onnx)
    before = model.SerializeToString(deterministic=True)
    converted = onnx_float16(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(converted, full_check=True)
    for name in ("opset_import", "metadata_props", "ir_version", "producer_name", "producer_version"):
        assert getattr(converted, name) == getattr(model, name), name
    assert converted.graph.input == model.graph.input and converted.graph.output == model.graph.output
    large = [t for t in converted.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 1]
    assert large == []


def test_half_the_size_and_the_same_answers(files: Float32Files, tmp_path: Path) -> None:
    converted = onnx_float16(onnx.load_from_string(files.onnx)).SerializeToString()
    for kind, before, after in (
        ("onnx", files.onnx, converted),
        ("tflite", files.tflite, tflite_float16(files.tflite)),
    ):
        assert 2 * files.weights < len(after) < 0.6 * len(before)
        found = logits_of(after, kind, files.inputs, tmp_path)
        assert agreement(found, files.logits) >= 0.99
        assert np.abs(found - files.logits).max() < 0.02 * np.abs(files.logits).max()


def test_same_input_same_bytes(files: Float32Files) -> None:
    model = onnx.load_from_string(files.onnx)
    assert onnx_float16(model).SerializeToString() == onnx_float16(model).SerializeToString()
    assert tflite_float16(files.tflite) == tflite_float16(files.tflite)


def test_tflite_weights_are_float16_and_ops_float32(files: Float32Files) -> None:
    model = tflite_file.read(tflite_float16(files.tflite))
    before = tflite_file.read(files.tflite)
    ops, old = tflite_file.operations(model), tflite_file.operations(before)
    unfolded = [op for op in ops if op.op == "DEQUANTIZE"]
    assert {(op.inputs, op.outputs, op.version) for op in unfolded} == {(("FLOAT16",), ("FLOAT32",), 3)}
    assert [op for op in ops if op.op != "DEQUANTIZE"] == old
    assert len(unfolded) == len(set(_weights(before)))
    assert [entry.name for entry in model.metadata] == [entry.name for entry in before.metadata]
    assert [(s.signatureKey, [i.name for i in s.inputs]) for s in model.signatureDefs] == [
        (s.signatureKey, [i.name for i in s.inputs]) for s in before.signatureDefs
    ]
    assert tflite_file.inputs(model) == tflite_file.inputs(before)


def _weights(model: Any) -> list[bytes]:
    graph_ = model.subgraphs[0]
    weighted = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "EMBEDDING_LOOKUP")
    pairs = zip(graph_.operators, tflite_file.operations(model), strict=True)
    return [graph_.tensors[operator.inputs[1]].name for operator, info in pairs if info.op in weighted]


def test_tflite_weights_beyond_float16_stay(float32_files: Callable[[str], Float32Files]) -> None:
    content, name = _with_large_weights(float32_files("mobilenet").tflite)
    (kept,) = tflite_float32_ops(content)
    assert kept["op"] == "FULLY_CONNECTED" and kept["name"] == "logits" and "reach 1e+06, beyond" in kept["reason"]
    model = tflite_file.read(tflite_float16(content))
    (tensor,) = [t for t in model.subgraphs[0].tensors if t.name == name]
    assert tensor.type == schema.TensorType.FLOAT32
    assert np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), F).max() == F(1e6)


def _with_large_weights(content: bytes) -> tuple[bytes, bytes]:
    """A weight of a million in the last layer; the file, and the tensor's name."""
    model = tflite_file.read(content)
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[-1].inputs[1]]
    values = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), F).copy()
    values[0] = 1e6
    model.buffers[tensor.buffer].data = values.view(np.uint8)
    return tflite_file.pack(model), tensor.name


def test_nothing_is_printed_and_no_file_left(
    files: Float32Files, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    onnx_float16(onnx.load_from_string(files.onnx))
    tflite_float16(files.tflite)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
