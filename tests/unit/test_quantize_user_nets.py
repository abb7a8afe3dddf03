"""Nets as users write them, which were once quantised wrongly, or not at all, without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdedge import quantize
from kdedge.errors import ModelError
from kdedge.inputs import image_input
from torch import Tensor, nn
from torch.nn import functional

from kdedge_agent import runtimes, tensors
from kdedge_exporters import onnx, onnx_passes, tflite, tflite_file

SHAPE = (3, 12, 12)
INPUTS = (image_input(3, SHAPE[1:]),)
Net = Callable[[], nn.Module]
NETS: dict[str, Net] = {}
REFUSED: dict[str, tuple[Net, str]] = {}


class Of(nn.Module):
    """Layers and stored tensors by name, and what is made of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def net(name: str) -> Callable[[Net], Net]:
    def keep(build: Net) -> Net:
        NETS[name] = build
        return build

    return keep


def conv(given: int = 3, made: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, padding=1, **options)


def head(channels: int = 8) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def norm(channels: int = 8) -> nn.BatchNorm2d:
    """With statistics as training leaves them."""
    made = nn.BatchNorm2d(channels)
    for name in ("weight", "bias", "running_mean"):
        nn.init.uniform_(getattr(made, name), -0.5, 1.5)
    nn.init.uniform_(made.get_buffer("running_var"), 0.5, 2.0)
    return made


@net("a buffer that is called as a later op is")
def _() -> nn.Module:
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    return Of(lambda s, x: s.head(torch.relu(s.a(x - s.mean)).mean((2, 3))), mean=mean, a=conv(), head=nn.Linear(8, 5))


@net("parameters that are called as ops are")
def _() -> nn.Module:
    add, mul = nn.Parameter(torch.full((8, 1, 1), 0.5)), nn.Parameter(torch.full((8, 1, 1), 3.0))
    return Of(lambda s, x: s.head(torch.relu(s.a(x) * s.mul + s.add)), add=add, mul=mul, a=conv(), head=head())


@net("two layers whose names differ by a dot")
def _() -> nn.Module:
    first, second = conv(), conv(8, 8)
    nn.init.normal_(second.weight, std=2.0)
    return Of(lambda s, x: s.head(s.layer1_0(s.layer1(x))), layer1=nn.Sequential(first), layer1_0=second, head=head())


@net("an op that is called as a method of a module is")
def _() -> nn.Module:
    return Of(lambda s, x: s.head(s.a(x) * (x.mean(1, keepdim=True) > 0).to(x.dtype)), a=conv(), head=head())


@net("a batch norm first")
def _() -> nn.Module:
    return Of(lambda s, x: s.head(s.a(s.norm(x))), a=conv(), norm=norm(3), head=head())


@net("a batch norm behind a transposed convolution")
def _() -> nn.Module:
    up = nn.ConvTranspose2d(8, 8, 2, 2)
    return Of(lambda s, x: s.head(torch.relu(s.norm(s.up(s.a(x))))), a=conv(), up=up, norm=norm(), head=head())


@net("a convolution and its batch norm, used twice")
def _() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        for _ in range(2):
            x = torch.relu(s.norm(s.b(x)))
        return torch.as_tensor(s.head(x))

    return Of(forward, a=conv(), b=conv(8, 8, bias=False), norm=norm(), head=head())


@net("two convolutions that share a bias, a batch norm behind one")
def _() -> nn.Module:
    first, second = conv(), conv()
    nn.init.uniform_(first.bias, 1.0, 2.0)  # type: ignore[arg-type]
    second.bias = first.bias
    return Of(lambda s, x: s.head(s.norm(s.a(x)) + s.b(x)), a=first, b=second, norm=norm(), head=head())


@net("a bias of one's own behind a batch norm")
def _() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.norm(functional.conv2d(x, s.weight, padding=1)) + s.bias[None, :, None, None]
        return torch.as_tensor(s.head(torch.relu(x)))

    weight, bias = nn.Parameter(torch.randn(8, 3, 3, 3) / 5), nn.Parameter(torch.linspace(-1, 1, 8))
    return Of(forward, weight=weight, bias=bias, norm=norm(), head=head())


@net("one kernel for every channel")
def _() -> nn.Module:
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16

    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(s.head(functional.conv2d(s.a(x), s.kernel.expand(8, 1, 3, 3), padding=1, groups=8)))

    return Of(forward, a=conv(), kernel=kernel, head=head())


@net("a decoder that is its encoder, transposed")
def _() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        z = torch.relu(s.encoder(x.mean((2, 3))))
        return torch.as_tensor(s.head(functional.linear(z, s.encoder.weight.t())))

    return Of(forward, encoder=nn.Linear(3, 16), head=nn.Linear(3, 5))


