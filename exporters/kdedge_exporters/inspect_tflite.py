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
_NOT_COUNTED = ("LSTM", "RNN", "SVDF", "CONV_3D", "CUSTOM", "STABLEHLO")


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
    if len(model.subgraphs) > 1:
        unmeasured["ops"] = f"those of {len(model.subgraphs) - 1} more subgraphs are not listed"
    constants = {index for index in range(len(graph.tensors)) if _is_constant(model, graph.tensors[index])}
    infos = tflite_file.operations(model)
    rows = [
        (info.op, _dtype(info), _macs(info.op, graph, operator))
        for info, operator in zip(infos, graph.operators, strict=True)
    ]
    uncounted = sorted({op for op, _, macs in rows if macs is None})
    if uncounted:
        unmeasured["macs"] = f"not known for {', '.join(uncounted)}"
    parameters = [graph.tensors[index] for index in sorted(constants) if _is_parameter(graph.tensors[index])]
    metadata = {entry.name.decode(): _text(model.buffers[entry.buffer]) for entry in model.metadata or []}
    stated = metadata.get("kdedge")
    producer = f"kdedge {stated.get('kdedge_version')}" if isinstance(stated, dict) else _description(model)
    peak = _peak(graph, constants)
    if peak is None:
        unmeasured["peak_activation_bytes"] = "a shape is open"
    return Contents(
        producer=producer,
        versions={"schema": model.version, **_newest(infos)},
        ops=op_kinds(rows),
        parameters=sum(prod(_shape(tensor)) for tensor in parameters),
        parameter_bytes=sum(_bytes(tensor) or 0 for tensor in parameters),
        peak_activation_bytes=peak,
        inputs=tuple(_spec(graph.tensors[index]) for index in graph.inputs),
        outputs=tuple(_spec(graph.tensors[index]) for index in graph.outputs),
        metadata=metadata,
        unmeasured=unmeasured,
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
    if info.op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL") and words[0] != words[1]:
        return f"{words[0]}×{words[1]}"
    if info.op == "TRANSPOSE_CONV":
        return words[2] if words[1] == words[2] else f"{words[2]}×{words[1]}"
    return words[0]


def _macs(op: str, graph: Any, operator: Any) -> int | None:
    """Multiply-accumulates of an op, from the shapes in the file (its batch)."""
    sources = [_shape(graph.tensors[index]) if index >= 0 else () for index in operator.inputs]
    result = prod(_shape(graph.tensors[operator.outputs[0]])) if len(operator.outputs) else 0
    if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return result * prod(sources[1][1:] if op == "CONV_2D" else sources[1][1:3])
    if op == "FULLY_CONNECTED":
        return result * sources[1][-1]
    if op == "TRANSPOSE_CONV":
        return prod(sources[2]) * prod(sources[1][:3])
    if op == "BATCH_MATMUL":
        return result * sources[0][-2 if operator.builtinOptions.adjX else -1]
    return None if any(word in op for word in _NOT_COUNTED) else 0


def _peak(graph: Any, constants: set[int]) -> int | None:
    def alive(indices: Any) -> list[object]:
        return [
            int(index) for index in (indices if indices is not None else []) if index >= 0 and index not in constants
        ]

    steps = [Step(alive(operator.inputs), alive(operator.outputs)) for operator in graph.operators]
    sizes: dict[object, int | None] = {index: _bytes(tensor) for index, tensor in enumerate(graph.tensors)}
    return peak_bytes(steps, sizes, [*alive(graph.inputs), *alive(graph.outputs)])


def _spec(tensor: Any) -> TensorSpec:
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(None if size < 0 else int(size) for size in (signature if signature is not None else ()))
    given = tensor.quantization
    quantised = given is not None and given.scale is not None and len(given.scale) == 1
    return TensorSpec(
        tensor.name.decode(errors="replace"),
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
