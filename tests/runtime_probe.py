"""Ask a runtime which versions it knows: how ``kdedge_exporters/runtime_versions.json`` was made, and is checked.

Models are made here, where onnx and the schema are installed; ``_ASK`` runs in the interpreter of the runtime.
"""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import flatbuffers  # type: ignore[import-untyped]
from ai_edge_litert import schema_py_generated as schema

OPSETS = range(13, 28)
IR_VERSIONS = range(7, 15)
OP_VERSIONS = range(1, 13)
_ASK = """
import importlib, json, pickle, sys
name, path = sys.argv[1:]
with open(path, "rb") as file:
    models = pickle.load(file)
newest = {}
if name == "onnxruntime":
    import onnxruntime
    onnxruntime.set_default_logger_severity(4)
    def load(model):
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
else:
    module = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}[name]
    interpreter = importlib.import_module(module + ".interpreter").Interpreter
    def load(model):
        interpreter(model_content=model)
for (thing, version), model in models.items():
    try:
        load(model)
    except Exception:
        continue
    newest[thing] = max(version, newest.get(thing, 0))
import importlib.metadata
print(json.dumps([importlib.metadata.version(name), newest]))
"""


def ask(python: Path | str, runtime: str, folder: Path) -> tuple[str, dict[str, int]]:
    """Version of a runtime in some interpreter, and the newest version of each thing that it loads.

    Args:
        python: The interpreter.
        runtime: Its pip name.
        folder: For the models.
    """
    models = _onnx_models() if runtime == "onnxruntime" else _tflite_models()
    path = folder / "models.pickle"
    path.write_bytes(pickle.dumps(models))
    command = [str(python), "-c", _ASK, runtime, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    version, newest = json.loads(done.stdout.splitlines()[-1])
    return ".".join(version.split(".")[:2]), newest


def _onnx_models() -> dict[tuple[str, int], bytes]:
    """One Identity in each operator set, and in each IR version."""
    from onnx import TensorProto, helper

    def model(opset: int, ir_version: int) -> bytes:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        content: bytes = made.SerializeToString()
        return content

    opsets = {("opset", opset): model(opset, IR_VERSIONS[0]) for opset in OPSETS}
    return opsets | {("ir", version): model(OPSETS[0], version) for version in IR_VERSIONS}


def _tflite_models() -> dict[tuple[str, int], bytes]:
    """For each op in each version a graph without ops, whose list of op types names it: that list is resolved first."""
    ops = {name: code for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    return {(name, version): _tflite_model(code, version) for name, code in ops.items() for version in OP_VERSIONS}


def _tflite_model(code: int, version: int) -> bytes:
    model, graph, tensor, entry = schema.ModelT(), schema.SubGraphT(), schema.TensorT(), schema.OperatorCodeT()
    entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
    tensor.name, tensor.shape, tensor.type, tensor.buffer = b"x", [1], schema.TensorType.FLOAT32, 0
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor], [0], [0], []
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [entry], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
