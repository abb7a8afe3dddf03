"""Every student through both exporters at its full size: integer kernels throughout, but for those named here."""

from __future__ import annotations

from pathlib import Path

import pytest
from kdedge import models, quantize
from tests import bundles

from kdedge_exporters import export

SIZE = 64
SAMPLES = bundles.images_of((3, SIZE, SIZE), 300)
# ONNX Runtime has no integer kernel for it on a CPU; TFLite has.
FLOAT_IN_ONNX = {"mobilenet_v3_small": {"HardSwish"}, "mobilenet_v3_large": {"HardSwish"}}


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(models.STUDENTS))
def test_it_is_integer_and_agrees_in_both_formats(name: str, tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "bundle", size=SIZE, steps=150, model=name)
    program = bundle.int8_program()
    assert quantize.float_ops(program) == []
    assert quantize.integer_macs_share(program) == 1.0
    for format_ in ("onnx", "tflite"):
        result = export(bundle, format_, samples=SAMPLES)
        allowed = FLOAT_IN_ONNX.get(name, set()) if format_ == "onnx" else set()
        assert {op["op"] for op in result.float_ops} == allowed, format_
        assert result.parity is not None and result.parity.difference_unit == "steps"
        assert result.parity.accuracy_student > 0.9, "has learnt nothing, so that agreement says little"
        assert result.parity.agreement >= 0.99
        assert result.parity.difference_mean < 0.5
