"""What a .tflite file holds (format: tensorflow/lite/schema/schema.fbs)."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from kdedge.errors import ArtifactError

from kdedge_exporters import tflite_file
from kdedge_exporters.inspection import Contents, Step, TensorSpec, decoded, op_kinds, peak_bytes

_BITS = {
    "FLOAT64": 64, "INT64": 64, "UINT64": 64, "FLOAT32": 32, "INT32": 32, "UINT32": 32, "FLOAT16": 16, "BFLOAT16": 16,
    "INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4, "INT2": 2, "COMPLEX64": 64,
}  # fmt: skip
_NOT_COUNTED = ("LSTM", "RNN", "SVDF", "CONV_3D", "CUSTOM", "STABLEHLO", "BUILTIN_")
_COUNTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
# They run other graphs of the file, some or all of them, once or more often.
_CONTROL = ("IF", "WHILE", "CALL", "CALL_ONCE")
_OPEN = "a shape is open"


def contents(path: Path) -> Contents:
    """Read a file.

    Raises:
        ArtifactError: it is damaged or no .tflite file.
    """
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise ArtifactError("this is no .tflite file: it lacks the mark TFL3", where=path)
    try:
        return _contents(tflite_file.read(data))
    except Exception as error:  # the generated reader follows offsets wherever they lead
        raise ArtifactError(
            f"the file is damaged: {type(error).__name__} while reading it", where=path, cure="Export or copy it again"
        ) from error


def _contents(model: Any) -> Contents:
    graph = model.subgraphs[0]
    unmeasured = {}
    infos = [tflite_file.operations(model, number) for number in range(len(model.subgraphs))]
    controlled = any(info.op in _CONTROL for info in infos[0])
    graphs = list(zip(model.subgraphs, infos, strict=True))[: None if controlled else 1]
    if len(graphs) < len(model.subgraphs):
        unmeasured["ops"] = f"those of {len(model.subgraphs) - 1} more subgraphs are not listed"
    rows = [
        (info.op, _dtype(info), _macs(info.op, part, operator))
        for part, found in graphs
        for info, operator in zip(found, part.operators, strict=True)
    ]
    uncounted = sorted({op for op, _, macs in rows if macs is None})
    if uncounted:
        unmeasured["macs"] = f"not known for {', '.join(uncounted)}"
    constants = [_constants(model, part) for part, _ in graphs]
    parameters = {  # by buffer, which graphs may share
        part.tensors[index].buffer: part.tensors[index]
        for (part, _), held in zip(graphs, constants, strict=True)
        for index in sorted(held)
        if _is_parameter(part.tensors[index])
    }.values()
    metadata = {entry.name.decode(): _text(model.buffers[entry.buffer]) for entry in model.metadata or []}
    stated = metadata.get("kdedge")
    producer = f"kdedge {stated.get('kdedge_version')}" if isinstance(stated, dict) else _description(model)
    peak, reason = (
        (None, "graphs that others run have memory of their own") if controlled else _peak(graph, constants[0])
    )
    if peak is None:
        unmeasured["peak_activation_bytes"] = reason
    sources = [graph.tensors[index] for index in tflite_file.indices(graph.inputs)]
    return Contents(
        producer=producer,
        versions={"schema": model.version, **_newest([info for found in infos for info in found])},
        ops=op_kinds(rows),
        parameters=sum(prod(_shape(tensor)) for tensor in parameters),
        parameter_bytes=sum(_bytes(tensor) or 0 for tensor in parameters),
        peak_activation_bytes=peak,
        inputs=tuple(_spec(tensor) for tensor in sources),
        outputs=tuple(_spec(graph.tensors[index]) for index in tflite_file.indices(graph.outputs)),
        metadata=metadata,
        unmeasured=unmeasured,
        batch=next((shape[0] for shape in map(_shape, sources) if shape), 1),
    )


def _newest(infos: list[tflite_file.OpInfo]) -> dict[str, int]:
    """Op type -> the newest version of it that the file asks for."""
    newest: dict[str, int] = {}
    for info in infos:
        newest[info.op] = max(newest.get(info.op, 0), info.version)
    return dict(sorted(newest.items()))


def _description(model: Any) -> str:
    text = model.description
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")


def _constants(model: Any, graph: Any) -> set[int]:
    return {index for index, tensor in enumerate(graph.tensors) if _is_constant(model, tensor)}


def _is_constant(model: Any, tensor: Any) -> bool:
    buffer = model.buffers[tensor.buffer]
    return tensor.buffer != 0 and ((buffer.data is not None and len(buffer.data) > 0) or bool(buffer.size))


def _is_parameter(tensor: Any) -> bool:
    """Shapes, axes and paddings are integers without a scale."""
    name = tflite_file.type_name(tensor)
    return "FLOAT" in name or (tensor.quantization is not None and tensor.quantization.scale is not None)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, tensor.shape)) if tensor.shape is not None else ()


def _bytes(tensor: Any) -> int | None:
    bits = _BITS.get(tflite_file.type_name(tensor))
    return None if bits is None else -(-prod(_shape(tensor)) * bits // 8)


def _dtype(info: tflite_file.OpInfo) -> str:
    """The dtype of the data, and of the weights where it is another."""
    words = [word.lower() for word in info.inputs]
    if not words:
        return info.outputs[0].lower() if info.outputs else "-"
    if info.op in _COUNTED and info.op != "TRANSPOSE_CONV" and words[0] != words[1]:
        return f"{words[0]}×{words[1]}"
    if info.op == "TRANSPOSE_CONV":
        return words[2] if words[1] == words[2] else f"{words[2]}×{words[1]}"
    return words[0]


def _macs(op: str, graph: Any, operator: Any) -> int | None:
    """Multiply-accumulates of an op, from the shapes in the file (its batch); None where they are not known."""
    if op in _CONTROL or any(word in op for word in _NOT_COUNTED):
        return None
    if op not in _COUNTED:
        return 0
    read = (graph.tensors[index] for index in tflite_file.indices((*operator.inputs, *operator.outputs)))
    if _is_open(graph) or any(map(_open_inside, read)):
        return None
    sources = [_shape(graph.tensors[index]) if index >= 0 else () for index in operator.inputs]
    result = prod(_shape(graph.tensors[operator.outputs[0]]))
    if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return result * prod(sources[1][1:] if op == "CONV_2D" else sources[1][1:3])
    if op == "TRANSPOSE_CONV":
        return prod(sources[2]) * prod(sources[1][:3])
    return result * (
        sources[1][-1] if op == "FULLY_CONNECTED" else sources[0][-2 if operator.builtinOptions.adjX else -1]
    )


def _open_inside(tensor: Any) -> bool:
    """Whether the caller chooses a length behind the first axis: the shape in the file is then but one of many."""
    signature = tensor.shapeSignature
    return signature is not None and any(size < 0 for size in signature[1:])


def _is_open(graph: Any) -> bool:
    """Whether that is so of an input: what follows has other shapes then too, marked or not."""
    return any(_open_inside(graph.tensors[index]) for index in tflite_file.indices(graph.inputs))


def _peak(graph: Any, constants: set[int]) -> tuple[int | None, str]:
    """As ``peak_bytes``, and why it is None where it is."""

    def alive(vector: Any) -> list[object]:
        return [index for index in tflite_file.indices(vector) if index not in constants]

    steps = [Step(alive(operator.inputs), alive(operator.outputs)) for operator in graph.operators]
    sizes: dict[object, int | None] = {index: _bytes(tensor) for index, tensor in enumerate(graph.tensors)}
    if any(_open_inside(tensor) for tensor in graph.tensors):
        return None, _OPEN
    unsized = sorted({tflite_file.type_name(tensor) for tensor in graph.tensors if _bytes(tensor) is None})
    peak = peak_bytes(steps, sizes, [*alive(graph.inputs), *alive(graph.outputs)])
    return peak, f"the size of {' and '.join(unsized)} is not known"


def _spec(tensor: Any) -> TensorSpec:
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(None if size < 0 else int(size) for size in (signature if signature is not None else ()))
    given = tensor.quantization
    quantised = given is not None and given.scale is not None and len(given.scale) == 1
    return TensorSpec(
        tflite_file.tensor_name(tensor),
        tflite_file.type_name(tensor).lower(),
        shape,
        float(given.scale[0]) if quantised else None,
        int(given.zeroPoint[0]) if quantised and given.zeroPoint is not None else None,
    )


def _text(buffer: Any) -> Any:
    data = bytes(buffer.data) if buffer.data is not None else b""
    try:
        return decoded(data.rstrip(b"\0").decode())
    except UnicodeDecodeError:
        return f"{len(data)} bytes"
