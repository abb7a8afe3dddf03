"""What a login leads to on a device: homes and shells as people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.device.conftest import StartSshd
from tests.device.runs import quick

from kdedge_bench.devices import LOCAL
from kdedge_bench.faults import LoginShellError
from kdedge_bench.setup_plan import plan_setup
from kdedge_bench.transport import open_transport

AS_ASKED = 'eval "$SSH_ORIGINAL_COMMAND"'


def test_a_login_script_that_leaves_its_line_without_an_end(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    device.login_through(f"printf '\\033]0;a title\\007'; {AS_ASKED}")
    assert quick(onnx_file, device.device(), tmp_path).latency_s["samples"]


def test_modules_in_the_home_are_the_users(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    device.login_through(f"cd; {AS_ASKED}")
    for name in ("platform", "json", "signal", "random", "queue"):
        (device.home / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\n")
    plan_setup(device.device())
    quick(onnx_file, device.device(), tmp_path)
    assert not (tmp_path / "RAN").exists()
    assert not (device.home / "__pycache__").exists()


def test_modules_where_kdedge_runs_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "platform.py").write_text("open('RAN', 'w')\n")
    with open_transport(LOCAL) as transport:
        assert transport.look_around({}).cache == str(tmp_path / ".cache" / "kdedge")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh"])
def test_login_shells(start: StartSshd, onnx_file: Path, tmp_path: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"NOT TESTED with a login shell that is {shell}: it is not on this machine")
    device = start()
    device.login_through(f'exec {program} -c "$SSH_ORIGINAL_COMMAND"')
    quick(onnx_file, device.device(), tmp_path)
    assert device.left_over() == {}


def test_a_restricted_shell(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("NOT TESTED with a restricted shell: there is no bash on this machine")
    device = start()
    device.login_through('exec bash -r -c "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(Exception, match=r"restricted.* needs an ordinary one"):
        quick(onnx_file, device.device(), tmp_path)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo This account is currently not available.; exit 1", "runs no commands: This account is currently"),
        ("exit 1", r"the account runs no commands \(pi"),
        ("echo sftp only >&2; exit 1", "runs no commands: sftp only"),
    ],
)
def test_accounts_that_run_nothing(start: StartSshd, script: str, words: str) -> None:
    device = start()
    device.login_through(script)
    with pytest.raises(LoginShellError, match=words), open_transport(device.device()):
        pass


def test_a_login_script_that_waits(start: StartSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge_bench.transport._CONNECT_S", 1)
    device = start()
    device.login_through("echo Press a key; exec cat >/dev/null")
    with pytest.raises(LoginShellError, match="no command began to run: Press a key"), open_transport(device.device()):
        pass
    assert device.left_over() == {}
