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
    "FusedConv": 1, "FusedGemm": 1, "FusedMatMul": 1, "MatMulNBits": 1,
}  # fmt: skip
_NOT_COUNTED = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention", "DeformConv", "If", "Loop", "Scan")
# Ops without multiply-accumulates of the other domains. What is not listed may be fused of anything.
_WITHOUT = {
    "com.microsoft": (
        "QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearMul", "QLinearAveragePool",
        "QLinearGlobalAveragePool", "QLinearConcat", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax",
        "QLinearReduceMean", "QLinearWhere", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasSoftmax", "BiasAdd",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization",
        "QEmbedLayerNormalization",
    ),
}  # fmt: skip
_OWN_DOMAINS = ("", "ai.onnx")
# Fused op of ONNX Runtime -> the op whose result has the same shape.
_SHAPED_AS = {
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "Gelu": "Relu",
    "FastGelu": "Relu",
    "QuickGelu": "Relu",
    "BiasGelu": "Add",
}


def contents(path: Path) -> Contents:
    """Read a file.

    Raises:
        ArtifactError: it is damaged or no .onnx file.
    """
    import onnx
    import onnx.inliner
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    try:
        proto = onnx.load(str(path))
        stated = {value.name: _stated(value) for value in (*proto.graph.input, *proto.graph.output)}
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        _one_sample(proto)
        model = ir.from_proto(_inferred(proto))
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        found = _contents(model, proto, stated)
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
    """Set the open first axis of the inputs to one, wherever its name occurs, and forget the shapes drawn from it.

    Those that ops of other domains write are kept: nobody infers them again.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    first = [value.type.tensor_type.shape.dim[0] for value in inputs if value.type.tensor_type.shape.dim]
    names = {axis.dim_param for axis in first if axis.dim_param}
    for value in inputs:
        for position, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param in names or (position == 0 and not axis.HasField("dim_value")):
                axis.dim_value = 1
    foreign = {name for node in proto.graph.node if node.domain not in _OWN_DOMAINS for name in node.output}
    kept = [value for value in proto.graph.value_info if value.name in foreign]
    for value in kept:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_value = 1
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    for value in proto.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()


def _inferred(proto: Any) -> Any:
    """The file with the shapes that follow from its inputs, those behind ONNX Runtime's fused ops among them."""
    import onnx

    fused = {
        number: (node.op_type, node.domain)
        for number, node in enumerate(proto.graph.node)
        if node.domain == "com.microsoft" and node.op_type in _SHAPED_AS
    }
    for number, (op_type, _) in fused.items():
        proto.graph.node[number].op_type, proto.graph.node[number].domain = _SHAPED_AS[op_type], ""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for number, given in fused.items():
        inferred.graph.node[number].op_type, inferred.graph.node[number].domain = given
    return inferred


def _contents(model: ir.Model, proto: Any, stated: dict[str, tuple[int | None, ...]]) -> Contents:
    nodes = list(model.graph)
    everywhere = list(model.graph.all_nodes())  # also those of If, Loop and Scan
    rows = [(node.op_type, _dtype(node), _macs(node)) for node in everywhere]
    unmeasured = {}
    unknown = sorted({op for op, _, macs in rows if macs is None})
    if unknown:
        unmeasured["macs"] = f"not known for {', '.join(unknown)}"
    if len(everywhere) > len(nodes):
        peak, reason = None, "graphs that others run have memory of their own"
    else:
        peak, reason = _peak(model, nodes)
    if peak is None:
        unmeasured["peak_activation_bytes"] = reason
    constants = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
    parameters = [value for value in dict.fromkeys(constants) if _is_parameter(value)]
    metadata = {key: decoded(text) for key, text in model.metadata_props.items()}
    sources = [value for value in model.graph.inputs if value.name not in model.graph.initializers]  # IR 3 repeats them
    return Contents(
        producer=" ".join(word for word in (proto.producer_name, proto.producer_version) if word),
        versions={"ir": proto.ir_version, **{entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}},
        ops=op_kinds(rows),
        parameters=sum(value.const_value.size for value in parameters if value.const_value is not None),
        parameter_bytes=sum(value.const_value.nbytes for value in parameters if value.const_value is not None),
        peak_activation_bytes=peak,
        inputs=tuple(_spec(value, stated) for value in sources),
        outputs=tuple(_spec(value, stated) for value in model.graph.outputs),
        metadata=metadata,
        unmeasured=unmeasured,
        batch=next((size for value in sources for size in sizes(value)[:1] if size is not None), 1),
        domains=tuple(sorted({node.domain for node in everywhere} - {*_OWN_DOMAINS})),
    )


