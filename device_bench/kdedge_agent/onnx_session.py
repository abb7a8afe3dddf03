"""ONNX Runtime behind the common session."""

from __future__ import annotations

import functools
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from kdedge_agent import facts
from kdedge_agent.session import DYNAMIC, METADATA_KEY, RuntimeRefused, Session, TensorInfo, document, refused

if TYPE_CHECKING:
    import numpy as np

_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


CPU = "CPUExecutionProvider"

EXACT = ("session.x64quantprecision", "1")


def exact_options(machine: str, features: Optional[str]) -> Dict[str, str]:
    """What makes ONNX Runtime multiply uint8 by int8 exactly: on x86 without VNNI it adds two products in 16 bits.

    With VNNI its usual kernels are exact, and the option might take slower ones.

    Args:
        machine: As ``platform.machine()`` says it.
        features: Of the processor (``facts.cpu_features``); None where they are not known.
    """
    if machine.lower() not in ("x86_64", "amd64") or {"avx512_vnni", "avx_vnni"} & set((features or "").split()):
        return {}
    return dict([EXACT])


def exact_here() -> Dict[str, str]:
    """``exact_options`` of this machine."""
    return exact_options(platform.machine(), facts.cpu_features(Path("/")))


class OnnxSession(Session):
    """ONNX Runtime; inputs and outputs are bound once, so that a call copies nothing.

    Args:
        ort: The module.
        path: The file.
        threads: Intra-op threads.
        provider: The execution provider that has to run it, with the CPU's behind it; None is the CPU's alone.
    """

    def __init__(self, ort: Any, path: str, threads: int, provider: Optional[str] = None) -> None:
        wanted = CPU if provider is None else _provider(ort, provider)
        self._providers = list(dict.fromkeys((wanted, CPU)))
        self._ort, self._path = ort, path
        self.options = exact_here()
        options = _options(ort, threads, self.options)
        begin = time.perf_counter()
        try:
            self._session = ort.InferenceSession(path, options, providers=self._providers)
        except Exception as error:
            raise refused("onnxruntime", path, error) from error
        if wanted not in self._session.get_providers():
            applied = ", ".join(self._session.get_providers())
            raise RuntimeRefused(
                f"onnxruntime did not apply {wanted}", f"It runs with {applied}: see what that one needs"
            )
        self.load_s = time.perf_counter() - begin
        self.name, self.version, self.threads = "onnxruntime", str(ort.__version__), threads
        self.provider = ", ".join(self._session.get_providers())
        self.inputs = [_onnx_info(node) for node in self._session.get_inputs()]
        self.outputs = [_onnx_info(node) for node in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        self._bound: List[Any] = []  # the runtime reads these arrays in place; they must live
        self.invoke = functools.partial(self._session.run_with_iobinding, self._binding)

    def set_inputs(self, arrays: List[np.ndarray[Any, Any]]) -> None:
        """As :meth:`Session.set_inputs`."""
        import numpy as np

        self._check(arrays)
        self._bound = [np.ascontiguousarray(array) for array in arrays]
        for info, array in zip(self.inputs, self._bound):
            self._binding.bind_cpu_input(info.name, array)
        # Outputs of the last run have its batch size; bound anew, they follow this one's.
        self._binding.clear_binding_outputs()
        for info in self.outputs:
            self._binding.bind_output(info.name, "cpu")

    def get_outputs(self) -> List[np.ndarray[Any, Any]]:
        """As :meth:`Session.get_outputs`."""
        return list(self._binding.copy_outputs_to_cpu())

    def profile(self, folder: Path) -> Tuple[Dict[str, Any], Dict[str, str]]:
        """As :meth:`Session.profile`, by the profiler of a second session.

        Raises:
            RuntimeRefused: the provider that was asked for ran no op.
        """
        from kdedge_agent import op_profile

        options = _options(self._ort, self.threads, self.options)
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        session = self._ort.InferenceSession(self._path, options, providers=self._providers)
        feeds = {info.name: array for info, array in zip(self.inputs, self._bound)}
        session.run(None, feeds)
        end_s, runs = time.monotonic() + op_profile.PROFILE_S, 0
        while runs < op_profile.MAX_RUNS and (not runs or time.monotonic() < end_s):
            session.run(None, feeds)
            runs += 1
        written = Path(session.end_profiling())
        found = op_profile.from_trace(written, skipped_runs=1)
        written.unlink()
        ran = {entry["provider"] for entry in found["by_op"]}
        if self._providers[0] not in ran:
            raise RuntimeRefused(
                f"onnxruntime ran no op with {self._providers[0]}", f"All ran with {', '.join(sorted(ran))}"
            )
        return {"method": "onnxruntime's profiler", **found}, {}

    def metadata(self) -> Optional[Dict[str, Any]]:
        """As :meth:`Session.metadata`."""
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return None if text is None else document(text)


def _options(ort: Any, threads: int, entries: Dict[str, str]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for entry in entries.items():
        options.add_session_config_entry(*entry)
    return options


def _provider(ort: Any, name: str) -> str:
    """The provider's whole name from what a user calls it, such as ``cuda``."""
    known = [str(provider) for provider in ort.get_available_providers()]
    for provider in known:
        if name.lower() in (provider.lower(), provider.lower().replace("executionprovider", "")):
            return provider
    raise RuntimeRefused(f"onnxruntime here has no execution provider {name!r}", f"It has {', '.join(known)}")


def _onnx_info(node: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in node.shape)
    return TensorInfo(node.name, shape, _ONNX_DTYPES.get(node.type, node.type))
