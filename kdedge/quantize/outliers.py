"""Outlying channels of what is added before a layer norm: a scale of their own, so that the others keep their steps.

A transformer's layers make a channel or two that are a hundred times as large as the rest (Bondarenko, Nagel &
Blankevoort 2021, arXiv:2109.12948, section 3). With one scale for the tensor the rest has a handful of steps: of a
MiniLM that reads answers out of texts, int8 left 5 dB of the logits. The sums themselves stay float, as the layer norms
that read them do (``rules.py``), and a layer whose result goes into them computes

    y = round((x · Wᵀ + b) / f) · f,   f a power of two for each channel, 1 but for the outliers.

What is trained is W and b; conversion divides both and the weight's scales by f, which is exact, so that the integers
stay what they were, and multiplies the result by f.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from kdedge.quantize.scales import quantisers, scaled_layers
from kdedge.quantize.stored import get_tensor, set_parameter, store_constant, stored
from kdedge.ranks import extremes_over_ranks

aten = torch.ops.aten

LARGEST = 4.0
"""Channels that reach so many times as far as the median channel are outliers; others have a factor of 1. Factors of 1,
2 and 4 did alike (``benchmarks/outliers.py``), and the fewest are changed so."""


MOST = 2.0**12
"""The largest factor: what lies that far below the largest channel is noise, and scales stay far from float32's end."""


@torch.no_grad()
def set_channel_factors(prepared: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Choose the factors from data, computed in float, in place; ranges that were observed before are void.

    Args:
        prepared: In eval mode.
        inputs: Of the model, one batch.
    """
    modules = [layer.result for layer in scaled_layers(prepared)]
    if not modules:
        return
    reach: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach().float()
        reach[module] = torch.maximum(x.abs().flatten(0, -2).amax(0), reach.get(module, torch.zeros(())).to(x.device))

    handles = [module.register_forward_pre_hook(see) for module in modules]
    try:
        with _in_float(prepared):
            prepared(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for module in modules:
        _, reached = extremes_over_ranks(reach[module], reach[module])
        alive = reached[reached > 0]  # of a pruned layer most channels may be zero throughout
        if len(alive):
            typical = torch.maximum(LARGEST * alive.median(), alive.max() / MOST)
            module.set_factors(torch.exp2(torch.log2((reached / typical).clamp(min=1.0)).ceil()))


@torch.no_grad()
def fold_channel_factors(program: GraphModule) -> None:
    """Divide weights, biases and scales, and multiply what the layers make, in place; see the module's docstring.

    Args:
        program: Prepared, with its biases folded.
    """
    for layer in list(scaled_layers(program)):
        if not layer.result.has_factors:
            continue
        factors = layer.result.factors.clone()
        layer.result.set_factors(torch.ones_like(factors))
        layer.weight.scale.div_(factors)
        weight, *bias = (stored(source) for source in _stored_arguments(layer.node))
        for parameter, shape in ((weight, (-1, 1)), *((node, (-1,)) for node in bias)):
            if parameter is not None:
                set_parameter(program, str(parameter.target), get_tensor(program, parameter) / factors.view(shape))
        (quantise,) = layer.node.users
        readers = list(quantise.users)
        with program.graph.inserting_before(quantise.next):
            constant = store_constant(program, layer.node, "factors", factors)
            product = program.graph.call_function(aten.mul.Tensor, (quantise, constant))
        product.meta = {**layer.node.meta}
        for reader in readers:
            reader.replace_input_with(quantise, product)
    program.recompile()


def _stored_arguments(layer: Node) -> Iterator[Node]:
    """What weight and bias are stored as, behind what quantises the weight."""
    for argument in layer.args[1:3]:
        if isinstance(argument, Node):
            yield argument if argument.op == "get_attr" else argument.all_input_nodes[0]


@contextmanager
def _in_float(prepared: GraphModule) -> Iterator[None]:
    """Nothing rounds and no range moves."""
    was = {module: (module.observing, module.quantizing) for module in quantisers(prepared)}
    for module in was:
        module.enable_observer(False)
        module.enable_fake_quant(False)
    try:
        yield
    finally:
        for module, (observing, quantizing) in was.items():
            module.enable_observer(observing)
            module.enable_fake_quant(quantizing)
