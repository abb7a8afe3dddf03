from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge_agent import workdir
from kdedge_agent.errors import AgentFailure


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "kdedge"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "m.onnx").write_bytes(b"x")
    (tmp_path / "precious").write_text("keep")
    return folder


def test_files_and_folders_inside_are_removed(home: Path) -> None:
    outcome = workdir.remove([str(home / "artifacts" / "m.onnx"), "artifacts", "nothing"], home)
    assert outcome == {"removed": [str(home / "artifacts" / "m.onnx"), "artifacts"], "missing": ["nothing"]}
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../../precious", "/etc/passwd", "artifacts/../../../precious", "a\0b", "artifacts/.."],
)
def test_nothing_outside_is_touched(home: Path, path: str) -> None:
    with pytest.raises(AgentFailure):
        workdir.remove(["artifacts/m.onnx", path], home)
    assert (home / "artifacts" / "m.onnx").exists(), "all paths are checked before any is removed"
    assert (home.parents[1] / "precious").read_text() == "keep"


def test_the_folder_itself_stays(home: Path) -> None:
    with pytest.raises(AgentFailure):
        workdir.remove([str(home)], home)
    assert home.is_dir()


def test_a_link_is_removed_and_not_what_it_points_to(home: Path) -> None:
    (home / "link").symlink_to(home.parents[1])
    assert workdir.remove(["link"], home)["removed"] == ["link"]
    assert (home.parents[1] / "precious").exists()


def test_no_way_out_through_a_link(home: Path) -> None:
    (home / "link").symlink_to(home.parents[1])
    with pytest.raises(AgentFailure, match="outside"):
        workdir.remove(["link/precious"], home)
    assert (home.parents[1] / "precious").exists()


@given(st.text(alphabet="./~ab$*\n\0", max_size=20))
def test_odd_names_stay_inside_or_are_refused(name: str) -> None:
    base = Path("/tmp/none/kdedge")
    try:
        path = workdir.inside(name, base)
    except AgentFailure:
        return
    assert base in path.parents
    assert ".." not in path.parts


def test_scratch_is_private_and_gone_afterwards(home: Path) -> None:
    scratch = workdir.Scratch(home)
    assert scratch.path is not None
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    (scratch.path / "part").write_text("x")
    scratch.close()
    assert not scratch.path.exists()


def test_scratch_of_killed_agents_is_swept_and_of_living_ones_kept(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = home / f"run-{int(done.stdout)}-0123abcd"
    alive = home / f"run-{os.getpid()}-0123abcd"
    foreign = home / "run-notes"
    for folder in (dead, alive, foreign):
        folder.mkdir()
    rebooted = home / f"run-{os.getpid()}-ffffffff"
    rebooted.mkdir()
    (rebooted / "lock").touch()  # nobody holds it, though some process has that number
    running = workdir.Scratch(home)
    workdir.Scratch(home).close()
    assert running.path is not None and running.path.is_dir()
    assert not dead.exists()
    assert not rebooted.exists()
    assert alive.is_dir()
    assert foreign.is_dir()
    running.close()
    assert not running.path.exists()


def test_where_no_scratch_can_be_made_the_reason_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    scratch = workdir.Scratch(tmp_path / "file")
    assert scratch.path is None
    assert scratch.reason
    scratch.close()
