"""int8-dynamic from a float32 file: weights as int8; layers over features and tokens quantise their input as they run.

Matrix products with stored weights (ONNX MatMul and Gemm, TFLite FULLY_CONNECTED): int8 weights, a scale for each
output channel. The runtime finds the range of the input, quantises it and multiplies integers: DynamicQuantizeLinear
and MatMulInteger in ONNX, of which ONNX Runtime makes one kernel; a hybrid kernel in TFLite. That of tflite-runtime
2.14 takes the scale to be 0 where there is more than one, so that a layer returns its bias alone: for it a weight
tensor must have one scale (``per_channel=False``).

Tables of embeddings (ONNX Gather, TFLite EMBEDDING_LOOKUP): 8 bits; the rows that are read become float. With a scale
for each row tflite-runtime 2.14 returns zeros.

Convolutions: int8 weights, a scale for each output channel, unfolded to float once while the file is loaded; they
compute in float. All four runtimes can quantise the input of a convolution too, and lose by it. Milliseconds of
MobileNetV2, 224 pixels, batch 1, one thread of a Xeon with AVX512-VNNI that had other work (lower quartiles of 40):

===================  =====  =======  ====================================
runtime              float  as here  inputs of convolutions quantised
===================  =====  =======  ====================================
ONNX Runtime 1.32    14.8   14.4     50 with uint8 weights, 145 with int8
ONNX Runtime 1.19    16.6   14.4     65 with uint8 weights, none for int8
LiteRT 2.3           14.3   14.5     43; 14.1 without the depthwise ones
tflite-runtime 2.14  20.7   22.7     302; 105 without the depthwise ones
===================  =====  =======  ====================================

Hybrid DEPTHWISE_CONV_2D with one scale is wrong in both TFLite runtimes: the kernel reads one for each channel.

All else stays float32. ONNX Runtime multiplies uint8 by int8; x86 processors older than AVX512-VNNI add pairs of such
products in 16 bits, which may saturate (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from kdedge_exporters import tflite_file, tflite_quantizer, tflite_rows
from kdedge_exporters.onnx_named import named
from kdedge_exporters.onnx_values import constant, initializer
from kdedge_exporters.quiet import quiet
from kdedge_exporters.tflite_quantizer import FEWEST_WEIGHTS

# Axes of output channels in the weights of a convolution.
_CHANNELS = {"Conv": 0, "ConvTranspose": 1}
_CONVERSIONS = ("Cast", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger")
# Ops that move values or make none that are float.
_NO_ARITHMETIC = frozenset(
    [
        *("Concat", "Constant", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
        *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    ]
)
_NO_TFLITE_ARITHMETIC = frozenset(
    [
        *("CONCATENATION", "DEQUANTIZE", "EMBEDDING_LOOKUP", "EXPAND_DIMS", "GATHER", "GATHER_ND", "PACK", "PAD"),
        *("QUANTIZE", "RESHAPE", "SELECT_V2", "SLICE", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE", "UNPACK"),
    ]
)
_SLOWER = "weights are int8, and unfolded when the file is loaded: {} computes a convolution faster in float"
_FEW = f"fewer than {FEWEST_WEIGHTS} weights: integers would save nothing"
_COMPUTED = "both factors are computed while the net runs"
_NO_FORM = "the quantiser has no form of this op with such attributes or weights"
_OTHER = "int8-dynamic quantises matrix products with stored weights, and tables, alone"


def onnx_dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 weights, and matrix products that quantise their input at run time.

    Args:
        model: In float32, below 2 GB; it is not changed.

    Returns:
        A new model. Inputs, outputs, opset, IR version, producer and metadata are those of the old. Ops are of ONNX's
        own domain; ONNX Runtime has fused kernels for them (seen in 1.19 and 1.32).
    """
    source = named(model)
    left = [node.name or "" for node in source.graph if not _is_worth(node)]
    result = ir.from_proto(_by_onnx_runtime(ir.to_proto(source), left))
    _unfolded_convolutions(result)
    _sign_as(result, model)
    return ir.to_proto(result)


def onnx_float_ops(model: onnx.ModelProto) -> list[dict[str, str]]:
    """The ops that compute in float: name, op, reason.

    Args:
        model: What ``onnx_dynamic`` returned.
    """
    found = []
    for node in ir.from_proto(model).graph:
        if node.op_type in (*_CONVERSIONS, *_NO_ARITHMETIC) or _is_constant(node.outputs[0]) or _rescales(node):
            continue
        if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
            continue
        found.append({"name": node.outputs[0].name or node.op_type, "op": node.op_type, "reason": _why_float(node)})
    return found


def tflite_dynamic(content: bytes, *, per_channel: bool) -> bytes:
    """The file with int8 weights, and fully connected layers that quantise their input at run time.

    Args:
        content: A float32 .tflite file.
        per_channel: One scale for each output channel of fully connected layers and each row of tables, which LiteRT
            has and tflite-runtime 2.14 refuses to load (FULLY_CONNECTED 12, EMBEDDING_LOOKUP 4; without these versions
            it would load the file and compute nonsense). False: one for each weight tensor, which both have, of rows
            that were brought to one size (``tflite_rows.py``).

    Returns:
        A new file with the metadata of the old; inputs, outputs and signatures are the same.
    """
    stays: list[str] = []
    if not per_channel:
        model = tflite_file.read(content)
        stays = tflite_rows.factor_rows(model)
        content = tflite_file.pack(model)
    integer = [
        tflite_quantizer.int8_weights(op, per_channel=per_channel, integer=True)
        for op in ("FULLY_CONNECTED", "EMBEDDING_LOOKUP")
    ]
    unfolded = [
        tflite_quantizer.int8_weights(op, per_channel=True, integer=False)
        for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
    ]
    return tflite_quantizer.quantised(content, [*integer, *unfolded, *map(tflite_quantizer.untouched, stays)])


