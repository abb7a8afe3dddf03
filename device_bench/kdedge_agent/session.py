"""What every runtime offers once an artifact is loaded, and how it says no."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

if TYPE_CHECKING:
    import numpy as np

METADATA_KEY = "kdedge"
DYNAMIC = -1
"""In a shape: a dimension that the caller chooses."""


class RuntimeTrouble(Exception):  # noqa: N818 - the family of two facts
    """Base of what can go wrong here: ``what`` in one line, and the ``cure``."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}. {cure}")
        self.what = what
        self.cure = cure


class RuntimeMissing(RuntimeTrouble):
    """No runtime for the format can be imported."""


class RuntimeRefused(RuntimeTrouble):
    """The runtime is there and will not take the file, or not these inputs."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the file declares it.

    Attributes:
        name: In the model.
        shape: Sizes; -1 where the caller chooses.
        dtype: A numpy dtype name.
        scale: Of affine quantisation, real = scale * (stored - zero_point); None where the tensor is not quantised.
        zero_point: Likewise.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str
    scale: Optional[float] = None
    zero_point: Optional[int] = None


class Session:
    """An artifact that is loaded and ready.

    Attributes:
        name: Of the runtime, as pip knows it.
        version: Of the runtime.
        threads: Intra-op threads asked for.
        provider: What really runs it, as the runtime reports it after loading.
        options: What the runtime was told beside the threads, by its own names; its defaults apply to all else.
        inputs: In the model's order.
        outputs: In the model's order.
        load_s: Seconds that the runtime took to load the model and make it ready.
        invoke: One inference on the inputs that were set last; the runtime's own call with nothing around it.
    """

    name: str
    version: str
    threads: int
    provider: str
    options: Dict[str, str]
    inputs: List[TensorInfo]
    outputs: List[TensorInfo]
    load_s: float
    invoke: Callable[[], Any]

    def described(self) -> Dict[str, Any]:
        """A record's ``runtime``."""
        return {"name": self.name, "version": self.version, "provider": self.provider, "options": self.options}

    def set_inputs(self, arrays: List[np.ndarray[Any, Any]]) -> None:
        """Copy or bind the arrays, in the order and with the dtypes of ``inputs``.

        Raises:
            RuntimeRefused: a wrong number of arrays, shape or dtype.
        """
        raise NotImplementedError

    def get_outputs(self) -> List[np.ndarray[Any, Any]]:
        """Copies of the outputs of the last ``invoke()``."""
        raise NotImplementedError

    def metadata(self) -> Optional[Dict[str, Any]]:
        """The JSON document that kdedge stored under ``kdedge``; None where there is none."""
        raise NotImplementedError

    def profile(self, folder: Path) -> Tuple[Dict[str, Any], Dict[str, str]]:
        """Where an inference on the inputs that were set last spends its time, and what runs it.

        Args:
            folder: For files of the moment; they are removed.

        Returns:
            Entries of the record's ``profile``, and entry -> reason of those that are missing.
        """
        raise NotImplementedError

    def run(self, arrays: List[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """Set inputs, invoke, get outputs."""
        self.set_inputs(arrays)
        self.invoke()
        return self.get_outputs()

    def _check(self, arrays: List[np.ndarray[Any, Any]]) -> None:
        if len(arrays) != len(self.inputs):
            raise RuntimeRefused(f"{len(arrays)} inputs given", f"The model takes {len(self.inputs)}")
        for info, array in zip(self.inputs, arrays):
            fits = len(info.shape) == array.ndim and all(
                want in (DYNAMIC, got) for want, got in zip(info.shape, array.shape)
            )
            if not fits or array.dtype.name != info.dtype:
                raise RuntimeRefused(
                    f"input {info.name}: {array.dtype.name} of shape {tuple(array.shape)} given",
                    f"The model takes {info.dtype} of shape {info.shape}",
                )


def document(text: str) -> Optional[Dict[str, Any]]:
    """The JSON object in a metadata entry; None if it holds none."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def refused(name: str, path: str, error: BaseException) -> RuntimeRefused:
    """The first line of what a runtime said about a file, as one clear error."""
    lines = str(error).strip().splitlines()
    first = lines[0][:300] if lines else type(error).__name__
    return RuntimeRefused(
        f"{Path(path).name} is no model that {name} can run: {first}",
        "Export it again, and check that the file is whole and of the named format",
    )
