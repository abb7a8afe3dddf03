"""What goes wrong on the device, injected for real: the error says what and the cure, and nothing stays there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kdedge.errors import AgentError, WireError
from tests.device.conftest import StartSshd
from tests.device.models import write_onnx
from tests.device.runs import failure, progress_log, quick, running
from tests.device.sshd import Sshd

from kdedge_bench.faults import DeviceBusyError, DiskFullError, NoPythonError, PythonTooOldError, RuntimeMissingError
from kdedge_bench.session import Progress


def tools_without_python(folder: Path) -> str:
    """A PATH with what a minimal system has, and no Python."""
    folder.mkdir()
    for name in ("sh", "cat", "echo", "mkdir", "rm", "mv", "ls", "df", "uname", "sha256sum"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return str(folder)


def test_no_python_on_the_device(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start(path=tools_without_python(tmp_path / "tools"))
    with pytest.raises(NoPythonError, match="no Python 3") as caught:
        quick(onnx_file, device.device(), tmp_path)
    assert caught.value.exit_code == 3 and "apt install python3" in str(caught.value)
    assert not device.cache.exists()


def test_the_named_python_is_not_there(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NoPythonError, match="no Python at /nowhere/python") as caught:
        quick(onnx_file, board.device(python="/nowhere/python"), tmp_path)
    assert "--python PATH" in str(caught.value)


def test_python_too_old(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    candidates = [
        *Path("~/.pyenv/versions").expanduser().glob("3.[67].*/bin/python3"),
        *Path("/usr/bin").glob("python3.[67]"),
    ]
    if not candidates:
        pytest.skip("NOT TESTED: no Python 3.6 or 3.7 on this machine to be too old")
    for python in candidates:
        with pytest.raises(PythonTooOldError, match=r"3\.8 or newer"):
            quick(onnx_file, board.device(python=str(python)), tmp_path)


def test_runtime_missing(start: StartSshd, onnx_file: Path, tflite_file: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    device = start()
    for artifact, runtime in ((onnx_file, "onnxruntime"), (tflite_file, "ai-edge-litert")):
        with pytest.raises(RuntimeMissingError) as caught:
            quick(artifact, device.device(python=str(tmp_path / "bare" / "bin" / "python")), tmp_path / "runs")
        assert runtime in str(caught.value) and "kdedge device setup pi" in str(caught.value)
    assert device.left_over() == {}


def test_a_runtime_of_the_other_format(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ai-edge-litert opens no onnx") as caught:
        quick(onnx_file, board.device(), tmp_path, runtime="ai-edge-litert")
    assert getattr(caught.value, "exit_code", None) == 2


@contextmanager
def tiny_disk(folder: Path, size_kib: int) -> Iterator[None]:
    """A file system of that size at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk needs root here, to mount a tiny tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk needs a tmpfs, and mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size_kib", [16, 400])
def test_full_disk(start: StartSshd, tmp_path: Path, size_kib: int) -> None:
    """Too small for the agent, and large enough for the agent but not for the artifact."""
    device = start()
    large = write_onnx(tmp_path / "large.onnx", layers=4, width=256)
    with tiny_disk(device.cache, size_kib):
        with pytest.raises(DiskFullError, match="no space left on the device") as caught:
            quick(large, device.device(), tmp_path / "runs")
        assert caught.value.exit_code == 3
        assert device.partial_files() == []
        assert device.left_over() == {}


