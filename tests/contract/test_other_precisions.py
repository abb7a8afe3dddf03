"""float16 and int8-dynamic files in the runtimes that boards carry, new and old: they load, and answer as the student.

What an old runtime would get wrong it must refuse; that is shown too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tests.float32_files import NETS, Float32Files, agreement
from tests.runtime_environments import ROOT, old_runtimes_python

from kdedge_exporters import tflite_quantizer
from kdedge_exporters.dynamic import onnx_dynamic, tflite_dynamic
from kdedge_exporters.float16 import onnx_float16, tflite_float16

VERSIONS = {
    ("onnx", "new"): "onnxruntime",
    ("onnx", "old"): "onnxruntime 1.19.2",
    ("tflite", "new"): "ai-edge-litert",
    ("tflite", "old"): "tflite-runtime 2.14.0",
}
_RUN = """
import sys, numpy
from kdedge_agent import runtimes
path, kind, runtime, samples = sys.argv[1:]
session, inputs = runtimes.load(path, kind, runtime), numpy.load(samples)
count = len(inputs[session.inputs[0].name])
rows = [session.run([inputs[info.name][i : i + 1] for info in session.inputs])[0] for i in range(count)]
numpy.save(samples + ".npy", numpy.concatenate(rows))
print(session.name, session.version)
"""


@pytest.fixture(scope="module", params=NETS)
def files(request: pytest.FixtureRequest, float32_files: Callable[[str], Float32Files]) -> Float32Files:
    return float32_files(request.param)


def made(files: Float32Files, kind: str, precision: str) -> bytes:
    """The file of a precision that every runtime of its format is to load."""
    if kind == "tflite":
        return (
            tflite_float16(files.tflite) if precision == "float16" else tflite_dynamic(files.tflite, per_channel=False)
        )
    transform = onnx_float16 if precision == "float16" else onnx_dynamic
    content: bytes = transform(onnx.load_from_string(files.onnx)).SerializeToString()
    return content


def ran(content: bytes, kind: str, age: str, files: Float32Files, folder: Path) -> NDArray[Any] | str:
    """The logits of a runtime in a process of its own; or what it said where it failed."""
    path, samples = folder / f"file.{kind}", folder / "samples.npz"
    path.write_bytes(content)
    images = {name: x.transpose(0, 2, 3, 1) for name, x in files.inputs.items() if kind == "tflite" and x.ndim == 4}
    np.savez(samples, **{**files.inputs, **images})
    python = Path(sys.executable) if age == "new" else old_runtimes_python()
    command = [str(python), "-c", _RUN, str(path), kind, VERSIONS[kind, age].split()[0], str(samples)]
    environment = {"PYTHONPATH": str(ROOT / "device_bench"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        return done.stderr or f"died with code {done.returncode}"
    assert VERSIONS[kind, age] in done.stdout
    logits: NDArray[Any] = np.load(f"{samples}.npy")
    return logits


def is_student(found: NDArray[Any] | str, files: Float32Files) -> bool:
    """Whether a runtime answers as the float student does."""
    return not isinstance(found, str) and agreement(found, files.logits) >= 0.98


def test_the_student_has_learnt_so_that_agreement_means_something(files: Float32Files) -> None:
    assert (files.logits.argmax(1) == files.labels).mean() > 0.9


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("precision", ["float16", "int8-dynamic"])
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_runtimes_answer_as_the_student(
    kind: str, precision: str, age: str, files: Float32Files, tmp_path: Path
) -> None:
    found = ran(made(files, kind, precision), kind, age, files, tmp_path)
    assert is_student(found, files), found


def test_a_scale_a_channel_is_for_new_runtimes_and_refused_by_the_old(files: Float32Files, tmp_path: Path) -> None:
    content = tflite_dynamic(files.tflite, per_channel=True)
    assert is_student(ran(content, "tflite", "new", files, tmp_path), files)
    said = ran(content, "tflite", "old", files, tmp_path)
    assert isinstance(said, str) and "RuntimeRefused" in said and "Didn't find op for builtin opcode" in said


def test_without_its_versions_the_old_runtime_loads_it_and_answers_nonsense(
    files: Float32Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or there would be no need for a scale for each weight tensor, nor for the versions."""
    monkeypatch.setattr(tflite_quantizer, "_VERSIONS", {})
    found = ran(tflite_dynamic(files.tflite, per_channel=True), "tflite", "old", files, tmp_path)
    assert not isinstance(found, str), found
    assert agreement(found, files.logits) < 0.5


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_which_convolutions_on_int8_weights_are_right(
    op: str, per_channel: bool, age: str, float32_files: Callable[[str], Float32Files], tmp_path: Path
) -> None:
    """Facts that ``dynamic`` rests on; it uses none of these kernels, which are slow, or wrong with one scale."""
    files = float32_files("mobilenet")
    recipe = [tflite_quantizer.int8_weights(op, per_channel=per_channel, integer=True)]
    found = ran(tflite_quantizer.quantised(files.tflite, recipe), "tflite", age, files, tmp_path)
    right = not isinstance(found, str) and agreement(found, files.logits) >= 0.97
    assert right == (per_channel or op == "CONV_2D")
