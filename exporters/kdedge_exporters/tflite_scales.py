"""One scale for what a TFLite kernel compares or moves as integers, where the converter left several.

litert-torch's converter makes int8 ops of float ones that stand between integer ones, and checks the scales of most; of
those below it does not, and their kernels look at integers alone. Bringing each operand to the result's scale first is
exact: rounding keeps the order of values.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kdedge_exporters import tflite_file

# Op -> positions of what it compares or moves.
_OPERANDS = {"MAXIMUM": (0, 1), "MINIMUM": (0, 1), "REVERSE_V2": (0,), "SELECT": (1, 2), "SELECT_V2": (1, 2)}


def unite_scales(model: Any) -> None:
    """Put a QUANTIZE before each operand whose scale or zero point is another than the result's, in place."""
    graph = model.subgraphs[0]
    operators = []
    for operator, info in zip(list(graph.operators), tflite_file.operations(model), strict=True):
        result = graph.tensors[operator.outputs[0]]
        for position in _OPERANDS.get(info.op, ()):
            index = int(operator.inputs[position])
            operand = graph.tensors[index]
            if operand.type != result.type or result.type != schema.TensorType.INT8 or _is_on(operand, result):
                continue
            made = copy.copy(operand)
            made.name, made.buffer, made.quantization = operand.name + b"_as_compared", 0, result.quantization
            graph.tensors.append(made)
            operators.append(tflite_file.quantise(model, index, len(graph.tensors) - 1))
            inputs = list(operator.inputs)
            inputs[position] = len(graph.tensors) - 1
            operator.inputs = inputs
        operators.append(operator)
    graph.operators = operators


def _is_on(operand: Any, result: Any) -> bool:
    grids = [(tensor.quantization.scale, tensor.quantization.zeroPoint) for tensor in (operand, result)]
    return all(np.array_equal(first, second) for first, second in zip(*grids, strict=True))
