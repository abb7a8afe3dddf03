"""Random small nets, described so that a failing one prints as something a person can paste and build.

A net is a list of nodes over numbered tensors: 0 is the input, k the result of the k-th node, the last one the output.
``nets()`` draws such descriptions, degenerate ones among them (dead channels, weights of zeros, constant inputs, huge
and tiny scales), ``build`` makes the module, ``samples`` its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One op.

    Attributes:
        op: A key of ``OPS``.
        of: The tensors that it reads.
        options: Its arguments, by name.
    """

    op: str
    of: tuple[int, ...] = (0,)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Net:
    """A net and the inputs it is meant for.

    Attributes:
        nodes: In order; a node reads the input and what stands before it.
        shape: Of the input: (C, H, W), or (F,).
        inputs: How they are distributed: a key of ``INPUTS``.
        scale: They are multiplied by it.
        offset: This many scales are added.
        seed: Of weights and inputs.
    """

    nodes: tuple[Node, ...]
    shape: Shape = (3, 8, 8)
    inputs: str = "normal"
    scale: float = 1.0
    offset: float = 0.0
    seed: int = 0


INPUTS: dict[str, Callable[[Shape], Tensor]] = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "sparse": lambda shape: torch.randn(shape) * (torch.rand(shape) < 0.1),
    "ones": torch.ones,
    "zeros": torch.zeros,
}
# Beyond the plain ones: what training leaves behind now and then, and what no one should come to harm by.
FILLS = ("normal", "positive", "wide", "dead", "zero", "tiny", "huge")
NUMBERS = (0.25, -0.5, 1.0, 2.0, 3.0, 1e-3, 50.0)
ACTIVATIONS = ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "gelu_tanh", "tanh")
UNKNOWN_ACTIVATIONS = ("leaky_relu", "elu", "softplus", "sin", "abs")

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "softmax": lambda x: torch.softmax(x, 1),
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "sin": torch.sin,
    "abs": torch.abs,
}
_JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}
_WITH_NUMBER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "plus": torch.add,
    "minus": torch.sub,
    "times": torch.mul,
    "over": torch.div,
}


