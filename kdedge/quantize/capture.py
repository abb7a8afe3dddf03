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
from kdedge.quantize.stored import get_tensor, set_parameter

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
    frozen. A batch norm with no convolution before it (or one whose output has other users) stays; it
    shows up in ``float_ops``.

    Args:
        graph_module: As ``capture`` returns it.

    Returns:
        The same graph module.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is aten.batch_norm.default and _foldable(node):
            _fold_one(graph_module, node)
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
    weight = producer.args[1]
    has_statistics = isinstance(node.args[3], Node) and not node.args[5]
    return has_statistics and isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1


def _fold_one(graph_module: GraphModule, norm: Node) -> None:
    layer, gamma_node, beta_node, mean_node, variance_node = cast(list[Node], norm.args[:5])
    eps = cast(float, norm.args[7])
    weight_node = cast(Node, layer.args[1])
    bias_node = cast(Node | None, layer.args[2] if len(layer.args) > 2 else None)
    weight = get_tensor(graph_module, weight_node).double()
    mean, variance = (get_tensor(graph_module, n).double() for n in (mean_node, variance_node))
    gamma = get_tensor(graph_module, gamma_node).double() if gamma_node is not None else torch.ones_like(mean)
    beta = get_tensor(graph_module, beta_node).double() if beta_node is not None else torch.zeros_like(mean)
    bias = get_tensor(graph_module, bias_node).double() if bias_node is not None else torch.zeros_like(mean)
    factor = gamma / torch.sqrt(variance + eps)
    folded = (weight * factor.view(-1, *[1] * (weight.ndim - 1))).float()
    format_ = (
        torch.channels_last if _is_channels_last(get_tensor(graph_module, weight_node)) else torch.contiguous_format
    )
    set_parameter(graph_module, str(weight_node.target), folded.contiguous(memory_format=format_))
    bias_name = str(weight_node.target).removesuffix("weight") + "bias" if bias_node is None else str(bias_node.target)
    set_parameter(graph_module, bias_name, ((bias - mean) * factor + beta).float())
    if bias_node is None:
        with graph_module.graph.inserting_after(weight_node):
            bias_node = graph_module.graph.get_attr(bias_name)
        bias_node.meta["val"] = norm.meta["val"].new_empty(tuple(mean.shape))
        layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph_module.graph.erase_node(norm)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
