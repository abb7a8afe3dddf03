"""A copy of an int8 file that also puts out its integer tensors, and what they are for given samples.

The copy computes as the file does for its users: the runtime of its format runs it with the same kernels to the same
logits, bit for bit (``tests/unit/test_layers.py``). Without XNNPACK, LiteRT's kernels round otherwise: half a step of
the mean after eleven layers of MobileNetV2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from kdedge_exporters import tflite_file
from kdedge_exporters.artifact import Artifact
from kdedge_exporters.onnx_values import constant, made_by

Integers = NDArray[np.int16]
"""Values of an int8 tensor, wide enough for the difference of two."""
QParams = tuple[np.float32, int]
_UINT8_OFFSET = 128
# Ops on integers of which come others than these: real values, or lengths.
_LEAVE_INTEGERS = ("DequantizeLinear", "Cast", "Shape", "Size")


@dataclass(frozen=True)
class StoredTensor:
    """An integer tensor of a file.

    Attributes:
        name: In the file.
        output: Its position among the outputs of the copy.
        qparams: Scale, and zero point of int8 (128 less than that of uint8).
    """

    name: str
    output: int
    qparams: QParams


def expose(path: Path, kind: str, copy: Path) -> list[StoredTensor]:
    """Write the copy.

    Args:
        path: A file that its runtime opens.
        kind: ``onnx`` or ``tflite``.
        copy: Where to.

    Returns:
        The tensors that one scale holds for, in the order in which the file computes them.
    """
    return _expose_onnx(path, copy) if kind == "onnx" else _expose_tflite(path, copy)


def integers(artifact: Artifact, batch: Sequence[Tensor], stored: Sequence[StoredTensor]) -> list[Integers]:
    """The values of every tensor, those of uint8 less 128.

    Args:
        artifact: The copy.
        batch: As the student takes it.
        stored: From ``expose``.

    Raises:
        ArtifactError: the samples do not fit the file.
    """
    results = artifact.outputs([values.numpy() for values in batch])
    found = [results[tensor.output] for tensor in stored]
    return [values.astype(np.int16) - (_UINT8_OFFSET if values.dtype == np.uint8 else 0) for values in found]


def _expose_onnx(path: Path, copy: Path) -> list[StoredTensor]:
    """What QuantizeLinear writes or DequantizeLinear reads, and what ops on those integers alone make of them."""
    model = ir.load(path)
    outputs = model.graph.outputs
    grids: dict[ir.Value | None, _Grid] = {}
    found: list[StoredTensor] = []
    for node in model.graph:
        for value in node.outputs if node.op_type not in _LEAVE_INTEGERS else ():
            moved = [grids[source] for source in node.inputs if source in grids]
            grid = next(iter([*_stated_grids(value), *moved]), None)
            if grid is None:
                continue
            grids[value] = grid
            if value not in outputs:
                value.dtype = ir.DataType.UINT8 if grid.unsigned else ir.DataType.INT8
                outputs.append(value)
            tensor = StoredTensor(str(value.name), list(outputs).index(value), grid.qparams)
            # A Clip is the other half of an activation: the program's tensor is its result, not what it clips.
            found.insert(len(found) - (node.op_type == "Clip"), tensor)
    ir.save(model, copy)
    return found


class _Grid(NamedTuple):
    """Which real values integers of an ONNX file stand for."""

    qparams: QParams
    unsigned: bool


def _stated_grids(value: ir.Value) -> Iterator[_Grid]:
    """By the QuantizeLinear that writes a tensor and each DequantizeLinear that reads it, if one scale holds for it."""
    nodes = [value.producer()] if made_by(value, "QuantizeLinear") else []
    nodes += [use.node for use in value.uses() if use.node.op_type == "DequantizeLinear" and use.idx == 0]
    for node in nodes:
        scale, zero_point = (constant(source) for source in [*cast(ir.Node, node).inputs[1:3], None][:2])
        if scale is not None and zero_point is not None and scale.ndim == 0:
            unsigned = zero_point.dtype == np.uint8
            yield _Grid((np.float32(scale), int(zero_point) - (_UINT8_OFFSET if unsigned else 0)), unsigned)


def _expose_tflite(path: Path, copy: Path) -> list[StoredTensor]:
    """Inputs and results of ops that are int8."""
    model = tflite_file.read(path.read_bytes())
    graph = model.subgraphs[0]
    outputs = [int(index) for index in graph.outputs]
    found = []
    made = [index for operator in graph.operators for index in operator.outputs]
    for index in map(int, [*graph.inputs, *made]):
        tensor = graph.tensors[index]
        given = tensor.quantization
        if tflite_file.type_name(tensor) != "INT8" or given is None or given.scale is None or len(given.scale) > 1:
            continue
        if index not in outputs:
            outputs.append(index)
        name = tensor.name.decode(errors="replace")
        qparams = np.float32(given.scale[0]), int(given.zeroPoint[0])
        found.append(StoredTensor(name, outputs.index(index), qparams))
    graph.outputs = outputs
    model.signatureDefs = []  # they would have to name every output
    copy.write_bytes(tflite_file.pack(model))
    return found
