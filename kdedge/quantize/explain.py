"""What each quantised tensor costs: the noise in it, and the noise that it alone brings to the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from kdedge.quantize.bias import bias_quantisers
from kdedge.quantize.fake_quantize import ActivationFakeQuantize, FakeQuantizer
from kdedge.quantize.prepare import set_fake_quantize, set_observers
from kdedge.quantize.scales import quantiser_calls, quantisers
from kdedge.quantize.weight_quantize import WeightFakeQuantize


@dataclass(frozen=True)
class TensorError:
    """The error of one quantised tensor, all others in float.

    Attributes:
        name: The parameter's name, or of an activation the module that makes it (its op, where no module does).
        kind: ``weight`` or ``activation``.
        sqnr_db: Signal-to-quantisation-noise ratio of the tensor, 10·log10(Σx² / Σ(x − q(x))²) in dB; None where the
            quantised values are exact.
        logits_sqnr_db: The same ratio at the logits. Low means that the tensor costs accuracy; None where the logits
            do not change.
        clamped_share: Of its values, those that lie beyond the range, in [0, 1].
        low: Smallest value that it can hold.
        high: Largest one.
    """

    name: str
    kind: Literal["weight", "activation"]
    sqnr_db: float | None
    logits_sqnr_db: float | None
    clamped_share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def explain(prepared: GraphModule, batches: Sequence[tuple[Tensor, ...]]) -> list[TensorError]:
    """The error of every quantised tensor, the one that costs the logits most first.

    Each is quantised alone while the rest computes in float: a ratio at the logits that counted all at once would blame
    late layers for what early ones did. For each tensor the graph is computed anew from there on, which comes to half a
    pass over the batches a tensor: some dozen samples serve best.

    Args:
        prepared: Calibrated or trained; its switches and mode are restored.
        batches: The model's inputs, batch by batch.
    """
    switches = [(module, module.quantizing, module.observing) for module in quantisers(prepared)]
    biases = [(module, module.quantizing) for module in bias_quantisers(prepared)]
    training = prepared.training
    prepared.eval()
    try:
        set_observers(prepared, False)
        set_fake_quantize(prepared, False)
        sums: dict[FakeQuantizer, _Sums] = {}
        for batch in batches:
            _WithBranches(prepared, sums).run(*batch)
        named = {module: node for node, module in quantiser_calls(prepared)}
        errors = [_error(node, sums[module]) for module, node in named.items()]
    finally:
        for quantiser, quantizing, observing in switches:
            quantiser.quantizing, quantiser.observing = quantizing, observing
        for bias, quantizing in biases:
            bias.quantizing = quantizing
        prepared.train(training)
    return sorted(errors, key=lambda error: math.inf if error.logits_sqnr_db is None else error.logits_sqnr_db)


def in_lines(errors: Sequence[TensorError], count: int = 10) -> list[str]:
    """A table of the first ``count`` errors."""
    shown = list(errors[:count])
    width = max([len("tensor"), *(len(error.name) for error in shown)])
    lines = [f"{'tensor':<{width}}  {'kind':<10}  {'SQNR dB':>7}  {'at logits':>9}  {'clamped':>7}  range"]
    for error in shown:
        lines.append(
            f"{error.name:<{width}}  {error.kind:<10}  {_decibels(error.sqnr_db):>7}  "
            f"{_decibels(error.logits_sqnr_db):>9}  {error.clamped_share:>7.2%}  [{error.low:.4g}, {error.high:.4g}]"
        )
    return lines


def sqnr_db(signal: float, noise: float) -> float | None:
    """10·log10 of a ratio of powers in dB; None without noise."""
    if noise == 0:
        return None
    return 10 * math.log10(max(signal, 1e-30) / noise)


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


@dataclass
class _Sums:
    """What is known of a tensor after some calls of its quantiser; the tensors themselves would not fit."""

    module: FakeQuantizer
    signal: float = 0.0
    noise: float = 0.0
    beyond: int = 0
    values: int = 0
    logits_signal: float = 0.0
    logits_noise: float = 0.0

    def take(self, x: Tensor, y: Tensor) -> None:
        """One call: the tensor before and after."""
        scale = self.module.steps(x.ndim) if isinstance(self.module, WeightFakeQuantize) else self.module.steps()
        error = (x - y).abs()
        self.signal += _power(x)
        self.noise += _power(error)
        self.beyond += int((error > 0.501 * scale).sum())  # rounding alone stays below; the rest is float32's own
        self.values += x.numel()

    def take_logits(self, truth: Tensor, noisy: Tensor) -> None:
        """Of one batch, without and with the quantiser."""
        self.logits_signal += _power(truth)
        self.logits_noise += _power(truth - noisy)


def _power(x: Tensor) -> float:
    return float((x.double() ** 2).sum())


class _WithBranches(Interpreter):
    """Computes the graph in float; where it meets a quantiser first, also what follows with that one quantising."""

    def __init__(self, prepared: GraphModule, sums: dict[FakeQuantizer, _Sums]) -> None:
        super().__init__(prepared)
        self._sums = sums
        self._met = {module: node for node, module in reversed(list(quantiser_calls(prepared)))}
        self._batch: tuple[Tensor, ...] = ()
        self._noisy: dict[FakeQuantizer, Tensor] = {}

    def run(self, *batch: Tensor, **options: Any) -> Tensor:
        """Logits of one batch in float; what each quantiser does to them is added to its sums."""
        self._batch = batch
        truth: Tensor = super().run(*batch, **options)
        for module, logits in self._noisy.items():
            self._sums[module].take_logits(truth, logits)
        return truth

    def run_node(self, n: Node) -> Any:
        """The node in float, after its branch."""
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, FakeQuantizer) and self._met.get(module) is n:
            self._noisy[module] = self._branch(n, module)
        return super().run_node(n)

    def _branch(self, first: Node, module: FakeQuantizer) -> Tensor:
        """Logits with this module quantising, computed from its first call on: what is before it stays the same."""
        sums = self._sums.setdefault(module, _Sums(module))
        before: dict[Node, Any] = {}
        for node in self.graph.nodes:
            if node is first:
                break
            before[node] = self.env.get(node)  # those that nothing needs any more are gone
        handle = module.register_forward_hook(lambda _, inputs, output: sums.take(inputs[0], output))
        module.enable_fake_quant(True)
        try:
            logits: Tensor = Interpreter(self.module).run(*self._batch, initial_env=before)
            return logits
        finally:
            module.enable_fake_quant(False)
            handle.remove()


def _error(node: Node, sums: _Sums) -> TensorError:
    source = node.all_input_nodes[0]
    low, high = _range(sums.module)
    weight = source.op == "get_attr" or isinstance(sums.module, WeightFakeQuantize)
    return TensorError(
        name=_name(source),
        kind="weight" if weight else "activation",
        sqnr_db=sqnr_db(sums.signal, sums.noise),
        logits_sqnr_db=sqnr_db(sums.logits_signal, sums.logits_noise),
        clamped_share=sums.beyond / sums.values if sums.values else 0.0,
        low=low,
        high=high,
    )


def _range(module: FakeQuantizer) -> tuple[float, float]:
    """Smallest and largest value of the widest channel."""
    scale, zero_point = module.calculate_qparams()
    if isinstance(module, ActivationFakeQuantize):
        scale = module.steps()
        zero_point = zero_point.expand_as(scale)
    widest = int(scale.argmax())
    step, zero = float(scale.reshape(-1)[widest]), int(zero_point.reshape(-1)[widest])
    return (module.quant_min - zero) * step, (module.quant_max - zero) * step


def _name(source: Node) -> str:
    if source.op == "get_attr":
        return str(source.target)
    stack = source.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    return paths[-1] if paths and paths[-1] else source.name
