from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from kdedge.bundle import Bundle
from kdedge.errors import ArtifactError
from onnx import TensorProto, helper, numpy_helper
from tests import bundles, warm

from kdedge_exporters import export
from kdedge_exporters.inspection import Inspection, Step, inspect_artifact, is_integer, peak_bytes

SIZE = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("net") / "bundle", size=SIZE, steps=2, model="tests.small_nets:Mobile")


@pytest.fixture(scope="module")
def found(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Inspection]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        (kind, precision): inspect_artifact(
            export(bundle, kind, precision=precision, out=folder / f"{precision}.{kind}", samples=None).artifact
        )
        for kind in ("onnx", "tflite")
        for precision in ("int8", "float32")
    }


def test_both_formats_count_the_same_arithmetic(found: dict[tuple[str, str], Inspection], bundle: Bundle) -> None:
    counts = {inspection.contents.macs for inspection in found.values()}
    assert len(counts) == 1
    weights = sum(p.numel() for p in bundle.float_student().parameters())
    for (kind, precision), inspection in found.items():
        assert inspection.contents.integer_macs_share == (1.0 if precision == "int8" else 0.0), (kind, precision)
        assert not inspection.contents.unmeasured
        assert inspection.runtimes[0].opens
        # Batch norms are folded into weights and biases, so there are fewer numbers than in the net.
        assert 0.9 * weights < inspection.contents.parameters < weights


def test_integers_are_a_quarter_of_floats(found: dict[tuple[str, str], Inspection]) -> None:
    for kind in ("onnx", "tflite"):
        int8, float32 = (found[kind, precision].contents for precision in ("int8", "float32"))
        assert int8.parameter_bytes < 0.3 * float32.parameter_bytes
        assert int8.peak_activation_bytes is not None
        assert float32.peak_activation_bytes is not None
        # The float image at the border is all that int8 files hold beside their integers.
        assert int8.peak_activation_bytes < 0.5 * float32.peak_activation_bytes


def test_inputs_outputs_and_metadata_are_the_files(found: dict[tuple[str, str], Inspection], bundle: Bundle) -> None:
    onnx_file, tflite = found["onnx", "int8"].contents, found["tflite", "int8"].contents
    assert [(t.name, t.dtype, t.shape) for t in onnx_file.inputs] == [("image", "float32", (None, 3, SIZE, SIZE))]
    assert [(t.name, t.dtype, t.shape) for t in tflite.inputs] == [("image", "float32", (1, SIZE, SIZE, 3))]
    for contents in (onnx_file, tflite):
        assert contents.metadata["kdedge"]["labels"] == list(bundle.labels)
        assert contents.producer.startswith("kdedge ")


def test_a_file_of_another_tool(tmp_path: Path) -> None:
    """A convolution and a product that stay float, an open height, no metadata."""
    weights = np.zeros((4, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["z"]),
    ]
    path = tmp_path / "other.onnx"

    def write(shape: list[str | int]) -> None:
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5])],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros((4, 5), np.float32), "m")],
        )  # fmt: skip
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))

    write(["batch", 3, 8, 10])
    contents = inspect_artifact(path).contents
    assert contents.macs == 8 * 10 * 4 * 27 + 4 * 5
    assert contents.integer_macs_share == 0.0
    assert contents.parameters == 4 * 27 + 20
    assert contents.peak_activation_bytes == 4 * (3 * 80 + 4 * 80 + 4 + 5)  # while the pool runs
    assert contents.versions == {"ir": 8, "ai.onnx": 17}
    assert contents.metadata == {}
    write(["batch", 3, "height", 10])
    open_ = inspect_artifact(path).contents
    assert open_.macs is None
    assert set(open_.unmeasured) == {"macs", "peak_activation_bytes"}


def test_peak_of_a_graph_worked_out_by_hand() -> None:
    steps = [Step(["x"], ["a"]), Step(["a"], ["b"]), Step(["a", "b"], ["c"]), Step(["c"], ["z"])]
    sizes: dict[object, int | None] = {"x": 1, "a": 10, "b": 20, "c": 5, "z": 2}
    assert peak_bytes(steps, sizes, ["x", "z"]) == 1 + 2 + 10 + 20 + 5
    assert peak_bytes(steps, {**sizes, "b": None}, ["x"]) is None


def test_dtypes_in_words() -> None:
    assert is_integer("int8")
    assert is_integer("uint8×int8")
    assert not is_integer("float32×int8")
    assert not is_integer("bfloat16")


@pytest.mark.parametrize(("name", "content"), [("a.onnx", b"no graph"), ("a.tflite", b"no model"), ("a.onnx", b"")])
def test_what_is_no_artifact_is_said_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    done = warm.run(["inspect", tmp_path / name, "--json"])
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["where"].endswith(name)
    assert len(done.stderr.splitlines()) == 1


def test_a_cut_file_is_damaged(found: dict[tuple[str, str], Inspection], tmp_path: Path) -> None:
    for kind in ("onnx", "tflite"):
        whole = found[kind, "int8"].path.read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError, match=r"damaged|no graph"):
            inspect_artifact(tmp_path / f"cut.{kind}")


def test_the_command_shows_it(found: dict[tuple[str, str], Inspection]) -> None:
    path = found["tflite", "int8"].path
    done = warm.run(["inspect", path])
    assert done.returncode == 0, done.stderr
    for word in ("CONV_2D", "100.00%", "image", "ai-edge-litert", "metadata     kdedge"):
        assert word in done.stdout
