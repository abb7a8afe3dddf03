"""From a float ``nn.Module`` to a trainable graph of ATen ops without batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from kdedge.errors import ModelError
from kdedge.quantize.rewrite import make_quantisable
from kdedge.quantize.rules import DROPOUTS
from kdedge.quantize.sharing import free_name
from kdedge.quantize.stored import get_tensor, set_parameter, store_constant

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
_DROPOUTS: dict[Callable[..., object], type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.dropout_.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.feature_dropout_.default: nn.Dropout2d,
}


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """The model as a graph of any batch size that owns its weights, in-place ops made functional, dropouts as modules.

    Args:
        model: The float student; left as it is (weights are copied, its mode is restored).
        example_inputs: One tensor an argument, axis 0 the batch; only shapes and dtypes matter.

    Raises:
        ModelError: torch.export cannot follow the model; the message names its first reason.
    """
    inputs = tuple(_two_or_more(x) for x in example_inputs)
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    was_training = model.training
    model.eval()
    try:
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"torch.export cannot follow the model: {reason[0] if reason else type(error).__name__}",
            where=type(model).__name__,
            cure="Write its forward without control flow on tensor values and without a fixed batch size",
        ) from error
    finally:
        model.train(was_training)
    graph_module = unlock(program.module(check_guards=False))
    _own_parameters(graph_module)
    _dropouts_to_modules(graph_module)
    make_quantisable(graph_module)
    return graph_module


def fold_batch_norm(graph_module: GraphModule) -> GraphModule:
    """Fold every batch norm that follows a convolution or linear into its weight and bias, in place.

    ``w' = w · γ / √(σ² + ε)`` and ``b' = (b − μ) · γ / √(σ² + ε) + β`` by output channel (Jacob et al. 2018,
    section 3.2), once and without gradients: the statistics are those of the converged student and stay
    frozen. One with no such layer before it, or behind one whose result or weight has other readers, becomes
    ``x · factor + shift``, two integer ops.

    Args:
        graph_module: As ``capture`` returns it.

    Raises:
        ModelError: one keeps no statistics.

    Returns:
        The same graph module.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is aten.batch_norm.default:
            if not isinstance(node.args[3], Node) or node.args[5]:
                raise ModelError(
                    "a batch norm without running statistics makes of a sample what its batch is like",
                    where=node.name,
                    cure="Leave track_running_stats on, or take a group norm",
                )
            (_fold_one if _foldable(node) else _as_factor_and_shift)(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def _two_or_more(x: Tensor) -> Tensor:
    """torch.export takes a batch of one as a constant; the batch axis stays open from two on."""
    return x if x.shape[0] >= 2 else torch.cat([x, x])


def unlock(graph_module: GraphModule) -> GraphModule:
    """Give back train() and eval(), which exported modules forbid; here dropouts are modules."""
    for name in ("train", "eval"):
        graph_module.__dict__.pop(name, None)
    return graph_module


def _own_parameters(graph_module: GraphModule) -> None:
    """Copy what is shared with the float student, so that training the graph leaves the student alone."""
    copies: dict[int, Tensor] = {}
    for module in graph_module.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fresh = nn.Parameter(parameter.detach().clone(), requires_grad=True)
                module._parameters[name] = copies.setdefault(id(parameter), fresh)  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def _dropouts_to_modules(graph_module: GraphModule) -> None:
    """A dropout module obeys train() and eval() by itself; the exported op would have to be rewritten."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        kind = _DROPOUTS.get(node.target)
        if kind is None:
            continue
        name = f"{DROPOUTS}.{node.name}"
        graph_module.add_submodule(name, kind(p=float(node.args[1])))
        with graph.inserting_before(node):
            call = graph.call_module(name, (node.args[0],))
        call.meta = copy.copy(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph_module.recompile()


def _foldable(node: Node) -> bool:
    producer = node.args[0]
    if not isinstance(producer, Node) or len(producer.users) != 1:
        return False
    if producer.target is aten.linear.default:
        if producer.meta["val"].ndim != 2:  # a linear's channels are last, a batch norm's are second
            return False
    elif producer.target not in CONVOLUTIONS:
        return False
    weight, *rest = producer.args[1:3]
    known = [weight, *(bias for bias in rest if bias is not None)]
    alone = isinstance(weight, Node) and len(weight.users) == 1
    return alone and all(isinstance(argument, Node) and argument.op == "get_attr" for argument in known)


def _fold_one(graph_module: GraphModule, norm: Node) -> None:
    layer = cast(Node, norm.args[0])
    weight_node = cast(Node, layer.args[1])
    bias_node = cast(Node | None, layer.args[2] if len(layer.args) > 2 else None)
    weight = get_tensor(graph_module, weight_node).double()
    factor, shift = _factor_and_shift(graph_module, norm)
    bias = get_tensor(graph_module, bias_node).double() if bias_node is not None else torch.zeros_like(shift)
    folded = (weight * factor.view(-1, *[1] * (weight.ndim - 1))).float()
    format_ = (
        torch.channels_last if _is_channels_last(get_tensor(graph_module, weight_node)) else torch.contiguous_format
    )
    set_parameter(graph_module, str(weight_node.target), folded.contiguous(memory_format=format_))
    if bias_node is None or len(bias_node.users) > 1:  # one that others read as well stays theirs
        bias_name = free_name(graph_module, str(weight_node.target).removesuffix("weight") + "bias")
    else:
        bias_name = str(bias_node.target)
    set_parameter(graph_module, bias_name, (bias * factor + shift).float())
    if bias_node is None or bias_name != bias_node.target:
        with graph_module.graph.inserting_after(weight_node):
            bias_node = graph_module.graph.get_attr(bias_name)
        bias_node.meta["val"] = norm.meta["val"].new_empty(tuple(shift.shape))
        layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph_module.graph.erase_node(norm)


def _factor_and_shift(graph_module: GraphModule, norm: Node) -> tuple[Tensor, Tensor]:
    """What a batch norm does to each channel, float64: ``γ / √(σ² + ε)`` and ``β − μ · factor``."""
    gamma, beta = (get_tensor(graph_module, n).double() if isinstance(n, Node) else None for n in norm.args[1:3])
    mean, variance = (get_tensor(graph_module, cast(Node, n)).double() for n in norm.args[3:5])
    factor = torch.rsqrt(variance + cast(float, norm.args[7]))
    factor = factor if gamma is None else gamma * factor
    shift = -mean * factor
    return factor, shift if beta is None else shift + beta


def _as_factor_and_shift(graph_module: GraphModule, norm: Node) -> None:
    """A batch norm that no layer can take in: torchao would look for a layer of its own idea."""
    result = cast(Node, norm.args[0])
    shape = (-1, *[1] * (norm.meta["val"].ndim - 2))
    for name, op, numbers in zip(
        ("factor", "shift"), (aten.mul.Tensor, aten.add.Tensor), _factor_and_shift(graph_module, norm), strict=True
    ):
        with graph_module.graph.inserting_before(norm):
            constant = store_constant(graph_module, norm, name, numbers.view(shape))
            result = graph_module.graph.call_function(op, (result, constant))
        result.meta = {**norm.meta}
    norm.replace_all_uses_with(result)
    graph_module.graph.erase_node(norm)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
