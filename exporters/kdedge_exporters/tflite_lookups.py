"""Look-ups in a table of embeddings, in integers: EMBEDDING_LOOKUP in float, then QUANTIZE, as one GATHER of int8 rows.

litert-torch translates an embedding to EMBEDDING_LOOKUP, whose kernels make float rows only, and so stores the table in
float though every value lies on an int8 grid. GATHER copies int8 rows; table and rows share scale and zero point, as
TFLite's int8 specification asks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from kdedge_exporters.tflite_file import empty_unread_buffers, operator_code

# First version of GATHER that takes int8 (tensorflow/lite/tools/versioning/op_version.cc).
_GATHER_VERSION = 2
# How far a table's value may lie from its grid, in steps: what float32 loses in (value / scale).
_OFF_GRID = 1e-3


def gather_integers(model: Any) -> None:
    """Rewrite every look-up whose rows are quantised next, in place; one whose table lies off the grid stays float."""
    graph = model.subgraphs[0]
    for operator in list(graph.operators):
        if _builtin(model, operator) != schema.BuiltinOperator.EMBEDDING_LOOKUP:
            continue
        chain = _until_quantised(model, operator)
        if chain is None:
            continue
        rows = graph.tensors[chain[-1].outputs[0]]
        ids, before = _ids_as_given(model, operator)
        if [*graph.tensors[ids].shape, *graph.tensors[operator.inputs[1]].shape[1:]] != list(rows.shape):
            continue
        table = _integer_table(model, int(operator.inputs[1]), rows.quantization)
        if table is None:
            continue
        gather = _gather(model, table, ids, int(chain[-1].outputs[0]))
        place = graph.operators.index(operator)
        graph.operators[place] = gather
        for old in [*before, *chain]:
            graph.operators.remove(old)
    empty_unread_buffers(model)


def _builtin(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _readers(model: Any, tensor: int) -> list[Any]:
    graph = model.subgraphs[0]
    return [operator for operator in graph.operators if tensor in list(operator.inputs)]


def _until_quantised(model: Any, operator: Any) -> list[Any] | None:
    """The RESHAPEs and the QUANTIZE that the rows pass, each the only reader of the one before."""
    chain: list[Any] = []
    tensor = int(operator.outputs[0])
    while True:
        readers = _readers(model, tensor)
        if len(readers) != 1 or tensor in list(model.subgraphs[0].outputs):
            return None
        chain.append(readers[0])
        kind = _builtin(model, readers[0])
        if kind == schema.BuiltinOperator.QUANTIZE:
            return chain
        if kind != schema.BuiltinOperator.RESHAPE:
            return None
        tensor = int(readers[0].outputs[0])


def _ids_as_given(model: Any, operator: Any) -> tuple[int, list[Any]]:
    """The ids before they were flattened, and the op that did it if it did it for this look-up alone."""
    ids = int(operator.inputs[0])
    maker = next((other for other in model.subgraphs[0].operators if ids in list(other.outputs)), None)
    if maker is None or _builtin(model, maker) != schema.BuiltinOperator.RESHAPE:
        return ids, []
    return int(maker.inputs[0]), [maker] if len(_readers(model, ids)) == 1 else []


def _integer_table(model: Any, index: int, quantization: Any) -> int | None:
    """A tensor of the table's integers on the grid of its rows; None where its values do not lie on it."""
    graph = model.subgraphs[0]
    table = graph.tensors[index]
    stored = model.buffers[table.buffer].data
    if stored is None or table.type != schema.TensorType.FLOAT32:
        return None
    values: NDArray[np.float32] = np.frombuffer(np.asarray(stored, np.uint8).tobytes(), np.float32)
    steps = values / np.float32(quantization.scale[0])
    integers = np.rint(steps)
    if np.abs(steps - integers).max() > _OFF_GRID:
        return None
    buffer, twin = schema.BufferT(), schema.TensorT()
    buffer.data = (integers + int(quantization.zeroPoint[0])).astype(np.int8).view(np.uint8)
    model.buffers.append(buffer)
    twin.name, twin.shape = table.name + b"_int8", table.shape
    twin.type, twin.buffer, twin.quantization = schema.TensorType.INT8, len(model.buffers) - 1, quantization
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def _gather(model: Any, table: int, ids: int, rows: int) -> Any:
    operator, options = schema.OperatorT(), schema.GatherOptionsT()
    operator.opcodeIndex = operator_code(model, schema.BuiltinOperator.GATHER, _GATHER_VERSION)
    operator.inputs, operator.outputs = [table, ids], [rows]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.GatherOptions, options
    return operator
