"""Devices for tests: real OpenSSH servers on loopback, and small real artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.device.models import write_onnx, write_tflite
from tests.device.sshd import Sshd, start_sshd

StartSshd = Callable[..., Sshd]


@pytest.fixture
def start() -> Iterator[StartSshd]:
    """Starts servers that end with the test; keyword arguments as in ``start_sshd``."""
    servers: list[Sshd] = []
    with tempfile.TemporaryDirectory(prefix="kdedge-test-") as folder:

        def begin(**options: object) -> Sshd:
            servers.append(start_sshd(Path(folder) / f"device{len(servers)}", **options))  # type: ignore[arg-type]
            return servers[-1]

        yield begin
        for server in servers:
            server.stop()


@pytest.fixture(scope="module")
def board() -> Iterator[Sshd]:
    """One server for the tests of a module."""
    with tempfile.TemporaryDirectory(prefix="kdedge-test-") as folder:
        server = start_sshd(Path(folder) / "board")
        yield server
        server.stop()


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small float classifier [1,3,8,8] -> [1,4]."""
    return write_onnx(tmp_path_factory.mktemp("models") / "small.onnx")


@pytest.fixture(scope="session")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of some milliseconds, for runs that are to last."""
    return write_onnx(tmp_path_factory.mktemp("models") / "slow.onnx", size=64, layers=4, width=64)


@pytest.fixture(scope="session")
def tflite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float linear classifier [1,4096] -> [1,4]."""
    return write_tflite(tmp_path_factory.mktemp("models") / "small.tflite")


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's devices, nor takes over their SSH options."""
    monkeypatch.setenv("KDEDGE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("KDEDGE_SSH_OPTIONS", raising=False)
