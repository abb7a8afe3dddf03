"""Import this module before torchvision: it makes ``import torchvision`` work on a CPU build of torch.

torchvision's wheel is linked against CUDA. On a torch without CUDA its ``_C.so`` cannot be loaded, no
operator is registered, and ``import torchvision`` dies with ``operator torchvision::nms does not exist``
because it wants to attach shape functions to two of them. Models and transforms need neither. So, where
loading ``_C.so`` fails, the two operators are declared here (schema only, no kernel): torchvision then
imports, its models and transforms work, and calling ``torchvision.ops.nms`` still says in plain words
that the compiled operators are missing.

The import itself does the work (once a process); there is nothing to call::

    import kdedge.torchvision_compat  # noqa: F401, I001  before torchvision
    import torchvision
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

# Schemas as torchvision registers them: torchvision/csrc/ops/nms.cpp and
# csrc/ops/quantized/cpu/qnms_kernel.cpp.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_operators_load() -> bool:
    """Whether torchvision's ``_C`` library loads into this torch (or torchvision is not installed at all)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare the operators that no library registered; the result must live as long as the process."""
    if _compiled_operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _declare_missing_operators()
