"""Divisions in float: of int8 tensors litert-torch makes DIVs of integers, which most runtimes do not compute.

tflite-runtime 2.14 has no such kernel; those of ai-edge-litert 1.4 and 2.1 refuse a divisor whose stored integer is 0,
whatever its zero point. In float tflite-runtime 2.14 and LiteRT 2.3 compute them, and the manifest names them.
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from kdedge_exporters.tflite_file import dequantise, float_twin, quantise


def divide_in_float(model: Any) -> None:
    """Put DEQUANTIZEs before each DIV of int8 tensors and a QUANTIZE behind it, in place."""
    graph = model.subgraphs[0]
    for operator in list(graph.operators):
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.DIV:
            continue
        result = int(operator.outputs[0])
        if graph.tensors[result].type != schema.TensorType.INT8:
            continue
        twins = {source: float_twin(graph, source) for source in map(int, operator.inputs)}
        place = graph.operators.index(operator)
        before = [dequantise(model, source, twin) for source, twin in twins.items()]
        operator.inputs = [twins[source] for source in map(int, operator.inputs)]
        operator.outputs = [float_twin(graph, result)]
        graph.operators[place : place + 1] = [*before, operator, quantise(model, int(operator.outputs[0]), result)]
