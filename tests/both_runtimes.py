"""Random nets through torch's int8 program, ONNX Runtime and LiteRT: the integers of each, side by side.

Converting takes torch.onnx and litert-torch about 0.7 s each however small the net is, and some 0.2 s more for every
five ops. So nets are converted ten at a time, as one program that they share nothing in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdedge import quantize
from kdedge.inputs import InputSpec
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from numpy.typing import NDArray
from tests.random_nets import Net, samples, side_by_side
from torch import Tensor
from torch.fx import GraphModule

from kdedge_agent import tensors
from kdedge_agent.onnx_session import exact_here
from kdedge_agent.session import TensorInfo
from kdedge_exporters import onnx, onnx_passes, tflite, tflite_file

COUNT = 32
"""Inputs that ranges are taken from, and as many others that are compared on."""
Array = NDArray[Any]


def prepare(nets: Sequence[Net]) -> GraphModule:
    """Fake-quantised, not calibrated."""
    return quantize.prepare_qat(side_by_side(nets), tuple(torch.zeros(2, *net.shape) for net in nets))


def calibrated(nets: Sequence[Net]) -> GraphModule:
    """Prepared, with ranges from ``COUNT`` samples, in eval mode."""
    prepared = prepare(nets)
    quantize.calibrate(prepared, [tuple(samples(net, COUNT) for net in nets)])
    quantize.set_observers(prepared, False)
    return prepared.eval()


def inputs(nets: Sequence[Net]) -> tuple[Tensor, ...]:
    """What is compared on: fresh samples, the last quarter of them beyond the ranges seen."""
    drawn = [samples(net, COUNT, seed=1) for net in nets]
    for x in drawn:
        x[-COUNT // 4 :] *= 3.0
    return tuple(drawn)


def output_steps(program: GraphModule, outputs: Sequence[Array]) -> list[float]:
    """The quantisation step of each output of a converted program; of a float one, a 255th of its range."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return [
        float(node.args[1]) if node.target is dequantize else float(np.ptp(values)) / 255 or 1.0
        for node, values in zip(output.args[0], outputs, strict=True)
    ]


FEW = 16
"""A tensor of fewer different integers than these may tie in all of its values at once."""


NEARLY = 1e-3
"""Values that lie so close to the middle of two integers, in steps, may be rounded to either."""


def reach(net: Net) -> tuple[float, float, float]:
    """What a step at each tensor of the net does to its outputs: largest and mean change, in their steps, added up.

    And the share of its values that may tie, in the tensor with the most of them; 1 if one holds ``FEW`` integers only.

    Each tensor in turn is moved a step up, down, and either way at random, in torch's program; of these the largest
    change counts.
    """
    prepared = calibrated([net])
    (samples_,) = inputs([net])
    moved = _Moved(prepared)
    with torch.no_grad():
        (exact,) = prepared(samples_)
        (step,) = output_steps(quantize.convert(prepared), [exact.numpy()])
        sums = np.zeros(2)
        for tensor in range(moved.calls):
            changes = [np.abs((moved.run(samples_, tensor, how) - exact).numpy()) / step for how in _Moved.WAYS]
            sums += np.max([(change.max(), change.mean()) for change in changes], axis=0)
    return float(sums[0]), float(sums[1]), 1.0 if moved.fewest < FEW else moved.ties


