"""Runtimes of other versions than those here, in environments of their own, and our artifacts run in them for real."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).parents[1]
ENVIRONMENTS = {
    # Both are the last of their kind for Python 3.8: tflite-runtime ended there, onnxruntime dropped it after 1.19.
    "oldest": ("tflite-runtime==2.14.0", "onnxruntime==1.19.2", "numpy<2"),
    # The last for Python 3.9, and for 3.10.
    "between": ("ai-edge-litert==2.1.0", "onnxruntime==1.23.2"),
    "newest": ("ai-edge-litert", "onnxruntime"),
}
"""Name -> what pip installs; each holds one runtime for each format."""
LATER = [
    pytest.param(name, runtime, marks=pytest.mark.nightly, id=f"{name}-{runtime}")
    for name in ("between", "newest")
    for runtime in ("ai-edge-litert", "onnxruntime")
]
"""Environment and runtime, for tests that ask those too."""
_TFLITE_PYTHONS = ("python3.11", "python3.10", "python3.9", "python3.8")
_RUN = """
import sys, numpy
from kdedge_agent import runtimes, tensors
path, kind, runtime, samples, out = sys.argv[1:]
session, given = runtimes.load(path, kind, runtime), numpy.load(samples)
if samples.endswith(".npz"):
    logits = tensors.logits_of_columns(session, {name: given[name] for name in given.files})
else:
    logits = tensors.logits(session, given, session.metadata())
numpy.save(out, logits)
print(session.name, session.version)
"""


def python_of(name: str) -> Path:
    """The interpreter of an environment, made on first use in ``.venv-NAME`` and kept; skips loudly if it cannot be."""
    folder = ROOT / f".venv-{name}"
    with Path(f"{folder}.lock").open("w") as lock:  # tests of other files may want it at this moment
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(folder, ENVIRONMENTS[name])


def old_runtimes_python() -> Path:
    """The interpreter with the runtimes that older boards carry."""
    return python_of("oldest")


def _made(folder: Path, wanted: tuple[str, ...]) -> Path:
    python, done = folder / "bin" / "python", folder / "complete"
    # What is the newest changes from day to day.
    content = "\n".join(wanted) if any("==" in word for word in wanted) else f"{wanted} on {date.today()}"
    if done.is_file() and done.read_text() == content:
        return python
    base = _base_python(wanted)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([base, "-m", "venv", str(folder)], check=True, capture_output=True, text=True, timeout=120)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr if isinstance(error.stderr, str) else ""
        reason = said.strip().splitlines()[-1:] or [type(error).__name__]
        pytest.skip(f"{', '.join(wanted)} cannot be installed here: {reason[0]}")
    done.write_text(content)
    return python


def _base_python(wanted: tuple[str, ...]) -> str:
    base = next((found for name in _TFLITE_PYTHONS if (found := shutil.which(name))), None)
    if sys.version_info < (3, 12) or not any(word.startswith("tflite-runtime") for word in wanted):
        base = sys.executable
    if base is None:
        pytest.skip("tflite-runtime 2.14.0 has wheels for Python 3.8 to 3.11 only, and none of them is installed here")
    return base


def logits_in(
    python: Path, artifact: Path, runtime: str, samples: Array | Mapping[str, Array], folder: Path
) -> tuple[str, Any]:
    """Run an artifact in another interpreter with the agent's own code.

    Args:
        python: The interpreter.
        artifact: The file.
        runtime: Its name.
        samples: Normalised float32 images [N, C, H, W], or int32 [N, L] by the names of a text net's inputs.
        folder: For files that are passed.

    Returns:
        Name and version of the runtime, and what it computes, float32 [N, classes].
    """
    path = folder / ("samples.npz" if isinstance(samples, Mapping) else "samples.npy")
    if isinstance(samples, Mapping):
        np.savez(path, **samples)  # type: ignore[arg-type]
    else:
        np.save(path, samples)
    words = (python, "-c", _RUN, artifact, artifact.suffix[1:], runtime, path, folder / "out.npy")
    command = [str(word) for word in words]
    environment = {"PYTHONPATH": str(ROOT / "device_bench"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip(), np.load(folder / "out.npy")
