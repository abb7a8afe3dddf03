"""The agent under the Pythons that boards carry: real interpreters where they are at hand, vermin where not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.agent_tools import SOURCE, SYSFS, AgentProcess, make_onnx, run_request

VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")

IMPORT_ALL = """
import importlib, json, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import kdedge_agent
names = [m.name for m in pkgutil.iter_modules(kdedge_agent.__path__) if m.name != "__main__"]
for name in names:
    importlib.import_module("kdedge_agent." + name)
heavy = [m for m in ("numpy", "onnxruntime", "ai_edge_litert") if m in sys.modules]
print(json.dumps({"version": list(sys.version_info[:2]), "modules": sorted(names), "heavy": heavy}))
"""

READ_BOARDS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kdedge_agent import facts, power, protocol, run_request, statistics, verdict
request = protocol.from_dict(run_request.RunRequest, {"artifact": "m", "artifact_sha256": "0" * 64, "format": "onnx"})
seen = {}
for board in sorted(p for p in Path(sys.argv[2]).iterdir() if p.is_dir()):
    source, reason = power.discover(board)
    watts = source.read() if source is not None and source.name != "rapl" else {}
    before = facts.snapshot(board)
    before.pop("monotonic_s"), before.pop("disk_free_bytes")
    seen[board.name] = {
        "source": None if source is None else source.described(),
        "reason": reason,
        "watts": watts,
        "snapshot": before,
        "verdict": verdict.decide([0.001] * 50, before, before, [], 4),
    }
samples = [((i * 7919) % 1009) * 1e-6 + 1e-3 for i in range(2000)]
seen["request"], seen["summary"] = request.to_dict(), statistics.latency_summary(samples)
print(json.dumps(seen, sort_keys=True))
"""


def interpreter(version: str) -> str | None:
    """A real interpreter of that version: this one, one on PATH, or one of pyenv's."""
    found = [sys.executable] if version == f"{sys.version_info[0]}.{sys.version_info[1]}" else []
    found += [path for path in [shutil.which(f"python{version}")] if path]
    found += [str(path) for path in sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))]
    for path in found:
        program = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", program], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:  # a pyenv shim may answer for no version at all
            return path
    return None


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    path = interpreter(request.param)
    if path is None:
        pytest.skip(f"no Python {request.param} on this machine (PATH, pyenv); vermin checks the oldest one")
    return path


def run(python: str, program: str, *words: str) -> Any:
    # -I: nothing of this environment; -S: no site-packages, so neither numpy nor a runtime can be found.
    command = [python, "-I", "-S", "-c", program, str(SOURCE), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_imports_with_the_standard_library_alone(python: str) -> None:
    answer = run(python, IMPORT_ALL)
    assert answer["heavy"] == []
    files = {path.stem for path in (SOURCE / "kdedge_agent").glob("*.py")}
    assert set(answer["modules"]) == files - {"__init__", "__main__"}


def test_boards_and_statistics_read_the_same_everywhere(python: str) -> None:
    here = run(sys.executable, READ_BOARDS, str(SYSFS))
    assert run(python, READ_BOARDS, str(SYSFS)) == here


def test_a_session_without_any_runtime(python: str, tmp_path: Path) -> None:
    """Greets, knows the device, and says what is missing instead of failing."""
    model = make_onnx(tmp_path / "m.onnx")
    empty = {"PYTHONNOUSERSITE": "1"}
    with AgentProcess(tmp_path, [python, "-m", "kdedge_agent"], empty) as agent:
        assert agent.hello["protocol"] == 1
        assert agent.ask({"type": "facts"})["facts"]["python"] == agent.hello["python"]
        probed = agent.ask({"type": "probe"})["runtimes"]
        answer = agent.ask({"type": "measure", "request": run_request(model)})
        if probed["onnxruntime"]["available"]:
            assert answer["type"] == "result"
        else:
            assert answer["kind"] == "runtime-missing"
            assert "onnxruntime" in answer["message"]
        agent.send({"type": "bye"})
        assert agent.process.wait(30) == 0


def test_vermin_finds_nothing_newer_than_3_8() -> None:
    """For machines without an old interpreter; it sees syntax and library alike."""
    vermin = Path(sys.executable).parent / "vermin"
    if not vermin.exists():
        pytest.fail(f"{vermin} is not there: install the dev extra")
    command = [str(vermin), "--no-tips", "--violations", "-t=3.8-", str(SOURCE / "kdedge_agent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
