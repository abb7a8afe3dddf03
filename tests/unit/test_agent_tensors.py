from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from tests.agent_tools import METADATA, make_onnx, make_tflite

from kdedge_agent import tensors
from kdedge_agent.runtimes import RuntimeRefused, TensorInfo, load

INT8 = TensorInfo("x", (1, 4), "int8", 0.1, -3)
FLOAT = TensorInfo("x", (1, 4), "float32")


@given(st.floats(-12.0, 13.0))
def test_quantising_errs_by_half_a_step_at_most(value: float) -> None:
    stored = tensors.quantise(np.array([value], np.float32), INT8)
    assert stored.dtype == np.int8
    assert abs(float(tensors.dequantise(stored, INT8)[0]) - value) <= 0.05 + 1e-5


def test_quantising_saturates() -> None:
    assert tensors.quantise(np.array([-1e9, 1e9], np.float32), INT8).tolist() == [-128, 127]


def test_a_tensor_without_scale_is_cast() -> None:
    assert tensors.quantise(np.array([1.5], np.float32), FLOAT).tolist() == [1.5]
    assert tensors.dequantise(np.array([2.5], np.float16), FLOAT).dtype == np.float32


def test_layout_is_what_the_artifact_says() -> None:
    images = np.zeros((2, 3, 3, 3), np.float32)  # its shape alone would not tell
    images[0, 0, 1, 2] = 1
    info = TensorInfo("x", (1, 3, 3, 3), "float32")
    as_nhwc = tensors.to_layout(images, info, {"input": {"layout": "NHWC"}})
    assert as_nhwc[0, 1, 2, 0] == 1
    assert tensors.to_layout(images, info, {"input": {"layout": "NCHW"}})[0, 0, 1, 2] == 1


def test_layout_follows_the_shape_where_nothing_is_said() -> None:
    images = np.zeros((2, 3, 8, 8), np.float32)
    assert tensors.to_layout(images, TensorInfo("x", (1, 8, 8, 3), "float32"), None).shape == (2, 8, 8, 3)
    assert tensors.to_layout(images, TensorInfo("x", (-1, 3, 8, 8), "float32"), None).shape == (2, 3, 8, 8)


def test_pixels_are_normalised_by_the_artifacts_own_figures() -> None:
    pixels = np.full((1, 3, 2, 2), 255, np.uint8)
    values = tensors.normalise(pixels, METADATA)
    expected = [(1 - m) / s for m, s in zip((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), strict=True)]
    assert values[0, :, 0, 0].tolist() == pytest.approx(expected)
    with pytest.raises(RuntimeRefused, match="no mean and std"):
        tensors.normalise(pixels, {})


@pytest.mark.parametrize(("maker", "suffix"), [(make_onnx, "onnx"), (make_tflite, "tflite")])
def test_random_inputs_fit_and_repeat(tmp_path: Path, maker: Any, suffix: str) -> None:
    session = load(str(maker(tmp_path / f"m.{suffix}")), suffix)
    first, again = tensors.random_inputs(session, 3), tensors.random_inputs(session, 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert session.run(first)[0].shape == (1, 4)


def test_random_floats_are_standard_normal(tmp_path: Path) -> None:
    session = load(str(make_onnx(tmp_path / "m.onnx", batch=1, size=100)), "onnx")
    values = tensors.random_inputs(session, 11)[0].ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(float(np.corrcoef(values[:15000], values[15000:])[0, 1])) < 0.03


def test_random_int8_covers_its_range_evenly(tmp_path: Path) -> None:
    session = load(str(make_tflite(tmp_path / "m.tflite", inputs=65536)), "tflite")
    values = tensors.random_inputs(session, 11)[0]
    assert values.dtype == np.int8
    assert stats.chisquare(np.bincount(values.ravel().astype(int) + 128, minlength=256)).pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_fixed_batch_is_filled_up_and_cut(tmp_path: Path, count: int) -> None:
    fixed = load(str(make_onnx(tmp_path / "f.onnx", batch=4)), "onnx")
    free = load(str(make_onnx(tmp_path / "d.onnx")), "onnx")
    images = np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)
    got = tensors.logits(fixed, images, None)
    assert got.shape == (count, 4)
    np.testing.assert_allclose(got, tensors.logits(free, images, None), rtol=1e-5)


def test_int8_logits_are_the_layers_real_arithmetic(tmp_path: Path) -> None:
    """Against numpy: y = W·x in real numbers, up to the steps of input and output."""
    path = make_tflite(tmp_path / "m.tflite")
    session = load(str(path), "tflite")
    images = np.random.default_rng(0).normal(0, 0.5, (6, 3, 8, 8)).astype(np.float32)
    weights = np.random.default_rng(2).integers(-127, 128, (4, 192)) * 0.01
    stored = tensors.quantise(images.transpose(0, 2, 3, 1), session.inputs[0])
    real = tensors.dequantise(stored, session.inputs[0]).reshape(6, 192) @ weights.T
    np.testing.assert_allclose(tensors.logits(session, images, session.metadata()), real, atol=0.126 + 0.01)


def test_samples_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.raw"
    np.arange(24, dtype="<f4").tofile(path)
    assert tensors.read_samples(str(path), [2, 3, 2, 2], "float32")[1, 2, 1, 1] == 23
    with pytest.raises(RuntimeRefused, match="96 bytes"):
        tensors.read_samples(str(path), [3, 3, 2, 2], "float32")


def test_sizes_that_the_file_leaves_open_are_asked_for(tmp_path: Path) -> None:
    session = load(str(make_onnx(tmp_path / "m.onnx", size="s")), "onnx")
    with pytest.raises(
        RuntimeRefused, match=r"leaves sizes of its input x open \(\?x3x\?x\?\).*--input-shape x=Nx3xNxN"
    ):
        tensors.random_inputs(session, 0)
    for name in ("x", ""):
        assert tensors.random_inputs(session, 0, 1, {name: [2, 3, 16, 24]})[0].shape == (2, 3, 16, 24)
    assert tensors.batch_size(session, None, {"": [2, 3, 16, 24]}) == 2
    with pytest.raises(RuntimeRefused, match=r"does not fit.*takes .x3x.x."):
        tensors.random_inputs(session, 0, 1, {"x": [1, 4, 16, 24]})
    with pytest.raises(RuntimeRefused, match=r"names no input 'y'.*takes x"):
        tensors.random_inputs(session, 0, 1, {"y": [1, 3, 16, 24]})


def two_inputs(path: Path) -> np.ndarray[Any, Any]:
    """A model of fixed batch 2: logits = (ids * mask) @ weights, int64 [2, 4] each -> float32 [2, 3]; the weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [2, 4]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3])]
    graph = helper.make_graph(nodes, "two", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return weights


@pytest.mark.parametrize("count", [1, 2, 5])
def test_columns_go_to_the_inputs_of_their_names(tmp_path: Path, count: int) -> None:
    weights = two_inputs(tmp_path / "two.onnx")
    session = load(str(tmp_path / "two.onnx"), "onnx")
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(0, 9, (count, 4), np.int32), rng.integers(0, 2, (count, 4), np.int32)
    got = tensors.logits_of_columns(session, {"mask": mask, "ids": ids})
    np.testing.assert_allclose(got, (ids * mask) @ weights, rtol=1e-5)
    with pytest.raises(RuntimeRefused, match="no samples for the input mask"):
        tensors.logits_of_columns(session, {"ids": ids})
