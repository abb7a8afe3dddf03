"""What turns torch's ONNX graph into one that ONNX Runtime runs in integers, in versions old and new.

Each pass takes and changes an ``onnx_ir.Model``; together they are ``to_integer_form``. They rest on
what ONNX Runtime's QDQ transformers look for (onnxruntime/core/optimizer/qdq_transformer): uint8
activations around every op, int32 biases dequantised with the product of the input's and the weight's
scale, no activation between an op and its QuantizeLinear that the range of the quantised tensor implies
anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx_ir as ir

from kdedge_exporters.onnx_gemm import linear_as_gemm
from kdedge_exporters.onnx_means import differences_as_sums, means_as_pools
from kdedge_exporters.onnx_moves import drop_idle_requantising, move_integers, same_grid
from kdedge_exporters.onnx_values import between_qdq, constant, initializer, is_fused_relu, replace, skip

# Layers whose bias becomes int32: op type -> positions of (input, weight, bias).
_BIASED = {"Conv": (0, 1, 2), "Gemm": (0, 1, 2)}
_INT8, _INT32 = np.iinfo(np.int8), np.iinfo(np.int32)
# Ops that ONNX Runtime's CPU provider runs in integers when they stand between DequantizeLinear and
# QuantizeLinear (qdq_selector_action_transformer.cc, as of 1.19), or whose values it only moves.
_INTEGER_OPS = frozenset(
    [
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"),
        *("Softmax", "Concat", "Where", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"),
        *("Gather", "Resize"),
    ]
)

_ON_ONE_GRID = frozenset(["MaxPool", "Gather", "Resize"])
"""Of these it drops the two conversions around an op only where they are each other's inverse."""


def to_integer_form(model: ir.Model, *, signed: bool = False) -> None:
    """All passes for an int8 program, in order.

    Args:
        model: From torch's exporter.
        signed: Leave activations as int8, a ReLU where it stands before its QuantizeLinear, and biases as floats (on
            their int32 grid): that is what TensorRT takes. ONNX Runtime computes the same from it, in float on a CPU.
    """
    if signed:
        linear_as_gemm(model)
        means_as_pools(model, move_axes=False)
        relu_for_clip(model)
        return
    unsigned_activations(model)
    quantised_activations(model)
    linear_as_gemm(model)
    means_as_pools(model)
    differences_as_sums(model)
    move_integers(model)
    drop_idle_requantising(model)
    int32_biases(model)
    sums_before_layer_norms(model)


def sums_before_layer_norms(model: ir.Model) -> None:
    """Write a float Add that layer norms alone read as Sum, which adds the same.

    ONNX Runtime joins Add and LayerNormalization to SkipLayerNormalization, which took 0.50 ms on a CPU for 128×768
    values, where LayerNormalization took 0.07 (``benchmarks/int8_latency.py --profile``, one thread). Sum stays.
    """
    for node in model.graph:
        uses = list(node.outputs[0].uses()) if node.op_type == "Add" else []
        if uses and all((use.node.op_type, use.idx) == ("LayerNormalization", 0) for use in uses):
            node.op_type = "Sum"


def uint8_input(model: ir.Model) -> None:
    """Let the graph's input be the uint8 pixels that its QuantizeLinear (scale 1, zero point 0) makes of floats."""
    (image,) = model.graph.inputs
    for use in list(image.uses()):
        skip(use.node, image)
    image.dtype = ir.DataType.UINT8


def unsigned_activations(model: ir.Model) -> None:
    """Store activations as uint8 with the zero point + 128: the same real values, and kernels that x86 has.

    With int8 activations ONNX Runtime leaves convolutions and adds in float on x86. Weights stay int8.
    """
    graph = model.graph
    shifted: dict[str, ir.Value] = {}
    for node in graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point, stored = constant(node.inputs[2]), constant(node.inputs[0])
        if zero_point is None or zero_point.dtype != np.int8 or zero_point.ndim:  # weights: one for each channel
            continue
        if stored is not None and node.op_type == "DequantizeLinear":
            unsigned = (stored.astype(np.int16) + 128).astype(np.uint8)
            node.replace_input_with(0, initializer(graph, f"{node.outputs[0].name}_uint8", unsigned))
        key = f"zero_point_{int(zero_point) + 128}"
        if key not in shifted:
            shifted[key] = initializer(graph, key, np.asarray(int(zero_point) + 128, np.uint8))
        node.replace_input_with(2, shifted[key])
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.UINT8


