"""Which integer tensor of a file is which quantised tensor of the program that it was made from.

Both carry the same scale and zero point, bit for bit, and few tensors share theirs: what only moves or clips data,
results whose scale a kernel prescribes (softmax), sums that keep the scale of a summand. Of those the file may have
left some out and hold others twice. So they are told apart by their values while the program runs, each tensor computed
from the file's integers before it. A tensor that agrees with none is sought between those of what it is computed from
and of what is computed from it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from kdedge.quantize.rules import rule_of
from torch.fx import Node

from kdedge_exporters.exposed import Integers, QParams, StoredTensor

Shape = tuple[int, ...]

MEAN_STEPS, MAX_STEPS = 0.5, 2
"""What rounding alone explains between two results of one layer from the same integers, in steps.

A value that lies halfway, as every second one does in a mean of two, may be rounded either way: so up to half of them
differ by one. Seen in MobileNetV2 and V3, BERT and DistilBERT, in ONNX Runtime 1.30 and LiteRT 2.1 on x86, and in
random nets: means of 0.004 at most but for average pools (0.21), and never more than one step.
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


class Matcher:
    """Finds the counterparts while the program runs on some samples.

    Args:
        stored: The file's tensors, in its order.
        channels_last: Whether the file may store [N, ..., C] for [N, C, ...].
    """

    def __init__(self, stored: Sequence[StoredTensor], *, channels_last: bool) -> None:
        self._stored, self._channels_last = stored, channels_last
        self._of_grid: dict[QParams, list[int]] = defaultdict(list)
        for position, tensor in enumerate(stored):
            self._of_grid[tensor.qparams].append(position)
        self._theirs: Sequence[Integers] = ()
        self._ours: dict[Node, Integers] = {}
        self._agreeing: dict[Node, list[Pair]] = {}

    def begin(self, theirs: Sequence[Integers]) -> None:
        """Turn to further samples, for which these are the integers of ``stored``."""
        self._theirs = theirs

    def settle(self, node: Node, ours: Integers) -> Integers | None:
        """Take the next tensor of the program.

        Args:
            node: The ``quantize_per_tensor`` that makes it.
            ours: Its integers.

        Returns:
            Those of a tensor of the file that agrees with it on all samples so far; None where none does.
        """
        self._ours[node] = ours
        pairs = self._agreeing.get(node)
        if pairs is None:
            pairs = self._fitting(node, self._of_grid[qparams(node)])
        self._agreeing[node] = [pair for pair in pairs if only_rounding(*self._steps(node, pair))]
        best = _best(self._agreeing[node])
        return None if best is None else laid_out(self._theirs[best.theirs], ours.shape, best)

    def pairs(self) -> dict[Node, Pair]:
        """The counterparts of all tensors that have one, in the program's order."""
        found: dict[Node, Pair] = {}
        for node, pairs in self._agreeing.items():
            _add(found, node, pairs)
        # What is moved needs no counterpart that disagrees: files have ways of their own to move data, and what they
        # move is compared where it is made and where it is read.
        for node in self._ours:
            if node not in found and not moves_data(node.all_input_nodes[0]):
                self._place(node, found)
        return {node: found[node] for node in self._ours if node in found}

    def _place(self, node: Node, found: dict[Node, Pair]) -> None:
        """Add a tensor that agrees with none: of those where it must stand one with its qparams, or with wrong ones."""
        after = max((pair.theirs for pair in _nearest(node, found, lambda other: other.all_input_nodes)), default=-1)
        before = min((pair.theirs for pair in _nearest(node, found, lambda other: other.users)), default=math.inf)
        grids = {qparams(other) for other in self._ours}
        foreign = [position for position, tensor in enumerate(self._stored) if tensor.qparams not in grids]
        for positions in (self._of_grid[qparams(node)], foreign):
            between = [position for position in positions if after < position < before]
            pairs = self._fitting(node, between)
            _add(found, node, sorted(pairs, key=lambda pair: self._steps(node, pair)))

    def _fitting(self, node: Node, positions: Iterable[int]) -> list[Pair]:
        """The pairs whose shapes fit, in every layout in which they do."""
        shape, pairs = self._ours[node].shape, []
        for position in positions:
            theirs = self._theirs[position].shape
            for last in (False, True) if self._channels_last and len(shape) > 2 else (False,):
                ours = _channels_last(shape) if last else shape
                rows = (math.prod(ours[:-1]), *ours[-1:])  # as a linear layer over tokens may have them
                if _without_ones(theirs) in (_without_ones(ours), _without_ones(rows)):
                    pairs.append(Pair(position, last, theirs == ours))
        return pairs

    def _steps(self, node: Node, pair: Pair) -> tuple[float, int]:
        """Mean and largest absolute difference on the samples at hand."""
        ours = self._ours[node]
        steps = np.abs(ours - laid_out(self._theirs[pair.theirs], ours.shape, pair))
        return float(steps.mean()), int(steps.max())


def _best(pairs: Sequence[Pair]) -> Pair | None:
    """The first of equal shape, or else the first."""
    return min(pairs, key=lambda pair: not pair.exact, default=None)


def _add(found: dict[Node, Pair], node: Node, pairs: Sequence[Pair]) -> None:
    """Give a tensor without counterpart the best one that is no other's."""
    taken = {pair.theirs for pair in found.values()}
    best = _best([pair for pair in pairs if pair.theirs not in taken])
    if best is not None:
        found.setdefault(node, best)


def _nearest(node: Node, found: Mapping[Node, Pair], step: Callable[[Node], Iterable[Node]]) -> Iterator[Pair]:
    """The counterparts nearest to a tensor, one way along the program."""
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
