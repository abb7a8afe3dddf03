"""Small nets of every op through both exporters: the integers of torch and of the runtimes, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kdedge import quantize
from kdedge.inputs import image_input
from tests import small_nets

from kdedge_agent import runtimes, tensors
from kdedge_exporters import onnx, onnx_passes, tflite, tflite_file

SHAPE = (3, 16, 16)
INPUTS = (image_input(3, (16, 16)),)


def prepared_and_logits(name: str, images: torch.Tensor) -> tuple[quantize.capture.GraphModule, np.ndarray, float]:  # type: ignore[name-defined]
    """The prepared net, its logits and their quantisation step."""
    prepared = quantize.prepare_qat(small_nets.build(name), (torch.zeros(2, *SHAPE),))
    quantize.calibrate(prepared, [(torch.randn(32, *SHAPE),) for _ in range(3)])
    prepared.eval()
    with torch.no_grad():
        return prepared, prepared(images).numpy(), quantize.qparams(prepared)[-1].scale[0]


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_onnx_runtime_agrees_with_torch_within_a_step(name: str, tmp_path: Path) -> None:
    import onnx_ir as ir

    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(5))
    prepared, expected, step = prepared_and_logits(name, images)
    model = onnx._translate(quantize.convert(prepared), INPUTS)
    onnx_passes.to_integer_form(model)
    onnx_passes.tidy(model)
    assert onnx_passes.float_ops(model, {}) == []
    model.ir_version = onnx.IR_VERSION
    ir.save(model, tmp_path / "net.onnx")
    session = runtimes.load(str(tmp_path / "net.onnx"), "onnx")
    difference = np.abs(session.run([images.numpy()])[0] - expected) / step
    assert difference.max() < 2.5 and difference.mean() < 0.3


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_litert_agrees_with_torch_within_a_step(name: str, tmp_path: Path) -> None:
    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(5))
    prepared, expected, step = prepared_and_logits(name, images)
    model = tflite_file.read(tflite._translate(quantize.convert(prepared), INPUTS, "int8"))
    assert tflite_file.float_ops(model) == []
    (tmp_path / "net.tflite").write_bytes(tflite_file.pack(model))
    session = runtimes.load(str(tmp_path / "net.tflite"), "tflite")
    difference = np.abs(tensors.logits(session, images.numpy(), {"input": {"layout": "NHWC"}}) - expected) / step
    assert difference.max() < 2.5 and difference.mean() < 0.3