class _Moved:
    """A prepared net of which one quantised activation, by its place in the graph, is a step off."""

    WAYS = ("up", "down", "either", "or")

    def __init__(self, prepared: GraphModule) -> None:
        self._prepared, self._target, self._how, self.calls = prepared, -1, "", 0
        self.fewest, self.ties = 256, 0.0
        for module in {id(m): m for m in prepared.modules() if isinstance(m, ActivationFakeQuantize)}.values():
            module.register_forward_hook(self._hook)

    def run(self, x: Tensor, tensor: int, how: str) -> Tensor:
        """The net's outputs with that tensor moved."""
        self._target, self._how, self.calls = tensor, how, 0
        result: Tensor = self._prepared(x)[0]
        return result

    def _hook(self, module: ActivationFakeQuantize, given: tuple[Tensor], output: Tensor) -> Tensor | None:
        self.calls += 1
        ties = ((given[0] / module.scale).remainder(1.0) - 0.5).abs() < NEARLY
        self.ties = max(self.ties, float(ties.float().mean()))
        self.fewest = min(self.fewest, len(torch.unique(output)))
        if self.calls - 1 != self._target:
            return None
        sign = torch.ones(()) if self._how in ("up", "either", "or") else -torch.ones(())
        if self._how in ("either", "or"):
            generator = torch.Generator().manual_seed(len(self._how))
            sign = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
        scale, zero_point = float(module.scale), float(module.zero_point)
        low, high = ((q - zero_point) * scale for q in (module.quant_min, module.quant_max))
        return (output + sign * scale).clamp(low, high)


@dataclass(frozen=True)
class Ran:
    """What a runtime made of it.

    Attributes:
        outputs: Of each net, float32 [COUNT, ...].
        float_ops: The exporter's list of the file's ops that compute in float.
    """

    outputs: list[Array]
    float_ops: list[str]


def specs(nets: Sequence[Net]) -> tuple[InputSpec, ...]:
    """The inputs of the program, by position."""
    return tuple(
        InputSpec(f"in{i}", "float32", net.shape, "NCHW" if len(net.shape) == 3 else "NC") for i, net in enumerate(nets)
    )


def in_onnx_runtime(program: GraphModule, nets: Sequence[Net], arrays: Sequence[Array]) -> Ran:
    """The converted program, its batch axis open, through the ONNX exporter."""
    import onnx_ir as ir
    import onnxruntime

    model = onnx._translate(program, specs(nets))
    onnx_passes.to_integer_form(model)
    onnx_passes.tidy(model)
    reasons = {op.name: op.reason for op in quantize.float_ops(program)}
    float_ops = [f"{op['op']} {op['name']}: {op['reason']}" for op in onnx_passes.float_ops(model, reasons)]
    model.ir_version = 9
    onnx._check(model)
    with tempfile.TemporaryDirectory() as folder:
        ir.save(model, f"{folder}/net.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        for entry in exact_here().items():
            options.add_session_config_entry(*entry)
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return Ran(session.run(None, dict(zip(names, arrays, strict=True))), float_ops)


def in_litert(program: GraphModule, nets: Sequence[Net], arrays: Sequence[Array]) -> Ran:
    """The converted program through the TFLite exporter, sample by sample."""
    from ai_edge_litert.interpreter import Interpreter

    model = tflite_file.read(tflite._translate(program, specs(nets), "int8"))
    float_ops = [f"{op.op} {op.name}" for op in tflite_file.float_ops(model)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.tflite"
        path.write_bytes(tflite_file.pack(model))
        runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
        wanted = {name: _info(detail) for name, detail in runner.get_input_details().items()}
        made = {name: _info(detail) for name, detail in runner.get_output_details().items()}
        rows = []
        for sample in range(COUNT):
            given = {}
            for name, info in wanted.items():
                x = arrays[int(name.rpartition("_")[2])][sample : sample + 1]
                given[name] = tensors.quantise(np.transpose(x, (0, 2, 3, 1)) if x.ndim == 4 else x, info)
            results = runner(**given)
            rows.append([tensors.dequantise(results[f"output_{i}"], made[f"output_{i}"]) for i in range(len(nets))])
    return Ran([np.concatenate(column) for column in zip(*rows, strict=True)], float_ops)


def _info(detail: dict[str, Any]) -> TensorInfo:
    scale, zero_point = detail["quantization"]
    shape = tuple(map(int, detail["shape"]))
    return TensorInfo(detail["name"], shape, np.dtype(detail["dtype"]).name, scale or None, zero_point)
