"""Imports go down only, and starting kdedge stays light.

The direction is import-linter's (its contracts stand in pyproject.toml); each contract is shown to fail on a copy
of the code in which one line breaks it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "kdedge": ".",
    "kdedge_exporters": "exporters",
    "kdedge_bench": "device_bench",
    "kdedge_agent": "device_bench",
}
HEAVY = (
    "torch", "torchvision", "torchao", "litert_torch", "ai_edge_litert", "onnx", "onnxruntime", "onnxscript",
    "transformers", "datasets", "pyarrow", "sklearn", "numpy", "plotly", "jinja2", "zeus", "torchmetrics", "PIL",
)  # fmt: skip


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the packages under a root, with that root's pyproject.toml."""
    places = [str(root / folder) for folder in dict.fromkeys(SOURCES.values())]
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and the configuration, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package, folder in SOURCES.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder / package, tmp_path / folder / package, ignore=ignored)
    return tmp_path


def test_imports_go_down_only() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("kdedge/files.py", "import kdedge_exporters", "Only the command line imports the exporters"),
        ("kdedge/files.py", "def later(): from kdedge_bench import devices", "Only the command line imports the exp"),
        ("kdedge/__init__.py", "from kdedge_exporters import export", "Only the command line imports the exporters"),
        ("kdedge/reporting/page.py", "import kdedge_bench.devices", "Only the command line imports the exporters"),
        (
            "exporters/kdedge_exporters/__init__.py",
            "import kdedge_bench",
            "Only the command line imports the exporters",
        ),
        ("device_bench/kdedge_bench/devices.py", "import kdedge_exporters", "Only the command line imports the exp"),
        ("kdedge/files.py", "from kdedge import cli", "Nothing imports the command line"),
        ("device_bench/kdedge_bench/devices.py", "import kdedge.cli", "Nothing imports the command line"),
        ("device_bench/kdedge_agent/protocol.py", "from kdedge.errors import KdedgeError", "The agent imports nothing"),
        ("device_bench/kdedge_agent/protocol.py", "import kdedge_bench.devices", "The agent imports nothing"),
    ],
)
def test_a_broken_copy_is_found(copy: Path, file: str, line: str, contract: str) -> None:
    broken = copy / file
    broken.write_text(f"{broken.read_text()}\n\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = [text for text in done.stdout.splitlines() if text.startswith(contract)]
    assert any(text.endswith("BROKEN") for text in verdicts), done.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_kdedge_loads_nothing_heavy() -> None:
    loaded = loaded_by("import kdedge")
    assert "kdedge" in loaded
    assert loaded.isdisjoint({*HEAVY, "typer", "rich", "kdedge_exporters", "kdedge_bench"})


def test_importing_the_report_loads_nothing_heavy() -> None:
    assert loaded_by("import kdedge.reporting").isdisjoint({*HEAVY, "rich"})


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kdedge.cli import main\nsys.argv = ['kdedge', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    loaded = loaded_by(code)
    assert "kdedge" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_the_check_for_heavy_modules_can_fail() -> None:
    assert "numpy" in loaded_by("import numpy")


def test_every_name_of_the_api_loads() -> None:
    code = "import kdedge\nfor name in kdedge.__all__:\n    getattr(kdedge, name)\nassert callable(kdedge.report)"
    assert "kdedge_exporters" in loaded_by(code)
