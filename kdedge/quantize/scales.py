"""The quantisers of a prepared graph by name, and the scales of a prepared or converted one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import DerivedObserverOrFakeQuantize, ObserverBase

from kdedge.quantize.fake_quantize import ActivationFakeQuantize, FakeQuantizer
from kdedge.quantize.rules import is_dropout
from kdedge.quantize.sharing import free_name
from kdedge.quantize.stored import get_tensor, stored
from kdedge.quantize.weight_quantize import TableFakeQuantize, WeightFakeQuantize

# Quantisers live under this name in the prepared module, each named after the tensor it quantises.
_QUANTISERS = "quantisers"
# Key in a converted node's meta: the name of the parameter or constant that its int8 values were made from.
_WEIGHT_NAME = "kdedge_weight"
_DEQUANTIZE = (
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
)


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor: ``real = (integer - zero_point) * scale``.

    Attributes:
        name: The weight's parameter name, or the graph's name of an activation.
        scale: One float32 value, or one for each output channel.
        zero_point: As long as ``scale``.
        axis: Channel axis of a weight; None for an activation (one scale for the whole tensor).
        dtype: ``int8``.
    """

    name: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    dtype: str = "int8"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "scale": list(self.scale), "zero_point": list(self.zero_point)}


def qparams(model: GraphModule) -> list[QParams]:
    """Scale and zero point of every quantised weight and activation, in the order of the graph.

    Args:
        model: Prepared (what training uses) or converted (what the exporters read).
    """
    found = _prepared_qparams(model) if hasattr(model, _QUANTISERS) else _converted_qparams(model)
    return list({entry.name: entry for entry in found}.values())


def quantisers(prepared: GraphModule) -> Iterator[FakeQuantizer]:
    """The fake-quantise modules, each once."""
    return (module for module in prepared.modules() if isinstance(module, FakeQuantizer))


def name_quantisers(prepared: GraphModule) -> None:
    """Name each quantiser after its tensor; torchao's numbers would tie saved states to its version."""
    prepared.add_module(_QUANTISERS, nn.Module())
    names: dict[int, str] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        module = prepared.get_submodule(str(node.target))
        if isinstance(module, FakeQuantizer | ObserverBase):
            tensor = _tensor_name(node.all_input_nodes[0]).replace(".", "_")
            if id(module) not in names:
                names[id(module)] = free_name(prepared, f"{_QUANTISERS}.{tensor}")
                prepared.add_submodule(names[id(module)], module)
            node.target = names[id(module)]
    # Not by named_children: of one module under two names it tells the first alone.
    for name in [name for name in prepared._modules if name.startswith("activation_post_process_")]:
        delattr(prepared, name)
    prepared.recompile()


def tag_weights(prepared: GraphModule, converted: GraphModule) -> None:
    """Tell all that is stored as int8 whose parameter it was; conversion keeps their order but not their names."""
    tensors = [node.all_input_nodes[0] for node, _ in quantiser_calls(prepared)]
    names = [_tensor_name(tensor) for tensor in tensors if stored(tensor) is not None]
    calls = [node for node in converted.graph.nodes if node.target in _DEQUANTIZE and stored(node.args[0]) is not None]
    sources = list(dict.fromkeys(node.args[0] for node in calls))
    by_source = dict(zip(sources, names, strict=True))
    for node in calls:
        tag_weight(node, by_source[node.args[0]])


def tag_weight(dequantize: Node, name: str) -> None:
    """Tell a stored weight's parameter by its dequantize."""
    dequantize.meta[_WEIGHT_NAME] = name


def _prepared_qparams(prepared: GraphModule) -> Iterator[QParams]:
    # An artifact's scales of such a weight are those of training over the factors.
    factors = {layer.weight: layer.result.factors for layer in scaled_layers(prepared) if layer.result.has_factors}
    for node, module in quantiser_calls(prepared):
        scales, zero_points = module.calculate_qparams()
        scale, zero_point = (scales / factors.get(module, 1)).tolist(), zero_points.tolist()
        per_channel = isinstance(module, WeightFakeQuantize) and not isinstance(module, TableFakeQuantize)
        axis = module.ch_axis if per_channel else None
        yield QParams(_tensor_name(node.all_input_nodes[0]), tuple(scale), tuple(zero_point), axis)


def _converted_qparams(converted: GraphModule) -> Iterator[QParams]:
    decomposed = torch.ops.quantized_decomposed
    for node in converted.graph.nodes:
        if node.target is decomposed.quantize_per_tensor.default:
            source, scale, zero_point = node.args[:3]
            yield QParams(_tensor_name(source), (float(scale),), (int(zero_point),), None)
        elif node.target in _DEQUANTIZE and _WEIGHT_NAME in node.meta:
            scale, zero_point = (_numbers(converted, item) for item in node.args[1:3])
            axis = int(node.args[3]) if node.target is decomposed.dequantize_per_channel.default else None
            yield QParams(node.meta[_WEIGHT_NAME], tuple(scale), tuple(map(int, zero_point)), axis)


def _numbers(converted: GraphModule, argument: Any) -> list[float]:
    """Scales or zero points: stored for each channel, or one plain number."""
    return get_tensor(converted, argument).tolist() if isinstance(argument, Node) else [argument]


def quantiser_calls(prepared: GraphModule) -> Iterator[tuple[Node, FakeQuantizer]]:
    """The calls of real quantisers, in graph order (what only moves data carries a derived one)."""
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            module = prepared.get_submodule(str(node.target))
            if isinstance(module, FakeQuantizer):
                yield node, module


def quantiser_of(prepared: GraphModule, argument: object) -> FakeQuantizer | None:
    """The quantiser of a tensor as an op of a prepared graph reads it, behind dropouts; None where it is float.

    Of data that was only moved it is the quantiser of what was moved.
    """
    while isinstance(argument, Node) and is_dropout(argument):
        argument = argument.args[0]  # the identity on the device: the tensor that it reads is the quantised one
    if not isinstance(argument, Node) or argument.op != "call_module":
        return None
    module = prepared.get_submodule(str(argument.target))
    while isinstance(module, DerivedObserverOrFakeQuantize):
        module = module.obs_or_fqs[0]
    return module if isinstance(module, FakeQuantizer) else None


@dataclass(frozen=True)
class ScaledLayer:
    """A linear layer whose channels may have factors (``outliers.py``).

    Attributes:
        node: The layer.
        weight: Quantiser of its weight.
        result: Quantiser of what it makes, which holds the factors.
    """

    node: Node
    weight: WeightFakeQuantize
    result: ActivationFakeQuantize


def scaled_layers(prepared: GraphModule) -> Iterator[ScaledLayer]:
    """Each of them, in graph order; none whose weight or bias another layer shares."""
    for call, result in quantiser_calls(prepared):
        if not isinstance(result, ActivationFakeQuantize) or not result.channels:
            continue
        node = call.all_input_nodes[0]
        weight = quantiser_of(prepared, node.args[1])
        alone = len(node.users) == 1 and all(_is_its_own(argument) for argument in node.args[1:3])
        if alone and isinstance(weight, WeightFakeQuantize):
            yield ScaledLayer(node, weight, result)


def _is_its_own(argument: object) -> bool:
    """Whether no other layer reads this weight or bias, behind what quantises it."""
    if not isinstance(argument, Node):
        return argument is None
    source = argument if argument.op == "get_attr" else stored(argument.all_input_nodes[0])
    return source is not None and len(source.users) == 1 and len(argument.users) == 1


def _tensor_name(node: Node) -> str:
    source = stored(node)
    return node.name if source is None else str(source.target)
