"""Ops that move, spread and compare values: LiteRT's kernels of them know no scales, and its converter adds its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kdedge import quantize
from kdedge.errors import ModelError
from kdedge.quantize import rules
from tests.unit.test_quantize_user_nets import INPUTS, SHAPE, Of, conv, head, images, litert, norm, onnx_runtime
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from kdedge_agent import runtimes, tensors
from kdedge_exporters import onnx, onnx_passes, tflite, tflite_file, tflite_scales

SIZE = SHAPE[1]


class Ops(nn.Module):
    """An image of as many channels as rows and columns, so that axes may be mistaken, and what is made of it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], made: int = SIZE) -> None:
        super().__init__()
        self.a, self.b, self.gate = conv(3, SIZE), conv(made, 8), nn.Linear(SIZE, SIZE)
        self.head, self._forward = head(), forward

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.relu(self.b(self._forward(self, self.a(x))))))


def _gate(s: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(s.gate(x.mean((2, 3)))).view(-1, SIZE, 1, 1)


SPREAD: dict[str, Callable[[], nn.Module]] = {
    "a gate for each channel": lambda: Ops(lambda s, x: x * _gate(s, x).expand_as(x)),
    "a gate for each pixel": lambda: Ops(
        lambda s, x: x * torch.sigmoid(x.mean(1, keepdim=True)).expand(-1, SIZE, -1, -1)
    ),
    "two that make the whole": lambda: Ops(
        lambda s, x: _gate(s, x).expand_as(x) * torch.sigmoid(x.mean(1, keepdim=True)).expand_as(x)
    ),
    "a gate that is read alone": lambda: Ops(lambda s, x: torch.sigmoid(x.mean(1, keepdim=True)).expand_as(x)),
    "the whole map beside each pixel": lambda: Ops(
        lambda s, x: torch.cat([x, x.mean((2, 3), keepdim=True).expand(-1, -1, SIZE, SIZE)], 1), 2 * SIZE
    ),
    "an image beside itself": lambda: Ops(lambda s, x: x.repeat(1, 1, 1, 2)),
    "an image of pixels": lambda: Ops(lambda s, x: x + x.mean((2, 3), keepdim=True).tile(1, 1, SIZE, SIZE)),
}
COMPARED: dict[str, Callable[[], nn.Module]] = {
    "mirrored": lambda: Ops(lambda s, x: x.flip(2) + 4 * x),
    "turned": lambda: Ops(lambda s, x: x.flip(2, 3)),
    "the larger of an image and its mirror image": lambda: Ops(lambda s, x: torch.maximum(x, x.flip(3))),
    "the larger of two layers": lambda: Ops(lambda s, x: torch.maximum(*s.b(x).chunk(2, 1)).repeat(1, 3, 1, 1)),
    "the smaller of unlike scales": lambda: Ops(lambda s, x: torch.min(x, 4 * torch.relu(x) - 1)),
    "the larger, or a tenth": lambda: Ops(lambda s, x: torch.where(x > 0, x, 0.1 * x)),
    "pixels left out": lambda: Ops(lambda s, x: x.masked_fill(x.mean(1, keepdim=True) < 0, 0.0)),
    "channels a softmax leaves out": lambda: Ops(lambda s, x: x + torch.softmax(torch.where(x > -0.5, x, -1e9), 1)),
    "the larger of an image and gates": lambda: Ops(lambda s, x: torch.maximum(x, _gate(s, x))),
}
ROWS = torch.linspace(-1, 1, SIZE)


def beside(map_of: Callable[[Any, Tensor], Tensor], channels: int = 1, **parts: Any) -> Callable[[], nn.Module]:
    """A net that is told where each pixel lies."""
    return lambda: Of(
        lambda s, x: s.head(torch.relu(s.a(torch.cat([x, map_of(s, x)], 1)))),
        a=conv(3 + channels),
        head=head(),
        **parts,
    )


MAPS: dict[str, Callable[[], nn.Module]] = {
    "rows by number": beside(
        lambda s, x: torch.linspace(-1, 1, SIZE)[None, None, :, None].expand(x.shape[0], 1, SIZE, SIZE)
    ),
    "rows and columns by number": beside(
        lambda s, x: torch.stack(
            torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
        )[None].expand(x.shape[0], -1, -1, -1),
        2,
    ),
    "rows that are stored": beside(
        lambda s, x: s.rows.expand(x.shape[0], 1, SIZE, SIZE), rows=ROWS.view(1, 1, SIZE, 1)
    ),
    "rows that are stored, and moved": beside(
        lambda s, x: s.rows[None, None, :, None].expand(x.shape[0], 1, SIZE, SIZE), rows=ROWS
    ),
    "rows that are trained": beside(
        lambda s, x: s.rows.expand_as(x[:, :1]), rows=nn.Parameter(ROWS.view(1, 1, SIZE, 1))
    ),
    "rows that are repeated": beside(lambda s, x: s.rows.repeat(x.shape[0], 1, 1, SIZE), rows=ROWS.view(1, 1, SIZE, 1)),
    "a map of its own for each pixel": beside(
        lambda s, x: s.map.expand(x.shape[0], -1, -1, -1), map=torch.sin(torch.arange(SIZE**2)).view(1, 1, SIZE, SIZE)
    ),
    "added by number": lambda: Ops(lambda s, x: x + torch.linspace(-1, 1, SIZE)),
}
PADDED: dict[str, Callable[[], nn.Module]] = {
    "by a number below": lambda: Ops(lambda s, x: functional.pad(torch.relu(x), (1, 1, 1, 1), value=-1.0)),
    "by a number above": lambda: Of(
        lambda s, x: s.head(s.b(s.pad(functional.relu6(s.a(x))))),
        a=conv(), pad=nn.ConstantPad2d(1, 8.0), b=conv(8, 8), head=head(),
    ),
    "more on one side": lambda: Ops(lambda s, x: functional.pad(torch.sigmoid(x), (1, 2, 0, 1), value=5.0)),
    "more here and less there": lambda: Ops(lambda s, x: functional.pad(4 * x, (1, 0, 2, 0), value=3.0).relu()),
    "by channels": lambda: Ops(lambda s, x: functional.pad(x, (0, 0, 0, 0, 1, 2), value=2.0), SIZE + 3),
}  # fmt: skip
TWICE: dict[str, Callable[[], nn.Module]] = {
    "a layer, to choose by and from": lambda: Of(
        lambda s, x: s.head(torch.where(s.a(x) > 0, s.a(x), s.c)),
        a=conv(), c=torch.full((1, 8, 1, 1), -3.0), head=head(),
    ),
    "a layer and its batch norm": lambda: Of(
        lambda s, x: s.head(torch.relu(s.norm(s.a(x))) * 2 + s.b(torch.relu(s.norm(s.a(x))))),
        a=conv(), norm=norm(), b=conv(8, 8), head=head(),
    ),
}  # fmt: skip


def calibrated(student: nn.Module) -> GraphModule:
    prepared = quantize.prepare_qat(student.eval(), (torch.zeros(2, *SHAPE),))
    quantize.calibrate(prepared, [(images(2),), (images(3),)])
    quantize.set_observers(prepared, False)
    return prepared.eval()


@pytest.mark.parametrize("name", [*SPREAD, *MAPS])
def test_a_float_file_computes_what_the_student_does(name: str, tmp_path: Path) -> None:
    """The file was none, or computed something else where two sizes are alike."""
    torch.manual_seed(0)
    student = {**SPREAD, **MAPS}[name]().eval()
    model = tflite_file.read(tflite._translate(student, INPUTS, "float32"))
    (tmp_path / "net.tflite").write_bytes(tflite_file.pack(model))
    session = runtimes.load(str(tmp_path / "net.tflite"), "tflite")
    found = tensors.logits(session, images(1).numpy(), {"input": {"layout": "NHWC"}})
    with torch.no_grad():
        np.testing.assert_allclose(found, student(images(1)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*SPREAD, *COMPARED, *MAPS, *PADDED, *TWICE])
def test_torch_and_both_runtimes_compute_one_integer_program(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = {**SPREAD, **COMPARED, **MAPS, **PADDED, **TWICE}[name]().eval()
    prepared = calibrated(student)
    program = quantize.convert(prepared)
    assert quantize.float_ops(program) == []
    with torch.no_grad():
        trained, exact, expected = prepared(images(1)), program(images(1)), student(images(1))
    assert torch.equal(trained, exact)
    assert 10 * torch.log10((expected**2).mean() / ((exact - expected) ** 2).mean()) > 22
    step = quantize.qparams(prepared)[-1].scale[0]
    for difference in (onnx_runtime(program, tmp_path), litert(program, tmp_path)):
        apart = np.abs(difference - exact.numpy()) / step
        assert apart.max() < 2.5 and apart.mean() < 0.3


@pytest.mark.parametrize("name", TWICE)
def test_what_is_asked_for_twice_is_computed_once_and_in_integers(name: str, tmp_path: Path) -> None:
    """ONNX Runtime computed the layer in float and quantised it to two grids, and nothing said so."""
    import onnx_ir as ir
    import onnxruntime

    student = TWICE[name]()
    program = quantize.convert(calibrated(student))
    layers = [node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert len(layers) == len([module for module in student.modules() if isinstance(module, nn.Conv2d)])
    onnx_runtime(program, tmp_path)
    assert onnx_passes.float_ops(ir.load(tmp_path / "net.onnx"), {}) == []
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    made = {node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph}
    assert "QLinearConv" in made and not {"Conv", "FusedConv"} & made


def test_an_onnx_op_whose_result_lies_on_two_grids_is_named() -> None:
    import onnx_ir as ir

    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 18]>
        g (uint8[2] x) => (uint8[2] a, uint8[2] b)
        <float s = {0.5}, float t = {0.25}, uint8 z = {3}> {
            y = DequantizeLinear (x, s, z)
            both = Add (y, y)
            a = QuantizeLinear (both, s, z)
            b = QuantizeLinear (both, t, z)
        }""")
    assert [op["op"] for op in onnx_passes.float_ops(model, {})] == ["Add"]


def test_a_graph_that_onnx_refuses_is_refused_in_one_line() -> None:
    import onnx_ir as ir

    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 18]>
        student (uint8[2] x) => (uint8[2] y)
        <float s = {0.5}, uint8 z = {3}> {
            y = QuantizeLinear (x, s, z)
        }""")
    with pytest.raises(ModelError, match=r"the student's ONNX graph is not valid: .*QuantizeLinear") as found:
        onnx._check(model)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("fill", [-1e9, -torch.inf])
def test_a_masked_logit_is_masked_in_every_file(fill: float, tmp_path: Path) -> None:
    """LiteRT's were clipped to the range of the others, and no op of the file was said to be float."""
    torch.manual_seed(0)

    def forward(s: Any, x: Tensor) -> Tensor:
        return cast(Tensor, s.head(s.a(x)).masked_fill(x[:, :1, 0, 0] < 0, fill))

    prepared = calibrated(Of(forward, a=conv(), head=head()))
    program = quantize.convert(prepared)
    assert [op.op for op in quantize.float_ops(program)] == ["aten.masked_fill.Scalar"]
    with torch.no_grad():
        exact = program(images(1)).numpy()
    masked, step = exact <= -1e9, quantize.qparams(prepared)[-1].scale[0]
    assert 0.2 < masked.mean() < 0.8
    for found in (onnx_runtime(program, tmp_path), litert(program, tmp_path)):
        np.testing.assert_array_equal(found[masked], exact[masked])
        assert np.abs(found[~masked] - exact[~masked]).max() < 2.5 * step


@pytest.mark.parametrize("name", ["mirrored", "the larger of an image and its mirror image"])
def test_ops_that_the_converter_made_integer_by_itself_get_one_scale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such kernels copy or compare integers whatever their scales; with no rule of ours these had several."""
    for op in (torch.ops.aten.flip.default, torch.ops.aten.maximum.default):
        monkeypatch.delitem(rules.RULES, op)
    torch.manual_seed(0)
    prepared = calibrated(COMPARED[name]())
    program = quantize.convert(prepared)
    with torch.no_grad():
        exact = program(images(1)).numpy()
    model = tflite_file.read(tflite._translate(program, INPUTS, "int8"))
    before = len(model.subgraphs[0].operators)
    tflite_scales.unite_scales(model)
    assert len(model.subgraphs[0].operators) > before
    (tmp_path / "net.tflite").write_bytes(tflite_file.pack(model))
    session = runtimes.load(str(tmp_path / "net.tflite"), "tflite")
    found = tensors.logits(session, images(1).numpy(), {"input": {"layout": "NHWC"}})
    apart = np.abs(found - exact) / quantize.qparams(prepared)[-1].scale[0]
    assert apart.max() < 2.5 and apart.mean() < 0.3


def test_a_mask_may_keep_infinity_out(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def forward(s: Any, x: Tensor) -> Tensor:
        y = torch.relu(s.a(x))
        return cast(Tensor, s.head(torch.where(y > 0, y / (2 * y), 0.0)))

    prepared = calibrated(Of(forward, a=conv(), head=head()))
    program = quantize.convert(prepared)
    with torch.no_grad():
        exact = program(images(1)).numpy()
    # LiteRT's int8 division, which the converter makes of the float one, refuses to divide by zero at all.
    found = onnx_runtime(program, tmp_path)
    assert np.abs(found - exact).max() < 2.5 * quantize.qparams(prepared)[-1].scale[0]
