"""``device setup`` and ``device check`` on a real server, with real wheels where an index is in reach."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kdedge.errors import DeviceError
from tests.device.commands import kdedge
from tests.device.conftest import StartSshd
from tests.device.runs import quick
from tests.device.sshd import Sshd, free_port

from kdedge_bench.check import CheckReport, check_device
from kdedge_bench.devices import add_device
from kdedge_bench.faults import RuntimeMissingError
from kdedge_bench.setup import setup_device
from kdedge_bench.setup_plan import plan_setup
from kdedge_bench.wheels import WheelsError


def bare_path(folder: Path) -> str:
    """A PATH whose python3 is this version without any package (a bare virtual environment's)."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return f"{folder}/bin:/usr/bin:/bin"


def findings(report: CheckReport) -> dict[str, bool | None]:
    """Name -> outcome."""
    return {check.name: check.ok for check in report.checks}


@pytest.mark.slow
def test_offline_setup_from_nothing_to_a_measurement(
    start: StartSshd, onnx_file: Path, tflite_file: Path, tmp_path: Path
) -> None:
    device = start(path=bare_path(tmp_path / "bare"))
    there = device.device()
    assert findings(check_device(there))["runtime onnx"] is False
    with pytest.raises(RuntimeMissingError, match="kdedge device setup pi"):
        quick(onnx_file, there, tmp_path)

    said: list[str] = []
    try:
        first = setup_device(there, offline=True, progress=said.append)
    except WheelsError as error:
        pytest.skip(f"NOT TESTED: wheels for an offline device, because this machine cannot fetch them: {error}")
    assert (first.changed, first.method) == (True, "offline")
    assert set(first.runtimes) == {"onnxruntime", "ai-edge-litert"}
    assert any(line.startswith("sending onnxruntime-") for line in said)
    assert Path(first.python).parent.parent == device.cache / "venv"

    assert {p.name.split("-")[0] for p in device.cache.iterdir()} == {"agent", "artifacts", "venv"}
    for artifact in (onnx_file, tflite_file):
        assert quick(artifact, there, tmp_path).facts["python_executable"] == first.python

    second = setup_device(there, offline=True)
    assert (second.changed, second.method, second.runtimes) == (False, "none", first.runtimes)
    report = check_device(there)
    assert report.ok
    assert findings(report)["runtime onnx"] is findings(report)["runtime tflite"] is True
    assert device.left_over() == {}

    # An environment whose Python is gone (a new system release) is built anew, not trusted.
    (device.cache / "venv" / "bin" / "python").unlink()
    with pytest.raises(RuntimeMissingError):
        quick(onnx_file, there, tmp_path)
    assert setup_device(there, offline=True).changed


@pytest.mark.nightly
@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.12", "3.13"])
def test_offline_setup_for_other_pythons(
    start: StartSshd, onnx_file: Path, tflite_file: Path, tmp_path: Path, python: str
) -> None:
    """Wheels, and what they require, are chosen for the device's Python and not for this one."""
    found = [
        *Path("~/.pyenv/versions").expanduser().glob(f"{python}.*/bin"),
        *Path("/opt").glob(f"python{python}*/bin"),
    ]
    if not found:
        pytest.skip(f"NOT TESTED: set-up for Python {python}, which is not on this machine")
    device = start(path=f"{found[0]}:/usr/bin:/bin")
    try:
        result = setup_device(device.device(), offline=True)
    except WheelsError as error:
        pytest.skip(f"NOT TESTED: wheels for an offline device, because this machine cannot fetch them: {error}")
    assert result.python_version.startswith(python)
    for artifact in (onnx_file, tflite_file):
        facts = quick(artifact, device.device(), tmp_path).facts
        assert facts["python"] == result.python_version


def test_setup_that_fails_leaves_nothing(start: StartSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start(path=bare_path(tmp_path / "bare"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WheelsError, match="cannot fetch onnxruntime"):
        setup_device(device.device(), offline=True)
    assert [p.name.split("-")[0] for p in device.cache.iterdir()] == ["agent"]
    assert device.left_over() == {}


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(start: StartSshd, tmp_path: Path) -> None:
    device = start(path=bare_path(tmp_path / "bare"))
    plan = plan_setup(device.device())
    assert plan.install == ("onnxruntime", "ai-edge-litert") and plan.there == {}
    assert plan.environment == str(device.cache / "venv")
    version = ".".join(map(str, sys.version_info[:3]))
    assert plan.why["onnx"].startswith(f"onnxruntime, which has a wheel for Python {version} on ")
    own = plan_setup(device.device(python=str(tmp_path / "bare" / "bin" / "python")))
    assert own.environment is None and own.install == plan.install, "an interpreter of the user's own is left alone"
    assert not device.cache.exists() and device.left_over() == {}


def test_a_dry_run_where_the_runtimes_are(board: Sshd) -> None:
    from importlib.metadata import version

    plan = plan_setup(board.device())
    assert plan.install == () and plan.environment is None and plan.why == {}
    assert plan.there["onnxruntime"] == version("onnxruntime")
    assert not board.cache.exists()


def test_a_dry_run_by_the_command(start: StartSshd, tmp_path: Path) -> None:
    device = start(path=bare_path(tmp_path / "bare"))
    add_device(device.device("bare"))
    done = kdedge("device", "setup", "bare", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would install onnxruntime, ai-edge-litert into" in done.stdout and "nothing needs root" in done.stdout
    both = kdedge("device", "setup", "bare,bare", "--dry-run", "--json")
    (plan,) = json.loads(both.stdout)["plans"]
    assert plan["install"] == ["onnxruntime", "ai-edge-litert"] and plan["device"] == "bare"
    assert not device.cache.exists()


def test_setup_does_nothing_where_the_runtimes_are(board: Sshd) -> None:
    for device in (board.device(), board.device(python=sys.executable)):
        result = setup_device(device)
        assert (result.changed, result.method) == (False, "none")
    assert not (board.cache / "venv").exists()


def test_setup_keeps_its_hands_off_the_users_own_python(board: Sshd, tmp_path: Path) -> None:
    bare_path(tmp_path / "bare")
    python = tmp_path / "bare" / "bin" / "python"
    before = sorted(p for p in (tmp_path / "bare").rglob("*") if "__pycache__" not in str(p))
    with pytest.raises(RuntimeMissingError, match="pip install onnxruntime ai-edge-litert"):
        setup_device(board.device(python=str(python)))
    assert sorted(p for p in (tmp_path / "bare").rglob("*") if "__pycache__" not in str(p)) == before


def test_long_steps_end_with_the_connection(start: StartSshd) -> None:
    from kdedge_bench.transport import open_transport

    device = start()
    sleep = shutil.which("sleep")
    assert sleep is not None
    with pytest.raises(DeviceError), open_transport(device.device()) as transport:
        transport.run_guarded([sleep, "600"], transport.look_around({}), timeout_s=1.0)
    assert device.left_over() == {}


def test_check_of_a_sound_device(board: Sshd) -> None:
    report = check_device(board.device())
    assert report.ok
    names = [check.name for check in report.checks]
    assert names[:6] == ["connection", "host key", "login", "python", "disk", "agent"]
    assert {"runtime onnx", "runtime tflite", "power", "governor", "memory"} <= set(names)
    assert report.to_dict()["ok"] is True
    assert all(check.cure for check in report.checks if check.ok is False)
    assert board.left_over() == {}


def test_check_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_device("local").ok


def test_check_names_what_fails(start: StartSshd, tmp_path: Path) -> None:
    from dataclasses import replace

    device = start()
    closed = check_device(replace(device.device(), port=free_port()))
    assert findings(closed) == {"connection": False}

    (device.folder / "authorized_keys").rename(device.folder / "elsewhere")
    assert findings(check_device(device.device())) == {"login": False}
    (device.folder / "elsewhere").rename(device.folder / "authorized_keys")

    device.known_hosts.write_text("")
    assert findings(check_device(device.device())) == {"host key": False}
    accepted = check_device(device.device(python="/nowhere"), accept_new_host_key=True)
    assert findings(accepted) == {"connection": True, "host key": True, "login": True, "python": False}
    for report in (closed, accepted):
        assert not report.ok
        assert all(check.cure for check in report.checks if check.ok is False)
