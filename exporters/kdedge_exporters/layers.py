"""An int8 artifact against the int8 program in torch, tensor by tensor: where do the two part?

Two differences are taken of each quantised tensor. The accumulated one, both sides computing from the net's input, says
how far apart they are there, not who is to blame: a single rounding that falls the other way in an early layer of
MobileNetV2 is a mean of 0.2 steps some 30 layers on. For the layer's own difference torch computes each tensor anew
from the artifact's integers before it; what is left arises in that layer alone, however deep it lies.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kdedge.errors import ArtifactError
from kdedge.quantize.inspect import QUANTIZE
from kdedge.quantize.rules import fused_activation
from torch import Tensor
from torch.fx import GraphModule, Node

from kdedge_exporters.artifact import open_artifact
from kdedge_exporters.exposed import Integers, StoredTensor, expose, integers
from kdedge_exporters.layer_matching import (
    Batch,
    Pair,
    Shape,
    laid_out,
    matched,
    moves_data,
    only_rounding,
    qparams,
    recorded,
)

_MATCHED_ON = 4
"""Batches on which tensors must agree to be paired: on one sample a clipped tensor may be like the one before it."""
_ELIDED = "the op only moves data, and the file does that elsewhere or not at all"
_ABSENT = "no further tensor of the file has its scale, zero point and shape"


@dataclass(frozen=True)
class LayerDifference:
    """A quantised tensor of the program and its counterpart in the artifact.

    Differences are of the stored integers, so in steps of the tensor's scale; None where there is no counterpart.

    Attributes:
        name: The tensor's name in the program, as ``quantize.qparams`` has it.
        op: What makes it, e.g. ``aten.add.Tensor``, and the activation that belongs to its kernel, joined by ``+``.
        module: Path of the module that makes it; None where no module does.
        shape: In torch, for one sample (for a whole batch where the program fixes its size).
        scale: Its step.
        zero_point: Of int8.
        counterpart: Name of the tensor in the file; None where it has none.
        reason: Why it has none, or which other scale and zero point it has there; None where neither is the case.
        mean_steps: Mean absolute difference, accumulated since the net's input.
        max_steps: Largest one.
        equal_share: Share of equal integers, in [0, 1].
        own_mean_steps: Mean absolute difference that arises in this layer alone.
        own_max_steps: Largest one.
    """

    name: str
    op: str
    module: str | None
    shape: Shape
    scale: float
    zero_point: int
    counterpart: str | None = None
    reason: str | None = None
    mean_steps: float | None = None
    max_steps: int | None = None
    equal_share: float | None = None
    own_mean_steps: float | None = None
    own_max_steps: int | None = None

    @property
    def matched(self) -> bool:
        """Whether the file holds the tensor."""
        return self.counterpart is not None

    @property
    def departs(self) -> bool:
        """Whether this layer computes something else than torch, beyond rounding."""
        mean, largest = self.own_mean_steps, self.own_max_steps
        return mean is not None and largest is not None and not only_rounding(mean, largest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "shape": list(self.shape), "matched": self.matched, "departs": self.departs}


def compare_layers(
    path: Path, kind: str, program: GraphModule, inputs: Sequence[Tensor], runtime: str | None = None
) -> list[LayerDifference]:
    """Compare every quantised tensor, in the order in which torch computes them.

    Args:
        path: An int8 file that kdedge wrote, whatever its input and output are.
        kind: ``onnx`` or ``tflite``.
        program: ``Bundle.int8_program`` of the same student.
        inputs: What the student takes, a tensor for each of its inputs: float32 [N, C, H, W] normalised (or
            [N, features]), or token ids int64 [N, L]. A few samples serve: torch runs each two or three times.
        runtime: As in ``load_artifact``.

    Raises:
        ArtifactError: the file is missing, damaged, not int8 or another student's, or the inputs do not fit.
    """
    artifact = open_artifact(path, kind, runtime)
    if artifact.precision != "int8":
        what = f"a {artifact.precision} artifact has no int8 tensors to compare"
        raise ArtifactError(what, where=path, cure="Export it with --precision int8")
    batches = _batches(program, inputs, where=path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        stored = expose(path, kind, copy)
        exposed = replace(open_artifact(copy, kind, runtime), path=path)  # what errors name
        samples = [(batch, integers(exposed, batch, stored)) for batch in batches[:_MATCHED_ON]]
        pairs = matched(program, stored, samples, channels_last=kind == "tflite")
        if 2 * len(pairs) < sum(node.target is QUANTIZE[0] for node in program.graph.nodes):
            what = "most of the student's tensors are not in the file, by scale and zero point"
            raise ArtifactError(what, where=path, cure="Compare it with the student that it was exported from")
        comparison = _Comparison(program, stored, pairs)
        for batch in batches:
            comparison.take(batch, integers(exposed, batch, stored))
    return comparison.differences()


def first_departure(differences: Sequence[LayerDifference]) -> LayerDifference | None:
    """The first layer that computes something else than torch; None where rounding explains every difference."""
    return next((difference for difference in differences if difference.departs), None)


def in_lines(differences: Sequence[LayerDifference]) -> list[str]:
    """A table of all tensors, and the verdict."""
    rows = [("layer", "op")]
    rows += [(_layer(one), one.op.replace("aten.", "").replace(".default", "")) for one in differences]
    wide, narrow = (max(len(row[column]) for row in rows) for column in (0, 1))
    figures = [f"{'own mean':>8}  {'own max':>7}  {'mean':>7}  {'max':>4}  {'equal':>6}", *map(_figures, differences)]
    lines = [f"{layer:<{wide}}  {op:<{narrow}}  {cells}" for (layer, op), cells in zip(rows, figures, strict=True)]
    first, in_file = first_departure(differences), sum(one.matched for one in differences)
    verdict = "no layer departs from torch" if first is None else f"the first layer that departs is {_layer(first)}"
    return [*lines, f"{verdict} (differences in steps; {in_file} of {len(differences)} tensors are in the file)"]


def _layer(one: LayerDifference) -> str:
    return one.name if one.module is None else f"{one.name} ({one.module})"


def _figures(one: LayerDifference) -> str:
    if not one.matched:
        return f"not compared: {one.reason}"
    cells = f"{one.own_mean_steps:>8.4f}  {one.own_max_steps:>7}  {one.mean_steps:>7.4f}  {one.max_steps:>4}"
    notes = [note for note in ("departs" if one.departs else None, one.reason) if note is not None]
    return "  ".join([cells, f"{one.equal_share:>6.1%}", *notes])


def _batches(program: GraphModule, inputs: Sequence[Tensor], where: Path) -> list[Batch]:
    """The samples one by one.

    Raises:
        ArtifactError: they do not fit the program.
    """
    expected = [tuple(node.meta["val"].shape) for node in program.graph.nodes if node.op == "placeholder"]
    takes, given = ([list(shape[1:]) for shape in shapes] for shapes in (expected, [tuple(x.shape) for x in inputs]))
    if takes != given:
        raise ArtifactError(f"inputs of {given} given", where=where, cure=f"The student takes {takes} for each sample")
    counts = sorted({len(x) for x in inputs})
    if len(counts) > 1 or counts[0] == 0:
        what = f"{' and '.join(map(str, counts))} samples given"
        raise ArtifactError(what, where=where, cure="Give at least one, as many of each input")
    return list(zip(*(x.split(1) for x in inputs), strict=True))  # type: ignore[no-untyped-call]


@dataclass
class _Sums:
    """Differences of one tensor over all batches."""

    values: int = 0
    equal: int = 0
    total: int = 0
    largest: int = 0

    def take(self, ours: Integers, theirs: Integers) -> None:
        """One batch, both in one layout."""
        steps = np.abs(ours - theirs)
        self.values += steps.size
        self.equal += int((steps == 0).sum())
        self.total += int(steps.sum(dtype=np.int64))
        self.largest = max(self.largest, int(steps.max()))


class _Comparison:
    """What is known of each tensor after some batches.

    Args:
        program: Converted.
        stored: The file's tensors.
        pairs: Their places in it.
    """

    def __init__(self, program: GraphModule, stored: Sequence[StoredTensor], pairs: Mapping[Node, Pair]) -> None:
        self._program, self._pairs = program, pairs
        self._theirs = {node: stored[pair.theirs] for node, pair in pairs.items()}
        self._shapes: dict[Node, Shape] = {}
        self._accumulated: dict[Node, _Sums] = defaultdict(_Sums)
        self._own: dict[Node, _Sums] = defaultdict(_Sums)

    def take(self, batch: Batch, theirs: Sequence[Integers]) -> None:
        """One batch, and the file's integers for it."""
        accumulated = recorded(self._program, batch)
        self._shapes = {node: values.shape for node, values in accumulated.items()}
        counterparts = {
            node: laid_out(theirs[pair.theirs], self._shapes[node], pair) for node, pair in self._pairs.items()
        }
        # Under other qparams the integers mean something else: torch goes on with its own ones then.
        usable = {node: values for node, values in counterparts.items() if self._theirs[node].qparams == qparams(node)}
        own = recorded(self._program, batch, lambda node, _: usable.get(node))
        for node, values in counterparts.items():
            self._accumulated[node].take(accumulated[node], values)
            self._own[node].take(own[node], values)

    def differences(self) -> list[LayerDifference]:
        """Of every tensor, in the program's order."""
        return [self._difference(node) for node in self._shapes]

    def _difference(self, node: Node) -> LayerDifference:
        tensor, (scale, zero_point) = node.all_input_nodes[0], qparams(node)
        shape = self._shapes[node]
        ours = LayerDifference(tensor.name, _op(tensor), _module(tensor), shape, float(scale), zero_point)
        if node not in self._pairs:
            return replace(ours, reason=_ELIDED if moves_data(tensor) else _ABSENT)
        theirs, accumulated, own = self._theirs[node], self._accumulated[node], self._own[node]
        differs = f"there scale {theirs.qparams[0]:.6g}, zero point {theirs.qparams[1]}; here {scale:.6g}, {zero_point}"
        return replace(
            ours,
            counterpart=theirs.name,
            reason=None if theirs.qparams == (scale, zero_point) else differs,
            mean_steps=accumulated.total / accumulated.values,
            max_steps=accumulated.largest,
            equal_share=accumulated.equal / accumulated.values,
            own_mean_steps=own.total / own.values,
            own_max_steps=own.largest,
        )


def _op(tensor: Node) -> str:
    if tensor.op == "placeholder":
        return "input"
    producer = tensor.args[0]
    if isinstance(producer, Node) and fused_activation(producer) is tensor:
        return f"{producer.target}+{tensor.target}"
    return str(tensor.target)


def _module(tensor: Node) -> str | None:
    """As ``quantize.explain`` names it."""
    paths = [str(entry[0]) for entry in (tensor.meta.get("nn_module_stack") or {}).values()]
    return paths[-1] if paths and paths[-1] else None