def quantised_activations(model: ir.Model) -> None:
    """Take a Relu or Clip out from between an op and its QuantizeLinear, where it keeps the op in float.

    uint8 values cover [-zero_point · scale, (255 - zero_point) · scale]. Where that range lies inside the bounds,
    saturation does the work; else the integers are clipped, which is the same since quantising is monotone.
    """
    for node in list(model.graph):
        bounds = _bounds(node)
        uses = list(node.outputs[0].uses()) if bounds is not None else []
        if bounds is None or not uses or any(use.node.op_type != "QuantizeLinear" for use in uses):
            continue
        scale, zero_point = (constant(uses[0].node.inputs[i]) for i in (1, 2))
        if scale is None or zero_point is None or zero_point.dtype != np.uint8 or scale.ndim:
            continue
        limits = [float(np.clip(np.rint(b / float(scale)) + int(zero_point), 0, 255)) for b in bounds]
        if limits != [0.0, 255.0]:
            for use in uses:
                _clip_integers(model.graph, use.node, limits)
        skip(node, cast(ir.Value, node.inputs[0]))


def int32_biases(model: ir.Model) -> None:
    """Biases of integer layers as int32 under a DequantizeLinear of scale ``s_input · s_weight``.

    Older versions of ONNX Runtime make an integer kernel only from that form, newer ones quantise a
    float bias to the same values themselves.
    """
    graph = model.graph
    for node in list(graph):
        positions = _BIASED.get(node.op_type)
        if positions is None or len(node.inputs) < 3:
            continue
        source, weight, bias = (node.inputs[i] for i in positions)
        values = constant(bias)
        scales = [_dequantize_scale(value) for value in (source, weight)]
        if bias is None or values is None or scales[0] is None or scales[1] is None:
            continue
        step = (scales[0] * scales[1]).astype(np.float32).reshape(-1)
        step = np.broadcast_to(step, values.shape) if step.size == 1 else step
        integers = np.rint(values.astype(np.float64) / step.astype(np.float64))
        stored = np.clip(integers, _INT32.min, _INT32.max).astype(np.int32)
        name = f"{node.outputs[0].name}_bias"  # layers may share a bias, and still have steps of their own
        dequantize = ir.node(
            "DequantizeLinear",
            [
                initializer(graph, f"{name}_int32", stored),
                initializer(graph, f"{name}_scale", np.ascontiguousarray(step)),
                initializer(graph, f"{name}_zero_point", np.zeros(step.shape, np.int32)),
            ],
            attributes={"axis": 0},
        )
        graph.insert_before(node, dequantize)
        node.replace_input_with(positions[2], dequantize.outputs[0])


def float_ops(model: ir.Model, reasons: Mapping[str, str]) -> list[dict[str, str]]:
    """The ops that ONNX Runtime computes in float.

    Args:
        model: After the passes above.
        reasons: Why the quantiser left an op float, by its name in the program.
    """
    found = []
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not _computes_floats(node) or is_fused_relu(node):
            continue
        name = node.outputs[0].name or node.op_type
        if _only_layer_norms_read(node):
            reason = "only layer norms read it, which are float"
        elif node.op_type not in _INTEGER_OPS:
            reason = f"ONNX Runtime has no integer kernel for {node.op_type} on a CPU"
        elif not between_qdq(node):
            reason = "an input or the output is float"
        elif node.op_type in _ON_ONE_GRID and not _keeps_its_grid(node):
            reason = f"ONNX Runtime runs {node.op_type} on integers only where it reads and makes one grid"
        else:
            continue
        found.append({"name": name, "op": node.op_type, "reason": reasons.get(name, reason)})
    return found


def _keeps_its_grid(node: ir.Node) -> bool:
    """Whether an op between DequantizeLinear and QuantizeLinear has the scale and zero point of its input."""
    source = cast(ir.Value, node.inputs[0]).producer()
    return source is not None and all(same_grid(source, use.node) for use in node.outputs[0].uses())