@net("a product with another layer's weight")
def _() -> nn.Module:
    return Of(
        lambda s, x: s.head(torch.relu(s.encoder(x.mean((2, 3)))) @ s.encoder.weight),
        encoder=nn.Linear(3, 16), head=nn.Linear(3, 5),
    )  # fmt: skip


@net("a view of an image")
def _() -> nn.Module:
    return Of(lambda s, x: s.head(s.a(x).view(x.size(0), -1)), a=conv(stride=4), head=nn.Linear(72, 5))


@net("every axis of one squeezed")
def _() -> nn.Module:
    return Of(lambda s, x: s.head(functional.adaptive_avg_pool2d(s.a(x), 1).squeeze()), a=conv(), head=nn.Linear(8, 5))


@net("written into, and read again")
def _() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        z = functional.relu(y, inplace=True)
        return torch.as_tensor(s.head(y - s.b(z)))

    return Of(forward, a=conv(), b=conv(8, 8), head=head())


@net("a sum with a factor")
def _() -> nn.Module:
    return Of(
        lambda s, x: s.head(torch.add(s.a(x), torch.sub(s.b(x), 0.5, alpha=0.5), alpha=2)),
        a=conv(), b=conv(), head=head(),
    )  # fmt: skip


def _write_into_part(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y[:, :4] = torch.relu(y[:, :4])
    return torch.as_tensor(s.head(y))


def _write_into_view(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y.flatten(2).relu_()
    return torch.as_tensor(s.head(y))


def _write_into_zeros(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    shifted = torch.zeros_like(y)
    shifted[:, 4:] = y[:, :4]
    return torch.as_tensor(s.head(y + shifted))


def writing(forward: Callable[[Any, Tensor], Tensor]) -> tuple[Net, str]:
    says = r"the model writes into a tensor in `.*which cannot be quantised .*torch\.cat"
    return lambda: Of(forward, a=conv(), head=head()), says


REFUSED["into a part"] = writing(_write_into_part)
REFUSED["into a view"] = writing(_write_into_view)
REFUSED["into zeros"] = writing(_write_into_zeros)
REFUSED["a batch norm without statistics"] = (
    lambda: Of(lambda s, x: s.head(s.n(s.a(x))), a=conv(), n=nn.BatchNorm2d(8, track_running_stats=False), head=head()),
    "a batch norm without running statistics",
)


def images(seed: int, count: int = 64) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETS)
def test_its_integers_are_its_own_and_the_runtimes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = NETS[name]().eval()
    with torch.no_grad():
        expected = student(images(1))
    prepared = quantize.prepare_qat(student, (torch.zeros(2, *SHAPE),))
    quantize.calibrate(prepared, [(images(2),), (images(3),)])
    prepared.eval()
    quantize.set_fake_quantize(prepared, False)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images(1)), expected, rtol=1e-4, atol=1e-4)
    quantize.set_fake_quantize(prepared, True)
    program = quantize.convert(prepared)
    with torch.no_grad():
        exact = program(images(1))
    noise_db = 10 * torch.log10((expected**2).mean() / ((exact - expected) ** 2).mean())
    assert noise_db > 22, "two tensors that share what is each one's own are far below"
    converted = {entry.name: entry for entry in quantize.qparams(program)}
    calls = {entry.name: entry for entry in quantize.qparams(prepared)}
    assert len(calls) == len(list(quantize.scales.quantisers(prepared)))
    assert {name: converted[name] for name in calls} == calls
    step = quantize.qparams(prepared)[-1].scale[0]
    for difference in (onnx_runtime(program, tmp_path), litert(program, tmp_path)):
        apart = np.abs(difference - exact.numpy()) / step
        assert apart.max() < 2.5 and apart.mean() < 0.3
    state = quantize.quantised_state(prepared)
    again = quantize.prepare_qat(NETS[name]().eval(), (torch.zeros(1, *SHAPE),))
    quantize.load_quantised_state(again, state)
    with torch.no_grad():
        assert torch.equal(again.eval()(images(1)), prepared(images(1)))


def onnx_runtime(program: Any, folder: Path) -> Any:
    import onnx_ir as ir

    model = onnx._translate(program, INPUTS)
    onnx_passes.to_integer_form(model)
    onnx_passes.tidy(model)
    model.ir_version = onnx.IR_VERSION
    ir.save(model, folder / "net.onnx")
    return runtimes.load(str(folder / "net.onnx"), "onnx").run([images(1).numpy()])[0]


def litert(program: Any, folder: Path) -> Any:
    model = tflite_file.read(tflite._translate(program, INPUTS, "int8"))
    (folder / "net.tflite").write_bytes(tflite_file.pack(model))
    session = runtimes.load(str(folder / "net.tflite"), "tflite")
    return tensors.logits(session, images(1).numpy(), {"input": {"layout": "NHWC"}})


