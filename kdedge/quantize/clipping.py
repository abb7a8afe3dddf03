"""Ranges of what a layer norm reads, where a few outliers would take the steps from everything else.

BERT's residual sums hold a channel or two that are a hundred times as large as the rest (Bondarenko, Nagel &
Blankevoort 2021, arXiv:2109.12948, section 3); a range from minimum to maximum leaves the rest a handful of steps. A
layer norm divides by the deviation of its row: an entry that dominates it becomes √H whatever it was, so that clipping
the outliers costs little and finer steps gain much. The clip is the factor on the range that brings the layer norm's
output, on data, closest to the one without quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from kdedge.inputs import MASK
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from kdedge.quantize.rules import is_dropout

aten = torch.ops.aten

_FACTORS = tuple(0.8**power for power in range(11))
# A narrower range must bring the output so much closer; less is noise of the batch.
_WORTH = 0.95
_ROWS = 32


@dataclass(frozen=True)
class _Site:
    """A layer norm with what makes its input.

    Attributes:
        quantise: Call of the quantiser of the input.
        operands: Of the add that makes the input; where it is made otherwise, what makes it, alone.
        clipped: The operands that are calls of quantisers with a clip, like a linear layer's.
    """

    quantise: Node
    operands: tuple[Node, ...]
    clipped: frozenset[Node]


def clip_before_layer_norms(prepared: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Set the clips of the quantisers before each layer norm, first to last, in place; ranges must be set already.

    Args:
        prepared: In eval mode.
        inputs: Of the model; up to 32 samples are used. Padding, by the mask among them, does not count.
    """
    sites = {node: site for node in prepared.graph.nodes if (site := _site(prepared, node)) is not None}
    if sites:
        with torch.no_grad():
            _Search(prepared, sites).run(*(tensor[:_ROWS] for tensor in inputs))


def _site(prepared: GraphModule, node: Node) -> _Site | None:
    if node.target is not aten.layer_norm.default:
        return None
    quantise = _behind_dropout(node.args[0])
    if not _clips(prepared, quantise):
        return None
    made = cast(Node, quantise.args[0])
    if made.target is not aten.add.Tensor:
        return _Site(quantise, (made,), frozenset())
    operands = tuple(_behind_dropout(operand) for operand in made.args[:2])
    return _Site(quantise, operands, frozenset(operand for operand in operands if _clips(prepared, operand)))


def _behind_dropout(argument: Any) -> Node:
    node = cast(Node, argument)
    while is_dropout(node):
        (node,) = node.all_input_nodes
    return node


def _clips(prepared: GraphModule, node: Node) -> bool:
    if node.op != "call_module":
        return False
    module = prepared.get_submodule(str(node.target))
    return isinstance(module, ActivationFakeQuantize) and module.clips


class _Search(Interpreter):
    """Runs the graph once and stops at each layer norm to choose its clip, so that later ones see its effect."""

    def __init__(self, prepared: GraphModule, sites: dict[Node, _Site]) -> None:
        super().__init__(prepared)
        self._sites = sites
        kept = [node for site in sites.values() for node in (*site.operands, *(c.args[0] for c in site.clipped))]
        self._kept: dict[Node, Tensor | None] = dict.fromkeys(cast(list[Node], kept))
        self._tokens: Tensor | None = None

    def run_node(self, n: Node) -> Any:
        """As the base class, with the chosen clip at a layer norm."""
        result = self._clipped_norm(n) if n in self._sites else super().run_node(n)
        if n in self._kept:
            self._kept[n] = result
        if n.op == "placeholder" and n.target == MASK:
            self._tokens = result.bool()
        return result

    def _clipped_norm(self, norm: Node) -> Tensor:
        site = self._sites[norm]
        calls = (site.quantise, *site.clipped)
        quantisers = [cast(ActivationFakeQuantize, self.fetch_attr(str(call.target))) for call in calls]
        arguments = self.fetch_args_kwargs_from_env(norm)[0][1:]
        expected = aten.layer_norm.default(self._input(site, quantised=False), *arguments)

        def output(factor: float) -> Tensor:
            for quantiser in quantisers:
                quantiser.set_clip(factor)
            return cast(Tensor, aten.layer_norm.default(self._input(site, quantised=True), *arguments))

        errors = {factor: self._error(output(factor), expected) for factor in _FACTORS}
        best = min(errors, key=errors.__getitem__)
        return output(best if errors[best] < _WORTH * errors[1.0] else 1.0)

    def _input(self, site: _Site, *, quantised: bool) -> Tensor:
        """What the layer norm reads: with the quantisers of the site, or without."""
        parts = []
        for operand in site.operands:
            if operand not in site.clipped:
                parts.append(cast(Tensor, self._kept[operand]))
                continue
            raw = cast(Tensor, self._kept[cast(Node, operand.args[0])])
            parts.append(self.fetch_attr(str(operand.target))(raw) if quantised else raw)
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return cast(Tensor, self.fetch_attr(str(site.quantise.target))(total)) if quantised else total

    def _error(self, found: Tensor, expected: Tensor) -> float:
        """Mean square over the tokens that are no padding."""
        squares = (found - expected).square()
        if self._tokens is not None and squares.shape[:2] == self._tokens.shape:
            squares = squares[self._tokens]
        return float(squares.mean())
