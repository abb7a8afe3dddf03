"""The forms of an int8 artifact that a user may ask for: pixels as input, zero point 0, quantised after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kdedge import quantize
from kdedge.bundle import Bundle
from kdedge.cli.export import show
from kdedge.errors import BundleError, UserError
from kdedge.images.preprocessing import ImagePreprocessing
from tests import bundles, text_nets

from kdedge_agent import runtimes, tensors
from kdedge_exporters import ExportResult, export, load_artifact, tflite_file

SIZE = 16
SHAPE = (3, SIZE, SIZE)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
FORMATS = ("onnx", "tflite")
NET: dict[str, Any] = {"size": SIZE, "steps": 150, "model": "tests.small_nets:student"}


def pixels_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images [320, 3, 16, 16] like those that the net was trained on, and their labels."""
    images, labels = bundles.images_of(SHAPE, 320)
    return ((images * 0.25 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8), labels


PIXELS, LABELS = pixels_and_labels()
NORMALISED = ImagePreprocessing((SIZE, SIZE), 3, MEAN, STD).normalise(PIXELS)
SAMPLES = (NORMALISED, LABELS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("affine") / "bundle", **NET)


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("float") / "bundle", quantised=False, **NET)


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("symmetric") / "bundle", activations="symmetric", **NET)


@pytest.fixture(scope="module", params=FORMATS)
def of_pixels(request: pytest.FixtureRequest, bundle: Bundle) -> ExportResult:
    return export(bundle, request.param, samples=SAMPLES, io="uint8", out=bundle.path.parent / f"p.{request.param}")


def test_pixels_are_the_input_and_nothing_is_computed_in_float(of_pixels: ExportResult) -> None:
    assert of_pixels.float_ops == () and of_pixels.integer_macs_share == 1.0
    session = runtimes.load(str(of_pixels.artifact), of_pixels.format)
    (info,) = session.inputs
    described = load_artifact(of_pixels.artifact).metadata["input"]
    assert info.dtype == described["dtype"] == "uint8"
    if of_pixels.format == "tflite":
        model = tflite_file.read(of_pixels.artifact.read_bytes())
        assert not any("FLOAT32" in (*op.inputs, *op.outputs) for op in tflite_file.operations(model))


def test_pixels_give_the_logits_of_normalised_images(of_pixels: ExportResult, bundle: Bundle, tmp_path: Path) -> None:
    """The normalising convolution rounds to the net's input scale once, as quantising the floats does."""
    usual = export(bundle, of_pixels.format, samples=None, out=tmp_path / f"u.{of_pixels.format}")
    step = quantize.qparams(bundle.qat_student())[-1].scale[0]
    images = NORMALISED.numpy()
    ours, theirs = (load_artifact(made.artifact).predict(images) for made in (of_pixels, usual))
    assert np.abs(ours - theirs).mean() < 0.3 * step
    assert of_pixels.parity is not None and of_pixels.parity.agreement >= 0.99


def test_the_device_feeds_pixels_too(of_pixels: ExportResult) -> None:
    session = runtimes.load(str(of_pixels.artifact), of_pixels.format)
    metadata = load_artifact(of_pixels.artifact).metadata
    assert np.array_equal(tensors.pixels(NORMALISED.numpy(), metadata), PIXELS.numpy())
    logits = tensors.logits(session, NORMALISED[:40].numpy(), metadata)
    assert np.array_equal(logits, load_artifact(of_pixels.artifact).predict(NORMALISED[:40].numpy()))


class Watch(torch.fx.Interpreter):
    """Keeps what the normalising convolution gives."""

    normalised: torch.Tensor

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.name == "normalised":
            self.normalised = result
        return result


