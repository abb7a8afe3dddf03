"""ONNX Runtime behind the common session."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from kdedge_agent.session import DYNAMIC, METADATA_KEY, Session, TensorInfo, document, refused

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


class OnnxSession(Session):
    """ONNX Runtime on the CPU; inputs and outputs are bound once, so that a call copies nothing."""

    def __init__(self, ort: Any, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        begin = time.perf_counter()
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise refused("onnxruntime", path, error) from error
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

    def metadata(self) -> Optional[Dict[str, Any]]:
        """As :meth:`Session.metadata`."""
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return None if text is None else document(text)


def _onnx_info(node: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in node.shape)
    return TensorInfo(node.name, shape, _ONNX_DTYPES.get(node.type, node.type))
