"""ONNX Runtime's tools are told which nodes to leave by their names, which not every graph gives them."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir


def named(model: onnx.ModelProto) -> ir.Model:
    """A copy in which every node of the main graph has a name of its own; good names stay."""
    copy = ir.from_proto(model)
    counts = Counter(node.name for node in copy.graph)
    for index, node in enumerate(copy.graph):
        if not node.name or counts[node.name] > 1:
            node.name = f"{node.op_type}_{index}_{node.name or ''}"
    return copy