@pytest.mark.parametrize("name", REFUSED)
def test_what_integers_cannot_say_is_refused_in_one_line(name: str) -> None:
    build, says = REFUSED[name]
    with pytest.raises(ModelError, match=says):
        quantize.prepare_qat(build(), (torch.zeros(2, *SHAPE),))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_no_range_covers_are_named_as_such(value: float) -> None:
    prepared = quantize.prepare_qat(Of(lambda s, x: s.head(s.a(x)), a=conv(), head=head()), (torch.zeros(2, *SHAPE),))
    data = images(0)
    data[3, 1, 2, 2] = value
    quantize.calibrate(prepared, [(images(1),), (data,)])
    with pytest.raises(ModelError, match="held NaN or infinity, so that no range covers it"):
        quantize.convert(prepared)


def test_calibration_counts_every_batch_alike() -> None:
    """The range was that of the first batch, and a hundredth of each of the others."""
    prepared = quantize.prepare_qat(Of(lambda s, x: s.head(s.a(x)), a=conv(), head=head()), (torch.zeros(2, *SHAPE),))
    batches = [images(seed) * scale for seed, scale in enumerate((0.25, 1.0, 1.0, 2.0))]
    for _ in range(2):  # the second time takes nothing over from the first
        quantize.calibrate(prepared, [(batch,) for batch in batches])
        low, high = (torch.stack([edge(batch) for batch in batches]).mean() for edge in (torch.amin, torch.amax))
        found = quantize.qparams(prepared)[0]
        assert found.scale[0] == pytest.approx(float(high - low) / 255, rel=1e-4)
    prepared.train()
    quantize.set_observers(prepared, True)
    before = found.scale[0]
    prepared(batches[0])
    assert quantize.qparams(prepared)[0].scale[0] == pytest.approx(before, rel=0.02), "training moves it by a hundredth"


FLOAT: dict[str, tuple[Net, set[str], tuple[float, float]]] = {
    "transposed": (
        lambda: Of(lambda s, x: s.head(s.up(s.a(x))), a=conv(), up=nn.ConvTranspose2d(8, 8, 2, 2), head=head()),
        {"aten.conv_transpose2d.input"}, (0.4, 0.6),
    ),
    "recurrent": (
        lambda: Of(lambda s, x: s.head(s.g(x.flatten(2))[0][:, -1]), g=nn.GRU(144, 8, batch_first=True),
                   head=nn.Linear(8, 5)),
        {"aten.gru.input", "aten.zeros.default"}, (0.0, 0.1),
    ),
    "the largest": (
        lambda: Of(lambda s, x: s.head(s.a(x).flatten(2).max(2).values), a=conv(), head=nn.Linear(8, 5)),
        {"aten.max.dim"}, (1.0, 1.0),
    ),
    "a product by its letters": (
        lambda: Of(lambda s, x: s.head(torch.einsum("bchw,bdhw->bcd", x, s.a(x)).flatten(1)), a=conv(),
                   head=nn.Linear(24, 5)),
        {"aten.einsum.default"}, (0.85, 0.95),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_float_is_named_and_its_products_are_counted(name: str) -> None:
    """Ops of several results were not named, and ops without a rule counted for nothing."""
    build, ops, (least, most) = FLOAT[name]
    prepared = quantize.prepare_qat(build(), (torch.zeros(2, *SHAPE),))
    quantize.calibrate(prepared, [(images(2),)])
    program = quantize.convert(prepared)
    assert {op.op for op in quantize.float_ops(program)} == ops
    assert least <= quantize.integer_macs_share(program) <= most


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_onnx_ops_that_run_in_float_between_two_grids_are_named(mode: str, tmp_path: Path) -> None:
    import onnx_ir as ir
    import onnxruntime

    up = nn.Upsample(scale_factor=2, mode=mode)
    student = Of(lambda s, x: s.head(s.b(s.up(torch.relu(s.a(x))))), a=conv(), up=up, b=conv(8, 8), head=head())
    prepared = quantize.prepare_qat(student, (torch.zeros(2, *SHAPE),))
    quantize.calibrate(prepared, [(images(2),)])
    model = onnx._translate(quantize.convert(prepared), INPUTS)
    onnx_passes.to_integer_form(model)
    onnx_passes.tidy(model)
    model.ir_version = onnx.IR_VERSION
    ir.save(model, tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    nodes = list(ir.load(tmp_path / "optimized.onnx").graph)
    (resize,) = (node for node in nodes if node.op_type == "Resize")
    runs_in_float = resize.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    assert runs_in_float is ([op["op"] for op in onnx_passes.float_ops(model, {})] == ["Resize"])
