"""Artifacts against torch, layer by layer: a good one departs nowhere, a broken one exactly where it was broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from kdedge import quantize
from kdedge.bundle import Bundle
from kdedge.errors import ArtifactError
from kdedge.images.preprocessing import ImagePreprocessing
from numpy.typing import NDArray
from tests import bundles, small_nets, text_nets
from torch import nn
from torch.fx import GraphModule

from kdedge_exporters import export, tflite_file
from kdedge_exporters.artifact import open_artifact
from kdedge_exporters.exposed import Integers, QParams, StoredTensor, expose
from kdedge_exporters.layer_matching import MAX_STEPS, MEAN_STEPS, Pair, matched, only_rounding, qparams, recorded
from kdedge_exporters.layers import LayerDifference, compare_layers, first_departure, in_lines
from kdedge_exporters.metadata import METADATA_KEY
from kdedge_exporters.onnx_values import constant, initializer

Array = NDArray[Any]

FORMATS = ("onnx", "tflite")
SHAPE = (3, 16, 16)
SAMPLES = 6
LAYERS = {"onnx": ("Conv", "Gemm"), "tflite": ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")}


class Case:
    """A student, samples for it, and its files."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.inputs: tuple[torch.Tensor, ...]
        if kind == "image":
            self.bundle = bundles.write(folder / "bundle", size=16, steps=20, model="tests.small_nets:student")
            self.inputs = bundles.images_of(SHAPE, SAMPLES, seed=5)[:1]
        else:
            net = text_nets.build("bert", "text-classification")
            for parameter in net.parameters():
                if parameter.ndim == 1:  # biases begin as zeros, which TFLite leaves out
                    parameter.data += 0.05 * torch.randn(parameter.shape)
            self.bundle = text_nets.write(folder / "bundle", net, text_nets.quantised(net, steps=0))
            self.inputs = text_nets.texts(net, SAMPLES, seed=5)[0]
        self.files = {
            name: export(self.bundle, name, samples=None, out=folder / f"a.{name}").artifact for name in FORMATS
        }
        self.program = cache(self.bundle.int8_program)

    def compare(self, format_: str, path: Path | None = None) -> list[LayerDifference]:
        return compare_layers(path or self.files[format_], format_, self.program(), self.inputs)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return cache(lambda kind: Case(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(params=["image", "text"])
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture(params=FORMATS)
def good(request: pytest.FixtureRequest, case: Case) -> list[LayerDifference]:
    return case.compare(request.param)


def with_weights(differences: list[LayerDifference]) -> list[LayerDifference]:
    """The layers that a file's own list of such is in the order of."""
    return [one for one in differences if one.op.startswith(("aten.conv2d", "aten.linear"))]


def test_in_a_good_file_nothing_departs_and_nearly_every_tensor_is_found(good: list[LayerDifference]) -> None:
    assert first_departure(good) is None
    matched = [one for one in good if one.matched]
    assert len(matched) >= 0.9 * len(good)
    for one in matched:
        assert one.reason is None and one.own_mean_steps is not None and one.own_max_steps is not None, one
        assert one.own_mean_steps < 0.01 and one.own_max_steps <= 1, one
        assert one.equal_share is not None and one.equal_share > 0.9, one
    assert len({one.counterpart for one in matched}) == len(matched), "no tensor of the file belongs to two"


def test_tensors_without_a_counterpart_are_named_with_the_reason(good: list[LayerDifference]) -> None:
    for one in good:
        if not one.matched:
            assert "only moves data" in str(one.reason), one
            assert one.mean_steps is one.max_steps is one.equal_share is one.own_mean_steps is one.own_max_steps is None


def test_tensors_stand_in_the_order_of_the_program(case: Case, good: list[LayerDifference]) -> None:
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    nodes = [node for node in case.program().graph.nodes if node.target is quantize]
    assert [one.name for one in good] == [node.args[0].name for node in nodes]
    assert [(one.scale, one.zero_point) for one in good] == [(float(np.float32(n.args[1])), n.args[2]) for n in nodes]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_copy_that_shows_its_tensors_computes_what_the_file_computes(
    case: Case, format_: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    stored = expose(case.files[format_], format_, copy)
    arrays = [x.numpy() for x in case.inputs]
    logits, again = (open_artifact(path, format_).predict(arrays) for path in (case.files[format_], copy))
    assert len(stored) > 10 and np.array_equal(logits, again)


@pytest.mark.parametrize(
    "place, what", [(0, "bias"), (1, "weight"), (4, "bias"), (1, "zero point"), (4, "zero point"), (1, "scale")]
)
@pytest.mark.parametrize("format_", FORMATS)
def test_the_layer_that_was_broken_is_named(case: Case, format_: str, place: int, what: str, tmp_path: Path) -> None:
    broken = tmp_path / f"broken.{format_}"
    _break(case.files[format_], format_, broken, place, what)
    differences = case.compare(format_, broken)
    departing = [one for one in differences if one.departs]
    assert departing[0] == first_departure(differences) == with_weights(differences)[place]
    if what in ("weight", "bias"):
        assert len(departing) == 1, "what follows computes rightly from wrong integers"
        after = differences[differences.index(departing[0]) + 1 :]
        assert any(one.mean_steps is not None and one.mean_steps > MEAN_STEPS for one in after)
    elif format_ == "tflite":  # in ONNX each reader states scale and zero point too
        assert departing[0].reason is not None and "there scale" in departing[0].reason


@pytest.mark.parametrize("format_", FORMATS)
def test_six_steps_in_one_channel_of_one_layer_are_enough(case: Case, format_: str, tmp_path: Path) -> None:
    """The mean over all channels hardly shows them; the largest difference does."""
    broken = tmp_path / f"broken.{format_}"
    _break(case.files[format_], format_, broken, 3, "one bias")
    differences = case.compare(format_, broken)
    (one,) = [one for one in differences if one.departs]
    assert one == with_weights(differences)[3]
    assert one.own_mean_steps is not None and 0 < one.own_mean_steps < MEAN_STEPS
    assert one.own_max_steps is not None and MAX_STEPS < one.own_max_steps <= 7


def test_two_broken_layers_are_two(case: Case, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    _break(case.files["tflite"], "tflite", broken, 1, "bias")
    _break(broken, "tflite", broken, 4, "weight")
    differences = case.compare("tflite", broken)
    layers = with_weights(differences)
    assert [one for one in differences if one.departs] == [layers[1], layers[4]]


def branches(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A student whose rectified branch shares the scale of a plain one, so that ONNX clips its integers."""
    net = small_nets.build("branches")
    assert isinstance(net, nn.Sequential) and shape == SHAPE
    net[-1] = nn.Linear(16, classes)
    return net


def test_halves_that_a_pool_rounds_the_other_way_are_no_departure(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "bundle", size=16, steps=5, model=f"{__name__}:branches")
    path = export(bundle, "onnx", samples=None, out=tmp_path / "a.onnx").artifact
    assert "Clip" in [node.op_type for node in ir.load(path).graph]
    differences = compare_layers(path, "onnx", bundle.int8_program(), bundles.images_of(SHAPE, 4)[:1])
    assert first_departure(differences) is None and all(one.matched for one in differences)
    steps = {one.op: (one.own_mean_steps, one.own_max_steps) for one in differences}
    mean, largest = steps.pop("aten.avg_pool2d.default")
    assert mean is not None and mean > 0.05 and largest == 1
    assert all(figures[0] is not None and figures[0] < 0.01 for figures in steps.values())


def test_a_broken_softmax_is_told_from_the_others_of_its_scale(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """Softmaxes all have the scale 1/256, and the file holds each twice, the second time without the batch axis."""
    text = cases("text")
    model = tflite_file.read(text.files["tflite"].read_bytes())
    infos = tflite_file.operations(model)
    softmaxes = [i for i, info in enumerate(infos) if info.op == "SOFTMAX"]
    assert len(softmaxes) == 2
    model.subgraphs[0].operators[softmaxes[0]].builtinOptions.beta = 0.25
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(tflite_file.pack(model))
    differences = text.compare("tflite", broken)
    assert [one.name for one in differences if one.departs] == ["softmax"]
    counterparts = [one.counterpart for one in differences if one.op == "aten.softmax.int"]
    assert counterparts == [infos[i].name for i in softmaxes]


def test_lines_and_document_tell_everything(case: Case, good: list[LayerDifference], tmp_path: Path) -> None:
    lines = in_lines(good)
    assert len(lines) == len(good) + 2 and len(lines[1]) > 40
    assert lines[-1].startswith("no layer departs from torch (differences in steps; ")
    document = json.loads(json.dumps([one.to_dict() for one in good]))
    assert [entry["matched"] for entry in document] == [one.matched for one in good]
    broken = tmp_path / "broken.onnx"
    _break(case.files["onnx"], "onnx", broken, 1, "weight")
    differences = case.compare("onnx", broken)
    first = first_departure(differences)
    assert first is not None and first.module is not None
    assert in_lines(differences)[-1].startswith(f"the first layer that departs is {first.name} ({first.module}) (")
    (line,) = [line for line in in_lines(differences)[:-1] if line.endswith("  departs")]
    assert line.startswith(f"{first.name} ({first.module}) ")


def test_rounding_is_what_may_fall_either_way() -> None:
    assert only_rounding(MEAN_STEPS, MAX_STEPS)
    assert not only_rounding(MEAN_STEPS + 0.01, 1) and not only_rounding(0.0, MAX_STEPS + 1)


# --- which tensor is which ------------------------------------------------------------------------------------------


def _ran(net: nn.Module) -> tuple[GraphModule, tuple[torch.Tensor], dict[str, Integers], dict[str, QParams]]:
    """A program, a sample, and the integers and qparams of its tensors by name."""
    x = torch.randn(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    prepared = quantize.prepare_qat(net.eval(), (x[:2],))
    quantize.calibrate(prepared, [(x,)])
    program = quantize.convert(prepared)
    values = recorded(program, (x[:1],))
    names = {node: node.all_input_nodes[0].name for node in values}
    return program, (x[:1],), {names[n]: v for n, v in values.items()}, {names[n]: qparams(n) for n in values}


def _matched(
    program: GraphModule, x: tuple[torch.Tensor], file: list[tuple[QParams, Integers]], *, channels_last: bool = False
) -> dict[str, Pair]:
    stored = [StoredTensor(str(position), position, grid) for position, (grid, _) in enumerate(file)]
    found = matched(program, stored, [(x, [values for _, values in file])], channels_last=channels_last)
    return {node.all_input_nodes[0].name: pair for node, pair in found.items()}


def test_layouts_of_equal_lengths_are_told_apart_by_values_in_a_broken_file_too() -> None:
    program, x, ours, grids = _ran(nn.Conv2d(3, 3, 1))
    file = [(grids[name], np.ascontiguousarray(np.moveaxis(values, 1, -1))) for name, values in ours.items()]
    for wrong in (0, 7):
        file[1] = (file[1][0], file[1][1] + np.int16(wrong))
        found = _matched(program, x, file, channels_last=True)
        assert [(pair.theirs, pair.channels_last) for pair in found.values()] == [(0, True), (1, True)]


def test_a_tensor_that_the_file_lacks_gets_no_counterpart_behind_its_readers() -> None:
    program, x, ours, grids = _ran(nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 3, 1)))
    conv, pool, last = list(ours)[1:]
    assert grids[conv] == grids[pool]
    others = [(grids[last], ours[last]), (grids[conv], ours[conv] + np.int16(40))]
    found = _matched(program, x, [(grids["input_1"], ours["input_1"]), *others])
    assert {name: pair.theirs for name, pair in found.items()} == {"input_1": 0, last: 1}


# --- other files, and what does not fit -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write(tmp_path_factory.mktemp("mlp") / "bundle", size=16, steps=5, model="mlp")


@pytest.mark.parametrize("format_, io", [("tflite", "int8"), ("tflite", "uint8"), ("onnx", "uint8")])
def test_other_inputs_and_outputs_are_compared_too(mlp: Bundle, format_: str, io: str, tmp_path: Path) -> None:
    made = export(mlp, format_, samples=None, out=tmp_path / f"a.{format_}", io=io)
    preprocessing = mlp.preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)
    pixels = torch.randint(0, 256, (4, *SHAPE), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    images = (pixels / 255 - mean) / std
    differences = compare_layers(made.artifact, format_, mlp.int8_program(), (images,))
    assert first_departure(differences) is None and all(one.matched for one in differences)


def test_a_file_of_another_student_is_refused(cases: Callable[[str], Case], mlp: Bundle) -> None:
    image = cases("image")
    with pytest.raises(ArtifactError, match="most of the student's tensors are not in the file"):
        compare_layers(image.files["onnx"], "onnx", mlp.int8_program(), image.inputs)


@pytest.mark.parametrize("format_", FORMATS)
def test_what_does_not_fit_is_refused_in_one_line(case: Case, format_: str, tmp_path: Path) -> None:
    path, program = case.files[format_], case.program()
    nothing = tuple(x[:0] for x in case.inputs)
    wrong: list[tuple[Path, GraphModule, tuple[torch.Tensor, ...]]] = [
        (tmp_path / "gone", program, case.inputs),
        (path, program, nothing),
        (path, program, tuple(x[:, :2] for x in case.inputs)),
        (path, program, (*case.inputs, case.inputs[0])),
        (_float32(path, format_, tmp_path / "float"), program, case.inputs),
    ]
    if len(case.inputs) > 1:
        wrong.append((path, program, (*case.inputs[:-1], case.inputs[-1][:3])))
    for file, given, inputs in wrong:
        with pytest.raises(ArtifactError) as caught:
            compare_layers(file, format_, given, inputs)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def _float32(path: Path, format_: str, out: Path) -> Path:
    """The file, said to be float32."""
    document = json.dumps({**open_artifact(path, format_).metadata, "precision": "float32"})
    if format_ == "onnx":
        model = ir.load(path)
        model.metadata_props[METADATA_KEY] = document
        ir.save(model, out)
    else:
        content = tflite_file.read(path.read_bytes())
        tflite_file.set_metadata(content, METADATA_KEY, document)
        out.write_bytes(tflite_file.pack(content))
    return out


# --- breaking files -------------------------------------------------------------------------------------------------


def _break(path: Path, format_: str, out: Path, place: int, what: str) -> None:
    """Write a file in which one thing is wrong about the layer at a place among those with weights."""
    (_break_onnx if format_ == "onnx" else _break_tflite)(path, out, place, what)


def _wrong_biases(biases: Array, step: Array, output_step: float, what: str) -> Array:
    """All of them ten output steps off, or the first one six."""
    off = np.rint(output_step / step * (6 if what == "one bias" else 10)).astype(np.int32)
    if what == "one bias":
        off[1:] = 0
    return biases + off


def _wrong_zero_point(zero_point: int, middle: int) -> int:
    return zero_point + (9 if zero_point < middle else -9)


def _break_onnx(path: Path, out: Path, place: int, what: str) -> None:
    model = ir.load(path)
    layer = [node for node in model.graph if node.op_type in LAYERS["onnx"]][place]
    (quantize,) = [use.node for use in layer.outputs[0].uses()]
    scale, zero_point = (_array(quantize, position) for position in (1, 2))
    if what == "zero point":
        node, position, array = quantize, 2, np.asarray(_wrong_zero_point(int(zero_point), 128), np.uint8)
    elif what == "scale":
        node, position, array = quantize, 1, np.asarray(scale * 1.5, np.float32)
    else:
        operand = layer.inputs[1 if what == "weight" else 2]
        assert operand is not None and operand.producer() is not None
        node, position = cast(ir.Node, operand.producer()), 0
        stored, step = _array(node, 0), _array(node, 1)
        array = -stored if what == "weight" else _wrong_biases(stored, step, float(scale), what)
    node.replace_input_with(position, initializer(model.graph, "wrong", array))
    ir.save(model, out)


def _array(node: ir.Node, position: int) -> Array:
    array = constant(node.inputs[position])
    assert array is not None
    return array


def _break_tflite(path: Path, out: Path, place: int, what: str) -> None:
    model = tflite_file.read(path.read_bytes())
    graph, infos = model.subgraphs[0], tflite_file.operations(model)
    layer = [op for op, info in zip(graph.operators, infos, strict=True) if info.op in LAYERS["tflite"]][place]
    result = graph.tensors[layer.outputs[0]].quantization
    operand = graph.tensors[layer.inputs[1 if what == "weight" else 2]]
    buffer = model.buffers[operand.buffer]
    stored = np.asarray(buffer.data, np.uint8).view(np.int8 if what == "weight" else np.int32)
    if what == "zero point":
        result.zeroPoint = np.asarray([_wrong_zero_point(int(result.zeroPoint[0]), 0)], np.int64)
    elif what == "scale":
        result.scale = np.asarray([result.scale[0] * 1.5], np.float32)
    elif what == "weight":
        buffer.data = (-stored).view(np.uint8)
    else:
        biases = _wrong_biases(stored, np.asarray(operand.quantization.scale), float(result.scale[0]), what)
        buffer.data = biases.view(np.uint8)
    out.write_bytes(tflite_file.pack(model))
