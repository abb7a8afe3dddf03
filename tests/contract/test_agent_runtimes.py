"""The runtimes behind the one session that host and device share, with real models."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.agent_tools import METADATA, make_onnx, make_tflite

from kdedge_agent import runtimes
from kdedge_agent.onnx_session import exact_here, exact_options
from kdedge_agent.runtimes import RuntimeMissing, RuntimeRefused

MAKERS: list[tuple[str, Any]] = [("onnx", make_onnx), ("tflite", make_tflite)]


@pytest.fixture(params=MAKERS, ids=["onnx", "tflite"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> runtimes.Session:
    kind, make = request.param
    return runtimes.load(str(make(tmp_path / f"m.{kind}")), kind)


def test_describes_itself(session: runtimes.Session) -> None:
    assert session.name in ("onnxruntime", "ai-edge-litert")
    assert session.version[0].isdigit()
    assert "CPU" in session.provider
    assert session.threads == 1
    assert session.load_s > 0
    assert session.options == session.described()["options"] == (exact_here() if session.name == "onnxruntime" else {})
    document = session.metadata()
    assert document is not None
    assert document["labels"] == METADATA["labels"]


def test_int8_tensors_carry_their_scale(tmp_path: Path) -> None:
    loaded = runtimes.load(str(make_tflite(tmp_path / "m.tflite")), "tflite")
    (image,), (logits,) = loaded.inputs, loaded.outputs
    assert (image.shape, image.dtype, image.zero_point) == ((1, 8, 8, 3), "int8", -3)
    assert image.scale == pytest.approx(0.05)
    assert (logits.shape, logits.dtype, logits.zero_point, logits.scale) == ((1, 4), "int8", 7, 0.25)


@pytest.mark.parametrize(
    ("machine", "features", "asked"),
    [
        ("x86_64", "fpu avx2 fma", True),
        ("x86_64", "fpu avx2 avx512f avx512bw", True),
        ("x86_64", None, True),
        ("AMD64", None, True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("aarch64", "fp asimd asimddp", False),
    ],
)
def test_exact_products_are_asked_for_where_the_usual_ones_clip(
    machine: str, features: str | None, asked: bool
) -> None:
    assert exact_options(machine, features) == ({"session.x64quantprecision": "1"} if asked else {})


def test_sums_of_large_int8_products_do_not_clip(tmp_path: Path) -> None:
    # 2 · 255 · 127 needs 17 bits: x86 processors without VNNI clip it unless they are told not to.
    inputs, weights = 64, np.full((4, 64), 127, np.int8)
    values = {
        "scale": np.float32(1), "zero": np.uint8(0), "weight": weights, "weight_zero": np.int8(0),
        "bias": np.zeros(4, np.int32), "made": np.float32(inputs * 127),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dx"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "weight_zero"], ["dw"]),
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["db"]),
        helper.make_node("Gemm", ["dx", "dw", "db"], ["y"], transB=1),
        helper.make_node("QuantizeLinear", ["y", "made", "zero"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "made", "zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    session = runtimes.load(str(tmp_path / "m.onnx"), "onnx")
    session.set_inputs([np.full((1, inputs), 255, np.float32)])
    session.invoke()
    assert session.get_outputs()[0].tolist() == [[255.0 * inputs * 127] * 4]


def test_float_tensors_carry_none_and_free_dimensions_are_marked(tmp_path: Path) -> None:
    (image,) = runtimes.load(str(make_onnx(tmp_path / "m.onnx")), "onnx").inputs
    assert (image.shape, image.dtype, image.scale, image.zero_point) == ((-1, 3, 8, 8), "float32", None, None)


def test_run_is_set_invoke_get(session: runtimes.Session) -> None:
    from kdedge_agent.tensors import random_inputs

    inputs = random_inputs(session, 1)
    outputs = session.run(inputs)
    session.set_inputs(inputs)
    session.invoke()
    assert (session.get_outputs()[0] == outputs[0]).all()
    assert outputs[0].dtype.name == session.outputs[0].dtype


def test_outputs_are_copies(session: runtimes.Session) -> None:
    from kdedge_agent.tensors import random_inputs

    first = session.run(random_inputs(session, 1))[0]
    kept = first.copy()
    session.run(random_inputs(session, 2))
    assert (first == kept).all()


def test_free_batch_sizes_follow_each_other(tmp_path: Path) -> None:
    session = runtimes.load(str(make_onnx(tmp_path / "m.onnx")), "onnx")
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    whole = session.run([images])[0]
    for size in (2, 5, 1):
        np.testing.assert_allclose(session.run([images[:size]])[0], whole[:size], rtol=1e-5)


@pytest.mark.parametrize("wrong", ["dtype", "shape", "count"])
def test_inputs_that_do_not_fit_are_refused_with_both_sides_named(session: runtimes.Session, wrong: str) -> None:
    from kdedge_agent.tensors import random_inputs

    (good,) = random_inputs(session, 0)
    bad = {"dtype": [good.astype(np.float64)], "shape": [good[..., :-1]], "count": [good, good]}[wrong]
    with pytest.raises(RuntimeRefused, match="given"):
        session.run(bad)


@pytest.mark.parametrize(("kind", "make"), MAKERS)
@pytest.mark.parametrize("damage", ["half", "empty", "junk", "foreign", "missing"])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, kind: str, make: Any, damage: str) -> None:
    path = tmp_path / f"bad.{kind}"
    whole = make(tmp_path / f"good.{kind}").read_bytes()
    other = make_tflite(tmp_path / "o.tflite") if kind == "onnx" else make_onnx(tmp_path / "o.onnx")
    content = {"half": whole[: len(whole) // 2], "empty": b"", "junk": b"no model " * 50, "foreign": other.read_bytes()}
    if damage in content:
        path.write_bytes(content[damage])
    with pytest.raises(RuntimeRefused) as caught:
        runtimes.load(str(path), kind)
    assert "\n" not in caught.value.what
    assert f"bad.{kind}" in caught.value.what
    assert caught.value.cure


def test_an_artifact_without_our_metadata_has_none(tmp_path: Path) -> None:
    import onnx

    path = make_onnx(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    assert runtimes.load(str(path), "onnx").metadata() is None
    assert runtimes.load(str(make_tflite(tmp_path / "m.tflite", metadata={})), "tflite").metadata() is None


def test_which_runtimes_are_here() -> None:
    assert runtimes.installed("onnx") == ["onnxruntime"]
    assert "ai-edge-litert" in runtimes.installed("tflite")
    assert runtimes.choose("tflite") == runtimes.installed("tflite")[0]


def test_unknown_formats_and_runtimes_are_refused(tmp_path: Path) -> None:
    path = str(make_onnx(tmp_path / "m.onnx"))
    with pytest.raises(RuntimeRefused, match="format 'pickle'"):
        runtimes.load(path, "pickle")
    with pytest.raises(RuntimeRefused, match="ai-edge-litert opens no onnx"):
        runtimes.load(path, "onnx", "ai-edge-litert")


def test_a_runtime_that_is_not_here_is_missing_and_the_cure_names_it() -> None:
    if "tflite-runtime" in runtimes.installed("tflite"):
        pytest.skip("tflite-runtime is installed here: nothing is missing")
    with pytest.raises(RuntimeMissing, match="tflite-runtime is not installed") as caught:
        runtimes.choose("tflite", "tflite-runtime")
    assert "pip install tflite-runtime" in caught.value.cure


def test_a_tflite_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Not only by the newest runtime, which checks files itself: older ones read beyond the end."""
    whole = make_tflite(tmp_path / "m.tflite").read_bytes()
    cut = tmp_path / "cut.tflite"
    for length in range(1, int(0.97 * len(whole)), 61):
        cut.write_bytes(whole[:length])
        with pytest.raises(RuntimeRefused, match=r"cut\.tflite is no model"):
            runtimes.load(str(cut), "tflite")


def test_tflite_runtime_beside_a_new_numpy_is_missing_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boundary that is faked: a module by that name, as the real one is there imported beside numpy 2."""
    monkeypatch.setitem(sys.modules, "tflite_runtime", ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", ModuleType("tflite_runtime.interpreter"))
    with pytest.raises(RuntimeMissing, match=f"does not work with numpy {np.__version__}") as caught:
        runtimes.choose("tflite", "tflite-runtime")
    assert "numpy<2" in str(caught.value)


def test_metadata_of_a_large_file_costs_no_memory(tmp_path: Path) -> None:
    """The file is mapped: reading the metadata of 40 MB takes far less than 40 MB."""
    import tracemalloc

    from kdedge_agent.tflite_session import read_file_metadata

    path = make_tflite(tmp_path / "large.tflite", inputs=1_000_000, outputs=40)
    tracemalloc.start()
    found = read_file_metadata(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "kdedge" in found
    assert peak < 4 << 20
