"""ai-edge-quantizer on the weights of a .tflite file in memory: silent, and what it leaves wrong put right.

Facts of version 0.10, read from its source: weights of more than 256 KB in all are written behind the flatbuffer
(Buffer.offset in schema.fbs), where readers of the file's object form do not find them (``model_modifier.py``); new ops
get version 1 whatever their operands, and changed ones keep theirs (``transformation_utils.py``). The metadata stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kdedge_exporters import tflite_file
from kdedge_exporters.quiet import quiet

WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "EMBEDDING_LOOKUP")
"""The ops whose weights it changes; they are the second operand of each."""

# Weights of fewer numbers stay float, as in TensorFlow's own converter (kWeightsMinNumElementsDefault in
# tensorflow/lite/tools/optimize/quantize_weights.cc): scales and zero points take what the integers save.
FEWEST_WEIGHTS = 1024
_ITS_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
# First versions of the ops that take these operands: a number for one scale, and one for a scale a channel.
# Source: GetBuiltinOperatorVersion in tflite/converter/tools/versioning/op_version.cc (LiteRT).
_VERSIONS = {
    ("FULLY_CONNECTED", "INT8"): (3, 12),
    ("EMBEDDING_LOOKUP", "INT8"): (1, 4),
    ("DEQUANTIZE", "INT8"): (2, 5),
    ("DEQUANTIZE", "FLOAT16"): (3, 3),
}


def float16_weights() -> dict[str, Any]:
    """Recipe: the weights of every op of ``WEIGHTED`` as float16, unfolded by a DEQUANTIZE before it."""
    weights = {"num_bits": 16, "dtype": "FLOAT"}
    config = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return {"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": config}


def int8_weights(op: str, *, per_channel: bool, integer: bool) -> dict[str, Any]:
    """Recipe: the weights of an op type as int8, symmetric, in [-127, 127].

    Args:
        op: One of ``WEIGHTED``.
        per_channel: A scale for each output channel (row of a table) instead of one for all.
        integer: The op takes them as they are and quantises its input at run time; else a DEQUANTIZE unfolds them.
    """
    granularity = "CHANNELWISE" if per_channel else "TENSORWISE"
    config = {
        "weight_tensor_config": {"num_bits": 8, "symmetric": True, "granularity": granularity, "dtype": "INT"},
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
        "min_weight_elements": FEWEST_WEIGHTS,
    }
    name = _ITS_NAMES.get(op, op)
    return {"regex": ".*", "operation": name, "algorithm_key": "min_max_uniform_quantize", "op_config": config}


def untouched(name: str) -> dict[str, Any]:
    """Recipe: the op whose first output has this name stays as it is."""
    return {"regex": f"^{re.escape(name)};", "operation": "*", "algorithm_key": "no_quantize"}


def quantised(content: bytes, recipe: Sequence[dict[str, Any]]) -> bytes:
    """The file with its weights as the recipe says; of entries that meet in an op the later one counts.

    Args:
        content: A .tflite file in float32.
        recipe: From the functions above.
    """
    with quiet():
        from ai_edge_quantizer.quantizer import Quantizer  # type: ignore[import-untyped]

        result = Quantizer(content, list(recipe)).quantize(enable_progress_bar=False, enable_progress_report=False)
        made = bytes(result.quantized_model)
    model = tflite_file.read(made)
    _inside(model, made)
    _state_versions(model)
    return tflite_file.pack(model)


def weights(model: Any, operator: Any) -> np.ndarray | None:
    """The float32 weights of an op of ``WEIGHTED``, flat; None where they are computed or of another dtype."""
    tensor = model.subgraphs[0].tensors[operator.inputs[1]]
    stored = model.buffers[tensor.buffer].data
    if stored is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.frombuffer(np.asarray(stored, np.uint8).tobytes(), np.float32)


def _inside(model: Any, content: bytes) -> None:
    """Bring buffers that lie behind the flatbuffer into it."""
    for buffer in model.buffers:
        if buffer.offset:
            buffer.data = np.frombuffer(content[buffer.offset : buffer.offset + buffer.size], np.uint8)
            buffer.offset = buffer.size = 0


def _state_versions(model: Any) -> None:
    """Versions that say which kernels the file needs, so that a runtime without them refuses it when it is loaded."""
    graph = model.subgraphs[0]
    for operator, info in zip(graph.operators, tflite_file.operations(model), strict=True):
        if info.op not in (*WEIGHTED, "DEQUANTIZE"):
            continue
        tensor = graph.tensors[operator.inputs[0 if info.op == "DEQUANTIZE" else 1]]
        needed = _VERSIONS.get((info.op, tflite_file.type_name(tensor)))
        if needed is None:
            continue
        scales = tensor.quantization.scale if tensor.quantization is not None else None
        version = needed[1] if scales is not None and len(scales) > 1 else needed[0]
        tflite_file.operator_code(model, getattr(schema.BuiltinOperator, info.op), version)
