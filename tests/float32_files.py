"""The float32 files of small trained nets, and what these say of samples: what other precisions are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests import bundles, text_nets
from tests.shared_folders import shared_between_workers

from kdedge_agent import runtimes
from kdedge_exporters import export

Array = NDArray[Any]
NETS = ("mobilenet", "bert")
_SIZE = 32


@dataclass(frozen=True)
class Float32Files:
    """A net in both formats.

    Attributes:
        onnx: The file.
        tflite: The file.
        inputs: Samples by the name of the input: float32 [N, C, H, W], or int32 [N, L].
        labels: int64 [N].
        logits: The student's, float32 [N, classes].
        weights: How many numbers its parameters are.
    """

    onnx: bytes
    tflite: bytes
    inputs: dict[str, Array]
    labels: Array
    logits: Array
    weights: int


def make(name: str, tmp_path_factory: pytest.TempPathFactory) -> Float32Files:
    """The files of a net of ``NETS``, trained and exported once for all workers: the fixture ``float32_files``."""
    folder = shared_between_workers(tmp_path_factory, f"float32-{name}", partial(_write, name))
    with np.load(folder / "samples.npz") as samples:
        arrays = dict(samples)
    labels, logits, weights = (arrays.pop(key) for key in ("labels", "logits", "weights"))
    onnx, tflite = ((folder / f"a.{kind}").read_bytes() for kind in ("onnx", "tflite"))
    return Float32Files(onnx, tflite, arrays, labels, logits, int(weights))


def _write(name: str, folder: Path) -> None:
    bundle = _mobilenet(folder / "bundle") if name == "mobilenet" else _bert(folder / "bundle")
    student = bundle.float_student()
    if name == "mobilenet":
        images, labels = bundles.images_of((3, _SIZE, _SIZE), 200)
        samples: tuple[torch.Tensor, ...] = (images,)
    else:
        samples, labels = text_nets.texts(student, 200, seed=11)
    with torch.no_grad():
        logits = student(*samples).numpy()
    for kind in ("onnx", "tflite"):
        export(bundle, kind, precision="float32", samples=None, out=folder / f"a.{kind}")
    arrays = [x.numpy() if x.is_floating_point() else x.numpy().astype(np.int32) for x in samples]
    named = dict(zip((spec.name for spec in bundle.inputs), arrays, strict=True))
    weights = sum(parameter.numel() for parameter in student.parameters())
    np.savez(folder / "samples.npz", labels=labels.numpy(), logits=logits, weights=np.asarray(weights), **named)


def _mobilenet(folder: Path) -> Any:
    return bundles.write(folder, size=_SIZE, steps=100, quantised=False, model="mobilenet_v2", width=0.35)


def _bert(folder: Path) -> Any:
    net = text_nets.trained("bert", "text-classification")
    return text_nets.write(folder, net, text_nets.quantised(net, steps=0))


def logits_of(content: bytes, kind: str, inputs: dict[str, Array], folder: Path) -> Array:
    """What a file says of samples, one at a time, in this interpreter's runtime."""
    path = folder / f"file.{kind}"
    path.write_bytes(content)
    session = runtimes.load(str(path), kind)
    arrays = [_as_given(inputs[info.name], kind) for info in session.inputs]
    count = len(arrays[0])
    return np.concatenate([session.run([array[i : i + 1] for array in arrays])[0] for i in range(count)])


def _as_given(array: Array, kind: str) -> Array:
    """Images NHWC for TFLite."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if kind == "tflite" and array.ndim == 4 else array


def agreement(ours: Array, theirs: Array) -> float:
    """Share of equal arg-maxes."""
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean())
