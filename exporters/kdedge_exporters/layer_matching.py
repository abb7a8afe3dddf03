"""Which integer tensor of a file is which quantised tensor of the program that it was made from.

Both carry the same scale and zero point, bit for bit, and few tensors share theirs: what only moves or clips data,
results whose scale a kernel prescribes (softmax), sums that keep the scale of a summand. Of those the file may have
left some out and hold others twice. So they are told apart by their values while the program runs, each tensor computed
from the file's integers before it. The first tensor that agrees with none gets the place behind what it is computed
from, and before what is computed from it; then all that follows is computed anew, from the file's integers there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from kdedge.quantize.inspect import QUANTIZE
from kdedge.quantize.rules import rule_of
from torch.fx import GraphModule, Interpreter, Node

from kdedge_exporters.exposed import Integers, QParams, StoredTensor

Shape = tuple[int, ...]
Batch = tuple[torch.Tensor, ...]

MEAN_STEPS, MAX_STEPS = 0.5, 2
"""What rounding alone explains between two results of one layer from the same integers, in steps.

A value that lies halfway, as every second one does in a mean of two, may be rounded either way: so up to half of them
differ by one. Measured (8 samples; MobileNetV2 and V3, ResNet-18, BERT and DistilBERT of up to six layers; ONNX Runtime
1.32 and LiteRT 2.3 on x86 with VNNI): means of 0.006 at most, 0.22 in average pools, and never more than one step.
"""


def only_rounding(mean_steps: float, max_steps: int) -> bool:
    """Whether mean and largest difference are within ``MEAN_STEPS`` and ``MAX_STEPS``."""
    return mean_steps <= MEAN_STEPS and max_steps <= MAX_STEPS


def qparams(quantize: Node) -> QParams:
    """Scale and zero point of a ``quantize_per_tensor``."""
    return np.float32(quantize.args[1]), int(quantize.args[2])  # type: ignore[arg-type]


def moves_data(tensor: Node) -> bool:
    """Whether the op that makes it only puts values at other places, which a file may leave out."""
    rule = rule_of(tensor)
    return rule is not None and rule.kind == "move"


@dataclass(frozen=True)
class Pair:
    """A tensor of the program and one of the file that has its shape.

    Attributes:
        theirs: Position of the file's tensor.
        channels_last: Whether the file stores [N, ..., C] for [N, C, ...].
        exact: Whether the shapes are equal, and not only but for axes of length one.
    """

    theirs: int
    channels_last: bool
    exact: bool


def laid_out(values: Integers, shape: Shape, pair: Pair) -> Integers:
    """The file's values in the shape of the program's tensor."""
    if not pair.channels_last:
        return values.reshape(shape)
    return np.moveaxis(values.reshape(_channels_last(shape)), -1, 1)


Instead = Callable[[Node, Integers], Integers | None]
"""A ``quantize_per_tensor`` and its integers -> those that the program goes on with; None leaves them."""


class _Recorder(Interpreter):
    """Keeps the integers of each quantised tensor."""

    def __init__(self, program: GraphModule, instead: Instead) -> None:
        super().__init__(program)
        self.integers: dict[Node, Integers] = {}
        self._instead = instead

    def run_node(self, n: Node) -> Any:
        """One node's result."""
        result = super().run_node(n)
        if n.target is not QUANTIZE[0]:
            return result
        self.integers[n] = result.numpy().astype(np.int16)
        given = self._instead(n, self.integers[n])
        return result if given is None else torch.from_numpy(np.ascontiguousarray(given, np.int8))


@torch.no_grad()
def recorded(program: GraphModule, batch: Batch, instead: Instead = lambda *_: None) -> dict[Node, Integers]:
    """The integers of each quantised tensor, by its ``quantize_per_tensor``."""
    recorder = _Recorder(program, instead)
    recorder.run(*batch)
    return recorder.integers


def matched(
    program: GraphModule,
    stored: Sequence[StoredTensor],
    samples: Sequence[tuple[Batch, Sequence[Integers]]],
    *,
    channels_last: bool,
) -> dict[Node, Pair]:
    """The counterparts of all tensors that have one, by their ``quantize_per_tensor``, in the program's order.

    Args:
        program: Converted.
        stored: The file's tensors, in its order.
        samples: Batches, and the integers of ``stored`` for them.
        channels_last: Whether the file may store [N, ..., C] for [N, C, ...].
    """
    placed: dict[Node, Pair] = {}
    while True:
        search = _Search(stored, placed, channels_last=channels_last)
        for batch, theirs in samples:
            search.theirs = theirs
            recorded(program, batch, search.settle)
        found = search.found()
        place = search.place(found)
        if place is None:
            return found
        placed.update([place])


