"""Every command and example in README.md runs, as it stands there."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kdedge
import pytest
from tests import warm

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
WITH_METER = [line for line in LINES if "--meter" in line]
COMMANDS = [line for line in LINES if line.startswith(("kdedge ", "torchrun ")) and line not in WITH_METER]
# Long trainings run with the same words and few epochs; what they reach is measured, or tested elsewhere.
SHORTENED = {
    "cifar10-cpu": [
        "teacher.model=mlp", "teacher.training.epochs=0", "teacher.training.start_depth=1",
        "student.training.epochs=0", "qat.training.epochs=0"
    ],
    "sst2-minilm-cpu": [
        "data.train_limit=64", "teacher.training.epochs=0", "student.training.epochs=1", "qat.training.epochs=0"
    ],
    # The demo's test trains this recipe in full.
    "digits": ["teacher.training.epochs=1", "student.training.epochs=2", "qat.training.epochs=1"],
    "mine.toml": ["teacher.training.epochs=1", "student.training.epochs=1", "qat.training.epochs=1"],
}  # fmt: skip
DEVICE = [line for line in COMMANDS if "device " in line or "--matrix" in line]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: `runs/demo` is there, as after `make demo`: a copy, for its own tests look at it."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(demo_run, place / "runs" / "demo")
    return place


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDEDGE_CACHE_DIR": str(folder / "caches"), **environment}
    if words[:3] == [sys.executable, "-m", "kdedge"]:
        return warm.run(words[3:], env=environment, cwd=folder)
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )  # fmt: skip


def test_there_are_commands_of_every_kind() -> None:
    assert {line.split("kdedge ")[1].split()[0] for line in COMMANDS} == {
        "recipes", "distill", "cache", "export", "inspect", "eval", "bench", "device", "report"
    }  # fmt: skip


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in DEVICE])
def test_a_command(line: str, folder: Path) -> None:
    words = shlex.split(line.replace("torchrun ", "torch.distributed.run "))
    if "../shared/data" in line:
        data = ROOT.parent / "shared" / "data"
        if not data.is_dir():
            pytest.skip(f"../shared/data is not there: {line!r} was not run")
        words = [word.replace("../shared/data", str(data)) for word in words]
    for recipe, overrides in SHORTENED.items():
        if f"kdedge distill {recipe} " in f"{line} ":
            words += [f"--set={override}" for override in overrides]
    if line.startswith("torchrun "):  # what processes reach together: tests/e2e/test_ranks.py
        words.append("--set=data.train_limit=200")
    done = run([sys.executable, "-m", *words], folder)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_commands_of_a_device(folder: Path, tmp_path: Path) -> None:
    """In README's order against real SSH servers; their user is this one, for not every machine has a user `pi`."""
    from tests.device.sshd import start_sshd

    (matrix,) = [text for kind, text in BLOCKS if kind == "toml"]
    (folder / "fleet.toml").write_text(matrix)
    servers = {name: start_sshd(tmp_path / name) for name in ("raspberrypi.local", "jetson.local")}
    try:
        config = tmp_path / "ssh_config"
        config.write_text(
            "".join(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n"
                + (server.folder / "ssh_config").read_text().replace("Host *\n", "")
                for name, server in servers.items()
            )
        )
        user = servers["jetson.local"].device().user
        for line in DEVICE:
            words = shlex.split(re.sub(r"\b\w+@(\w+\.local)", rf"{user}@\1", line))
            done = run(
                [sys.executable, "-m", *words],
                folder,
                KDEDGE_CONFIG_DIR=str(tmp_path / "config"),
                KDEDGE_SSH_OPTIONS=f"-F {shlex.quote(str(config))}",
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    finally:
        for server in servers.values():
            server.stop()


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.nightly) if "kasa:" in line else line for line in WITH_METER]
)  # a plug at one reading a second makes a window of 100 s; tests/device/test_bench_with_meter.py has a faster one
def test_a_command_with_a_meter(line: str, folder: Path, tmp_path: Path) -> None:
    """Against a real SSH server; plug, instrument and logger are those of tests/meters.py."""
    from tests.device.sshd import start_sshd
    from tests.meters import Plug, logger, running_plug, scpi_instrument

    server = start_sshd(tmp_path / "board")
    (folder / "log-watts").write_text("#!/bin/sh\nwhile sleep 0.1; do echo $(date +%s.%N),3.5; done\n")
    (folder / "log-watts").chmod(0o755)
    answers = {"*IDN?": "ACME,M1,1,1", "MEAS:POW?": "3.5"}
    try:
        with contextlib.ExitStack() as meters:
            if "kasa:" in line:
                plug = meters.enter_context(running_plug(Plug(lambda _: 3.5)))
                line = line.replace("192.168.1.20", f"127.0.0.1:{plug.port}")
            elif "scpi:" in line:
                pytest.importorskip("serial", reason=f"NOT TESTED: pyserial is not here: {line!r} was not run")
                line = line.replace("/dev/ttyUSB0", meters.enter_context(scpi_instrument(answers.get)))
            elif "csv:" in line:
                meters.enter_context(logger(folder / "power.csv", lambda _: 3.5, hz=10))
            environment = {
                "KDEDGE_CONFIG_DIR": str(tmp_path / "config"),
                "KDEDGE_SSH_OPTIONS": f"-F {shlex.quote(str(server.folder / 'ssh_config'))}",
            }
            program = f"{shlex.quote(sys.executable)} -m kdedge"
            device = server.device()
            add = f"{program} device add pi {device.address} --port {device.port}"
            words = re.sub(r"\bkdedge bench", f"{program} bench", line)
            done = run(["sh", "-c", f"{add} && {words}"], folder, **environment)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert "3.500 W (meter: " in done.stdout
            assert server.left_over() == {}
    finally:
        server.stop()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_make_target_exists(line: str) -> None:
    done = run(["make", "--dry-run", *line.split()[1:]], ROOT)
    assert done.returncode == 0, done.stderr


def test_the_python_example(folder: Path) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    accuracy, p50, _ = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert float(accuracy) > 0.97
    assert float(p50) > 0


def test_the_packages_own_example(tmp_path: Path) -> None:
    """As it stands in `kdedge/__init__.py`, with a recipe that takes seconds."""
    from tests.conftest import SMALL

    text = inspect.getdoc(kdedge) or ""
    code = "\n".join(line[4:] for line in text.split("::\n")[1].splitlines() if line.startswith("    "))
    code = code.replace('load_recipe("digits")', f'load_recipe("digits", {SMALL!r})')
    done = run([sys.executable, "-c", f"from pathlib import Path\n{code}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/digits/report.html").exists()


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
