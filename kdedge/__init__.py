"""kdedge: distil a large teacher into a small int8 student, export it, and measure it on the board.

The command line and this module offer the same steps::

    import kdedge

    recipe = kdedge.load_recipe("digits")
    result = kdedge.distill(recipe, out=Path("runs/digits"))
    test = kdedge.load_data(recipe.data).test
    samples = (result.bundle.preprocessing.normalise(test.images), test.labels)
    exported = kdedge.export(result.bundle, "tflite", samples=samples)
    record = kdedge.bench(exported.artifact, out_dir=Path("runs/digits/records"))
    kdedge.report([Path("runs/digits")], out=Path("runs/digits/report.html"))

Every name is loaded when it is first asked for, so that ``import kdedge`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from kdedge._version import __version__

# Name -> module that holds it. By string, since some lie above the core, which must not import them.
_API = {
    "Bundle": "kdedge.bundle",
    "DistillRecipe": "kdedge.recipe",
    "DistillResult": "kdedge.distillation",
    "KdedgeError": "kdedge.errors",
    "Metrics": "kdedge.metrics",
    "bench": "kdedge_bench.session",
    "distill": "kdedge.distillation",
    "evaluate": "kdedge.evaluation",
    "export": "kdedge_exporters",
    "load_artifact": "kdedge_exporters.artifact",
    "load_data": "kdedge.data.splits",
    "load_recipe": "kdedge.recipe_file",
    "report": "kdedge.reporting",
    "shipped_recipes": "kdedge.recipe_file",
}

__all__ = ["__version__", *sorted(_API)]  # noqa: PLE0604  (the names are strings)


def __getattr__(name: str) -> Any:
    """Load a name of the API from its module (no module of the package bears such a name)."""
    if name not in _API:
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_API[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The API's names."""
    return sorted(__all__)
