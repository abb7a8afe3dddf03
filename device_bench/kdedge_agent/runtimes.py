"""The one place that opens an artifact with a runtime, on the device and on the host alike.

A session hands over raw arrays of the model's own dtypes; quantising and layout are :mod:`kdedge_agent.tensors`.
Inputs are set outside ``invoke()``, so that timing it times the inference and nothing else.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, List, Optional, Tuple

from kdedge_agent.session import (
    DYNAMIC,
    METADATA_KEY,
    RuntimeMissing,
    RuntimeRefused,
    RuntimeTrouble,
    Session,
    TensorInfo,
)

__all__ = [
    "DYNAMIC",
    "METADATA_KEY",
    "RUNTIMES",
    "RuntimeMissing",
    "RuntimeRefused",
    "RuntimeTrouble",
    "Session",
    "TensorInfo",
    "choose",
    "import_runtime",
    "installed",
    "load",
]

_TFLITE_MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
RUNTIMES = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime")}
"""Format -> names of the runtimes that open it, in order of preference."""


def _import(module: str) -> Any:
    """Import a runtime; anything at all can go wrong in the native code of a wheel for another machine."""
    name = {value: key for key, value in _TFLITE_MODULES.items()}.get(module, module)
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        lines = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {lines[0] if lines else ''}"
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".", maxsplit=1)[0]:
            raise RuntimeMissing(f"{name} is not installed", f"Install it: pip install {name}") from None
        _refuse_new_numpy(name)
        raise RuntimeMissing(
            f"{name} does not import ({detail[:300]})", f"Reinstall it for this Python and machine: {name}"
        ) from None
    _refuse_new_numpy(name)
    return imported


def _refuse_new_numpy(name: str) -> None:
    """tflite-runtime 2.14 imports beside numpy 2 and fails at the first model; its metadata does not say so."""
    version = str(getattr(sys.modules.get("numpy"), "__version__", "1"))
    if name == "tflite-runtime" and version.split(".", maxsplit=1)[0] != "1":
        raise RuntimeMissing(
            f"tflite-runtime does not work with numpy {version}",
            "Give it an environment of its own: pip install tflite-runtime 'numpy<2'",
        )


def _version(name: str, module: Any) -> str:
    try:
        from importlib.metadata import version

        return version(name)
    except Exception:
        package = importlib.import_module(module.__name__.split(".", maxsplit=1)[0])
        return str(getattr(package, "__version__", "unknown"))


def import_runtime(name: str) -> str:
    """Import a runtime by its pip name and return its version.

    Raises:
        RuntimeMissing: not installed, or it does not import; the reason is in ``what``.
    """
    module = _import(_TFLITE_MODULES.get(name, name))
    return _version(name, module)


def installed(format: str) -> List[str]:  # noqa: A002 - the word of the artifact's own description
    """Names of the runtimes for the format that import in this process, in order of preference.

    Raises:
        RuntimeRefused: no such format.
    """
    found = []
    for name in _candidates(format, None):
        try:
            import_runtime(name)
        except RuntimeMissing:
            continue
        found.append(name)
    return found


def choose(format: str, runtime: Optional[str] = None) -> str:  # noqa: A002
    """The runtime asked for, or the first that imports; it is imported when this returns.

    Raises:
        RuntimeMissing: none imports; each one's reason is named.
        RuntimeRefused: the runtime does not open the format, or no such format.
    """
    reasons = []
    for name in _candidates(format, runtime):
        try:
            import_runtime(name)
        except RuntimeMissing as error:
            if runtime is not None:
                raise
            reasons.append(error.what)
            continue
        return name
    raise RuntimeMissing(
        f"no runtime for {format}: {'; '.join(reasons)}",
        f"Install it into the Python that runs this: pip install {RUNTIMES[format][0]}",
    )


def _candidates(format: str, runtime: Optional[str]) -> Tuple[str, ...]:  # noqa: A002
    if format not in RUNTIMES:
        raise RuntimeRefused(f"format {format!r} is unknown", f"One of: {', '.join(RUNTIMES)}")
    if runtime is None:
        return RUNTIMES[format]
    if runtime not in RUNTIMES[format]:
        raise RuntimeRefused(f"{runtime} opens no {format} file", f"One of: {', '.join(RUNTIMES[format])}")
    return (runtime,)


def load(
    path: str,
    format: str,  # noqa: A002
    runtime: Optional[str] = None,
    threads: int = 1,
    provider: Optional[str] = None,
) -> Session:
    """Open an artifact.

    Args:
        path: The .onnx or .tflite file.
        format: ``onnx`` or ``tflite``.
        runtime: A name of ``RUNTIMES[format]``; None takes the first that imports.
        threads: Intra-op threads, at least 1.
        provider: An execution provider of ONNX Runtime, such as ``cuda``, that has to run it; None is the CPU.

    Raises:
        RuntimeMissing: no such runtime here.
        RuntimeRefused: missing, truncated, foreign or unsupported file; the provider is not there or was not applied.
    """
    name = choose(format, runtime)
    if not Path(path).is_file():
        raise RuntimeRefused(f"{path} is not there", "Name a file that exists")
    if name == "onnxruntime":
        from kdedge_agent.onnx_session import OnnxSession

        return OnnxSession(_import(name), str(path), threads, provider)
    if provider is not None:
        raise RuntimeRefused(
            f"{name} has no execution providers", "Leave the provider out: XNNPACK is applied by itself"
        )
    from kdedge_agent.tflite_session import TfliteSession

    module = _import(_TFLITE_MODULES[name])
    return TfliteSession(module, name, _version(name, module), str(path), threads)
