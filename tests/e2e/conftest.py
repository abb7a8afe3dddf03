"""Fixtures of several tests that run whole commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conftest import SMALL
from tests.shared_folders import shared_between_workers


def small_run(folder: Path) -> None:
    """What `kdedge demo` leaves, with a small student, a teacher that learnt little, one record and no page."""
    import torch
    from kdedge.cli.bench import measure
    from kdedge.cli.export import export_with_parity
    from kdedge.distillation import distill
    from kdedge.recipe_file import load_recipe

    torch.set_num_threads(1)
    recipe = load_recipe("digits", (*SMALL, "distillation.alpha=0.1", "teacher.training.epochs=1"))
    bundle = distill(recipe, out=folder).bundle
    for format_ in ("onnx", "tflite"):
        made = export_with_parity(bundle, format_, data="digits", out=folder / f"student-int8.{format_}")
    measure(made.artifact, out=folder / "records", repetitions=50)


@pytest.fixture(scope="module", params=["small", pytest.param("demo", marks=pytest.mark.nightly)])
def readme_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's commands run: `runs/demo` is there, as after `make demo`; every night it is the demo's own."""
    if request.param == "demo":
        made: Path = request.getfixturevalue("demo_run")
    else:
        made = shared_between_workers(tmp_path_factory, "small-demo", small_run)
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(made, place / "runs" / "demo")
    return place
