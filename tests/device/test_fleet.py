"""Fleets and matrices by the command line, against real SSH servers."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import termios
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.agent_tools import make_onnx, make_tflite
from tests.device.commands import argv, kdedge, start_kdedge
from tests.device.conftest import StartSshd
from tests.device.namespace import namespaced_device
from tests.device.sshd import Sshd, free_port, make_key
from tests.meters import logger

from kdedge_bench.devices import Device, add_device

QUICK = ("--repetitions", "20", "--seconds", "0", "--no-power")


def added(server: Sshd, name: str, **changes: Any) -> Device:
    """A server as a device that the command line knows."""
    device = replace(server.device(name), **changes)
    add_device(device)
    return device


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def cell(record: dict[str, Any]) -> tuple[Any, ...]:
    return (record["device"], record["artifact_sha256"], record["runtime"]["name"], record["threads"])


def wrong_host_key(server: Sshd) -> None:
    other = make_key(server.folder / "other_key").with_suffix(".pub").read_text()
    server.known_hosts.write_text(f"[{server.host}]:{server.port} {other}")


@pytest.fixture
def fleet(start: StartSshd) -> list[Sshd]:
    """A board that works, one on which nothing listens, one with another host key than the one on record."""
    works, dead, stranger = start(), start(), start()
    added(works, "works", tags=("shelf",))
    added(dead, "dead", port=free_port(), tags=("shelf",))
    added(stranger, "stranger")
    wrong_host_key(stranger)
    return [works, dead, stranger]


def test_one_dead_board_and_one_stranger_do_not_stop_the_third(
    fleet: list[Sshd], onnx_file: Path, tmp_path: Path
) -> None:
    done = kdedge("bench", onnx_file, "--device", "dead,works,stranger", *QUICK, "--out", tmp_path / "r", "--json")
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert [record["device"] for record in said["records"]] == ["works"]
    assert said["records"] == records(tmp_path / "r")
    assert [(entry["device"], entry["error"]["exit_code"]) for entry in said["failures"]] == [
        ("dead", 3),
        ("stranger", 3),
    ]
    dead, stranger = (entry["error"] for entry in said["failures"])
    assert "no SSH server listens there" in dead["what"] and dead["where"].startswith("dead: ")
    assert "the host key has changed" in stranger["what"] and "ssh-keygen -R" in stranger["cure"]
    lines = done.stderr.splitlines()
    assert sum(line.startswith("dead: small.onnx, 1 thread: error: ") for line in lines) == 1
    assert sum(line.startswith("works: small.onnx, 1 thread: p50 ") for line in lines) == 1
    assert "Traceback" not in done.stderr
    assert all(server.left_over() == {} for server in fleet)


def test_the_table_has_a_row_for_each_cell_and_says_why(fleet: list[Sshd], onnx_file: Path, tmp_path: Path) -> None:
    done = kdedge("bench", onnx_file, "--device", "@shelf,local", "--threads", "1,2", *QUICK, "--out", tmp_path / "r")
    assert done.returncode == 3, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("small.onnx")]
    assert [(row[1], "failed" in row) for row in rows] == [
        ("works", False), ("works", False), ("dead", True), ("dead", True), ("local", False), ("local", False),
    ]  # fmt: skip
    assert " ".join(done.stdout.split()).count("the host refused the connection") == 1, "said once for both cells"
    assert "2 of 6 failed" in done.stderr and "--resume" in done.stderr
    assert len(records(tmp_path / "r")) == 4


@pytest.mark.parametrize("words", ["works,wroks", "@shelf,@shlef", "works,,dead"])
def test_a_list_with_an_unknown_name_starts_nothing(
    fleet: list[Sshd], words: str, onnx_file: Path, tmp_path: Path
) -> None:
    for command in (["bench", onnx_file, "--device", words, "--out", tmp_path / "r"], ["device", "check", words]):
        done = kdedge(*command)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and ("Did you mean" in line or "between its commas" in line)
    assert not (tmp_path / "r").exists() and all("Accepted" not in server.log() for server in fleet)


def test_what_a_matrix_cannot_have(onnx_file: Path, start: StartSshd, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_device(Device(name, "me@127.0.0.1", port=1))
    file = tmp_path / "fleet.toml"
    file.write_text(f"artifacts = ['{onnx_file}']\nthread = [1]\n")
    for words, says in (
        ([onnx_file, "--device", "a,b", "--meter", "kasa:h"], "--meter kasa:h measures one device, and 2 are named"),
        ([onnx_file, "--threads", "1,2", "--meter", "stdin"], "--meter stdin can be read once"),
        ([tmp_path, "--device", "a,b"], "a bundle is measured in torch, and makes no matrix"),
        ([onnx_file, tmp_path / "none.onnx"], "no such file"),
        ([onnx_file, "--device", "all", "--threads", "1,300"], "threads: from 1 to 256"),
        ([onnx_file, "--device", "all", "--runtime", "onnx"], "Did you mean onnxruntime?"),
        ([onnx_file, "--device", "all", "--runtime", "tflite-runtime"], "nothing is left to measure"),
        (["--matrix", file], "unknown key 'thread'"),
        ([], "no artifact was named"),
    ):
        done = kdedge("bench", *words, "--out", tmp_path / "r")
        assert done.returncode == 2 and says in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "r").exists()


def test_check_and_setup_of_several(fleet: list[Sshd], tmp_path: Path) -> None:
    checked = kdedge("device", "check", "all", "--json")
    assert checked.returncode == 3
    said = json.loads(checked.stdout)
    assert [(report["device"], report["ok"]) for report in said["reports"]] == [
        ("works", True), ("dead", False), ("stranger", False),
    ]  # fmt: skip
    assert kdedge("device", "check", "works,works").returncode == 0
    done = kdedge("device", "setup", "works,stranger", "--json")
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert [(result["device"], result["method"]) for result in said["results"]] == [("works", "none")]
    assert [(entry["device"], entry["error"]["exit_code"]) for entry in said["failures"]] == [("stranger", 3)]
    shown = kdedge("device", "setup", "@shelf")
    assert (
        shown.returncode == 3 and "dead: failed: the host refused" in shown.stdout and "works: nothing" in shown.stdout
    )


def test_one_artifact_on_one_device_is_one_record(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    """What scripts rest on."""
    added(start(), "pi")
    done = kdedge("bench", onnx_file, "--device", "pi", "--threads", "1", *QUICK, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(done.stdout)] == records(tmp_path)


def test_new_host_keys_of_a_fleet_are_all_put_on_record(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    """Into one file, by connections at the same time."""
    servers = [start() for _ in range(4)]
    known = tmp_path / "known_hosts"
    for number, server in enumerate(servers):
        config = server.folder / "ssh_config"
        config.write_text(config.read_text().replace(str(server.known_hosts), str(known)))
        added(server, f"d{number}")
    done = kdedge("device", "check", "all", "--accept-new-host-key")
    assert done.returncode == 0, done.stdout
    assert sorted(line.split()[0] for line in known.read_text().splitlines()) == sorted(
        f"[127.0.0.1]:{server.port}" for server in servers
    )


def test_no_connection_asks_anything_of_the_terminal(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    """Keys with a passphrase that no agent holds, in a terminal: refused in one line each, and asked for by none."""
    for name in ("a", "b", "c"):
        server = start()
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(server.folder / "user_key")], check=True
        )
        added(server, name)
    terminal, far_end = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("SSH_AUTH_SOCK", "SSH_ASKPASS")}
    words = argv("bench", onnx_file, "--device", "all", "--threads", "1,2", *QUICK, "--out", tmp_path / "r")
    process = subprocess.Popen(
        words, stdin=far_end, stdout=far_end, stderr=far_end, start_new_session=True,
        env={**environment, "COLUMNS": "300", "TERM": "xterm"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - its own terminal; no threads here
    )  # fmt: skip
    os.close(far_end)
    said = b""
    with suppress(OSError):  # the terminal is closed when the last process has let go of it
        while chunk := os.read(terminal, 65536):
            said += chunk
    os.close(terminal)
    assert process.wait(60) == 3
    assert b"passphrase" not in said and b"assword:" not in said
    assert said.count(b"the device refused your key") == 3, (
        "a note for each device in the table, and no line for a cell"
    )


def small_matrix(folder: Path, devices: str) -> Path:
    """A file of 3 artifacts × 2 runtimes × 2 threads on some devices, its records beside it."""
    folder.mkdir()
    artifacts = [
        make_onnx(folder / "a.onnx"), make_onnx(folder / "b.onnx", width=4), make_tflite(folder / "c.tflite"),
    ]  # fmt: skip
    file = folder / "fleet.toml"
    file.write_text(
        f"artifacts = {json.dumps([str(path) for path in artifacts])}\ndevices = {json.dumps(devices)}\n"
        'runtimes = ["onnxruntime", "ai-edge-litert"]\nthreads = [1, 2]\n'
        f'repetitions = 20\nseconds = 0.0\npower = false\nout = "{folder / "records"}"\n'
    )
    return file


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_matrix_that_is_stopped_half_way_goes_on(how: signal.Signals, start: StartSshd, tmp_path: Path) -> None:
    """Every cell is measured once: those that were stopped in the middle, those that had not begun."""
    servers = [start() for _ in range(4)]
    for number, server in enumerate(servers):
        added(server, f"d{number}", tags=("shelf",))
    file, size = small_matrix(tmp_path / "m", "@shelf"), 3 * 2 * 4  # one of the two runtimes opens an artifact
    folder = tmp_path / "m" / "records"
    with start_kdedge("bench", "--matrix", file) as host:
        while len(list(folder.glob("*.json"))) < size // 3:
            assert host.poll() is None, host.communicate()
            time.sleep(0.02)
        host.send_signal(how)
        stdout, stderr = host.communicate(timeout=120)
    assert all(server.left_over() == {} for server in servers)
    assert [path for server in servers for path in server.partial_files()] == []
    before = {record["run_id"]: cell(record) for record in records(folder)}
    assert size // 3 <= len(before) < size
    if how is signal.SIGINT:
        assert host.returncode == 130
        assert f"stopped: {len(before)} of {size} done; the same command with --resume goes on" in stderr
        rows = [line.split() for line in stdout.splitlines()]
        assert sum(row[-1:] == ["stopped"] for row in rows) == size - len(before)
        assert list(Path("/tmp").glob(f"kdedge-ssh-{host.pid}-*")) == []

    done = kdedge("bench", "--matrix", file, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    after = records(folder)
    assert Counter(map(cell, after)).most_common(1)[0][1] == 1 and len(after) == size
    assert before.items() <= {record["run_id"]: cell(record) for record in after}.items()
    said = json.loads(done.stdout)
    assert sorted(record["run_id"] for record in said["records"]) == sorted(record["run_id"] for record in after)
    assert f"{len(before)} cells measured already" in done.stderr
    assert sum(entry["cells"] for entry in said["left_out"]) == size, "of each artifact the runtime that fits it not"
    assert all(server.left_over() == {} for server in servers)

    again = kdedge("bench", "--matrix", file, "--resume")
    assert again.returncode == 0 and len(records(folder)) == size, "nothing is left to do"


def test_ctrl_c_while_a_board_does_not_answer(onnx_file: Path, tmp_path: Path) -> None:
    """Its connection is given up at once: had it been waited for, it would have failed, with code 3."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        add_device(Device("silent", "me@127.0.0.1", port=silent.getsockname()[1]))
        with start_kdedge("bench", onnx_file, "--device", "silent,silent", *QUICK, "--out", tmp_path) as host:
            peer, _ = silent.accept()
            with peer:
                host.send_signal(signal.SIGINT)
                _, stderr = host.communicate(timeout=120)
    assert host.returncode == 130, stderr
    assert "stopped: 0 of 1 done" in stderr
    assert list(Path("/tmp").glob(f"kdedge-ssh-{host.pid}-*")) == []


