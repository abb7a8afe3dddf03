"""Biases of integer layers: rounded in training to the int32 steps that every runtime rounds them to.

An integer layer adds its bias to the accumulator, whose step is ``s_input · s_weight`` of the channel (Jacob et al.
2018, arXiv:1712.05877, section 2.4). Where that step is coarse, a bias left in float makes the student in torch
another net than its artifacts: in a 52-layer MobileNetV2 the logits lay 2.4 steps apart, with rounded biases 0.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from kdedge.quantize.rules import rule_of
from kdedge.quantize.scales import quantiser_of
from kdedge.quantize.stored import get_tensor, set_parameter, stored
from kdedge.quantize.weight_quantize import WeightFakeQuantize

# The modules live under this name in the prepared graph, each named after its layer.
_BIASES = "biases"
_BIAS_POSITION = 2
_INT32 = torch.iinfo(torch.int32)


class _Round(torch.autograd.Function):
    """To the nearest whole step that int32 holds; the gradient passes."""

    @staticmethod
    def forward(_: Any, bias: Tensor, step: Tensor) -> Tensor:
        """``bias`` float [channels], ``step`` float64 [channels]; returns a tensor like ``bias``."""
        return (torch.round(bias.double() / step).clamp_(_INT32.min, _INT32.max) * step).to(bias.dtype)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient as it comes."""
        return grads[0], None


class BiasFakeQuantize(nn.Module):
    """``round(b / s) · s`` with ``s = s_input · s_weight`` by channel; the gradient passes (straight-through).

    It holds no state: both scales belong to the quantisers of the layer's input and weight and are read anew in
    every forward.

    Args:
        source: Quantiser of the layer's input; ``calculate_qparams()`` gives its scale, float32 [1].
        weight: Quantiser of the layer's weight; scale float32 [channels].
    """

    def __init__(self, source: Any, weight: Any) -> None:
        super().__init__()
        self._scales_of = (source, weight)  # in a tuple, so that they do not become submodules a second time
        self.quantizing = True

    def forward(self, bias: Tensor) -> Tensor:
        """``bias`` float [channels]; the same shape and dtype, on the int32 grid if ``quantizing``."""
        if not self.quantizing:
            return bias
        source, weight = (quantiser.calculate_qparams()[0] for quantiser in self._scales_of)
        # float32 as the files store it; the division in float64, so that large counts of steps stay exact.
        step = (source * weight).detach().double()
        return cast(Tensor, _Round.apply(bias, step))  # type: ignore[no-untyped-call]


def quantise_biases(prepared: GraphModule) -> None:
    """Put a ``BiasFakeQuantize`` between each integer layer and its bias, in place, and see to it that int32 holds it.

    A layer whose input or weight stays float keeps its float bias.
    """
    placed: set[Node] = set()
    places = {node: place for place, node in enumerate(prepared.graph.nodes)}
    prepared.add_module(_BIASES, nn.Module())
    for layer in list(prepared.graph.nodes):
        rule = rule_of(layer)
        if rule is None or rule.weight is None or not rule.inputs or len(layer.args) <= _BIAS_POSITION:
            continue
        bias = layer.args[_BIAS_POSITION]
        source, weight = (quantiser_of(prepared, layer.args[position]) for position in (rule.inputs[0], rule.weight))
        if not isinstance(bias, Node) or source is None or not isinstance(weight, WeightFakeQuantize):
            continue
        _leave_room(prepared, weight, bias, source)
        call = layer.args[rule.weight]
        if call not in placed:  # the weight's scale may depend on the input's of the same pass
            min(call.users, key=places.__getitem__).prepend(call)
            placed.add(call)
        name = f"{_BIASES}.{layer.name}"
        prepared.add_submodule(name, BiasFakeQuantize(source, weight))
        with prepared.graph.inserting_before(layer):
            rounded = prepared.graph.call_module(name, (bias,))
        rounded.meta["val"] = bias.meta.get("val")
        layer.update_arg(_BIAS_POSITION, rounded)
    prepared.recompile()


def _leave_room(prepared: GraphModule, weight: WeightFakeQuantize, bias: Node, source: Any) -> None:
    parameter = stored(bias)
    if parameter is not None:
        path, _, leaf = str(parameter.target).rpartition(".")
        factor = 1.0 if parameter is bias else float(cast(float, bias.args[1]))
        weight.leave_room_for(getattr(prepared.get_submodule(path), leaf), factor, source)


def fold_biases(program: GraphModule) -> None:
    """Store each bias as it is after rounding, and drop the modules that rounded it, in place."""
    for node in list(program.graph.nodes):
        module = program.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, BiasFakeQuantize):
            continue
        (bias,) = node.all_input_nodes
        value = module(get_tensor(program, bias))
        name = str(bias.target)
        if len(bias.users) > 1:  # a bias that two layers share has two grids
            name = f"{name}_of_{str(node.target).rpartition('.')[2]}"
        set_parameter(program, name, value)
        with program.graph.inserting_before(node):
            stored = program.graph.get_attr(name)
        stored.meta = dict(bias.meta)
        node.replace_all_uses_with(stored)
        program.graph.erase_node(node)
        if not bias.users:
            program.graph.erase_node(bias)
    delattr(program, _BIASES)
    program.recompile()


def bias_quantisers(prepared: GraphModule) -> Iterator[BiasFakeQuantize]:
    """The modules that round biases."""
    return (module for module in prepared.modules() if isinstance(module, BiasFakeQuantize))


def set_bias_quantize(prepared: GraphModule, enabled: bool) -> None:
    """Round, or pass the float values through."""
    for module in bias_quantisers(prepared):
        module.quantizing = enabled
