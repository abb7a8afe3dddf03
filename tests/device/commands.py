"""The command line as a user types it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# A shell that starts the tests in the background lets them ignore Ctrl-C, and Python then leaves it at that.
_PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.argv[0] = 'kdedge'; from kdedge.cli import main; main()"
)


def argv(*words: str | Path) -> list[str]:
    """What starts kdedge."""
    return [sys.executable, "-c", _PROGRAM, *map(str, words)]


def start_kdedge(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """kdedge in the background; its streams are pipes unless said otherwise."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv(*words), env={**os.environ, "OMP_NUM_THREADS": "1"}, **{**pipes, **options})


def kdedge(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """kdedge to its end."""
    with start_kdedge(*words) as process:
        stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
