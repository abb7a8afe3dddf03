"""A disk that is full is one line that names the file, whoever writes it; what was there before is intact."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kdedge.bundle import FLOAT_WEIGHTS, Bundle, write_bundle
from kdedge.errors import UserError
from kdedge.files import write_tensors
from kdedge.progress import JsonLog
from kdedge.training.checkpoint import load_tensors, save_tensors
from torch import nn


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Every byte beyond is an error of the kernel's, as on a full disk; no file system has to be mounted for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_that_find_no_room_leave_the_old_file(tmp_path: Path) -> None:
    path, net = tmp_path / "student.safetensors", nn.Linear(100, 100)
    save_tensors(net, path)
    before = path.read_bytes()
    says = r"cannot write: File too large.*Free some space"
    with files_of_at_most(20_000), pytest.raises(UserError, match=says):
        save_tensors(nn.Linear(100, 100), path)
    with files_of_at_most(20_000), pytest.raises(UserError, match=says):
        write_tensors(path, {"a": torch.ones(10_000)})
    assert path.read_bytes() == before
    load_tensors(net, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_bundle_that_finds_no_room_leaves_the_old_one(small_bundle: Bundle, tmp_path: Path) -> None:
    def write() -> Bundle:
        return write_bundle(
            tmp_path / "bundle",
            recipe=small_bundle.recipe,
            student=small_bundle.float_student(),
            prepared=None,
            labels=small_bundle.labels,
            preprocessing=small_bundle.preprocessing,
            data={},
            results={},
        )

    before = write().bundle_id
    with (
        files_of_at_most(10_000),
        pytest.raises(UserError, match=rf"cannot write: File too large.*{FLOAT_WEIGHTS}.*Free some space"),
    ):
        write()
    assert Bundle.load(tmp_path / "bundle").bundle_id == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "bundle").iterdir()} == {0o644}


def test_a_log_that_finds_no_room_keeps_its_whole_lines(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.write("epoch", note="x" * 100)
    with (
        files_of_at_most(200),
        pytest.raises(UserError, match=r"cannot write: File too large.*log\.jsonl.*Free some space"),
    ):
        log.write("epoch", note="y" * 100)
    log.write("epoch", note="z")
    notes = [json.loads(line)["note"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert notes == ["x" * 100, "z"]
