"""Stored tensors that ops read in more than one way: each way gets a tensor, and a name, of its own.

A layer's weight has a scale a channel and no zero point. One that was moved before (a kernel that is expanded over the
channels, the transpose of another layer's weight) would be quantised as data first, and one that another op reads as
data would have to be both.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.fx import GraphModule, Node

from kdedge.quantize.rules import RULES
from kdedge.quantize.stored import get_tensor, is_parameter, stored


def separate_weights(graph_module: GraphModule) -> None:
    """Store moved weights as they are read, and a copy of each weight that is read as data too, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        weight = _weight(node)
        moved = [] if weight is None else _moves(weight)
        if weight is not None and moved:
            source = cast(Node, moved[-1].args[0])
            value = get_tensor(graph_module, source)
            for move in reversed(moved):
                value = cast(nn.Module, move.target)(value, *move.args[1:], **move.kwargs)
            with graph.inserting_before(node):
                own = _store(graph_module, f"{source.target}_{weight.name}", source, value)
            node.replace_input_with(weight, own)
    graph.eliminate_dead_code()
    read = {weight for node in graph.nodes if (weight := _weight(node)) is not None and weight.op == "get_attr"}
    for source in [node for node in graph.nodes if node in read]:
        readers = [user for user in source.users if not _reads_as_weight(user, source) and stored(user) is None]
        if readers:
            with graph.inserting_before(source):
                own = _store(graph_module, f"{source.target}_as_data", source, get_tensor(graph_module, source))
            for reader in readers:
                reader.replace_input_with(source, own)
    graph.eliminate_dead_code()
    graph_module.recompile()


def free_name(graph_module: GraphModule, name: str) -> str:
    """A dotted name under which nothing is stored yet: this one, or with a number behind it."""
    path, _, leaf = name.rpartition(".")
    module, number, free = graph_module.get_submodule(path), 1, leaf
    while hasattr(module, free):
        free, number = f"{leaf}_{number}", number + 1
    return f"{path}.{free}" if path else free


def rename_clashes(graph_module: GraphModule) -> None:
    """Give ops other names than those of stored tensors: a quantiser is named after either."""
    stored_names = {str(node.target).replace(".", "_") for node in graph_module.graph.nodes if node.op == "get_attr"}
    for node in graph_module.graph.nodes:
        if node.op not in ("get_attr", "output") and node.name in stored_names:
            node._rename(f"{node.name}_op")
    graph_module.recompile()


def _weight(node: Node) -> Node | None:
    """What a layer reads as its weight; None for other ops."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is None or rule.weight is None or rule.kind == "lookup":
        return None
    weight = node.args[rule.weight]
    return weight if isinstance(weight, Node) else None


def _reads_as_weight(user: Node, source: Node) -> bool:
    """Whether a layer or a lookup, which a layer may share its table with, takes it as its weight."""
    rule = RULES.get(user.target) if user.op == "call_function" else None
    return rule is not None and rule.weight is not None and user.args[rule.weight] is source


def _moves(node: Node) -> list[Node]:
    """The moves between a stored tensor and this node, the last first; empty where there are none, or others."""
    found = []
    while node.op == "call_function":
        rule = RULES.get(node.target)
        if rule is None or rule.kind != "move" or len(node.all_input_nodes) != 1 or not isinstance(node.args[0], Node):
            return []
        found.append(node)
        node = node.args[0]
    return found if node.op == "get_attr" else []


def _store(graph_module: GraphModule, name: str, source: Node, value: object) -> Node:
    """A stored tensor of its own, trained where ``source`` is."""
    tensor = cast("nn.Parameter", value).detach().clone().contiguous()
    name = free_name(graph_module, name)
    path, _, leaf = name.rpartition(".")
    module = graph_module.get_submodule(path)
    if is_parameter(graph_module, source):
        module.register_parameter(leaf, nn.Parameter(tensor))
    else:
        module.register_buffer(leaf, tensor)
    node = graph_module.graph.get_attr(name)
    node.meta = {**source.meta, "val": source.meta["val"].new_empty(tuple(tensor.shape))}
    return node