def test_channels_have_means_and_deviations_of_their_own() -> None:
    """Of one pixel of each value, in three channels, nothing but the rounding of the output is lost."""
    net = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3, 4))
    prepared = quantize.prepare_qat(net, (torch.zeros(2, 3, 1, 1),))
    steps = ImagePreprocessing((1, 1), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = torch.arange(256, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    quantize.calibrate(prepared, [(steps.normalise(pixels),)])
    prepared.eval()
    program = quantize.convert(prepared)
    quantize.take_pixels(program, steps.mean, steps.std)
    assert quantize.float_ops(program) == []
    watch = Watch(program)
    watch.run(pixels)
    bias_step = 1 / 255 / 0.224 / 127
    assert torch.allclose(watch.normalised, steps.normalise(pixels), atol=bias_step)


def test_zero_points_are_zero_and_relus_stay_for_others_to_fuse(symmetric: Bundle, tmp_path: Path) -> None:
    made = export(symmetric, "onnx", samples=SAMPLES, activations="symmetric", out=tmp_path / "s.onnx")
    graph = onnx.load(made.artifact).graph
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in quantisers]
    assert {values.dtype for values in zero_points} == {np.dtype("int8")}
    assert not any(values.any() for values in zero_points)
    ops = [node.op_type for node in graph.node]
    assert "Relu" in ops and "Clip" not in ops
    assert made.float_ops == () and made.integer_macs_share == 1.0
    assert made.parity is not None and made.parity.agreement >= 0.99
    wanted: dict[str, Any] = {
        "method": "qat",
        "activations": "symmetric",
        "calibration_samples": None,
        "widened_scales": [],
    }
    assert made.quantisation == wanted


@pytest.mark.parametrize("format_", FORMATS)
def test_a_symmetric_student_runs_in_the_usual_form_too(format_: str, symmetric: Bundle, tmp_path: Path) -> None:
    made = export(symmetric, format_, samples=SAMPLES, out=tmp_path / f"a.{format_}")
    assert made.float_ops == () and made.parity is not None and made.parity.difference_mean < 0.3


def test_symmetric_attention_is_refused_by_tflite_and_written_by_onnx(tmp_path: Path) -> None:
    net = text_nets.trained("bert", "text-classification", steps=60)
    inputs, labels = text_nets.texts(net, 64, seed=11)
    bundle = text_nets.write(tmp_path / "bundle", net, text_nets.quantised(net, steps=2))
    bundle = bundle.calibrated([inputs], "symmetric")
    made = export(bundle, "onnx", activations="symmetric", samples=(inputs, labels), min_agreement=0.9)
    assert made.parity is not None
    with pytest.raises(UserError, match=r"softmax.*zero point -128"):
        export(bundle, "tflite", samples=None)


def test_an_affine_student_is_refused_the_symmetric_form(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zero point 0 it would be another net"):
        export(bundle, "onnx", samples=None, activations="symmetric", out=tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", FORMATS)
def test_a_float_student_is_quantised_after_training(format_: str, float_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"float student.*--calibrate"):
        export(float_bundle, format_, samples=SAMPLES, out=tmp_path / f"x.{format_}")
    calibrated = float_bundle.calibrated(bundles.batches(SHAPE, 96))
    made = export(calibrated, format_, samples=SAMPLES, out=tmp_path / f"x.{format_}")
    wanted = {"method": "calibration", "activations": "affine", "calibration_samples": 96, "widened_scales": []}
    assert made.quantisation == load_artifact(made.artifact).metadata["quantisation"] == wanted
    assert made.float_ops == () and not float_bundle.is_quantised
    record = json.loads(made.artifact.with_name(f"{made.artifact.name}.parity.json").read_text())["parity"]
    assert record["accuracy_float"] > 0.8 and record["scores_float"] is None


def test_scales_that_kernels_asked_for_are_shown(
    float_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = float_bundle.calibrated([(torch.zeros(32, *SHAPE),)])
    made = export(black, "onnx", samples=None, out=tmp_path / "x.onnx")
    assert made.quantisation is not None
    (scale,) = made.quantisation["widened_scales"]
    assert scale["factor"] is None
    show(made)
    shown = capsys.readouterr().out
    assert f"widened scale: {scale['name']}: zero in all samples" in shown
    assert "without VNNI: open it with session.x64quantprecision=1" in shown


def test_calibrated_ranges_are_those_of_the_samples(float_bundle: Bundle) -> None:
    (images,) = next(bundles.batches(SHAPE, 32))
    found = quantize.qparams(float_bundle.calibrated([(images,)]).qat_student())
    scale = next(tensor.scale[0] for tensor in found if tensor.name == "input_1")
    assert scale == pytest.approx(float(images.max() - images.min()) / 255)


@pytest.mark.parametrize(
    "format_, choices, says",
    [
        ("onnx", {"activations": "odd"}, "unknown activations 'odd'"),
        ("tflite", {"activations": "symmetric"}, "tflite artifact has no symmetric form"),
        ("onnx", {"activations": "symmetric", "precision": "float32"}, "float32 onnx artifact has no symmetric form"),
        ("onnx", {"activations": "symmetric", "io": "uint8"}, "no zero point 0"),
        ("tflite", {"precision": "float32", "io": "uint8"}, "no uint8 input"),
        ("onnx", {"io": "uint16"}, "unknown io 'uint16'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    format_: str, choices: dict[str, str], says: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        export(bundle, format_, samples=None, out=tmp_path / "x", **choices)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
