"""README's commands and examples, and how the tests run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import warm
from tests.conftest import ROOT, WITH_TESTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
WITH_METER = [line for line in LINES if "--meter" in line]
COMMANDS = [line for line in LINES if line.startswith(("kdedge ", "torchrun ")) and line not in WITH_METER]
TRAINING = [line for line in COMMANDS if " distill " in line or "kdedge cache " in line or "mine.toml" in line]
DEVICE = [line for line in COMMANDS if "device " in line or "--matrix" in line]


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command, in a folder; students of the tests are found."""
    own = {"OMP_NUM_THREADS": "1", "KDEDGE_CACHE_DIR": str(folder / "caches"), "PYTHONPATH": WITH_TESTS}
    environment = {**os.environ, **own, **environment}
    if words[:3] == [sys.executable, "-m", "kdedge"]:
        return warm.run(words[3:], env=environment, cwd=folder)
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )  # fmt: skip
