"""Changes to a finished .tflite file (names, dtypes of input and output, metadata), and what it computes in.

Works on the object form of the flatbuffer (``ai_edge_litert.schema_py_generated``). Format:
tensorflow/lite/schema/schema.fbs. Buffers are written aligned to 16 bytes as that schema asks
(``force_align: 16``), which the generated Python code leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kdedge_exporters.metadata import OUTPUT_NAME

_BUFFER_ALIGNMENT = 16
# First versions of the two ops that take int8 (tensorflow/lite/tools/versioning/op_version.cc).
_QUANTIZE_VERSION, _DEQUANTIZE_VERSION = 1, 2
_NO_ARITHMETIC = ("QUANTIZE", "DEQUANTIZE", "RESHAPE")
_OPERATOR_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
_TYPE_NAMES = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}


@dataclass(frozen=True)
class OpInfo:
    """One op of a .tflite file.

    Attributes:
        name: Name of its first output tensor.
        op: Its type, e.g. ``CONV_2D`` (or ``CUSTOM``).
        version: Of the op.
        inputs: Dtypes of its inputs, e.g. ``("INT8", "INT8", "INT32")``.
        outputs: Likewise.
    """

    name: str
    op: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(content: bytes) -> Any:
    """The object form of a .tflite file."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """The file's bytes."""
    builder = _AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Writes byte vectors (the weights) on addresses that SIMD kernels like."""

    def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802 - the library's name
        if x.dtype != np.uint8 or x.size < _BUFFER_ALIGNMENT:
            return int(super().CreateNumpyVector(x))
        self.StartVector(x.itemsize, x.size, _BUFFER_ALIGNMENT)
        length = x.itemsize * x.size
        self.head = self.Head() - length
        self.Bytes[self.Head() : self.Head() + length] = x.tobytes(order="C")
        self.vectorNumElems = x.size
        return int(self.EndVector())


def name_io(model: Any, names: Sequence[str]) -> None:
    """Name inputs and output, in the graph and in the signatures.

    Args:
        model: From litert-torch, whose signatures call the arguments ``args_0``, ``args_1``, ...; the graph may hold
            them in another order.
        names: Of the arguments.
    """
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].name = OUTPUT_NAME.encode()
    for signature in model.signatureDefs:
        signature.outputs[0].name = OUTPUT_NAME.encode()
        for entry in signature.inputs:
            entry.name = names[int(entry.name.rpartition(b"_")[2])].encode()
            graph.tensors[entry.tensorIndex].name = entry.name


def float_io(model: Any) -> None:
    """Put QUANTIZE before each int8 input and DEQUANTIZE behind an int8 output: callers then pass float32."""
    graph = model.subgraphs[0]
    outside: dict[int, int] = {}
    for source in map(int, list(graph.inputs)):
        if graph.tensors[source].type == schema.TensorType.INT8:
            outside[source] = float_twin(graph, source)
            graph.operators.insert(0, quantise(model, outside[source], source))
    result = int(graph.outputs[0])
    if graph.tensors[result].type == schema.TensorType.INT8:
        outside[result] = float_twin(graph, result)
        graph.operators.append(dequantise(model, result, outside[result]))
    graph.inputs = [outside.get(int(index), int(index)) for index in graph.inputs]
    graph.outputs = [outside.get(result, result)]
    for signature in model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = outside.get(entry.tensorIndex, entry.tensorIndex)


def uint8_input(model: Any) -> None:
    """Put a QUANTIZE that takes uint8 pixels before the int8 input, whose scale is 1: it adds -128, in integers."""
    graph = model.subgraphs[0]
    (source,) = map(int, graph.inputs)
    inside, outside = graph.tensors[source], schema.TensorT()
    outside.name, outside.shape, outside.shapeSignature = inside.name, inside.shape, inside.shapeSignature
    outside.type, outside.buffer = schema.TensorType.UINT8, 0
    outside.quantization = schema.QuantizationParametersT()
    outside.quantization.scale = np.asarray([1.0], np.float32)
    outside.quantization.zeroPoint = np.asarray([0], np.int64)
    inside.name = inside.name + b"_int8"
    graph.tensors.append(outside)
    index = len(graph.tensors) - 1
    graph.operators.insert(0, quantise(model, index, source))
    graph.inputs = [index]
    for signature in model.signatureDefs or []:
        for entry in signature.inputs:
            entry.tensorIndex = index


def inputs(model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype (numpy's word) and shape of each input, by name."""
    graph = model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    return {t.name.decode(): (_TYPE_NAMES[t.type].lower(), tuple(map(int, t.shape))) for t in tensors}


