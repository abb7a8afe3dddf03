"""The runtimes that older boards carry, in an environment of their own, and our artifacts run in it for real."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Both are the last of their kind for Python 3.8: tflite-runtime ended there, onnxruntime dropped it after 1.19.
OLD_RUNTIMES = ("tflite-runtime==2.14.0", "onnxruntime==1.19.2", "numpy<2")
_PYTHONS = ("python3.11", "python3.10", "python3.9", "python3.8")
_RUN = """
import sys, numpy
from kdedge_agent import runtimes, tensors
path, kind, runtime, images, out = sys.argv[1:]
session = runtimes.load(path, kind, runtime)
numpy.save(out, tensors.logits(session, numpy.load(images), session.metadata()))
print(session.name, session.version)
"""


def old_runtimes_python() -> Path:
    """The interpreter of the environment, made on first use in ``.venv-tflite`` and kept; skips loudly if it cannot."""
    with (ROOT / ".venv-tflite.lock").open("w") as lock:  # tests of other files may want it at this moment
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(ROOT / ".venv-tflite")


def _made(folder: Path) -> Path:
    python, done = folder / "bin" / "python", folder / "complete"
    if done.is_file() and done.read_text() == "\n".join(OLD_RUNTIMES):
        return python
    base = next((found for name in _PYTHONS if (found := shutil.which(name))), None)
    if sys.version_info < (3, 12):
        base = sys.executable
    if base is None:
        pytest.skip("tflite-runtime 2.14.0 has wheels for Python 3.8 to 3.11 only, and none of them is installed here")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([base, "-m", "venv", str(folder)], check=True, capture_output=True, text=True, timeout=120)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *OLD_RUNTIMES]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr if isinstance(error.stderr, str) else ""
        reason = said.strip().splitlines()[-1:] or [type(error).__name__]
        pytest.skip(f"{', '.join(OLD_RUNTIMES)} cannot be installed here: {reason[0]}")
    done.write_text("\n".join(OLD_RUNTIMES))
    return python


def logits_in(
    python: Path, artifact: Path, runtime: str, images: np.ndarray[Any, Any], folder: Path
) -> tuple[str, Any]:
    """Run an artifact in another interpreter with the agent's own code.

    Returns:
        Name and version of the runtime, and logits float32 [N, classes].
    """
    np.save(folder / "images.npy", images)
    kind = artifact.suffix[1:]
    command = [
        str(python),
        "-c",
        _RUN,
        str(artifact),
        kind,
        runtime,
        str(folder / "images.npy"),
        str(folder / "out.npy"),
    ]
    environment = {"PYTHONPATH": str(ROOT / "device_bench"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip(), np.load(folder / "out.npy")
