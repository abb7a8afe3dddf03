"""The float32 files of small trained nets, and what these say of samples: what other precisions are made from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests import bundles, text_nets

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


@cache
def float32_files(name: str) -> Float32Files:
    """The files of a net of ``NETS``, trained and exported once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _mobilenet(Path(folder) / "bundle") if name == "mobilenet" else _bert(Path(folder) / "bundle")
        student = bundle.float_student()
        if name == "mobilenet":
            images, labels = bundles.images_of((3, _SIZE, _SIZE), 200)
            samples: tuple[torch.Tensor, ...] = (images,)
        else:
            samples, labels = text_nets.texts(student, 200, seed=11)
        with torch.no_grad():
            logits = student(*samples).numpy()
        names = [spec.name for spec in bundle.inputs]
        arrays = [x.numpy() if x.is_floating_point() else x.numpy().astype(np.int32) for x in samples]
        content = {
            kind: export(bundle, kind, precision="float32", samples=None, out=Path(folder) / f"a.{kind}")
            for kind in ("onnx", "tflite")
        }
        return Float32Files(
            content["onnx"].artifact.read_bytes(),
            content["tflite"].artifact.read_bytes(),
            dict(zip(names, arrays, strict=True)),
            labels.numpy(),
            logits,
            sum(parameter.numel() for parameter in student.parameters()),
        )


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
