"""float16 from a float32 file: half the bytes, and inputs and outputs as they were.

ONNX: the graph itself becomes float16 (ONNX Runtime's own converter), but for the ops that float16 cannot hold
(``float16_range``). A GPU computes in it. ONNX Runtime's CPU provider has few float16 kernels: it puts Casts around the
others and computes in float32, which costs time: MobileNetV2 for CIFAR-10 takes 1.4 times as long as in float32 in 1.32
(n = 1000, one thread of a Xeon that had other work) and 17 times as long in 1.19.

TFLite: weights become float16 behind a DEQUANTIZE each (ai-edge-quantizer's float casting), the ops stay float32. On a
CPU they therefore compute in float32: XNNPACK, or TFLite's own DEQUANTIZE kernel where XNNPACK leaves an op alone,
unfolds the weights once while the file is loaded. Speed is that of the float32 file, and memory is more, since unfolded
weights stand beside the file (MiniLM: 178 MB resident against 142 in LiteRT 2.3, 217 against 144 in tflite-runtime
2.14). GPU delegates take float16, and so does XNNPACK on a processor that can and where it is told to
(TFLITE_XNNPACK_DELEGATE_FLAG_FORCE_FP16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir

from kdedge_exporters import tflite_file, tflite_quantizer
from kdedge_exporters.float16_range import beyond_float16, out_of_range
from kdedge_exporters.onnx_named import named
from kdedge_exporters.onnx_values import made_by


def onnx_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16.

    Args:
        model: In float32, below 2 GB; it is not changed.

    Returns:
        A new model. Inputs and outputs keep name, dtype and shape; opset, IR version, producer and metadata stay.
    """
    convert, _ = _converter()
    source = named(model)
    blocked = [node.name for node in _kept(source.graph)]
    described = _shapes_inferred(ir.to_proto(source))
    options = {"keep_io_types": True, "disable_shape_infer": True, "op_block_list": [], "node_block_list": blocked}
    converted = ir.from_proto(convert(described, **options))
    _join_float32(converted)
    _tidy(converted)
    return ir.to_proto(converted)


def onnx_float32_ops(model: onnx.ModelProto) -> list[dict[str, str]]:
    """The ops that ``onnx_float16`` leaves in float32: name, op, reason.

    Args:
        model: In float32, what ``onnx_float16`` is given.
    """
    kept = _kept(named(model).graph)
    return [
        {"name": node.outputs[0].name or node.op_type, "op": node.op_type, "reason": reason}
        for node, reason in kept.items()
    ]


def tflite_float16(content: bytes) -> bytes:
    """The file with its weights in float16.

    Args:
        content: A float32 .tflite file.

    Returns:
        A new file with the metadata of the old; inputs, outputs and signatures are the same.
    """
    kept = [operator["name"] for operator in _float32_weights(tflite_file.read(content))]
    recipe = [tflite_quantizer.float16_weights(), *(tflite_quantizer.untouched(name) for name in kept)]
    return tflite_quantizer.quantised(content, recipe)


def tflite_float32_ops(content: bytes) -> list[dict[str, str]]:
    """The ops whose weights ``tflite_float16`` leaves in float32: name, op, reason. All ops compute in float32.

    Args:
        content: What ``tflite_float16`` is given.
    """
    return _float32_weights(tflite_file.read(content))


def _converter() -> tuple[Callable[..., onnx.ModelProto], frozenset[str]]:
    """ONNX Runtime's converter, and the op types that it says have no float16 kernel everywhere."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    return convert_float_to_float16, frozenset(DEFAULT_OP_BLOCK_LIST)


def _kept(graph: ir.Graph) -> dict[ir.Node, str]:
    kept = beyond_float16(graph)
    _, without_kernels = _converter()
    for node in graph:
        if node.op_type in without_kernels:
            kept.setdefault(node, "not every provider of ONNX Runtime has a float16 kernel for it")
    return kept


def _shapes_inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the dtype of every computed value.

    The converter infers them itself if it is let, but of constants too, and then takes those that stay float32 for
    float16.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    constants = {tensor.name for tensor in inferred.graph.initializer}
    computed = [value for value in inferred.graph.value_info if value.name not in constants]
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(computed)
    return inferred


def _join_float32(model: ir.Model) -> None:
    """Take out each pair of Casts from float32 to float16 and back, which the converter writes between kept ops.

    A value that is kept in float32 because float16 cannot hold it would be lost on that way.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or _casts_to(node) != ir.DataType.FLOAT or not made_by(source, "Cast"):
            continue
        first = source.producer()
        if first is None or _casts_to(first) != ir.DataType.FLOAT16:
            continue
        origin = first.inputs[0]
        node.replace_input_with(0, origin)
        if origin is not None and origin.dtype == ir.DataType.FLOAT and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(origin)


def _casts_to(node: ir.Node) -> int:
    return node.attributes.get_int("to", 0)


def _tidy(model: ir.Model) -> None:
    """Drop the Casts that nothing reads any more; the converter appends all of them behind the other nodes."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def _float32_weights(model: Any) -> list[dict[str, str]]:
    """The ops of a .tflite file that read float32 constants which stay so."""
    graph = model.subgraphs[0]
    found = []
    for operator, info in zip(graph.operators, tflite_file.operations(model), strict=True):
        reason = None
        if info.op in tflite_quantizer.WEIGHTED:
            values = tflite_quantizer.weights(model, operator)
            reason = None if values is None else out_of_range(values)
        elif _largest_float_constant(model, operator) >= tflite_quantizer.FEWEST_WEIGHTS:
            reason = f"ai-edge-quantizer casts the constants of {', '.join(tflite_quantizer.WEIGHTED)} alone"
        if reason is not None:
            found.append({"name": info.name, "op": info.op, "reason": reason})
    return found


def _largest_float_constant(model: Any, operator: Any) -> int:
    """How many numbers the largest float32 constant holds that an op reads."""
    tensors = [model.subgraphs[0].tensors[index] for index in operator.inputs if index >= 0]
    stored = [model.buffers[tensor.buffer].data for tensor in tensors if tflite_file.type_name(tensor) == "FLOAT32"]
    return max((len(data) // 4 for data in stored if data is not None), default=0)
