"""What inspect makes of .onnx files that other tools write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests import warm

from kdedge_exporters.inspection import Contents, contents
from kdedge_exporters.reach import oldest_versions

IMAGE = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
LOGITS = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5])
WEIGHTS = {
    "w": np.ones((4, 3, 3, 3), np.float32),
    "b": np.zeros(4, np.float32),
    "m": np.ones((4, 5), np.float32),
}
CONV = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])
TAIL = [
    helper.make_node("Relu", ["y"], ["r"]),
    helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    helper.make_node("Flatten", ["p"], ["f"]),
    helper.make_node("Gemm", ["f", "m"], ["z"]),
]
MACS, PARAMETERS = 8 * 8 * 4 * 27 + 4 * 5, 4 * 27 + 4 + 20


def written(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (IMAGE,),
    outputs: Sequence[onnx.ValueInfoProto] = (LOGITS,),
    arrays: dict[str, Any] = WEIGHTS,
    domains: Sequence[str] = (),
    opset: int = 17,
    ir_version: int = 8,
    **more: Any,
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=ir_version, **more), str(path))
    return path


def read(path: Path) -> Contents:
    return contents(path, "onnx")


def constants(arrays: dict[str, Any]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array), name))
        for name, array in arrays.items()
    ]


def test_functions_of_the_file_are_counted_by_what_is_in_them(tmp_path: Path) -> None:
    block = helper.make_function("own", "Block", ["x", "w", "b"], ["y"], [CONV], [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Block", ["x", "w", "b"], ["y"], domain="own"), *TAIL]
    found = read(written(tmp_path / "a.onnx", nodes, domains=["own"], functions=[block]))
    assert found.macs == MACS
    assert not found.unmeasured and found.domains == ()


def test_a_file_that_onnx_runtime_optimised_is_counted_like_the_one_before(tmp_path: Path) -> None:
    source, optimised = written(tmp_path / "a.onnx", [CONV, *TAIL]), tmp_path / "b.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    found = read(optimised)
    assert "FusedConv" in {kind.op for kind in found.ops}
    assert found.macs == MACS and found.peak_activation_bytes is not None


@pytest.mark.parametrize(
    ("op", "attributes", "left", "right"),
    [
        ("FusedMatMul", {}, [7, 4], [4, 5]),
        ("FusedMatMul", {"transA": 1, "transB": 1}, [4, 7], [5, 4]),
        ("FusedGemm", {"transB": 1}, [7, 4], [5, 4]),
    ],
)
def test_fused_products_are_counted(
    op: str, attributes: dict[str, Any], left: list[int], right: list[int], tmp_path: Path
) -> None:
    node = helper.make_node(op, ["x", "m"], ["z"], domain="com.microsoft", **attributes)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, left)
    logits = helper.make_tensor_value_info("z", TensorProto.FLOAT, [7, 5])
    arrays = {"m": np.ones(right, np.float32)}
    assert read(written(tmp_path / "a.onnx", [node], [image], [logits], arrays, ["com.microsoft"])).macs == 7 * 4 * 5


def test_shapes_that_the_file_states_behind_ops_of_other_domains_are_believed(tmp_path: Path) -> None:
    node = helper.make_node("QLinearAdd", ["x", "s", "n", "x", "s", "n", "s", "n"], ["q"], domain="com.microsoft")
    product = helper.make_node("MatMulInteger", ["q", "m"], ["z"])
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 4])
    logits = helper.make_tensor_value_info("z", TensorProto.INT32, ["batch", 5])
    arrays = {"s": np.float32(0.1), "n": np.uint8(0), "m": np.ones((4, 5), np.int8)}
    path = written(tmp_path / "a.onnx", [node, product], [image], [logits], arrays, ["com.microsoft"])
    model = onnx.load(str(path))
    model.graph.value_info.append(helper.make_tensor_value_info("q", TensorProto.UINT8, ["batch", 4]))
    onnx.save(model, str(path))
    found = read(path)
    assert found.macs == 20 and found.integer_macs_share == 1.0


@pytest.mark.parametrize("domain", ["com.microsoft", "my.ops"])
def test_ops_that_are_not_known_leave_the_sum_unknown(domain: str, tmp_path: Path) -> None:
    nodes = [CONV, helper.make_node("Magic", ["y"], ["z"], domain=domain)]
    found = read(written(tmp_path / "a.onnx", nodes, domains=[domain]))
    assert found.macs is None and found.integer_macs_share is None
    assert found.unmeasured["macs"] == "not known for Magic"
    (reach,) = oldest_versions(found, "onnx")
    assert reach.oldest == (None if domain == "my.ops" else "1.15")
    assert reach.obstacles == (("it has no ops of my.ops",) if domain == "my.ops" else ())


def test_a_domain_that_no_op_is_of_hinders_nobody(tmp_path: Path) -> None:
    (reach,) = oldest_versions(read(written(tmp_path / "a.onnx", [CONV, *TAIL], domains=["my.ops"])), "onnx")
    assert reach.oldest == "1.15"


def test_branches_are_listed(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Gemm", ["f", "m"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5])],
        )
        for name in ("then", "else")
    }
    nodes = [CONV, *TAIL[:3], helper.make_node("If", ["c"], ["z"], **branches)]
    found = read(written(tmp_path / "a.onnx", nodes, [IMAGE, helper.make_tensor_value_info("c", TensorProto.BOOL, [])]))
    assert {kind.op: kind.count for kind in found.ops}["Gemm"] == 2
    assert found.macs is None and found.peak_activation_bytes is None
    assert set(found.unmeasured) == {"macs", "peak_activation_bytes"}
    assert found.parameters == PARAMETERS


def test_weights_in_constant_nodes_are_parameters(tmp_path: Path) -> None:
    plain = read(written(tmp_path / "a.onnx", [CONV, *TAIL]))
    found = read(written(tmp_path / "b.onnx", [*constants(WEIGHTS), CONV, *TAIL], arrays={}))
    assert found == plain
    assert found.parameters == PARAMETERS


@pytest.mark.parametrize("as_nodes", [False, True])
def test_scales_in_constant_nodes_leave_a_convolution_an_integer_one(as_nodes: bool, tmp_path: Path) -> None:
    arrays = {
        "s": np.float32(0.05), "n": np.uint8(128), "q": np.ones((4, 3, 3, 3), np.int8), "t": np.float32(0.01),
        "o": np.int8(0), "b": np.zeros(4, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "n"], ["i"]),
        helper.make_node("DequantizeLinear", ["i", "s", "n"], ["d"]),
        helper.make_node("DequantizeLinear", ["q", "t", "o"], ["w"]),
        helper.make_node("Conv", ["d", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "s", "n"], ["j"]),
        helper.make_node("DequantizeLinear", ["j", "s", "n"], ["z"]),
    ]
    map_ = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4, 8, 8])
    given = {"arrays": {}, "nodes": [*constants(arrays), *nodes]} if as_nodes else {"arrays": arrays, "nodes": nodes}
    found = read(written(tmp_path / "a.onnx", outputs=[map_], **given))
    assert found.integer_macs_share == 1.0
    assert (found.parameters, found.parameter_bytes) == (112, 4 * 27 + 4 * 4)


def test_strings_have_no_size(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "m"], ["g"]),
        helper.make_node("ArgMax", ["g"], ["i"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "i"], ["z"]),
    ]
    features = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    labels = helper.make_tensor_value_info("z", TensorProto.STRING, ["n"])
    arrays = {"m": WEIGHTS["m"], "names": np.array(list("abcde"), object)}
    found = read(written(tmp_path / "a.onnx", nodes, [features], [labels], arrays))
    assert found.macs == 20
    assert found.peak_activation_bytes is None
    assert "strings" in found.unmeasured["peak_activation_bytes"]


def test_initialisers_that_old_files_list_as_inputs_are_none(tmp_path: Path) -> None:
    repeated = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(a.shape)) for name, a in WEIGHTS.items()]
    path = written(tmp_path / "a.onnx", [CONV, *TAIL], [IMAGE, *repeated], opset=8, ir_version=3)
    found = read(path)
    assert [source.name for source in found.inputs] == ["x"]
    assert (found.macs, found.parameters) == (MACS, PARAMETERS)


def test_floats_that_another_op_reads_too_are_in_memory(tmp_path: Path) -> None:
    arrays = {
        "s": np.float32(0.05), "n": np.uint8(128), "q": np.ones((8, 8, 1, 1), np.int8), "t": np.float32(0.01),
        "o": np.int8(0),
    }  # fmt: skip
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 8, 32, 32])
    outputs = [
        helper.make_tensor_value_info("j", TensorProto.UINT8, [1, 8, 32, 32]),
        helper.make_tensor_value_info("e", TensorProto.FLOAT, [1, 8, 32, 32]),
    ]

    def peak(read_by_erf: str) -> int | None:
        nodes = [
            *(
                helper.make_node("DequantizeLinear", ["x", "s", "n"], [name])
                for name in dict.fromkeys(["d", read_by_erf])
            ),
            helper.make_node("DequantizeLinear", ["q", "t", "o"], ["w"]),
            helper.make_node("Erf", [read_by_erf], ["e"]),
            helper.make_node("Conv", ["d", "w"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "s", "n"], ["j"]),
        ]
        return read(written(tmp_path / "a.onnx", nodes, [image], outputs, arrays)).peak_activation_bytes

    values = 8 * 32 * 32
    assert peak("d") == peak("d2") == (1 + 1 + 4 + 4) * values


def test_the_command_says_for_which_batch_its_figures_are(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 3, 8, 8])
    logits = helper.make_tensor_value_info("z", TensorProto.FLOAT, [8, 5])
    path = written(tmp_path / "a.onnx", [CONV, *TAIL], [image], [logits])
    assert (read(path).batch, read(path).macs) == (8, 8 * MACS)
    assert read(written(tmp_path / "b.onnx", [CONV, *TAIL])).batch == 1
    assert "multiply-accumulates (batch 8)" in warm.run(["inspect", path]).stdout


def test_metadata_that_hold_no_json_stay_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", [CONV, *TAIL])
    model = onnx.load(str(path))
    helper.set_model_props(model, {"info": '{"loss": NaN}', "more": '{"loss": 1}'})
    onnx.save(model, str(path))
    assert read(path).metadata == {"info": '{"loss": NaN}', "more": {"loss": 1}}
    assert warm.run(["inspect", path, "--json"]).returncode == 0