def test_disk_that_fills_while_the_file_comes(start: StartSshd, tmp_path: Path) -> None:
    from kdedge.files import sha256_file

    from kdedge_bench.transport import open_transport

    device = start()
    large = write_onnx(tmp_path / "large.onnx", layers=4, width=256)
    with tiny_disk(device.cache, 400), open_transport(device.device()) as transport:
        ground = transport.look_around({})
        with pytest.raises(DiskFullError):
            transport.put(large, ground.path("artifacts/x"), sha256_file(large), ground=ground)
        assert [path for path in device.cache.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    (device.home / ".cache").write_text("a file where a folder should be")
    with pytest.raises(AgentError, match=r"cannot (store|write)"):
        quick(onnx_file, device.device(), tmp_path)


@pytest.mark.parametrize("stage", ["import", "load", "first", "warm-up", "timing"])
def test_wire_cut_in_the_run(start: StartSshd, slow_file: Path, onnx_file: Path, tmp_path: Path, stage: str) -> None:
    device = start()
    with running(slow_file, device.device(), tmp_path, until=stage) as future:
        assert device.pids()
        assert device.cut() >= 1
        error = failure(future)
    assert isinstance(error, WireError), error
    assert "connection broke" in str(error)
    assert device.left_over() == {}
    assert [p.name for p in device.cache.iterdir() if p.name.startswith("run-")] == []
    assert list(tmp_path.glob("*.json")) == []
    assert quick(onnx_file, device.device(), tmp_path).latency_s["n"] >= 20  # and the device is usable again


def test_wire_cut_in_the_upload(start: StartSshd, tmp_path: Path) -> None:
    device = start()
    large = tmp_path / "large.onnx"
    large.write_bytes(os.urandom(1 << 25))
    cuts: list[int] = []

    def cut_in_the_middle(progress: Progress) -> None:
        # Half of 32 MiB is far more than the buffers on the way hold, so that the file is really on the wire.
        if progress.stage == "upload" and (progress.done or 0) > 0.5 and not cuts:
            cuts.append(device.cut())

    with pytest.raises(WireError, match="connection broke"):
        quick(large, device.device(), tmp_path, progress=cut_in_the_middle)
    assert cuts == [1]
    assert device.left_over() == {}
    assert device.partial_files() == []
    assert list((device.cache / "artifacts").iterdir()) == []


def agent_pids(device: Sshd, words: str) -> list[int]:
    """Pids on the device whose command line has these words."""
    return [pid for pid, line in device.pids().items() if words in line]


def test_agent_killed(start: StartSshd, slow_file: Path, tmp_path: Path) -> None:
    device = start()
    with running(slow_file, device.device(), tmp_path, until="timing") as future:
        for pid in agent_pids(device, ".pyz"):
            os.kill(pid, signal.SIGKILL)
        error = failure(future)
    assert isinstance(error, AgentError | WireError), error
    assert device.left_over() == {}


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV", "SIGBUS", "SIGABRT"])
def test_runtime_dies(start: StartSshd, slow_file: Path, tmp_path: Path, name: str) -> None:
    device = start()
    with running(slow_file, device.device(), tmp_path, until="timing") as future:
        (worker,) = agent_pids(device, "--worker")
        os.kill(worker, signal.Signals[name])
        error = failure(future)
    assert isinstance(error, AgentError), error
    assert name in str(error)
    assert device.left_over() == {}


def test_device_frozen(start: StartSshd, slow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge_bench.process.SILENCE_S", 3.0)
    device = start()
    with running(slow_file, device.device(), tmp_path, until="timing") as future:
        stopped = agent_pids(device, ".pyz")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        error = failure(future)
        for pid in stopped:
            with suppress(ProcessLookupError):  # the kernel wakes a stopped process whose session has ended
                os.kill(pid, signal.SIGCONT)
    assert isinstance(error, WireError), error
    assert "no sign of life" in str(error)
    assert device.left_over() == {}


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("stage", ["timing", "connect"])
def test_host_interrupted(start: StartSshd, slow_file: Path, tmp_path: Path, signal_name: str, stage: str) -> None:
    """Ctrl-C, and worse: nothing is left on the device, whatever the host still had time for."""
    device = start()
    there = device.device()
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and Python then leaves it at that.
    script = f"""
        import signal
        from pathlib import Path
        from kdedge_bench.devices import Device
        from kdedge_bench.session import bench
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def show(progress):
            print(progress.stage, progress.text, flush=True)
        device = Device("pi", {there.address!r}, port={there.port}, ssh_config={there.ssh_config!r})
        bench(Path({str(slow_file)!r}), device,
              min_duration_s=300.0, power=False, out_dir=Path({str(tmp_path)!r}), progress=show)
    """
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert host.stdout is not None and host.stderr is not None
    for line in host.stdout:
        if stage in line:
            break
    began = time.monotonic()
    host.send_signal(signal.Signals[signal_name])
    host.stdout.read()
    assert host.wait(30) != 0, host.stderr.read()
    host.stdout.close()
    host.stderr.close()
    assert device.left_over() == {}, f"{time.monotonic() - began:.1f} s after {signal_name}"
    assert device.partial_files() == []
    if device.cache.exists():
        assert [p.name for p in device.cache.iterdir() if p.name.startswith("run-")] == []
    assert list(tmp_path.glob("*.json")) == []
    if signal_name == "SIGINT":
        assert list(Path("/tmp").glob(f"kdedge-ssh-{host.pid}-*")) == []


def test_two_hosts_at_once(start: StartSshd, onnx_file: Path, slow_file: Path, tmp_path: Path) -> None:
    device = start()
    with running(slow_file, device.device(), tmp_path, "timing") as future:
        with pytest.raises(DeviceBusyError, match=r"another measurement runs .*for 127\.0\.0\.1, since 20") as caught:
            quick(onnx_file, device.device(), tmp_path, wait_s=0.0)
        assert caught.value.exit_code == 3 and "--wait SECONDS" in str(caught.value)
        seen, watch = progress_log()
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(quick, onnx_file, device.device(), tmp_path, progress=watch)
            until = time.monotonic() + 30
            while not any("another measurement runs" in progress.text for progress in seen):
                assert time.monotonic() < until, seen
                time.sleep(0.05)
            device.cut()
            assert second.exception(timeout=60) is not None, "its own connection was cut too"
        failure(future)
    assert quick(onnx_file, device.device(), tmp_path).latency_s["n"] >= 20
    assert device.left_over() == {}
