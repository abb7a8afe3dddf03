"""Prepare, steer, save and convert the fake-quantised student."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from kdedge.collector import few_collections
from kdedge.errors import BundleError
from kdedge.quantize.bias import fold_biases, quantise_biases, set_bias_quantize
from kdedge.quantize.capture import capture, fold_batch_norm, unlock
from kdedge.quantize.fake_quantize import AVERAGING_CONSTANT, ActivationFakeQuantize, require_calibrated
from kdedge.quantize.outliers import fold_channel_factors, set_channel_factors
from kdedge.quantize.quantizer import EdgeQuantizer
from kdedge.quantize.rules import is_dropout, why_float
from kdedge.quantize.scale_ratios import fit_scales
from kdedge.quantize.scales import name_quantisers, quantiser_calls, quantisers, tag_weights
from kdedge.quantize.stored import fold_factors, stored_value
from kdedge.quantize.weight_quantize import WeightFakeQuantize
from kdedge.recipe import Activations

aten = torch.ops.aten


@few_collections()
def prepare_qat(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    activations: Activations = "affine",
) -> GraphModule:
    """The converged float student as a trainable graph with batch norm folded and fake quantisation in place.

    The graph obeys ``train()`` and ``eval()`` (dropout; ranges move in training mode only) and starts in
    training mode with observers and fake quantisation on. Weights already carry their scales;
    activations need at least one batch (``calibrate``, or training itself).

    Args:
        model: Float student; left untouched.
        example_inputs: One float32 tensor an argument, e.g. [2, 3, 32, 32]; only shapes and dtypes matter.
        activations: ``affine``, or ``symmetric`` (every zero point 0).

    Raises:
        ModelError: torch.export cannot follow the model.
    """
    graph_module = fold_batch_norm(capture(model, example_inputs))
    with _quiet():
        prepared = cast(GraphModule, prepare_qat_pt2e(graph_module, EdgeQuantizer(activations)))
    unlock(prepared)
    _add_layer_norms_in_float(prepared)
    name_quantisers(prepared)
    for node, module in quantiser_calls(prepared):
        if isinstance(module, WeightFakeQuantize):
            module.observe(stored_value(prepared, node.all_input_nodes[0]))
    quantise_biases(prepared)
    prepared.train()
    return prepared


def set_observers(prepared: GraphModule, enabled: bool) -> None:
    """Let the ranges follow the data (in training mode), or freeze them, fitted to what kernels can compute."""
    if not enabled and any(module.observing for module in quantisers(prepared)):
        fit_scales(prepared)
    _switch_observers(prepared, enabled)


def _switch_observers(prepared: GraphModule, enabled: bool) -> None:
    for module in quantisers(prepared):
        module.enable_observer(enabled)


def _average_over(prepared: GraphModule, share: float) -> None:
    """Have the next pass count for so much in the ranges."""
    for module in quantisers(prepared):
        if isinstance(module, ActivationFakeQuantize):
            module.averaging = share


def set_fake_quantize(prepared: GraphModule, enabled: bool) -> None:
    """Round to the int8 grid, or let the float values pass (to compare, or to warm up the ranges)."""
    for module in quantisers(prepared):
        module.enable_fake_quant(enabled)
    set_bias_quantize(prepared, enabled)


@torch.no_grad()
def calibrate(prepared: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Set the activation ranges from data, the mean of the batches' extremes, dropout off; the mode is restored.

    Outlying channels before layer norms get factors first (``outliers.py``); ranges that kernels cannot bring together
    are widened after (``scale_ratios.py``).

    Args:
        prepared: From ``prepare_qat``.
        batches: The model's inputs, batch by batch.

    Returns:
        The number of batches seen.
    """
    was_training = prepared.training
    prepared.eval()
    count = 0
    for inputs in batches:
        if count == 0:
            set_channel_factors(prepared, inputs)
            for module in quantisers(prepared):
                module.train()
        count += 1
        _average_over(prepared, 1 / count)  # all batches alike, not the first one and a little of the others
        prepared(*inputs)
    _average_over(prepared, AVERAGING_CONSTANT)
    prepared.eval()
    if count:
        fit_scales(prepared)
    prepared.train(was_training)
    return count


@few_collections()
def convert(prepared: GraphModule) -> GraphModule:
    """The integer program: int8 weights, quantize and dequantize around every integer op.

    Scales and zero points are those that training used, bit for bit. ``prepared`` stays as it is.

    Raises:
        ModelError: an activation never saw data.
    """
    for node, module in quantiser_calls(prepared):
        require_calibrated(node.all_input_nodes[0].name, module)
    program = copied(prepared)
    for node, module in quantiser_calls(program):
        if isinstance(module, WeightFakeQuantize) and module.observing:
            module.observe(stored_value(program, node.all_input_nodes[0]))
    fold_factors(program)
    fold_biases(program)
    fold_channel_factors(program)
    _remove_dropouts(program)
    with _quiet():
        converted = cast(GraphModule, convert_pt2e(program))
    unlock(converted)
    tag_weights(prepared, converted)
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
    _switch_observers(prepared, False)  # the scales are those that were scored, whatever kernels make of them


def copied(prepared: GraphModule) -> GraphModule:
    """A prepared student that shares nothing with this one."""
    with _quiet():
        return unlock(copy.deepcopy(prepared))


def _add_layer_norms_in_float(prepared: GraphModule) -> None:
    """What a layer norm made goes into a float sum as it is; only the integer ops that read it need its grid."""
    for node in list(prepared.graph.nodes):
        source = node.all_input_nodes[0] if node.op == "call_module" and node.all_input_nodes else None
        if source is None or source.target is not aten.layer_norm.default or is_dropout(node):
            continue
        for user in list(node.users):
            if user.target in (aten.add.Tensor, aten.sub.Tensor) and why_float(user) is not None:
                user.replace_input_with(node, source)
    prepared.recompile()


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