class RandomNet(nn.Module):
    """What a description computes: [N, *shape] -> the last node's result."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.layers = nn.ModuleDict()
        with torch.random.fork_rng():
            torch.manual_seed(net.seed)
            tensors = [torch.zeros(2, *net.shape)]
            for index, node in enumerate(net.nodes):
                if node.op in ("conv", "linear"):
                    self.layers[str(index)] = _layer(node, tensors[node.of[0]])
                tensors.append(self._result(index, node, tensors))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """[N, *shape] float32 -> [N, ...]."""
        tensors = [x]
        for index, node in enumerate(self.net.nodes):
            tensors.append(self._result(index, node, tensors))
        return tensors[-1]

    def _result(self, index: int, node: Node, tensors: Sequence[Tensor]) -> Tensor:
        operands, options = [tensors[i] for i in node.of], node.options
        if str(index) in self.layers:
            return cast(Tensor, self.layers[str(index)](operands[0]))
        return _apply(node.op, operands, options)


def _apply(op: str, operands: list[Tensor], options: dict[str, Any]) -> Tensor:
    """The result of an op without weights."""
    x = operands[0]
    if op in _ACTIVATIONS:
        return _ACTIVATIONS[op](x)
    if op in _JOINS:
        return _JOINS[op](*operands)
    if op in _WITH_NUMBER:
        return _WITH_NUMBER[op](x, options["number"])
    plain: dict[str, Callable[[], Tensor]] = {
        "concat": lambda: torch.cat(operands, 1),
        "max_pool": lambda: functional.max_pool2d(x, **options),
        "avg_pool": lambda: functional.avg_pool2d(x, **options),
        "global_avg": lambda: functional.adaptive_avg_pool2d(x, 1),
        "global_max": lambda: functional.adaptive_max_pool2d(x, 1),
        "mean": lambda: x.mean((2, 3), keepdim=options["keepdim"]),
        "flatten": lambda: x.flatten(1),
        "pad": lambda: functional.pad(x, options["sides"]),
        "crop": lambda: x[:, :, options["first"] :: options["step"]],
        "second_half": lambda: x.chunk(2, 1)[1],
        "adaptive_avg": lambda: functional.adaptive_avg_pool2d(x, options["size"]),
        "adaptive_max": lambda: functional.adaptive_max_pool2d(x, options["size"]),
        "clamp": lambda: x.clamp(options["low"], options["high"]),
        "one_minus": lambda: 1.0 - x,
        "dropout": lambda: functional.dropout(x, 0.5, training=False),
        "tokens": lambda: x.flatten(2).transpose(1, 2),
        "mean_token": lambda: x.mean(1),
    }
    return plain[op]()


def _layer(node: Node, x: Tensor) -> nn.Module:
    """A convolution or linear layer for inputs like ``x``, with its batch norm."""
    options = dict(node.options)
    fill, norm, channels = options.pop("fill", "normal"), options.pop("norm", False), options.pop("channels")
    layer: nn.Conv2d | nn.Linear
    if node.op == "conv":
        layer = nn.Conv2d(x.shape[1], channels, options.pop("kernel"), **options)
    else:
        layer = nn.Linear(x.shape[-1], channels, **options)
    with torch.no_grad():
        _refill(layer.weight, fill)
    if not norm:
        return layer
    batch_norm = nn.BatchNorm2d(channels) if node.op == "conv" else nn.BatchNorm1d(channels)
    with torch.no_grad():
        for parameter, low, high in ((batch_norm.weight, -0.5, 1.5), (batch_norm.bias, -1.0, 1.0)):
            parameter.uniform_(low, high)
        cast(Tensor, batch_norm.running_mean).uniform_(-0.5, 0.5)
        cast(Tensor, batch_norm.running_var).uniform_(0.1, 2.0)
    return nn.Sequential(layer, batch_norm)


def _refill(weight: Tensor, fill: str) -> None:
    """Change freshly drawn weights in place, as a word of ``FILLS`` says."""
    if fill == "positive":
        weight.abs_()
    elif fill == "wide":  # channels of very different size
        weight.mul_(torch.logspace(-3, 1, len(weight)).view(-1, *[1] * (weight.ndim - 1)))
    elif fill == "dead":
        weight[::2] = 1e-20
    elif fill == "zero":
        weight.zero_()
    elif fill in ("tiny", "huge"):
        weight.mul_(1e-5 if fill == "tiny" else 30.0)


def samples(net: Net, count: int, seed: int = 0) -> Tensor:
    """Inputs float32 [count, *shape]; the same for a seed, others for another."""
    with torch.random.fork_rng():
        torch.manual_seed(1000 * (net.seed + 1) + seed)
        return net.scale * (INPUTS[net.inputs]((count, *net.shape)) + net.offset)


def build(net: Net) -> nn.Module:
    """The module, in eval mode."""
    return RandomNet(net)


class _Several(nn.Module):
    """Nets side by side, each with an input of its own (as many as there are names below, at most)."""

    def __init__(self, nets: Sequence[Net]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(build(net) for net in nets)
        self.eval()

    def forward(  # torch.export takes no *args where the batch axis is open
        self,
        a: Tensor,
        b: Tensor | None = None,
        c: Tensor | None = None,
        d: Tensor | None = None,
        e: Tensor | None = None,
        f: Tensor | None = None,
        g: Tensor | None = None,
        h: Tensor | None = None,
        i: Tensor | None = None,
        j: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One input a net; one output a net."""
        inputs = (a, b, c, d, e, f, g, h, i, j)
        return tuple(net(x) for net, x in zip(self.nets, inputs, strict=False))


def side_by_side(nets: Sequence[Net]) -> nn.Module:
    """One module of up to ten nets that have nothing in common: converting them together costs less than one by one."""
    return _Several(nets)


# --- drawing ------------------------------------------------------------------------------------------------------