def tflite_float_ops(content: bytes) -> list[dict[str, str]]:
    """The ops that compute in float: name, op, reason.

    Args:
        content: What ``tflite_dynamic`` returned.
    """
    model = tflite_file.read(content)
    operators = list(zip(model.subgraphs[0].operators, tflite_file.operations(model), strict=True))
    unfolded = {int(operator.outputs[0]) for operator, info in operators if info.op == "DEQUANTIZE"}
    found = []
    for operator, info in operators:
        if info.op in _NO_TFLITE_ARITHMETIC or "INT8" in info.inputs or "FLOAT32" not in info.inputs:
            continue
        found.append(
            {"name": info.name, "op": info.op, "reason": _why_float_tflite(model, operator, info.op, unfolded)}
        )
    return found


def _by_onnx_runtime(model: onnx.ModelProto, excluded: list[str]) -> onnx.ModelProto:
    """ONNX Runtime's quantiser, on matrix products and tables; it insists on a file."""
    with tempfile.TemporaryDirectory(prefix="kdedge-") as folder, quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gather"],  # a Gemm becomes MatMul and Add first
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*excluded, *(f"{name}_MatMul" for name in excluded)],
        )
        return onnx.load(path)


def _is_worth(node: ir.Node) -> bool:
    """Whether an op reads a table, or a matrix on the right, that is large enough."""
    position = 0 if node.op_type == "Gather" else 1
    stored = constant(node.inputs[position]) if len(node.inputs) > position else None
    if stored is None or stored.dtype != np.float32 or stored.size < FEWEST_WEIGHTS:
        return False
    return node.op_type == "Gather" or stored.ndim == 2


def _unfolded_convolutions(model: ir.Model) -> None:
    """Weights of convolutions as int8, and Cast and Mul before each, which make them float again.

    ONNX Runtime computes the two once while the file is loaded. From a DequantizeLinear it would make none: it keeps
    these for its integer kernels, and MobileNetV2 took three times as long.
    """
    graph = model.graph
    unfolded: dict[str, ir.Value] = {}
    for node in list(graph):
        weights = node.inputs[1] if node.op_type in _CHANNELS else None
        values = constant(weights)
        if weights is None or values is None or values.dtype != np.float32 or values.size < FEWEST_WEIGHTS:
            continue
        key = f"{weights.name}_{_CHANNELS[node.op_type]}"
        if key not in unfolded:
            nodes = _unfold(graph, key, values, _CHANNELS[node.op_type])
            graph.insert_before(graph[0], nodes)
            unfolded[key] = nodes[-1].outputs[0]
        node.replace_input_with(1, unfolded[key])


def _unfold(graph: ir.Graph, name: str, values: np.ndarray, axis: int) -> list[ir.Node]:
    """The nodes that make weights float again from integers in [-127, 127] and a scale for each channel."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    integers = np.rint(values / scale).astype(np.int8)
    cast = ir.node("Cast", [initializer(graph, f"{name}_int8", integers)], attributes={"to": ir.DataType.FLOAT})
    scaled = ir.node("Mul", [cast.outputs[0], initializer(graph, f"{name}_scale", scale)])
    for node, suffix in ((cast, "steps"), (scaled, "float32")):
        node.name = node.outputs[0].name = f"{name}_{suffix}"
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(values.shape)
    return [cast, scaled]


def _sign_as(result: ir.Model, model: onnx.ModelProto) -> None:
    """What the quantiser rewrote of the file's head, as it was."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(result)
    result.ir_version = model.ir_version
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    result.metadata_props.clear()
    result.metadata_props.update({entry.key: entry.value for entry in model.metadata_props})


def _is_constant(value: ir.Value | None) -> bool:
    """Whether a value is stored, or computed from what is."""
    if value is None or value.const_value is not None:
        return True
    producer = value.producer()
    return producer is not None and all(_is_constant(source) for source in producer.inputs)


def _rescales(node: ir.Node) -> bool:
    """Whether an op turns the int32 result of a product into float: its Cast, the product of its scales, or both."""
    sources = [value.producer() if value is not None else None for value in node.inputs]
    types = [source.op_type for source in sources if source is not None]
    if node.op_type == "Cast":
        return "MatMulInteger" in types
    casts = [source for source in sources if source is not None and source.op_type == "Cast"]
    return node.op_type == "Mul" and ("DynamicQuantizeLinear" in types or any(_rescales(cast) for cast in casts))


def _why_float(node: ir.Node) -> str:
    if node.op_type not in (*_CHANNELS, "MatMul", "Gemm"):
        return _OTHER
    if not _is_constant(node.inputs[1]):
        return _COMPUTED
    weights = constant(node.inputs[1])
    if weights is None and node.op_type in _CHANNELS:
        return _SLOWER.format("ONNX Runtime")
    return _FEW if weights is not None and weights.size < FEWEST_WEIGHTS else _NO_FORM


def _why_float_tflite(model: Any, operator: Any, op: str, unfolded: set[int]) -> str:
    if op not in (*tflite_quantizer.WEIGHTED, "BATCH_MATMUL"):
        return _OTHER
    if int(operator.inputs[1]) in unfolded:
        return _SLOWER.format("TFLite")
    weights = tflite_quantizer.weights(model, operator)
    if weights is None:
        return _COMPUTED
    return _FEW if weights.size < FEWEST_WEIGHTS else _NO_FORM
