"""``bench`` against a real SSH server: the whole way, with the real agent and the real runtimes."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from kdedge.errors import ArtifactError, UserError
from tests.device.conftest import StartSshd
from tests.device.runs import progress_log, quick
from tests.device.sshd import Sshd

from kdedge_agent.run_record import RunRecord
from kdedge_agent.runtimes import load
from kdedge_agent.workdir import Scratch
from kdedge_bench.devices import add_device
from kdedge_bench.session import bench
from kdedge_bench.transport import open_transport


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_measures_an_artifact(board: Sshd, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    artifact: Path = request.getfixturevalue(f"{kind}_file")
    record = bench(artifact, board.device(), repetitions=50, power=False, out_dir=tmp_path)

    assert record.device == "pi"
    assert record.runtime["name"] == {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}[kind]
    assert record.latency_s["n"] == len(record.latency_s["samples"]) >= 50
    assert 0 < record.latency_s["p50"] <= record.latency_s["p90"]
    assert record.load_s is not None and record.load_s > 0
    assert record.memory_bytes["peak"] > 1 << 20
    assert record.power_w is None and "power_w" in record.unmeasured
    stored = json.loads((tmp_path / f"{record.run_id}.json").read_text())
    assert RunRecord.from_json(stored).to_dict() == json.loads(json.dumps(record.to_dict()))
    assert board.left_over() == {}
    assert board.partial_files() == []


def test_several_starts_on_the_device(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    record = quick(onnx_file, board.device(), tmp_path, starts=3, repetitions=60)
    assert [start["n"] for start in record.latency_s["starts"]] == [20, 20, 20]
    assert record.starts == 3 and len(record.latency_s["samples"]) == 60
    assert board.left_over() == {}


def test_what_nobody_used_for_a_month_is_removed_but_not_while_an_agent_runs(
    start: StartSshd, onnx_file: Path, tmp_path: Path
) -> None:
    """Where the device's clock is set while an agent runs, what it uses looks old; it holds a lock, as agents do."""
    board = start()
    quick(onnx_file, board.device(), tmp_path)
    (artifact,) = (board.cache / "artifacts").glob("*.onnx")
    others = {board.cache / "agent-0123.pyz": 31, board.cache / "artifacts" / ".x.part": 2}
    kept = {board.cache / "agent-4567.pyz": 29, board.cache / "artifacts" / ".y.part": 0.5, board.cache / "notes": 99}
    for path, days in {**others, **kept, artifact: 31}.items():
        path.touch()
        old_s = time.time() - days * 86400
        os.utime(path, (old_s, old_s))
    with open_transport(board.device()) as transport:
        with closing(Scratch(board.cache)) as running:
            assert running.path is not None
            transport.look_around({})
            assert all(path.exists() for path in (*others, *kept, artifact))
        transport.look_around({}, tidy=False)
        assert artifact.exists()
        transport.look_around({})
    assert not any(path.exists() for path in (*others, artifact))
    assert all(path.exists() for path in kept)