def output_shape(model: Any) -> tuple[int, ...]:
    """Shape of the first output."""
    graph = model.subgraphs[0]
    return tuple(map(int, graph.tensors[graph.outputs[0]].shape))


def set_metadata(model: Any, key: str, text: str) -> None:
    """Store ``text`` as a metadata buffer under ``key``; one already there is replaced."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = key.encode(), len(model.buffers) - 1
    model.metadata = [m for m in model.metadata or [] if m.name != key.encode()] + [entry]


def type_name(tensor: Any) -> str:
    """Dtype of a tensor in the schema's word, e.g. ``INT8``."""
    return _type_word(tensor.type)


def _type_word(number: int) -> str:
    return str(_TYPE_NAMES.get(number, f"TYPE_{number}"))


def indices(vector: Any) -> list[int]:
    """The tensors that a list of inputs or outputs names; what an op leaves out stands as -1, and is no tensor."""
    return [int(index) for index in (vector if vector is not None else ()) if index >= 0]


def operations(model: Any, subgraph: int = 0) -> list[OpInfo]:
    """Every op of a graph, the main one by default, in order; an op that this schema has no name for as its number."""
    graph = model.subgraphs[subgraph]
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        dtypes = [
            tuple(_type_word(graph.tensors[index].type) for index in indices(vector))
            for vector in (operator.inputs, operator.outputs)
        ]
        written = indices(operator.outputs)
        name = tensor_name(graph.tensors[written[0]]) if written else ""
        op = _OPERATOR_NAMES.get(builtin, f"BUILTIN_{builtin}")
        found.append(OpInfo(name, op, code.version, dtypes[0], dtypes[1]))
    return found


def tensor_name(tensor: Any) -> str:
    """Name of a tensor; files need give none."""
    name = tensor.name or b""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def float_ops(model: Any) -> list[OpInfo]:
    """The ops that compute in float; conversions and what only renames axes do not compute."""
    return [
        info
        for info in operations(model)
        if info.op not in _NO_ARITHMETIC and "FLOAT32" in (*info.inputs, *info.outputs)
    ]


def empty_unread_buffers(model: Any) -> None:
    """Drop the constants that no op reads any more; the tensors that held them stay."""
    graph = model.subgraphs[0]
    read = {graph.tensors[index].buffer for operator in graph.operators for index in operator.inputs if index >= 0}
    kept = {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in read | kept:
            buffer.data = None


def float_twin(graph: Any, index: int) -> int:
    """A float32 tensor of the same name and shape; the integer one steps back to another name."""
    integer, twin = graph.tensors[index], schema.TensorT()
    twin.name, twin.shape, twin.shapeSignature = integer.name, integer.shape, integer.shapeSignature
    twin.type, twin.buffer = schema.TensorType.FLOAT32, 0
    integer.name = integer.name + b"_int8"
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def operator_code(model: Any, builtin: int, version: int) -> int:
    """Index of an op type in the file's list, in at least this version; added where it is missing."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            code.version = max(code.version, version)
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def quantise(model: Any, source: int, result: int) -> Any:
    """A QUANTIZE to an int8 tensor from a float one or another int8 one, not yet among the graph's ops."""
    return _operator(operator_code(model, schema.BuiltinOperator.QUANTIZE, _QUANTIZE_VERSION), source, result)


def dequantise(model: Any, source: int, result: int) -> Any:
    """A DEQUANTIZE from an int8 tensor, not yet among the graph's ops."""
    return _operator(operator_code(model, schema.BuiltinOperator.DEQUANTIZE, _DEQUANTIZE_VERSION), source, result)


def _operator(code: int, source: int, result: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [source], [result]
    return operator
