"""Prepare, steer, save and convert the fake-quantised student."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from kdedge.errors import BundleError
from kdedge.quantize.bias import fold_biases, quantise_biases, set_bias_quantize
from kdedge.quantize.capture import capture, fold_batch_norm, get_tensor, is_dropout, unlock
from kdedge.quantize.fake_quantize import (
    FakeQuantizer,
    WeightFakeQuantize,
    require_calibrated,
)
from kdedge.quantize.quantizer import EdgeQuantizer

# Quantisers live under this name in the prepared module, each named after the tensor it quantises.
_QUANTISERS = "quantisers"
# Key in a converted node's meta: the name of the parameter that its int8 weight was made from.
_WEIGHT_NAME = "kdedge_weight"


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


def prepare_qat(model: nn.Module, example_inputs: tuple[Tensor, ...], *, dynamic_batch: bool = True) -> GraphModule:
    """The converged float student as a trainable graph with batch norm folded and fake quantisation in place.

    The graph obeys ``train()`` and ``eval()`` (dropout; ranges move in training mode only) and starts in
    training mode with observers and fake quantisation on. Weights already carry their scales;
    activations need at least one batch (``calibrate``, or training itself).

    Args:
        model: Float student; left untouched.
        example_inputs: One float32 tensor an argument, e.g. [2, 3, 32, 32]; only shapes and dtypes matter.
        dynamic_batch: Batch size open (training, ONNX) or the examples' own (TFLite). The state of
            either build loads into the other.

    Raises:
        ModelError: torch.export cannot follow the model.
    """
    graph_module = fold_batch_norm(capture(model, example_inputs, dynamic_batch=dynamic_batch))
    with _quiet():
        prepared = cast(GraphModule, prepare_qat_pt2e(graph_module, EdgeQuantizer()))
    unlock(prepared)
    _name_quantisers(prepared)
    for node, module in _quantiser_calls(prepared):
        if isinstance(module, WeightFakeQuantize):
            module.observe(get_tensor(prepared, node.all_input_nodes[0]))
    quantise_biases(prepared)
    prepared.train()
    return prepared


def set_observers(prepared: GraphModule, enabled: bool) -> None:
    """Let the ranges follow the data (in training mode), or freeze them."""
    for module in quantisers(prepared):
        module.enable_observer(enabled)


def set_fake_quantize(prepared: GraphModule, enabled: bool) -> None:
    """Round to the int8 grid, or let the float values pass (to compare, or to warm up the ranges)."""
    for module in quantisers(prepared):
        module.enable_fake_quant(enabled)
    set_bias_quantize(prepared, enabled)


@torch.no_grad()
def calibrate(prepared: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Set the activation ranges from data, dropout off; the mode is restored.

    Args:
        prepared: From ``prepare_qat``.
        batches: The model's inputs, batch by batch.

    Returns:
        The number of batches seen.
    """
    was_training = prepared.training
    prepared.eval()
    for module in quantisers(prepared):
        module.train()
    count = 0
    for inputs in batches:
        prepared(*inputs)
        count += 1
    prepared.train(was_training)
    return count


def convert(prepared: GraphModule) -> GraphModule:
    """The integer program: int8 weights, quantize and dequantize around every integer op.

    Scales and zero points are those that training used, bit for bit. ``prepared`` stays as it is.

    Raises:
        ModelError: an activation never saw data.
    """
    for node, module in _quantiser_calls(prepared):
        require_calibrated(node.all_input_nodes[0].name, module)
    with _quiet():
        program = copy.deepcopy(prepared)
    for node, module in _quantiser_calls(program):
        if isinstance(module, WeightFakeQuantize) and module.observing:
            module.observe(get_tensor(program, node.all_input_nodes[0]))
    fold_biases(program)
    _remove_dropouts(program)
    with _quiet():
        converted = cast(GraphModule, convert_pt2e(program))
    unlock(converted)
    _tag_weights(prepared, converted)
    converted.eval()
    return converted


def quantised_state(prepared: GraphModule) -> dict[str, Tensor]:
    """Weights and ranges, ready for safetensors: contiguous, each tensor its own memory.

    The switches (observers, fake quantisation, training mode) are not part of it; the training loop owns
    them.
    """
    return {name: value.detach().clone().contiguous() for name, value in prepared.state_dict().items()}


