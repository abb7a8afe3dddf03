"""Accuracy that int8 keeps: kdedge's quantisation-aware training against quantising the same float student afterwards.

For each bundle: the float student; kdedge's int8 (QAT); the same student quantised after training by kdedge
(`--calibrate`), by ONNX Runtime's `quantize_static` and by ai-edge-quantizer, all from the same training images. Each
file is scored in its runtime on the whole test split. Printed: accuracy, and what QAT gains over each, with a 95%
interval by paired bootstrap over the test samples (above 0: QAT is better). Of several bundles with one test split,
such as the seeds of a recipe, the mean as well.

Run: python benchmarks/int8_accuracy.py runs/cifar10/bundle [MORE ...] [--data D] [--calibration 500]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdedge.bundle import Bundle
from kdedge.cli import samples
from kdedge.cli.export import calibrated
from kdedge.inputs import InputSpec

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import peers

from kdedge_agent import runtimes, tensors
from kdedge_exporters import export, load_artifact

Array = np.ndarray[Any, Any]
QAT, PTQ = "QAT", "kdedge PTQ"


def calibration_rows(bundle: Bundle, data: str | None, count: int) -> tuple[torch.Tensor, ...]:
    """The student's inputs of the training samples that `--calibrate` draws too."""
    found = samples.for_bundle(bundle, data, "train")
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(bundle.recipe.seed))
    return found.preprocessing.prepare(found.data.take(order[:count]).columns)


def one_by_one(inputs: tuple[torch.Tensor, ...], specs: tuple[InputSpec, ...], kind: str) -> list[peers.Inputs]:
    """Each sample as a runtime takes it."""
    rows = []
    for index in range(len(inputs[0])):
        row = {}
        for spec, values in zip(specs, inputs, strict=True):
            value = values[index : index + 1].contiguous().numpy().astype(spec.dtype)
            row[spec.name] = value.transpose(0, 2, 3, 1) if kind == "tflite" and value.ndim == 4 else value
        rows.append(row)
    return rows


def predictions(path: Path, kind: str, inputs: tuple[torch.Tensor, ...], names: list[str]) -> Array:
    """Classes that a file chooses; one of another tool carries no description, so the runtime's own order is asked."""
    session = runtimes.load(str(path), kind)
    by_name = dict(zip(names, (values.contiguous().numpy() for values in inputs), strict=True))
    chosen = []
    for index in range(len(inputs[0])):
        arrays = []
        for info in session.inputs:
            value = (by_name.get(info.name) if len(names) > 1 else by_name[names[0]])[index : index + 1]  # type: ignore[index]
            value = value.transpose(0, 2, 3, 1) if kind == "tflite" and value.ndim == 4 else value
            arrays.append(np.ascontiguousarray(tensors.quantise(value, info)))
        chosen.append(int(tensors.dequantise(session.run(arrays)[0], session.outputs[0]).argmax()))
    return np.array(chosen)


def interval(ours: Array, theirs: Array, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the mean difference of two rows of hits, by paired bootstrap."""
    generator = np.random.default_rng(0)
    difference = ours.astype(np.float64) - theirs
    means = [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(draws)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def hits(bundle: Bundle, data: str | None, count: int, folder: Path) -> dict[str, dict[str, Array]]:
    """Format -> who made the file -> whether each test sample was right; ``torch`` -> the float student."""
    found = samples.for_bundle(bundle, data, "test")
    inputs, labels = found.preprocessing.prepare(found.data.columns), found.data.labels.numpy()
    with torch.no_grad():
        parts = zip(*(torch.split(x, 256) for x in inputs), strict=True)
        logits = torch.cat([bundle.float_student()(*part) for part in parts])
    rows: dict[str, dict[str, Array]] = {"torch": {"float": logits.argmax(1).numpy() == labels}}
    after = calibrated(bundle, data, count, "affine")
    some = calibration_rows(bundle, data, count)
    names = [spec.name for spec in bundle.inputs]
    for kind, peer, quantise in (
        ("onnx", "ONNX Runtime PTQ", peers.onnxruntime_static),
        ("tflite", "ai-edge PTQ", peers.ai_edge_static),
    ):
        paths = {who: folder / f"{number}.{kind}" for number, who in enumerate((QAT, PTQ, "float", peer))}
        export(bundle, kind, samples=None, out=paths[QAT])
        export(after, kind, samples=None, out=paths[PTQ])
        export(bundle, kind, precision="float32", samples=None, out=paths["float"])
        quantise(paths["float"], one_by_one(some, bundle.inputs, kind), paths[peer])
        own = {who: load_artifact(paths[who]) for who in (QAT, PTQ)}
        predict = {who: file.predict([x.contiguous().numpy() for x in inputs]).argmax(1) for who, file in own.items()}
        predict[peer] = predictions(paths[peer], kind, inputs, names)
        rows[kind] = {who: values == labels for who, values in predict.items()}
    return rows


def mean_of(rows: list[dict[str, Array]]) -> dict[str, Array]:
    """How often each test sample was right, by who made the file."""
    return {who: np.mean([row[who] for row in rows], axis=0) for who in rows[0]}


def show(title: str, found: dict[str, dict[str, Array]]) -> None:
    """The lines of one bundle, or of the mean of several."""
    right = found["torch"]["float"]
    print(f"{title}: float {right.mean():.4f} (n={len(right)} test samples)", flush=True)
    for kind in ("onnx", "tflite"):
        ours = found[kind][QAT]
        for who, values in found[kind].items():
            line = f"  {kind:<7} {who:<17} {values.mean():.4f}"
            if who != QAT:
                low, high = interval(ours, values)
                line += f"  QAT gains {100 * (ours.mean() - values.mean()):+.2f} points"
                line += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
            print(line, flush=True)


def main() -> None:
    """Every bundle in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--data", help="where the bundle's data are now")
    parser.add_argument("--calibration", type=int, default=500, help="training samples to quantise after training from")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    every = []
    for path in options.bundles:
        bundle = Bundle.load(path)
        with tempfile.TemporaryDirectory() as folder:
            found = hits(bundle, options.data, options.calibration, Path(folder))
        show(f"{bundle.model_name}, {path}", found)
        every.append(found)
    if len(every) > 1 and len({len(found["torch"]["float"]) for found in every}) == 1:
        show(f"mean of {len(every)} bundles", {kind: mean_of([found[kind] for found in every]) for kind in every[0]})


if __name__ == "__main__":
    main()
