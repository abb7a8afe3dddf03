"""What other tools make of the same float files: post-training quantisation by ONNX Runtime and by ai-edge-quantizer.

Each with the settings that its documentation recommends for a CPU with VNNI: activations 8 bits per tensor, weights
int8 per channel, ranges by minimum and maximum.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdedge_exporters.quiet import quiet

Inputs = dict[str, np.ndarray[Any, Any]]


class _Reader:
    """ONNX Runtime's protocol for calibration data."""

    def __init__(self, samples: Sequence[Inputs]) -> None:
        self._rows = iter(samples)

    def get_next(self) -> Inputs | None:
        """The next sample, None after the last."""
        return next(self._rows, None)

    def __iter__(self) -> Iterator[Inputs]:
        return self._rows


def onnxruntime_static(source: Path, samples: Sequence[Inputs], out: Path) -> None:
    """``quant_pre_process`` and ``quantize_static``: QDQ, uint8 activations, int8 weights per channel.

    Args:
        source: A float32 .onnx file.
        samples: Inputs of one run each, by name.
        out: The quantised file.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def onnxruntime_dynamic(source: Path, out: Path) -> None:
    """``quantize_dynamic``: int8 weights, activations quantised at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(out), weight_type=QuantType.QInt8, per_channel=True)


def ai_edge_static(source: Path, samples: Sequence[Inputs], out: Path) -> None:
    """ai-edge-quantizer's ``static_wi8_ai8``: int8 activations, int8 weights per channel.

    Args:
        source: A float32 .tflite file.
        samples: Inputs of one run each, by the names of its signature.
        out: The quantised file.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import recipe  # type: ignore[import-untyped]
    from ai_edge_quantizer.quantizer import Quantizer  # type: ignore[import-untyped]

    content = source.read_bytes()
    with quiet():
        (signature,) = Interpreter(model_content=content).get_signature_list()
        quantizer = Quantizer(content, recipe.static_wi8_ai8())
        found = quantizer.calibrate({signature: list(samples)}, num_threads=1)
        result = quantizer.quantize(found, enable_progress_bar=False, enable_progress_report=False)
    out.write_bytes(bytes(result.quantized_model))