def load_quantised_state(prepared: GraphModule, state: Mapping[str, Tensor]) -> None:
    """Load what ``quantised_state`` gave, into a build with either kind of batch axis, and freeze the ranges.

    Left to observe, the weights' scales would follow the weights again and be other ones than those trained with.
    Whoever trains on sets the observers anew.

    Raises:
        BundleError: names or shapes differ: the state belongs to another model.
    """
    own = prepared.state_dict()
    missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or foreign:
        first = f"lacks {missing[0]!r}" if missing else f"holds the unknown {foreign[0]!r}"
        raise BundleError(f"quantised state does not fit the model: it {first}")
    for name, value in own.items():
        if value.shape != state[name].shape:
            theirs, ours = list(state[name].shape), list(value.shape)
            raise BundleError(f"quantised state does not fit the model: {name!r} has shape {theirs}, not {ours}")
    prepared.load_state_dict(dict(state))
    set_observers(prepared, False)


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


def _prepared_qparams(prepared: GraphModule) -> Iterator[QParams]:
    for node, module in _quantiser_calls(prepared):
        scale, zero_point = (tensor.tolist() for tensor in module.calculate_qparams())
        axis = module.ch_axis if isinstance(module, WeightFakeQuantize) else None
        yield QParams(_tensor_name(node.all_input_nodes[0]), tuple(scale), tuple(zero_point), axis)


def _converted_qparams(converted: GraphModule) -> Iterator[QParams]:
    decomposed = torch.ops.quantized_decomposed
    for node in converted.graph.nodes:
        if node.target is decomposed.quantize_per_tensor.default:
            source, scale, zero_point = node.args[:3]
            yield QParams(_tensor_name(source), (float(scale),), (int(zero_point),), None)
        elif node.target is decomposed.dequantize_per_channel.default:
            source, scale_node, zero_node, axis = node.args[:4]
            scale, zero_point = (get_tensor(converted, item).tolist() for item in (scale_node, zero_node))
            yield QParams(node.meta[_WEIGHT_NAME], tuple(scale), tuple(zero_point), int(axis))


def _quantiser_calls(prepared: GraphModule) -> Iterator[tuple[Node, FakeQuantizer]]:
    """The calls of real quantisers, in graph order (what only moves data carries a derived one)."""
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            module = prepared.get_submodule(str(node.target))
            if isinstance(module, FakeQuantizer):
                yield node, module


def _tensor_name(node: Node) -> str:
    return str(node.target) if node.op == "get_attr" else node.name


def _name_quantisers(prepared: GraphModule) -> None:
    """Name each quantiser after its tensor; torchao's numbers would tie saved states to its version."""
    prepared.add_module(_QUANTISERS, nn.Module())
    names: dict[int, str] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        module = prepared.get_submodule(str(node.target))
        if isinstance(module, FakeQuantizer | ObserverBase):
            tensor = _tensor_name(node.all_input_nodes[0]).replace(".", "_")
            node.target = names.setdefault(id(module), f"{_QUANTISERS}.{tensor}")
            prepared.add_submodule(node.target, module)
    for name in [name for name, _ in prepared.named_children() if name.startswith("activation_post_process_")]:
        delattr(prepared, name)
    prepared.recompile()


def _tag_weights(prepared: GraphModule, converted: GraphModule) -> None:
    """Tell each int8 weight whose parameter it was; conversion keeps their order but not their names."""
    names = [
        str(node.all_input_nodes[0].target)
        for node, module in _quantiser_calls(prepared)
        if isinstance(module, WeightFakeQuantize)
    ]
    per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default
    calls = [node for node in converted.graph.nodes if node.target is per_channel]
    sources = list(dict.fromkeys(node.args[0] for node in calls))
    by_source = dict(zip(sources, names, strict=True))
    for node in calls:
        node.meta[_WEIGHT_NAME] = by_source[node.args[0]]


def _remove_dropouts(program: GraphModule) -> None:
    for node in list(program.graph.nodes):
        if is_dropout(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            program.graph.erase_node(node)
    program.recompile()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says about its own internals during the two passes; no user could act on it."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
