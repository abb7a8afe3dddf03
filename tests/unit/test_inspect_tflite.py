"""What inspect makes of .tflite files as other tools write them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tests import bundles

from kdedge_exporters import export, tflite_file
from kdedge_exporters.inspection import Contents, contents
from kdedge_exporters.reach import oldest_versions


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    bundle = bundles.write(folder / "bundle", size=16, steps=2, model="mlp")
    return {
        precision: export(
            bundle, "tflite", precision=precision, out=folder / f"{precision}.tflite", samples=None
        ).artifact
        for precision in ("int8", "int8-dynamic", "float32")
    }


def changed(source: Path, path: Path, change: Any) -> Contents:
    model = tflite_file.read(source.read_bytes())
    change(model)
    path.write_bytes(tflite_file.pack(model))
    return contents(path, "tflite")


def test_dynamic_products_are_integer(files: dict[str, Path]) -> None:
    """Kernels of a float input and int8 weights quantise the input and multiply integers, as ONNX's MatMulInteger."""
    found = contents(files["int8-dynamic"], "tflite")
    macs = {kind.dtype: kind.macs for kind in found.ops if kind.op == "FULLY_CONNECTED"}
    share = (macs["float32×int8"] or 0) / (found.macs or 1)
    assert share > 0.9 and found.integer_macs_share == share
    assert contents(files["float32"], "tflite").integer_macs_share == 0.0


def test_tensors_need_no_names(files: dict[str, Path], tmp_path: Path) -> None:
    def nameless(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.name = None

    found, before = changed(files["int8"], tmp_path / "a.tflite", nameless), contents(files["int8"], "tflite")
    assert (found.ops, found.macs, found.parameters) == (before.ops, before.macs, before.parameters)
    assert [source.name for source in found.inputs] == [""]


def test_an_op_newer_than_the_schema_is_its_number(files: dict[str, Path], tmp_path: Path) -> None:
    def newer(model: Any) -> None:
        code = model.operatorCodes[0]
        code.builtinCode, code.deprecatedBuiltinCode = 400, 127

    found = changed(files["int8"], tmp_path / "a.tflite", newer)
    assert "BUILTIN_400" in {kind.op for kind in found.ops}
    assert found.macs is None and "BUILTIN_400" in found.unmeasured["macs"]
    assert all(reach.oldest is None for reach in oldest_versions(found, "tflite"))


def test_shapes_that_are_open_behind_the_batch_leave_figures_unknown(files: dict[str, Path], tmp_path: Path) -> None:
    def opened(axes: list[int]) -> Any:
        def change(model: Any) -> None:
            graph = model.subgraphs[0]
            graph.tensors[graph.inputs[0]].shapeSignature = np.array(axes, np.int32)

        return change

    before = contents(files["int8"], "tflite")
    batch = changed(files["int8"], tmp_path / "a.tflite", opened([-1, 16, 16, 3]))
    assert batch.macs == before.macs and batch.peak_activation_bytes == before.peak_activation_bytes
    size = changed(files["int8"], tmp_path / "b.tflite", opened([1, -1, -1, 3]))
    assert size.macs is None and size.peak_activation_bytes is None
    assert size.unmeasured["peak_activation_bytes"] == "a shape is open"


def test_graphs_behind_a_branch_are_listed(files: dict[str, Path], tmp_path: Path) -> None:
    def branching(model: Any) -> None:
        body, main = model.subgraphs[0], schema.SubGraphT()
        condition = schema.TensorT()
        condition.name, condition.type, condition.shape, condition.buffer = b"c", schema.TensorType.BOOL, [], 0
        main.tensors = [copy.copy(body.tensors[index]) for index in (*body.inputs, *body.outputs)] + [condition]
        main.inputs, main.outputs = [0, 2], [1]
        branch = schema.OperatorT()
        branch.opcodeIndex = tflite_file.operator_code(model, schema.BuiltinOperator.IF, 1)
        branch.inputs, branch.outputs = [2, 0], [1]
        branch.builtinOptionsType, branch.builtinOptions = schema.BuiltinOptions.IfOptions, schema.IfOptionsT()
        branch.builtinOptions.thenSubgraphIndex, branch.builtinOptions.elseSubgraphIndex = 1, 2
        main.operators = [branch]
        model.subgraphs, model.signatureDefs = [main, body, copy.deepcopy(body)], None

    before = contents(files["int8"], "tflite")
    found = changed(files["int8"], tmp_path / "a.tflite", branching)
    assert found.macs is None and found.unmeasured["macs"] == "not known for IF"
    assert found.peak_activation_bytes is None and "ops" not in found.unmeasured
    counts, once = ({kind.op: kind.count for kind in c.ops} for c in (found, before))
    assert counts["FULLY_CONNECTED"] == 2 * once["FULLY_CONNECTED"] and counts["IF"] == 1
    assert found.parameters == before.parameters  # both branches share their buffers
    assert found.versions.keys() == {*before.versions, "IF"}
