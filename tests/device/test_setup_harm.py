"""``device setup`` with tiny wheels: killed in the midst, twice at once, an old pip, runtimes by other names."""

from __future__ import annotations

import base64
import ensurepip
import hashlib
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from kdedge.errors import AgentError, DeviceError
from tests.device.conftest import StartSshd
from tests.device.sshd import Sshd
from tests.device.test_hostile_device import lying_device
from tests.device.test_setup_and_check import bare_path

from kdedge_bench import setup, wheels
from kdedge_bench.faults import RuntimeMissingError
from kdedge_bench.remote import Ground
from kdedge_bench.setup import setup_device
from kdedge_bench.setup_plan import plan_setup
from kdedge_bench.transport import open_transport

PLAN = wheels.Plan({"onnx": ("tinyrt",)}, {}, {})


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel of these modules."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    record = f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{file},sha256={digest},{len(text.encode())}\n"
        archive.writestr(f"{info}/RECORD", record)
    return path


@pytest.fixture
def tiny_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine fetches for a device: a package of one line, and the pip that comes with Python."""
    pips = sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    if not pips:
        pytest.skip("NOT TESTED: set-ups that are disturbed, because this Python's ensurepip has no pip of its own")

    def fetch(requirements: Sequence[str], ground: Ground, folder: Path) -> list[Path]:
        return [write_wheel(folder, "tinyrt", "1.0", {"tinyrt.py": "x = 1\n"}), Path(shutil.copy(pips[-1], folder))]

    monkeypatch.setattr(wheels, "fetch", fetch)


def build(device: Sshd, say: Callable[[str], None] = print, *, offline: bool = True) -> str:
    """A set-up without the look at what it made, which is no runtime."""
    with open_transport(device.device()) as transport:
        return setup._build(transport, transport.look_around({}, own_venv=False), PLAN, offline, say)


def kinds(device: Sshd) -> set[str]:
    """What lies in kdedge's folder there."""
    return {"agent" if path.name.startswith("agent-") else path.name for path in device.cache.iterdir()}


def has_tinyrt(device: Sshd) -> bool:
    return len(list(device.cache.glob("venv/lib/python3*/site-packages/tinyrt.py"))) == 1


@pytest.mark.usefixtures("tiny_wheels")
def test_what_a_killed_setup_left_is_removed_by_the_next(start: StartSshd, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bare")
    device = start(path=path)

    def pull_the_plug(step: str) -> None:
        if step.startswith("installing on"):
            for pid in device.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            device.stop()

    with pytest.raises(DeviceError):
        build(device, pull_the_plug)
    assert device.left_over() == {}
    assert list(device.cache.rglob("tinyrt-1.0-*.whl")), "nothing was left that could be removed"
    again = start(path=path, home=device.home)
    assert build(again) == "offline"
    assert kinds(again) == {"agent", "venv"} and has_tinyrt(again)


@pytest.mark.usefixtures("tiny_wheels")
def test_a_setup_that_loses_its_wire_leaves_nothing(start: StartSshd, tmp_path: Path) -> None:
    device = start(path=bare_path(tmp_path / "bare"))

    def cut(step: str) -> None:
        if step.startswith("installing on"):
            device.stop()

    with pytest.raises(DeviceError):
        build(device, cut)
    assert device.left_over() == {}
    assert kinds(device) == {"agent"}


@pytest.mark.usefixtures("tiny_wheels")
def test_two_setups_of_one_device_at_once(start: StartSshd, tmp_path: Path) -> None:
    """The second begins and ends while the first is about to install."""
    device = start(path=bare_path(tmp_path / "bare"))
    second: list[str] = []

    def meanwhile(step: str) -> None:
        if step.startswith("installing on"):
            second.append(build(device))

    assert build(device, meanwhile) == "offline" and second == ["offline"]
    assert kinds(device) == {"agent", "venv"} and has_tinyrt(device)
    assert device.left_over() == {}


def test_the_internet_first_gives_a_new_pip(start: StartSshd, tmp_path: Path) -> None:
    """ensurepip's pip of Python 3.8 is of 2020 and takes runtimes of 2023. Here the newer one only tells its words."""
    index = tmp_path / "index"
    index.mkdir()
    told = tmp_path / "told.json"
    main = f"import json, pathlib, sys\npathlib.Path({str(told)!r}).write_text(json.dumps(sys.argv[1:]))\n"
    write_wheel(index, "pip", "99.0", {"pip/__init__.py": "", "pip/__main__.py": main})
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    device = start(path=bare_path(tmp_path / "bare"), environment=environment)
    with open_transport(device.device()) as transport:
        python = transport.look_around({}, own_venv=False).python
        done = transport.run([python, "-c", "import ensurepip"])
    if done.code != 0:
        pytest.skip("NOT TESTED: a set-up over the device's internet, because this Python has no ensurepip")
    assert build(device, offline=False) == "internet"
    assert json.loads(told.read_text())[-1] == "tinyrt"


def package(site: Path, module: str, name: str, version: str) -> None:
    """A package as pip leaves it."""
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text("raise SystemExit('a dry run imports nothing')")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def test_a_dry_run_knows_a_runtime_by_its_module(start: StartSshd, tmp_path: Path) -> None:
    """Jetsons have onnxruntime from onnxruntime-gpu; pip would put the other one over it."""
    site = tmp_path / "site"
    package(site, "onnxruntime", "onnxruntime-gpu", "1.18.0")
    (site / "ai_edge_litert").mkdir()  # what an uninstalled package may leave is none
    device = start(path=bare_path(tmp_path / "bare"), environment={"PYTHONPATH": str(site)})
    python = str(tmp_path / "bare" / "bin" / "python")
    plan = plan_setup(device.device(python=python))
    assert plan.there == {"onnxruntime": "1.18.0"} and plan.install == ("ai-edge-litert",)
    assert set(plan.why) == {"tflite"}
    whole = plan_setup(device.device())
    assert whole.install == ("onnxruntime", "ai-edge-litert"), "an environment of its own has everything"
    package(site, "tflite_runtime", "tflite-runtime", "2.14.0")
    assert plan_setup(device.device(python=python)).install == ()


def test_setup_advises_only_what_is_lacking(start: StartSshd, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name in ("onnxruntime", "numpy"):
        (site / f"{name}.py").write_text("__version__ = '1.18.0'")
    device = start(path=bare_path(tmp_path / "bare"), environment={"PYTHONPATH": str(site)})
    with pytest.raises(RuntimeMissingError) as caught:
        setup_device(device.device(python=str(tmp_path / "bare" / "bin" / "python")))
    words = str(caught.value)
    assert "no runtime for tflite" in words and "-m pip install ai-edge-litert; or let kdedge" in words
    assert f"kdedge device add pi {device.device().address} --replace --python ''" in words


@pytest.mark.parametrize("lie", [5, {"available": True, "formats": 5}, {"available": True, "formats": {"onnx": 1}}])
def test_lies_about_runtimes(board: Sshd, tmp_path: Path, lie: object) -> None:
    device = lying_device(board, tmp_path, {"type": "result", "runtimes": {"onnxruntime": lie}})
    with pytest.raises(AgentError, match="did not name its runtimes"):
        setup_device(device)
    assert setup.available({"onnxruntime": lie}, "onnx") == []  # type: ignore[dict-item]
