"""Which ops of an ONNX graph float16 cannot hold, so that they stay in float32.

float16 (IEEE 754 binary16) reaches from 6.1e-05, its smallest normal number, to 65504; what is smaller loses digits or
becomes 0, what is larger becomes infinite. Beyond it lie the constants of masks (-1e9) and of divisions (1e-12), and
what squares, sums and exponentials make. Such an op stays in float32, and so do the ops behind it until one brings the
values back: a value that went through float16 on its way would be lost all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from kdedge_exporters.onnx_values import constant

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)

# What these make may lie beyond the range whatever they read. Means stay inside it, but kernels sum before they divide.
_LARGE = ("Exp", "Pow", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSum", "ReduceSumSquare")
_MEANS = ("ReduceMean", "ReduceLogSumExp")
# Sums of squares and an epsilon inside one op. LayerNormalization is not among them: its stash_type makes it take mean
# and variance in float32 whatever it reads (https://onnx.ai/onnx/operators/onnx__LayerNormalization.html).
_NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization", "RMSNormalization")
# Make values of known, small size from values of any.
_BOUNDED = frozenset(
    [
        *("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sign", "Softsign", "ArgMax", "ArgMin", "Hardmax"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN", "LayerNormalization"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization", "RMSNormalization"),
    ]
)
# The arithmetic between a sum of squares or an epsilon and the division by it, which ends it.
_TOWARDS_DIVISION = frozenset(
    [
        *("Abs", "Add", "Clip", "Div", "Expand", "Identity", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal"),
        *("ReduceMean", "ReduceSum", "Reshape", "Sqrt", "Squeeze", "Sub", "Unsqueeze"),
    ]
)
_DIVISION = frozenset(["Div", "Mul", "Log"])


def beyond_float16(graph: ir.Graph) -> dict[ir.Node, str]:
    """The ops that must stay in float32, with the reason of each.

    Args:
        graph: In float32; nodes of subgraphs (If, Loop) are not looked at.
    """
    kept: dict[ir.Node, str] = {}
    for node in graph:
        huge = _largest_constant(node) if node.op_type != "Clip" else None  # such bounds bound nothing in float16
        if huge is not None:
            kept.setdefault(node, f"a constant of {huge:.3g} is beyond float16's {LARGEST:.0f}")
            _follow(kept, node, lambda _: True, _BOUNDED)
    for node in graph:
        reason = _fine_or_large(node)
        if reason is not None:
            kept.setdefault(node, reason)
            if node.op_type not in (*_MEANS, *_NORMS):
                _follow(kept, node, _TOWARDS_DIVISION.__contains__, _DIVISION)
    return kept


def out_of_range(values: np.ndarray) -> str | None:
    """Why an array of weights cannot be float16; None where it can."""
    largest = _magnitude(values)
    if largest > LARGEST:
        return f"its weights reach {largest:.3g}, beyond float16's {LARGEST:.0f}"
    if 0 < largest < SMALLEST:
        return f"its weights reach {largest:.3g} only, below float16's normal numbers ({SMALLEST:.1e})"
    return None


def _fine_or_large(node: ir.Node) -> str | None:
    """Why an op is too fine for float16, or makes too large values; None where neither is so."""
    small = _smallest_constant(node)
    if small is not None:
        return f"a constant of {small:.3g} is below float16's normal numbers ({SMALLEST:.1e})"
    squares = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    if squares or node.op_type in _LARGE:
        return f"sums, powers and exponentials may leave float16's range ({LARGEST:.0f})"
    if node.op_type in (*_MEANS, *_NORMS):
        return f"it sums before it divides, and sums may leave float16's range ({LARGEST:.0f})"
    if node.op_type == "LayerNormalization" and node.attributes.get_int("stash_type", 1) != ir.DataType.FLOAT:
        return "its stash_type asks for statistics in another type than float32"
    return None


def _follow(kept: dict[ir.Node, str], first: ir.Node, through: Callable[[str], bool], until: frozenset[str]) -> None:
    """Keep what reads ``first``, and its readers, as long as the type passes; one of ``until`` is the last."""
    waiting = [first]
    seen = {first}
    while waiting:
        node = waiting.pop()
        for reader in _readers(node):
            if reader in seen or not through(reader.op_type):
                continue
            seen.add(reader)
            kept.setdefault(reader, f"it reads what {_name(first)} makes, which float16 may not hold")
            if reader.op_type not in until:
                waiting.append(reader)


def _name(node: ir.Node) -> str:
    return node.outputs[0].name or node.op_type


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        for use in value.uses():
            yield use.node


def _constants(node: ir.Node) -> Iterator[tuple[int, np.ndarray]]:
    """Position and values of each float constant that an op reads or (position -1) holds."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is not None and array.dtype == np.float32 and array.size:
            yield index, array
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            array = attribute.as_tensor().numpy()
            if array.dtype == np.float32 and array.size:
                yield -1, array


def _magnitude(values: np.ndarray) -> float:
    """The largest absolute value; infinities, which float16 has too, do not count."""
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _largest_constant(node: ir.Node) -> float | None:
    largest = max((_magnitude(array) for _, array in _constants(node)), default=0.0)
    return largest if largest > LARGEST else None


def _smallest_constant(node: ir.Node) -> float | None:
    """A constant that float16 would blur: a number of its own, or an array of factors that are small altogether.

    Where an array is added, as biases are, its rounding to steps of 6e-08 does not matter.
    """
    for index, array in _constants(node):
        largest = _magnitude(array)
        added = node.op_type in ("Add", "Sub") or index == 2
        if 0 < largest < SMALLEST and (array.size == 1 or not added):
            return largest
    return None
