"""More that is done to a device: cut while it is reached, server killed, out of memory, read-only, files that rot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kdedge.errors import AgentError, DeviceError, WireError
from tests.device.conftest import StartSshd
from tests.device.memory_limit import memory_limit
from tests.device.models import write_onnx
from tests.device.relay import relay
from tests.device.runs import failure, quick, running
from tests.device.sshd import Sshd


def nothing_is_left(device: Sshd, out: Path) -> None:
    """No process, no partial file, no folder of a run on the device; no record here."""
    assert device.left_over() == {}
    if device.cache.exists():
        assert device.partial_files() == []
        assert [p.name for p in device.cache.iterdir() if p.name.startswith("run-")] == []
    assert list(out.glob("*.json")) == []


def one_line(error: BaseException, *, exit_code: int = 3) -> str:
    """What the user reads of it."""
    assert isinstance(error, DeviceError), error
    assert error.exit_code == exit_code
    assert str(error).isprintable()
    return str(error)


def test_wire_cut_while_the_connection_is_made(start: StartSshd, slow_file: Path, tmp_path: Path) -> None:
    device = start()
    out = tmp_path / "runs"
    with running(slow_file, device.device(), out, "connect") as future:
        until = time.monotonic() + 30
        while not device.cut():
            assert time.monotonic() < until, "nobody came"
        error = failure(future)
    assert one_line(error)
    nothing_is_left(device, out)


def test_wire_cut_while_the_result_comes(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    """The measurement is done and lost with the wire: no half of it is kept, and the record before it stays."""
    device = start()
    kept = quick(onnx_file, device.device(), tmp_path / "runs")
    with relay(device, breaks_after=500_000) as way:
        with pytest.raises(WireError, match="connection broke") as caught:
            quick(onnx_file, way.device, tmp_path / "runs", repetitions=60_000)
        assert way.is_broken, f"only the times of 60,000 calls are so long, and {way.received} bytes came"
    assert one_line(caught.value)
    assert device.left_over() == {} and device.partial_files() == []
    assert [path.stem for path in (tmp_path / "runs").iterdir()] == [kept.run_id]


def test_the_server_itself_is_killed(start: StartSshd, slow_file: Path, tmp_path: Path) -> None:
    device = start()
    with running(slow_file, device.device(), tmp_path, "timing") as future:
        assert device.cut() >= 1
        os.kill(device.listener, signal.SIGKILL)
        device.process.wait(10)
        error = failure(future)
    assert isinstance(error, WireError), error
    assert "connection broke" in one_line(error)
    nothing_is_left(device, tmp_path)


def test_a_kernel_that_runs_out_of_memory(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    greedy = write_onnx(tmp_path / "greedy.onnx", size=1024, layers=2, width=256)  # 1 GB for each activation
    out = tmp_path / "runs"
    quick(onnx_file, device.device(), tmp_path / "before")
    with memory_limit(device.listener, 400 << 20):
        with pytest.raises(AgentError) as caught:
            quick(greedy, device.device(), out, wait_s=0.0)
        words = one_line(caught.value)
        assert "SIGKILL" in words and "the kernel was out of memory" in words
        assert "use a smaller model" in words
        nothing_is_left(device, out)
        assert quick(onnx_file, device.device(), out).latency_s["n"] >= 20, "the agent of the next run lives"


def test_a_home_that_is_read_only(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(device.home)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a read-only home needs a mount, which is not allowed here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(AgentError) as caught:
            quick(onnx_file, device.device(), tmp_path / "runs")
        words = one_line(caught.value)
        assert "Read-only file system" in words and "~/.cache/kdedge must be writable" in words
        assert device.left_over() == {}
    finally:
        subprocess.run(["umount", "-l", str(device.home)], check=True)


_ROT = """
import os, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
def forward():
    chunk = os.read(0, 65536)
    chunk = chunk[:9] + bytes([chunk[9] ^ 1]) + chunk[10:]
    while chunk:
        child.stdin.write(chunk)
        child.stdin.flush()
        chunk = os.read(0, 65536)
    child.stdin.close()
threading.Thread(target=forward, daemon=True).start()
os._exit(child.wait())
"""


def rotting_python(folder: Path) -> str:
    """An interpreter on the device that gets one byte of every file that comes otherwise than it was sent."""
    (folder / "rot.py").write_text(_ROT)
    wrapper = folder / "python"
    real = f'{sys.executable} "$@"'
    wrapper.write_text(
        f'#!/bin/sh\ncase "$1$2" in -c*mkstemp*) {sys.executable} {folder}/rot.py {real} ;; '
        f"""-c*statvfs*) {real} | sed 's#"python": "[^"]*"#"python": "{wrapper}"#' ;; *) {real} ;; esac\n"""
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def test_an_upload_that_arrives_damaged(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    with pytest.raises(AgentError) as caught:
        quick(onnx_file, device.device(python=rotting_python(tmp_path)), tmp_path / "runs")
    assert "arrived damaged and was thrown away" in one_line(caught.value)
    assert [path for path in device.cache.rglob("*") if path.is_file()] == []
    nothing_is_left(device, tmp_path / "runs")
