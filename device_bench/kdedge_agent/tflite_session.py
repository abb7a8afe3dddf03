"""LiteRT and tflite-runtime behind the common session."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from kdedge_agent.flatbuffer import NotTflite, read_metadata
from kdedge_agent.session import METADATA_KEY, Session, TensorInfo, document, refused

if TYPE_CHECKING:
    import numpy as np


class TfliteSession(Session):
    """LiteRT or its elder, tflite-runtime; both apply XNNPACK by themselves, which ``provider`` reports."""

    def __init__(self, module: Any, name: str, version: str, path: str, threads: int) -> None:
        self._metadata = read_file_metadata(path)
        begin = time.perf_counter()
        try:
            self._interpreter = module.Interpreter(model_path=path, num_threads=threads)
            self._interpreter.allocate_tensors()
        except Exception as error:
            raise refused(name, path, error) from error
        self.load_s = time.perf_counter() - begin
        self.name, self.version, self.threads = name, version, threads
        self.provider = _tflite_provider(self._interpreter)
        self.options = {}
        self._input_details = self._interpreter.get_input_details()
        self._output_details = self._interpreter.get_output_details()
        self.inputs = [_tflite_info(detail) for detail in self._input_details]
        self.outputs = [_tflite_info(detail) for detail in self._output_details]
        self.invoke = self._interpreter.invoke

    def set_inputs(self, arrays: List[np.ndarray[Any, Any]]) -> None:
        """As :meth:`Session.set_inputs`."""
        self._check(arrays)
        resized = False
        for detail, array in zip(self._input_details, arrays):
            if tuple(detail["shape"]) != array.shape:
                self._interpreter.resize_tensor_input(detail["index"], array.shape)
                resized = True
        if resized:
            self._interpreter.allocate_tensors()
            self._input_details = self._interpreter.get_input_details()
        for detail, array in zip(self._input_details, arrays):
            self._interpreter.set_tensor(detail["index"], array)

    def get_outputs(self) -> List[np.ndarray[Any, Any]]:
        """As :meth:`Session.get_outputs`."""
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._output_details]

    def profile(self, folder: Path) -> Tuple[Dict[str, Any], Dict[str, str]]:
        """As :meth:`Session.profile`: which ops a delegate took over."""
        from kdedge_agent import op_profile

        del folder
        reasons = {"ops": f"{self.name} gives no times of ops to Python"}
        try:
            details = self._interpreter._get_ops_details()
        except Exception as error:
            reasons["delegates"] = f"{self.name} does not list its ops: {type(error).__name__}"
            return {"ops": None, "delegates": None}, reasons
        return {"ops": None, "delegates": op_profile.delegated(details)}, reasons

    def metadata(self) -> Optional[Dict[str, Any]]:
        """As :meth:`Session.metadata`."""
        content = self._metadata.get(METADATA_KEY)
        return None if content is None else document(content.rstrip(b"\0").decode("utf-8", "replace"))


def _tflite_info(detail: Dict[str, Any]) -> TensorInfo:
    import numpy as np

    signature = detail.get("shape_signature", detail["shape"])
    shape = tuple(int(size) for size in (signature if len(signature) else detail["shape"]))
    scale, zero_point = detail["quantization"]
    quantised = bool(scale)  # the interpreter writes (0.0, 0) for a tensor without quantisation
    return TensorInfo(
        str(detail["name"]),
        shape,
        np.dtype(detail["dtype"]).name,
        float(scale) if quantised else None,
        int(zero_point) if quantised else None,
    )


def _tflite_provider(interpreter: Any) -> str:
    """What runs the graph: delegated partitions show as DELEGATE ops once tensors are allocated."""
    try:
        ops = [op["op_name"] for op in interpreter._get_ops_details()]
    except Exception:
        return "CPU (the runtime does not say whether a delegate was applied)"
    delegates = ops.count("DELEGATE")
    return f"CPU, XNNPACK delegate on {delegates} partition(s)" if delegates else "CPU, no delegate"


def read_file_metadata(path: str) -> Dict[str, bytes]:
    """Named metadata buffers of a .tflite file; it is mapped, not read, so that large weights cost no memory."""
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return read_metadata(mapped)
    except (NotTflite, ValueError, OSError) as error:
        raise refused("tflite", path, error) from None
