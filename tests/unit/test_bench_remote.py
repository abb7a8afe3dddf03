"""The programs that run on a device before the agent: one line each, and no module of the user's in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.test_agent_pythons import interpreter

from kdedge_agent import workdir
from kdedge_bench import remote, setup, setup_plan, wheels

PROGRAMS = {
    "LOOK_AROUND": remote.LOOK_AROUND,
    "STORE": remote.STORE,
    "GUARD": remote.GUARD,
    "REMOVE": remote.REMOVE,
    "SWAP": setup._SWAP,
    "INSTALLED": setup_plan._INSTALLED,
}
NOTHING = json.dumps({"files": {}, "tidy": False})


@pytest.mark.parametrize("name", [*PROGRAMS, "FIND_PYTHON"])
def test_every_login_shell_can_read_it(name: str) -> None:
    text = PROGRAMS.get(name, remote.FIND_PYTHON)
    assert not set("\\!\n") & set(text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_a_program(name: str) -> None:
    """The marks that stand for line breaks stand for nothing else."""
    inner = PROGRAMS[name].partition('"""')[2].rpartition('"""')[0]
    compile(inner.replace("^", "\n"), name, "exec")


def look(python: str, before: str = "", **environment: str) -> remote.Ground:
    """What the look around sees, as a Python runs it that was told something before."""
    done = subprocess.run(
        [python, "-c", before + remote.LOOK_AROUND, NOTHING],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        check=True,
    )
    answer = remote.parse_answer(b"\x1b]0;a title without an end" + done.stdout)
    assert answer is not None
    return remote.parse_ground(answer)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.13"])
def test_it_looks_around_with_other_pythons(tmp_path: Path, version: str) -> None:
    """Also with those that are too old for the agent, so that they can be named."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine (PATH, pyenv)")
    ground = look(python, HOME=str(tmp_path))
    assert ground.version_text.startswith(version) and ground.cache == str(tmp_path / ".cache" / "kdedge")


@pytest.mark.parametrize(
    ("kernel", "machine"), [("aarch64", "armv7l"), ("armv8l", "armv7l"), ("x86_64", "i686"), ("riscv64", "riscv64")]
)
def test_a_32_bit_system_on_a_64_bit_kernel(tmp_path: Path, kernel: str, machine: str) -> None:
    """It loads 32-bit wheels; the kernel names the processor."""
    pretend = f"import platform, sys; platform.machine = lambda: {kernel!r}; "
    assert look(sys.executable, pretend, HOME=str(tmp_path)).machine == kernel
    assert look(sys.executable, f"{pretend}sys.maxsize = 2**31 - 1; ", HOME=str(tmp_path)).machine == machine


def test_host_and_agent_mean_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "elsewhere")}
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    assert look(sys.executable, **elsewhere).cache == str(workdir.work_dir())


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, full of the user's own modules; each leaves a file there when it is imported."""
    for name in ("platform", "json", "signal", "random", "hashlib", "tempfile", "shutil", "select", "ensurepip", "pip"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "RAN"


def test_pip_on_this_machine_imports_none(trap: Path) -> None:
    done = subprocess.run([sys.executable, "-c", wheels._PIP, "--version"], capture_output=True, check=False)
    assert done.stdout.startswith(b"pip "), done.stderr
    assert not trap.exists()


def test_modules_of_the_users_are_not_imported(trap: Path) -> None:
    words = [
        ("LOOK_AROUND", [NOTHING]),
        ("STORE", [str(trap.parent / "kept"), "0" * 64, "0"]),
        ("REMOVE", ["[]"]),
        ("INSTALLED", ["[]"]),
    ]
    environment = {**os.environ, "HOME": str(trap.parent)}
    for name, asked in words:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAMS[name], *asked],
            stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False,
        )  # fmt: skip
        assert remote.parse_answer(done.stdout) is not None, done.stderr
    assert not trap.exists()
    assert not (trap.parent / "__pycache__").exists()


def test_long_steps_import_none_either(trap: Path) -> None:
    """``python -m`` looks where it is started, and so does what it starts."""
    guarded = [sys.executable, "-c", remote.GUARD, sys.executable, "-m", "ensurepip", "--version"]
    with subprocess.Popen(guarded, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"pip ")
    assert process.returncode == 0
    assert not trap.exists()