def test_device_by_its_name(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    add_device(board.device("my-pi"))
    assert quick(onnx_file, "my-pi", tmp_path).device == "my-pi"


def test_unknown_device_says_how_to_add_it(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    add_device(board.device("pi-kitchen"))
    with pytest.raises(UserError, match="pi-kitchn") as caught:
        quick(onnx_file, "pi-kitchn", tmp_path)
    assert caught.value.exit_code == 2
    for words in ("local, pi-kitchen", "Did you mean pi-kitchen?", "kdedge device add pi-kitchn"):
        assert words in str(caught.value)


def test_second_run_sends_nothing_again(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    quick(onnx_file, device.device(), tmp_path)
    before = {path.name: path.stat().st_ino for path in device.cache.rglob("*") if path.is_file()}
    seen, watch = progress_log()
    quick(onnx_file, device.device(), tmp_path, progress=watch)
    after = {path.name: path.stat().st_ino for path in device.cache.rglob("*") if path.is_file()}

    assert before == after  # an upload would have been renamed into place: another inode
    assert [p.text for p in seen if p.stage == "upload"] == ["small.onnx is on pi already"]


def test_a_damaged_file_on_the_device_is_sent_again(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    quick(onnx_file, device.device(), tmp_path)
    for path in [*device.cache.glob("agent-*"), *(device.cache / "artifacts").iterdir()]:
        path.write_bytes(path.read_bytes()[:-7] + b"flipped")
    assert quick(onnx_file, device.device(), tmp_path).latency_s["n"] >= 20


def test_uploads_are_private(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    quick(onnx_file, board.device(), tmp_path)
    for path in board.cache.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_accuracy_is_the_device_kernels_own(board: Sshd, onnx_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((90, 3, 8, 8)).astype(np.float32)
    session = load(str(onnx_file), "onnx")
    guessed = np.array([int(session.run([images[i : i + 1]])[0].argmax()) for i in range(len(images))])
    labels = guessed.copy()
    labels[::9] = (labels[::9] + 1) % 4  # ten wrong of ninety

    batches = ((images[i : i + 32], labels[i : i + 32]) for i in range(0, 90, 32))
    record = quick(onnx_file, board.device(), tmp_path, accuracy_data=batches)

    assert record.accuracy is not None
    assert record.accuracy["n"] == 90
    assert record.accuracy["accuracy"] == pytest.approx(80 / 90)
    assert 0 < record.accuracy["f1_macro"] < 1
    assert board.partial_files() == []
    assert [p.name for p in board.cache.iterdir() if p.name.startswith("run-")] == []


def test_a_talkative_login_script_does_not_matter(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    device = start()
    noise = """echo 'Welcome to your board!'; echo '{"type": "motd"}'; printf '\\033[31mred\\n'; echo err >&2\n"""
    for name in (".bashrc", ".profile", ".zshenv"):
        (device.home / name).write_text(noise)
    assert quick(onnx_file, device.device(), tmp_path).latency_s["n"] >= 20


def test_nothing_is_written_outside_kdedges_folder(start: StartSshd, onnx_file: Path, tmp_path: Path) -> None:
    """ONNX Runtime 1.32 would put its telemetry beside it, and upload it from a thread of the measured process."""
    device = start()
    quick(onnx_file, device.device(), tmp_path)
    outside = [path for path in device.home.rglob("*") if path.is_file() and device.cache not in path.parents]
    assert outside == []


@pytest.mark.parametrize("name", ["a b", "it's", 'say "hi"', "$(touch pwned)", "-rf", "a;touch pwned;#", "&& `id`"])
def test_hostile_home_folders(start: StartSshd, onnx_file: Path, tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    device = start(home=home)
    artifact = tmp_path / f"{name}.onnx"
    artifact.write_bytes(onnx_file.read_bytes())

    quick(artifact, device.device(), tmp_path / "runs")

    assert list((home / ".cache" / "kdedge" / "artifacts").iterdir())
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


@pytest.mark.parametrize("name", ["py thon", "it's", "$(touch pwned)", "a;touch pwned", "-c"])
def test_hostile_interpreter_paths(board: Sshd, tmp_path: Path, name: str) -> None:
    python = tmp_path / name / "python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    with open_transport(board.device(python=str(python))) as transport:
        assert transport.look_around({}).python == str(python)
    assert not list(tmp_path.rglob("pwned")) and not (board.home / "pwned").exists()


def test_local_runs_the_same_agent(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    record = quick(onnx_file, "local", tmp_path / "runs")
    assert (record.device, record.device_kind) == ("local", "local")
    assert [p.suffix for p in (tmp_path / ".cache" / "kdedge").iterdir()] == [".pyz"]


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("where", ["local", "pi"])
def test_artifact_cut_in_half(
    board: Sshd, kind: str, where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole: Path = request.getfixturevalue(f"{kind}_file")
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ArtifactError) as caught:
        quick(cut, board.device() if where == "pi" else "local", tmp_path / "runs")
    assert str(cut) in str(caught.value)
    assert list((tmp_path / "runs").iterdir()) == []
    assert board.left_over() == {}


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    empty, folder, other = tmp_path / "empty.onnx", tmp_path / "folder.onnx", tmp_path / "model.pt"
    empty.touch()
    folder.mkdir()
    other.write_text("x")
    for path, words in [
        (empty, "empty"),
        (folder, "folder"),
        (other, "only .onnx and .tflite"),
        (tmp_path / "gone.onnx", "no such file"),
    ]:
        with pytest.raises(ArtifactError, match=words):
            bench(path, "local", out_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("wish", "words"),
    [({"threads": 0}, "threads"), ({"repetitions": 0}, "repetitions"), ({"min_duration_s": -1.0}, "min_duration_s")],
)
def test_impossible_wishes_are_found_before_connecting(
    onnx_file: Path, tmp_path: Path, wish: dict[str, float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        quick(onnx_file, "local", tmp_path, **wish)