def _only_layer_norms_read(node: ir.Node) -> bool:
    """Whether it is a sum, or a factor in one, that the quantiser left to the layer norm behind it."""
    readers = [use.node for use in node.outputs[0].uses()] if node.op_type in ("Add", "Sum", "Mul") else []
    return bool(readers) and all(r.op_type == "LayerNormalization" or _only_layer_norms_read(r) for r in readers)


def _computes_floats(node: ir.Node) -> bool:
    constant = all(value is None or value.const_value is not None for value in node.inputs)
    return not constant and node.outputs[0].dtype in (None, ir.DataType.FLOAT)


def int32_inputs(model: ir.Model) -> None:
    """Token ids and masks come as int32, half the bytes of torch's int64; Gather reads both, others get a Cast."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype != ir.DataType.INT64:
            continue
        value.dtype = ir.DataType.INT32
        others = [use for use in value.uses() if (use.node.op_type, use.idx) != ("Gather", 1)]
        if others:
            cast_node = ir.node("Cast", [value], attributes={"to": ir.DataType.INT64})
            made = cast_node.outputs[0]
            made.name, made.shape, made.dtype = f"{value.name}_int64", value.shape, ir.DataType.INT64
            graph.insert_before(graph[0], cast_node)
            for use in others:
                use.node.replace_input_with(use.idx, cast_node.outputs[0])


def tidy(model: ir.Model) -> None:
    """Drop what nothing reads, share equal constants, leave out torch's notes (they are a third of the file)."""
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    _own_zero_points(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.doc_string = None


def _own_zero_points(model: ir.Model) -> None:
    """Give each weight a zero point of its own.

    Where a user asks ONNX Runtime for exact kernels on processors without VNNI (``session.x64quantprecision``), it
    makes each weight's zero point unsigned, and refuses the file when it meets the second weight that shares one.
    """
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        zero_point = constant(node.inputs[2]) if weight is not None and len(node.inputs) > 2 else None
        if weight is None or weight.const_value is None or zero_point is None or zero_point.dtype != np.int8:
            continue
        if len(list(cast(ir.Value, node.inputs[2]).uses())) > 1:
            node.replace_input_with(2, initializer(model.graph, f"{weight.name}_zero_point", zero_point))


def rename_io(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the names that the artifact's description states."""
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name


def relu_for_clip(model: ir.Model) -> None:
    """Where saturation does the upper half of a Clip from 0, write the Relu that other runtimes fuse."""
    for node in list(model.graph):
        bounds = _bounds(node)
        uses = list(node.outputs[0].uses())
        if node.op_type != "Clip" or bounds is None or bounds[0] != 0.0 or not uses:
            continue
        if any(use.node.op_type != "QuantizeLinear" for use in uses):
            continue
        scale, zero_point = (constant(uses[0].node.inputs[i]) for i in (1, 2))
        if scale is None or zero_point is None or zero_point.dtype != np.int8:
            continue
        if np.rint(bounds[1] / float(scale)) + int(zero_point) >= _INT8.max:
            replace(node, ir.node("Relu", [node.inputs[0]]))


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Lower and upper bound that a Relu or Clip enforces."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    low, high = (constant(value) for value in [*node.inputs[1:3], None, None][:2])
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _dequantize_scale(value: ir.Value | None) -> np.ndarray | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return constant(producer.inputs[1])


def _clip_integers(graph: ir.Graph, quantize: ir.Node, limits: list[float]) -> None:
    """Clip the uint8 output of a QuantizeLinear, for all who read it."""
    result = quantize.outputs[0]
    low, high = (_shared(graph, f"clip_{int(v)}", np.asarray(int(v), np.uint8)) for v in limits)
    readers = list(result.uses())
    clip = ir.node("Clip", [result, low, high])
    clip.outputs[0].name, clip.outputs[0].shape, clip.outputs[0].type = (
        f"{result.name}_clipped",
        result.shape,
        result.type,
    )
    graph.insert_after(quantize, clip)
    for use in readers:
        use.node.replace_input_with(use.idx, clip.outputs[0])


def _shared(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of this name, which always holds this array; made where it is missing."""
    return graph.initializers.get(name) or initializer(graph, name, array)
