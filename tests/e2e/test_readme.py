"""Every command and example in README.md runs, as it stands there; those that train: test_readme_training.py."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.e2e.readme import BLOCKS, COMMANDS, DEVICE, LINES, README, TRAINING, WITH_METER, run

pytestmark = pytest.mark.slow


def test_there_are_commands_of_every_kind() -> None:
    assert {line.split("kdedge ")[1].split()[0] for line in COMMANDS} == {
        "recipes", "distill", "cache", "export", "inspect", "eval", "bench", "device", "report"
    }  # fmt: skip


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in (*DEVICE, *TRAINING)])
def test_a_command(line: str, readme_folder: Path) -> None:
    done = run([sys.executable, "-m", *shlex.split(line)], readme_folder)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_commands_of_a_device(readme_folder: Path, tmp_path: Path) -> None:
    """In README's order against real SSH servers; their user is this one, for not every machine has a user `pi`."""
    from tests.device.sshd import start_sshd

    (matrix,) = [text for kind, text in BLOCKS if kind == "toml"]
    (readme_folder / "fleet.toml").write_text(matrix)
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
                readme_folder,
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
def test_a_command_with_a_meter(line: str, readme_folder: Path, tmp_path: Path) -> None:
    """Against a real SSH server; plug, instrument and logger are those of tests/meters.py."""
    from tests.device.sshd import start_sshd
    from tests.meters import Plug, logger, running_plug, scpi_instrument

    server = start_sshd(tmp_path / "board")
    (readme_folder / "log-watts").write_text("#!/bin/sh\nwhile sleep 0.1; do echo $(date +%s.%N),3.5; done\n")
    (readme_folder / "log-watts").chmod(0o755)
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
                meters.enter_context(logger(readme_folder / "power.csv", lambda _: 3.5, hz=10))
            environment = {
                "KDEDGE_CONFIG_DIR": str(tmp_path / "config"),
                "KDEDGE_SSH_OPTIONS": f"-F {shlex.quote(str(server.folder / 'ssh_config'))}",
            }
            program = f"{shlex.quote(sys.executable)} -m kdedge"
            device = server.device()
            add = f"{program} device add pi {device.address} --port {device.port}"
            words = re.sub(r"\bkdedge bench", f"{program} bench", line)
            done = run(["sh", "-c", f"{add} && {words}"], readme_folder, **environment)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert "3.500 W (meter: " in done.stdout
            assert server.left_over() == {}
    finally:
        server.stop()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_make_target_exists(line: str) -> None:
    done = run(["make", "--dry-run", *line.split()[1:]], ROOT)
    assert done.returncode == 0, done.stderr


def test_the_python_example(readme_folder: Path) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    done = run([sys.executable, "-c", code], readme_folder)
    assert done.returncode == 0, done.stderr
    accuracy, p50, _ = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert float(accuracy) > 0.97
    assert float(p50) > 0


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert target in anchors if target.startswith("#") else (ROOT / target).exists(), target