@pytest.mark.slow
def test_a_meter_reads_along_with_each_cell_of_one_device(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    added(start(), "pi")
    words = ("bench", onnx_file, "--device", "pi", "--threads", "1,2", "--repetitions", "20", "--seconds", "0")
    watts, out = tmp_path / "watts.csv", tmp_path / "r"
    with logger(watts, lambda _: 3.5, hz=50):
        done = kdedge(*words, "--meter", f"csv:{watts}", "--out", out)
    assert done.returncode == 0, done.stderr
    assert [(record["threads"], record["power_w"]) for record in records(out)] == [
        (1, pytest.approx(3.5)), (2, pytest.approx(3.5)),
    ]  # fmt: skip
    again = kdedge(*words, "--meter", f"csv:{watts}", "--out", out, "--resume")
    assert again.returncode == 0 and "2 cells measured already" in again.stderr and len(records(out)) == 2
    other = kdedge(*words, "--no-power", "--out", out, "--resume")
    assert other.returncode == 0 and "already" not in other.stderr and len(records(out)) == 4


@pytest.mark.nightly
def test_fifty_boards_at_once(onnx_file: Path, tmp_path: Path) -> None:
    """All of them, each in namespaces of its own; two have no cable any more."""
    with ExitStack() as stack:
        boards = [stack.enter_context(namespaced_device()) for _ in range(50)]
        for number, board in enumerate(boards):
            added(board, f"board{number}")
        for board in boards[10:30:10]:
            board.pull_cable()
        done = kdedge("bench", onnx_file, "--device", "all", "--jobs", "50", *QUICK, "--out", tmp_path / "r", "--json")
        assert done.returncode == 3, done.stderr
        said = json.loads(done.stdout)
        assert sorted(entry["device"] for entry in said["failures"]) == ["board10", "board20"]
        assert len(said["records"]) == len(records(tmp_path / "r")) == 48
        assert all(board.left_over() == {} for board in boards)