class _Search:
    """One pass over the samples.

    Args:
        stored: The file's tensors, in its order.
        placed: What earlier passes placed.
        channels_last: As in ``matched``.
    """

    def __init__(self, stored: Sequence[StoredTensor], placed: Mapping[Node, Pair], *, channels_last: bool) -> None:
        self.theirs: Sequence[Integers] = ()  # for the samples at hand
        self._stored, self._placed, self._channels_last = stored, placed, channels_last
        self._of_grid: dict[QParams, list[int]] = defaultdict(list)
        for position, tensor in enumerate(stored):
            self._of_grid[tensor.qparams].append(position)
        self._ours: dict[Node, Integers] = {}  # for the samples at hand
        self._agreeing: dict[Node, list[Pair]] = {}

    def settle(self, node: Node, ours: Integers) -> Integers | None:
        """Take the program's next tensor; the integers of the file's tensor for which it is taken, if there is one."""
        self._ours[node] = ours
        if node not in self._agreeing:
            fitting = self._fitting(node, self._of_grid[qparams(node)])
            self._agreeing[node] = [self._placed[node]] if node in self._placed else fitting
        if node not in self._placed:
            self._agreeing[node] = [pair for pair in self._agreeing[node] if only_rounding(*self._steps(node, pair))]
        best = _best(self._agreeing[node])
        if best is None or self._stored[best.theirs].qparams != qparams(node):
            return None
        return laid_out(self.theirs[best.theirs], ours.shape, best)

    def found(self) -> dict[Node, Pair]:
        """The best of the pairs that agree on all samples, each tensor of the file once."""
        found: dict[Node, Pair] = {}
        for node, pairs in self._agreeing.items():
            best = _best(_free(pairs, found))
            if best is not None:
                found[node] = best
        return found

    def place(self, found: Mapping[Node, Pair]) -> tuple[Node, Pair] | None:
        """A place for the first tensor without counterpart for which there is one.

        Its qparams may be wrong ones there: such that no tensor of the program has. What is only moved gets none: files
        have ways of their own to move data, and what they move is compared where it is made and where it is read.
        """
        grids = {qparams(node) for node in self._ours}
        foreign = [position for position, tensor in enumerate(self._stored) if tensor.qparams not in grids]
        for node in self._ours:
            if node in found or moves_data(node.all_input_nodes[0]):
                continue
            after = max((pair.theirs for pair in _nearest(node, found, lambda n: n.all_input_nodes)), default=-1)
            before = min((pair.theirs for pair in _nearest(node, found, lambda n: n.users)), default=math.inf)
            for positions in (self._of_grid[qparams(node)], foreign):
                between = [position for position in positions if after < position < before]
                fitting = _free(self._fitting(node, between), found)
                best = _best(sorted(fitting, key=lambda pair: (pair.theirs, self._steps(node, pair))))
                if best is not None:
                    return node, best
        return None

    def _fitting(self, node: Node, positions: Iterable[int]) -> list[Pair]:
        """The pairs whose shapes fit, in every layout in which they do."""
        shape, pairs = self._ours[node].shape, []
        for position in positions:
            theirs = self.theirs[position].shape
            for last in (False, True) if self._channels_last and len(shape) > 2 else (False,):
                ours = _channels_last(shape) if last else shape
                rows = (math.prod(ours[:-1]), *ours[-1:])  # as a linear layer over tokens may have them
                if _without_ones(theirs) in (_without_ones(ours), _without_ones(rows)):
                    pairs.append(Pair(position, last, theirs == ours))
        return pairs

    def _steps(self, node: Node, pair: Pair) -> tuple[float, int]:
        """Mean and largest absolute difference for the samples at hand."""
        ours = self._ours[node]
        steps = np.abs(ours - laid_out(self.theirs[pair.theirs], ours.shape, pair))
        return float(steps.mean()), int(steps.max())


def _best(pairs: Sequence[Pair]) -> Pair | None:
    """The first of equal shape, or else the first."""
    return min(pairs, key=lambda pair: not pair.exact, default=None)


def _free(pairs: Iterable[Pair], found: Mapping[Node, Pair]) -> list[Pair]:
    taken = {pair.theirs for pair in found.values()}
    return [pair for pair in pairs if pair.theirs not in taken]


def _nearest(node: Node, found: Mapping[Node, Pair], step: Callable[[Node], Iterable[Node]]) -> Iterator[Pair]:
    """The first counterparts on each way from a tensor along the program."""
    ahead, seen = list(step(node)), set[Node]()
    while ahead:
        other = ahead.pop()
        if other in found:
            yield found[other]
        elif other not in seen:
            seen.add(other)
            ahead += step(other)


def _channels_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)