def _spec(value: ir.Value, stated: dict[str, tuple[int | None, ...]]) -> TensorSpec:
    return TensorSpec(value.name or "", _word(value), stated.get(value.name or "", ()))


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
    if node.domain not in (*_OWN_DOMAINS, *_WITHOUT):  # a Conv there may be in blocks of channels
        return None
    position = _FACTORS.get(node.op_type)
    if position is None:
        known = node.domain in _OWN_DOMAINS or node.op_type in _WITHOUT[node.domain]
        return 0 if known and node.op_type not in _NOT_COUNTED else None
    result, data, factor = (_lengths(v) for v in (node.outputs[0], node.inputs[0], node.inputs[position]))
    if result is None or data is None or factor is None:
        return None
    if "Conv" in node.op_type:
        return prod(data if node.op_type == "ConvTranspose" else result) * prod(factor[1:])
    if "Gemm" in node.op_type:
        transposed = node.attributes.get("transA")
        return prod(result) * data[0 if transposed is not None and transposed.as_int() else 1]
    turned = node.attributes.get("transA")
    return prod(result) * data[-2 if turned is not None and turned.as_int() else -1]


def _is_parameter(value: ir.Value) -> bool:
    """Shapes, axes, scales and zero points are none; nor is what nothing reads."""
    import onnx_ir as ir

    if value.const_value is None or value.dtype in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING):
        return False
    uses = list(value.uses())
    quantising = [use.node.op_type in _QUANTISERS and use.idx > 0 for use in uses]
    return bool(uses) and not all(quantising)


def _peak(model: ir.Model, nodes: list[ir.Node]) -> tuple[int | None, str]:
    """As ``peak_bytes``, and why it is None where it is.

    Floats between integer kernels and their QDQ ops are never written, so they are aliases.
    """
    alias: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if node.op_type in _QUANTISERS or not (between_qdq(node) or is_fused_relu(node)):
            continue
        for value in node.inputs:
            source = _source(value)
            if value is not None and source is not None and source is not value and _read_by_kernels(value):
                alias[value] = source
        for use in node.outputs[0].uses():
            alias[node.outputs[0]] = use.node.outputs[0]

    def root(value: ir.Value) -> ir.Value:
        while value in alias:
            value = alias[value]
        return value

    def alive(values: Any) -> list[ir.Value]:
        roots = [root(value) for value in values if value is not None]
        return [value for value in roots if constant(value) is None]

    steps = [Step(alive(node.inputs), alive(node.outputs)) for node in nodes]
    kept = [*alive(model.graph.inputs), *alive(model.graph.outputs)]
    held: set[ir.Value] = {*alive(model.graph.inputs), *alive(model.graph.outputs)}
    for node in nodes:
        held.update(alive(node.inputs), alive(node.outputs))
    lengths: dict[object, int | None] = {value: _bytes(value) for value in held}
    strings = any(_word(value) == "string" for value in held)
    return peak_bytes(steps, lengths, kept), "strings have no fixed size" if strings else "a shape is open"


def _read_by_kernels(value: ir.Value) -> bool:
    """Whether integer kernels alone read what a DequantizeLinear makes: any other reader has it written as floats."""
    return not value.is_graph_output() and all(between_qdq(use.node) for use in value.uses())


def _bytes(value: Any) -> int | None:
    import onnx_ir as ir

    lengths = _lengths(value)
    if lengths is None or value.dtype in (None, ir.DataType.STRING):
        return None
    return -(-prod(lengths) * int(value.dtype.itemsize * 8) // 8)