def nets(
    *, max_nodes: int = 6, activations: Sequence[str] = ACTIVATIONS, tokens: bool = True
) -> st.SearchStrategy[Net]:
    """Descriptions of up to ``max_nodes`` nodes, besides a classifier that half of them end in."""
    return _nets(max_nodes, tuple(activations), tokens)


@st.composite
def _nets(draw: st.DrawFn, max_nodes: int, activations: tuple[str, ...], tokens: bool) -> Net:
    size = st.integers(1, 9)
    shape = (draw(st.integers(1, 6)), draw(size), draw(size))
    shapes: list[Shape] = [shape]
    nodes: list[Node] = []

    def add(node: Node) -> None:
        nodes.append(node)
        shapes.append(result_shape(node, [shapes[i] for i in node.of]))

    for _ in range(draw(st.sampled_from(range(1, max_nodes + 1)))):
        source = len(shapes) - 1
        if draw(st.integers(0, 3)) == 3:
            source = draw(st.integers(0, source))
        for node in draw(_steps(shapes, source, activations, tokens)):
            add(node)
    if _may_be_its_input(nodes):
        add(Node("relu", (len(shapes) - 1,)))
    if len(shapes[-1]) == 3 and draw(st.booleans()):
        add(Node(draw(st.sampled_from(("flatten", "global_avg"))), (len(shapes) - 1,)))
        if len(shapes[-1]) == 3:
            add(Node("flatten", (len(shapes) - 1,)))
        add(Node("linear", (len(shapes) - 1,), {"channels": draw(st.integers(1, 5))}))
    return Net(
        tuple(nodes),
        shape,
        inputs=draw(st.sampled_from(("normal", "normal", "normal", "uniform", "sparse", "ones", "zeros"))),
        scale=draw(st.sampled_from((1.0, 1.0, 0.1, 10.0, 1e-4, 1e4))),
        offset=draw(st.sampled_from((0.0, 0.0, 0.5, -2.0, 20.0))),
        seed=draw(st.integers(0, 1000)),
    )


def _may_be_its_input(nodes: Sequence[Node]) -> bool:
    """Whether there is nothing between the input and the last node but what may both be nothing."""
    last = len(nodes)
    while last and nodes[last - 1].op in ("dropout", "crop"):
        last = nodes[last - 1].of[0]
    return last == 0


@st.composite
def _steps(draw: st.DrawFn, shapes: list[Shape], source: int, activations: tuple[str, ...], tokens: bool) -> list[Node]:
    """The next node, or the three of a squeeze-and-excite gate."""
    shape, new = shapes[source], len(shapes)
    kinds = ["activation", "number", "join", "clamp", "one_minus", "dropout"]
    if len(shape) < 3 or min(shape[1:]) > 1:  # litert-torch loses an axis of length 1 before a layer without bias
        kinds += ["linear"]
    if len(shape) == 3:
        kinds += ["conv", "depthwise", "conv", "depthwise", "gate", "pool", "concat", "flatten", "mean", "pad", "crop"]
        kinds += ["tokens"] if tokens else []
    kinds += ["mean_token"] if len(shape) == 2 else []
    kinds += ["softmax"] if len(shape) == 1 and shape[0] > 1 else []
    kinds += ["second_half"] if shape[0] > 1 and len(shape) == 3 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "activation":
        return [Node(draw(st.sampled_from(activations)), (source,))]
    if kind in ("conv", "depthwise", "linear"):
        return [Node("linear" if kind == "linear" else "conv", (source,), draw(_layer_options(shape, kind)))]
    if kind == "number":
        number = draw(st.sampled_from(NUMBERS))
        return [Node(draw(st.sampled_from(tuple(_WITH_NUMBER))), (source,), {"number": number})]
    if kind == "join":  # never with itself: x - x is zero throughout
        fitting = [i for i, other in enumerate(shapes) if _broadcasts(other, shape) and i != source]
        if fitting:
            return [Node(draw(st.sampled_from(tuple(_JOINS))), (source, draw(st.sampled_from(fitting))))]
        kind = "one_minus"
    if kind == "concat":
        fitting = [i for i, other in enumerate(shapes) if len(other) == 3 and other[1:] == shape[1:]]
        others = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=2))
        return [Node("concat", (source, *others))]
    if kind == "gate":
        layer = Node("conv", (new,), {"channels": shape[0], "kernel": 1})
        activation = Node(draw(st.sampled_from(("hardsigmoid", "sigmoid"))), (new + 1,))
        return [Node("global_avg", (source,)), layer, activation, Node("mul", (source, new + 2))]
    if kind == "pool":
        return [draw(_pool(shape, source))]
    if kind == "clamp":
        low, high = draw(st.sampled_from(((0.0, 1.0), (-1.0, 1.0), (0.0, 6.0), (-0.5, 2.0))))
        return [Node(kind, (source,), {"low": low, "high": high})]
    if kind == "pad":
        return [Node(kind, (source,), {"sides": draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))})]
    if kind == "crop":
        first = draw(st.integers(0, shape[1] - 1))
        return [Node(kind, (source,), {"first": first, "step": draw(st.integers(1, 2))})]
    if kind == "mean":
        return [Node("mean", (source,), {"keepdim": draw(st.booleans())})]
    return [Node(kind, (source,))]


