"""kdedge's commands as scripts use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def kdedge(*words: object) -> Any:
    """The JSON document of a command that ends well, with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "kdedge", *map(str, words), "--json"],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
