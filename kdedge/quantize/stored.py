"""What a captured graph stores: parameters, buffers and constants, views of them, weights that carry a plain factor.

A slice of a stored tensor (the first L rows of a table of positions) is stored itself: it is the constant that the
artifacts carry. A multiplication by a plain number behind a linear layer (the 1/√d of attention) belongs to the
layer's weight and bias: ``c·(Wx + b) = (cW)x + cb`` costs the device neither an op nor a rounding. While training,
the factor stays an op on the weight, so that an optimizer moves W by the steps it would make without quantisation;
conversion multiplies it in.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten

# Constants that rewrites add live under this name in the graph module.
_CONSTANTS = "constants"
_VIEWS = (aten.slice.Tensor, aten.select.int)
# Ops between a layer and the factor on its result; each passes every value on once.
_PLACES = (
    aten.view.default,
    aten.reshape.default,
    aten.unflatten.int,
    aten.transpose.int,
    aten.permute.default,
)


def get_tensor(graph_module: GraphModule, node: Node) -> Tensor:
    """The parameter or buffer that a ``get_attr`` node reads, detached."""
    path, _, leaf = str(node.target).rpartition(".")
    return cast(Tensor, getattr(graph_module.get_submodule(path), leaf)).detach()


def set_parameter(graph_module: GraphModule, name: str, value: Tensor) -> None:
    """Register ``value`` as a trainable parameter under a dotted name."""
    path, _, leaf = name.rpartition(".")
    module = graph_module.get_submodule(path)
    module.register_parameter(leaf, nn.Parameter(value))


def store_constant(graph_module: GraphModule, at: Node, name: str, value: Tensor) -> Node:
    """Store ``value`` under the name of the op that uses it, in the dtype and on the device of its result.

    The ``get_attr`` node is made at the graph's insertion point.
    """
    if not hasattr(graph_module, _CONSTANTS):
        graph_module.add_module(_CONSTANTS, nn.Module())
    leaf = f"{at.name}_{name}"
    like = at.meta["val"]
    graph_module.get_submodule(_CONSTANTS).register_buffer(leaf, value.to(like.device, like.dtype))
    node = graph_module.graph.get_attr(f"{_CONSTANTS}.{leaf}")
    node.meta["val"] = like.new_empty(tuple(value.shape))
    return node


def stored(argument: object) -> Node | None:
    """The ``get_attr`` node behind an argument, a plain factor on it or not; None where it is computed."""
    if isinstance(argument, Node) and _is_factor(argument):
        argument = argument.args[0]
    return argument if isinstance(argument, Node) and argument.op == "get_attr" else None


def stored_value(graph_module: GraphModule, node: Node) -> Tensor:
    """What a node for which ``stored`` is not None evaluates to, detached."""
    if node.op == "get_attr":
        return get_tensor(graph_module, node)
    return get_tensor(graph_module, cast(Node, node.args[0])) * cast(float, node.args[1])


def store_views(graph_module: GraphModule) -> None:
    """Store a slice instead of the parameter that nothing else reads, in place."""
    for node in list(graph_module.graph.nodes):
        source = node.args[0] if node.target in _VIEWS else None
        if not isinstance(source, Node) or source.op != "get_attr" or len(source.users) > 1:
            continue
        if any(isinstance(argument, Node) for argument in node.args[1:]):
            continue
        if not is_parameter(graph_module, source):
            continue
        value = node.target(get_tensor(graph_module, source), *node.args[1:]).clone()
        set_parameter(graph_module, str(source.target), value)
        source.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    graph_module.recompile()


def store_computed(graph_module: GraphModule) -> None:
    """Store each float tensor that depends on nothing (linspace, meshgrid and the like), in place."""
    values: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        known = all(source in values for source in node.all_input_nodes)
        if known and (node.target is operator.getitem or is_repeatable(node)):
            arguments, options = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments, **options)
    for node, value in values.items():
        readers = [user for user in node.users if user not in values]
        if readers and isinstance(value, Tensor) and value.is_floating_point():
            with graph_module.graph.inserting_before(node):
                own = store_constant(graph_module, node, "value", value)
            for reader in readers:
                reader.replace_input_with(node, own)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def is_repeatable(node: Node) -> bool:
    """Whether this is an op that changes none of its operands, and makes the same of them each time."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return False
    return not op._schema.is_mutable and torch.Tag.nondeterministic_seeded not in op.tags


def move_factors_to_weights(graph_module: GraphModule) -> None:
    """Multiply a linear layer's weight and bias by the number that its result is multiplied by, in place."""
    for node in list(graph_module.graph.nodes):
        layer = _scaled_layer(node)
        if layer is None:
            continue
        for position, argument in enumerate(layer.args[1:3], start=1):
            if isinstance(argument, Node):
                with graph_module.graph.inserting_before(layer):
                    product = graph_module.graph.call_function(aten.mul.Tensor, (argument, node.args[1]))
                product.meta = {"val": argument.meta["val"]}
                layer.update_arg(position, product)
        node.replace_all_uses_with(cast(Node, node.args[0]))
        graph_module.graph.erase_node(node)
    graph_module.recompile()


def fold_factors(program: GraphModule) -> None:
    """Store each weight and bias with its factor, in place."""
    for node in list(program.graph.nodes):
        source = stored(node)
        if source is None or source is node:
            continue
        name = str(source.target) if len(source.users) == 1 else f"{source.target}_{node.name}"
        value = stored_value(program, node)
        set_parameter(program, name, value)
        with program.graph.inserting_before(node):
            product = program.graph.get_attr(name)
        product.meta = {**source.meta}
        node.replace_all_uses_with(product)
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


def is_parameter(graph_module: GraphModule, node: Node) -> bool:
    """Whether a ``get_attr`` node reads what is trained."""
    path, _, leaf = str(node.target).rpartition(".")
    return isinstance(getattr(graph_module.get_submodule(path), leaf), nn.Parameter)


def _is_factor(node: Node) -> bool:
    """Whether this is a stored tensor times a plain number."""
    if node.target is not aten.mul.Tensor or not isinstance(node.args[1], int | float):
        return False
    return isinstance(node.args[0], Node) and node.args[0].op == "get_attr"


def _scaled_layer(node: Node) -> Node | None:
    """The linear layer whose whole result this node multiplies by a plain number."""
    if node.target is not aten.mul.Tensor or not isinstance(node.args[1], int | float):
        return None
    layer = node.args[0]
    while isinstance(layer, Node) and len(layer.users) == 1 and layer.target in _PLACES:
        layer = layer.args[0]
    if not isinstance(layer, Node) or layer.target is not aten.linear.default or len(layer.users) != 1:
        return None
    own = [stored(argument) for argument in layer.args[1:3] if argument is not None]
    return layer if all(argument is not None and len(argument.users) == 1 for argument in own) else None
