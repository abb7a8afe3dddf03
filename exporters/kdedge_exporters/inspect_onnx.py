"""What a .onnx file holds.

An op between DequantizeLinear and QuantizeLinear is counted as one on the integers that these read and write: so
ONNX Runtime and other readers of QDQ graphs compute it where they have such a kernel.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import ArtifactError

from kdedge_exporters.inspection import Contents, Step, TensorSpec, decoded, op_kinds, peak_bytes
from kdedge_exporters.onnx_values import between_qdq, constant, is_fused_relu, made_by, sizes

if TYPE_CHECKING:
    import onnx_ir as ir

_NUMPY_WORDS = {"FLOAT": "float32", "DOUBLE": "float64"}
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
# Op -> the position of its weights, or of the second factor.
_FACTORS = {
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1, "Gemm": 1, "QGemm": 3, "MatMul": 1,
    "MatMulInteger": 1, "QLinearMatMul": 3, "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1,
}  # fmt: skip
_NOT_COUNTED = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention", "DeformConv", "If", "Loop", "Scan")


def contents(path: Path) -> Contents:
    """Read a file.

    Raises:
        ArtifactError: it is damaged or no .onnx file.
    """
    import onnx
    import onnx_ir as ir

    try:
        proto = onnx.load(str(path))
        stated = {value.name: _stated(value) for value in (*proto.graph.input, *proto.graph.output)}
        _one_sample(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        found = _contents(ir.from_proto(inferred), proto, stated)
    except Exception as error:  # protobuf, the checker and the readers raise kinds of their own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"the file is damaged or needs another one: {line[:200]}", where=path, cure="Export or copy it again"
        ) from error
    if not found.ops:
        raise ArtifactError("the file holds no graph: it is no .onnx file, or cut", where=path)
    return found


def _stated(value: Any) -> tuple[int | None, ...]:
    """A shape as the file has it, None for an open axis."""
    axes = value.type.tensor_type.shape.dim
    return tuple(int(axis.dim_value) if axis.HasField("dim_value") else None for axis in axes)


def _one_sample(proto: Any) -> None:
    """Set the open first axis of the inputs to one, wherever its name occurs, and forget the shapes drawn from it."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    first = [value.type.tensor_type.shape.dim[0] for value in inputs if value.type.tensor_type.shape.dim]
    names = {axis.dim_param for axis in first if axis.dim_param}
    for value in inputs:
        for position, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param in names or (position == 0 and not axis.HasField("dim_value")):
                axis.dim_value = 1
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()


def _contents(model: ir.Model, proto: Any, stated: dict[str, tuple[int | None, ...]]) -> Contents:
    nodes = list(model.graph)
    rows = [(node.op_type, _dtype(node), _macs(node)) for node in nodes]
    unmeasured = {}
    unknown = sorted({op for op, _, macs in rows if macs is None})
    if unknown:
        unmeasured["macs"] = f"not known for {', '.join(unknown)}"
    peak = _peak(model, nodes)
    if peak is None:
        unmeasured["peak_activation_bytes"] = "a shape is open"
    parameters = [value for value in model.graph.initializers.values() if _is_parameter(value)]
    metadata = {key: decoded(text) for key, text in model.metadata_props.items()}
    return Contents(
        producer=" ".join(word for word in (proto.producer_name, proto.producer_version) if word),
        versions={"ir": proto.ir_version, **{entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}},
        ops=op_kinds(rows),
        parameters=sum(value.const_value.size for value in parameters if value.const_value is not None),
        parameter_bytes=sum(value.const_value.nbytes for value in parameters if value.const_value is not None),
        peak_activation_bytes=peak,
        inputs=tuple(
            TensorSpec(value.name or "", _word(value), stated.get(value.name or "", ())) for value in model.graph.inputs
        ),
        outputs=tuple(
            TensorSpec(value.name or "", _word(value), stated.get(value.name or "", ()))
            for value in model.graph.outputs
        ),
        metadata=metadata,
        unmeasured=unmeasured,
    )


def _word(value: ir.Value | None) -> str:
    return "-" if value is None or value.dtype is None else _NUMPY_WORDS.get(str(value.dtype), str(value.dtype).lower())


def _source(value: ir.Value | None) -> ir.Value | None:
    """What a DequantizeLinear reads; any other value itself."""
    if not made_by(value, "DequantizeLinear"):
        return value
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None else None


def _dtype(node: ir.Node) -> str:
    """The dtype of the data, and of the weights where it is another."""
    if not node.inputs:
        return _word(node.outputs[0]) if node.outputs else "-"
    if node.op_type in _QUANTISERS:
        return _word(node.inputs[0])
    if is_fused_relu(node):
        return _word(next(iter(node.outputs[0].uses())).node.outputs[0])
    read = _source if between_qdq(node) else lambda value: value
    data = _word(read(node.inputs[0]))
    position = _FACTORS.get(node.op_type)
    if position is None or position >= len(node.inputs):
        return data
    weights = _word(read(node.inputs[position]))
    return data if weights == data else f"{data}×{weights}"


def _lengths(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    found = [size for size in sizes(value) if size is not None]
    return found if len(found) == len(sizes(value)) else None


def _macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of an op; None where a shape is open or the op is not known to be without."""
    position = _FACTORS.get(node.op_type)
    if position is None:
        return None if node.op_type in _NOT_COUNTED else 0
    result, data, factor = (_lengths(v) for v in (node.outputs[0], node.inputs[0], node.inputs[position]))
    if result is None or data is None or factor is None:
        return None
    if "Conv" in node.op_type:
        return prod(data if node.op_type == "ConvTranspose" else result) * prod(factor[1:])
    if "Gemm" in node.op_type:
        transposed = node.attributes.get("transA")
        return prod(result) * data[0 if transposed is not None and transposed.as_int() else 1]
    return prod(result) * data[-1]


def _is_parameter(value: ir.Value) -> bool:
    """Shapes, axes, scales and zero points are none; nor is what nothing reads."""
    import onnx_ir as ir

    if value.const_value is None or value.dtype in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING):
        return False
    uses = list(value.uses())
    quantising = [use.node.op_type in _QUANTISERS and use.idx > 0 for use in uses]
    return bool(uses) and not all(quantising)


def _peak(model: ir.Model, nodes: list[ir.Node]) -> int | None:
    """As ``peak_bytes``; floats between integer kernels and their QDQ ops are never written, so they are aliases."""
    alias: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if node.op_type in _QUANTISERS or not (between_qdq(node) or is_fused_relu(node)):
            continue
        for value in node.inputs:
            source = _source(value)
            if value is not None and source is not None and source is not value:
                alias[value] = source
        for use in node.outputs[0].uses():
            alias[node.outputs[0]] = use.node.outputs[0]

    def root(value: ir.Value) -> ir.Value:
        while value in alias:
            value = alias[value]
        return value

    def alive(values: Any) -> list[object]:
        roots = [root(value) for value in values if value is not None]
        return [value for value in roots if constant(value) is None]

    steps = [Step(alive(node.inputs), alive(node.outputs)) for node in nodes]
    kept = [*alive(model.graph.inputs), *alive(model.graph.outputs)]
    tensors = {value for step in steps for value in (*step.reads, *step.writes)} | set(kept)
    return peak_bytes(steps, {value: _bytes(value) for value in tensors}, kept)


def _bytes(value: Any) -> int | None:
    lengths = _lengths(value)
    if lengths is None or value.dtype is None:
        return None
    return -(-prod(lengths) * int(value.dtype.itemsize * 8) // 8)
