"""Every Python that README names can install kdedge with the constraints that `make setup` uses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEWEST_OF_THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_constraints_can_be_met(version: str, tmp_path: Path) -> None:
    """pip resolves everything, tools for development too, and installs nothing."""
    python = sys.executable if version == NEWEST_OF_THIS else shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no Python {version} on this machine")
    words = ["-m", "pip", "install", "--dry-run", "--ignore-installed", "--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [python, *words, f"{ROOT}[dev]"], capture_output=True, text=True, cwd=tmp_path, timeout=850, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kdedge-" in done.stdout.split("Would install")[-1]