@st.composite
def _layer_options(draw: st.DrawFn, shape: Shape, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"channels": draw(st.integers(1, 16)), "bias": draw(st.booleans())}
    options["fill"] = draw(st.sampled_from(("normal", "normal", "normal", *FILLS)))
    options["norm"] = draw(st.booleans()) and (kind != "linear" or len(shape) == 1)
    if kind == "linear":
        return options
    fitting = [(k, d) for k in (1, 3, 5) for d in (1, 2) if (k, d) != (1, 2)]
    padding = draw(st.integers(0, 2))
    fitting = [(k, d) for k, d in fitting if d * (k - 1) + 1 <= min(shape[1:]) + 2 * padding]
    options["kernel"], options["dilation"] = draw(st.sampled_from(fitting))
    options["stride"], options["padding"] = draw(st.integers(1, 2)), padding
    if kind == "depthwise":
        options["groups"], options["channels"] = shape[0], shape[0] * draw(st.integers(1, 2))
    else:
        groups = draw(st.sampled_from([g for g in range(1, shape[0] + 1) if shape[0] % g == 0]))
        options["groups"], options["channels"] = groups, groups * math.ceil(options["channels"] / groups)
    return options


@st.composite
def _pool(draw: st.DrawFn, shape: Shape, source: int) -> Node:
    kinds = ("max_pool", "avg_pool", "global_avg", "global_max", "adaptive_avg", "adaptive_max")
    kind = draw(st.sampled_from(kinds))
    if kind.startswith("global"):
        return Node(kind, (source,))
    if kind.startswith("adaptive"):
        size = [draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shape[1:]]
        return Node(kind, (source,), {"size": size})
    kernel = draw(st.integers(1, min(3, *shape[1:])))
    options: dict[str, Any] = {"kernel_size": kernel, "stride": draw(st.integers(1, 2))}
    options["padding"] = draw(st.integers(0, kernel // 2))
    options["ceil_mode"] = draw(st.booleans())
    if kind == "avg_pool":
        options["count_include_pad"] = draw(st.booleans())
    return Node(kind, (source,), options)


def _broadcasts(other: Shape, shape: Shape) -> bool:
    """Whether ``other`` can be added to a tensor of ``shape``, giving that shape: equal, or one number a channel."""
    return other == shape or (len(shape) == 3 == len(other) and other == (shape[0], 1, 1))


def result_shape(node: Node, operands: Sequence[Shape]) -> Shape:
    """Shape of a node's result, without the batch axis."""
    with torch.device("meta"):
        tensors = [torch.zeros(2, *shape) for shape in operands]
        if node.op in ("conv", "linear"):
            return tuple(_layer(node, tensors[0]).eval()(tensors[0]).shape[1:])
        return tuple(_apply(node.op, tensors, node.options).shape[1:])
