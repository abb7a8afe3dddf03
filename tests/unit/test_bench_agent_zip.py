"""The agent's file: the same bytes from the same source, nothing in it but the agent, and it runs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kdedge_agent
from kdedge_bench.agent_zip import agent_zip, build


def test_same_source_same_bytes(tmp_path: Path) -> None:
    source = Path(kdedge_agent.__file__).parent
    copy = tmp_path / "kdedge_agent"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in copy.rglob("*.py"):
        os.utime(file, (1, 1))
        file.chmod(0o600)
    (copy / "notes.txt").write_text("not code")
    assert build(copy) == agent_zip()


def test_another_source_another_name(tmp_path: Path) -> None:
    copy = tmp_path / "kdedge_agent"
    shutil.copytree(Path(kdedge_agent.__file__).parent, copy)
    (copy / "facts.py").write_text((copy / "facts.py").read_text() + "\n")
    assert build(copy).file_name != agent_zip().file_name


def test_only_the_agent_is_in_it() -> None:
    with zipfile.ZipFile(io.BytesIO(agent_zip().data)) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names[0] == "__main__.py"
    assert all(name.startswith("kdedge_agent/") and name.endswith(".py") for name in names[1:])
    assert "kdedge_agent/protocol.py" in names


def test_it_runs_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "agent.pyz"
    file.write_bytes(agent_zip().data)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    argv, bye = [sys.executable, "-I", str(file)], b'{"type":"bye"}\n'
    done = subprocess.run(argv, input=bye, capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b'\n{"type":"hello","protocol":1')
