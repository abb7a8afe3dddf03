"""A cache's files: rows, hashes, damage, sizes beyond memory, and who builds what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdedge.errors import UserError
from kdedge.files import read_json, write_json
from kdedge.teacher_cache.build import stored
from kdedge.teacher_cache.folder import MANIFEST, CacheFolder
from kdedge.teacher_cache.layout import SHARD_SAMPLES, Layout
from kdedge.teacher_cache.memory import memory_note
from kdedge.teacher_cache.root import find_cache, list_caches, older_than, parse_age_s, remove_caches, remove_leftovers
from kdedge.teacher_cache.view_file import ViewFile

KEY = "0123456789abcdef" * 4
SAMPLES = 2 * SHARD_SAMPLES + 100
LAYOUTS = (Layout(SAMPLES, 7), Layout(SAMPLES, 7, 3), Layout(SAMPLES, 100_000, 2))


def opened(root: Path, layout: Layout = LAYOUTS[0]) -> CacheFolder:
    return CacheFolder(root, KEY, {"teacher": "t"}, layout, {"teacher": "mlp", "data": "digits"})


def random_logits(layout: Layout) -> torch.Tensor:
    return torch.randn(layout.samples, layout.classes, generator=torch.Generator().manual_seed(1))


def filled(root: Path, layout: Layout = LAYOUTS[0]) -> tuple[CacheFolder, torch.Tensor]:
    """A cache of one view, and the logits that were put into it."""
    cache, logits = opened(root, layout), random_logits(layout)
    for shard in cache.prepare(1, pytest.fail)[0]:
        part = layout.shard(shard)
        cache.view(0).write(shard, stored(logits[part.start : part.stop], layout, 2.0))
    return cache, logits


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_what_was_written_comes_back_in_any_order(tmp_path: Path, layout: Layout) -> None:
    cache, logits = filled(tmp_path, layout)
    index = torch.randperm(SAMPLES)[:300]
    read = cache.logits(0, index)
    if not layout.top_k:
        assert torch.equal(read, logits[index].half().float())
        return
    top = logits[index].topk(3).indices
    assert torch.equal(read.gather(1, top), logits[index].gather(1, top).half().float())
    full, kept = (torch.softmax(x / 2.0, 1) for x in (logits[index], read))
    torch.testing.assert_close(kept.gather(1, top), full.gather(1, top), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_finished_view_is_a_safetensors_file(tmp_path: Path, layout: Layout) -> None:
    from safetensors.numpy import load_file

    if layout.classes > 1000:
        view = ViewFile(tmp_path, layout, KEY, 0)
        view.create()
    else:
        cache, _ = filled(tmp_path, layout)
        view = cache.view(0)
    tensors = load_file(view.path)
    assert {c.name: c.dtype for c in layout.columns} == {name: x.dtype for name, x in tensors.items()}
    assert all(len(x) == SAMPLES for x in tensors.values())


@pytest.mark.parametrize("place", ["row", "ledger"])
def test_a_damaged_shard_is_found_and_built_again(tmp_path: Path, place: str) -> None:
    cache, _ = filled(tmp_path)
    view = cache.view(0)
    path, at = (view.ledger, 40) if place == "ledger" else (view.path, view.size_bytes - 150 * 14)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    lines: list[str] = []
    assert opened(tmp_path).prepare(1, lines.append) == {0: [1]}
    assert len(lines) == 1
    assert "view-000.safetensors is damaged in shards 1: they are built anew" in lines[0]
    assert opened(tmp_path).prepare(1, pytest.fail) == {0: [1]}  # it stays absent until it is built


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_view_that_is_cut_or_of_another_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    cache, _ = filled(tmp_path)
    path = cache.view(0).path
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "cut" else data.replace(KEY.encode(), b"f" * 64))
    lines: list[str] = []
    assert opened(tmp_path).prepare(1, lines.append) == {0: [0, 1, 2]}
    assert "the view is built anew" in lines[0]
    assert path.stat().st_size == len(data)


def test_rows_that_were_not_signed_are_absent(tmp_path: Path) -> None:
    """As a process leaves them that is killed between the rows and the ledger."""
    cache, _ = filled(tmp_path)
    view = cache.view(0)
    slots = bytearray(view.ledger.read_bytes())
    slots[32:64] = bytes(32)
    view.ledger.write_bytes(slots)
    (cache.folder / ".view-001.safetensors.x.part").write_bytes(b"left over")
    assert opened(tmp_path).prepare(1, pytest.fail) == {0: [1]}
    assert not list(cache.folder.glob(".view-*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "has format version 2, this kdedge knows 1"),
        ({"made_of": {"teacher": "another"}}, "another made of"),
        ("{", "is damaged: not a JSON document"),
    ],
)
def test_a_manifest_of_another_kind_is_refused_with_the_cure(tmp_path: Path, change: Any, says: str) -> None:
    folder = opened(tmp_path).folder
    path = folder / MANIFEST
    if isinstance(change, str):
        path.write_text(change)
    else:
        write_json(path, {**read_json(path), **change})
    with pytest.raises(UserError, match=says) as refused:
        opened(tmp_path)
    cure = f"kdedge cache prune {folder.name} --cache-dir {tmp_path}"
    assert refused.value.cure is not None
    assert cure in refused.value.cure
    remove_caches([find_cache(tmp_path, folder.name)])
    opened(tmp_path)


# Ten views of a million samples of 1000 classes: 20 GB, all of them holes, in files of the real layout.
BIG = """
import os, sys, json
from pathlib import Path
import torch
from kdedge.teacher_cache.folder import CacheFolder
from kdedge.teacher_cache.layout import Layout

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

layout = Layout(1_000_000, 1000)
cache = CacheFolder(Path(sys.argv[1]), "0" * 64, {}, layout)
size_bytes = 0
for number in range(10):
    view = cache.view(number)
    with view.path.open("wb") as file:
        file.write(layout.header("0" * 64, number))
        file.truncate(view.size_bytes)
        if number == 9:  # a row that is no hole, the last of all
            file.seek(-2000, os.SEEK_END)
            file.write(torch.arange(1000).half().numpy().tobytes())
    view.ledger.write_bytes(b"x" * 32 * layout.shards)
    size_bytes += view.size_bytes
random = torch.Generator().manual_seed(0)
cache.logits(0, torch.arange(128))
before, most = resident_bytes(), 0
for batch in range(1000):
    cache.logits(batch % 10, torch.randint(1_000_000, (128,), generator=random))
    most = max(most, resident_bytes())
last = cache.logits(9, torch.tensor([999_999]))[0]
whole = bool((last == torch.arange(1000).half()).all())
print(json.dumps({"size": size_bytes, "growth": most - before, "last": whole}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here: memory is not measured")
def test_ten_million_views_are_addressed_without_loading_them(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size"] > 20e9
    assert found["last"]
    # 128,000 rows lie on at least as many pages, 524 MB.
    assert found["growth"] < 128e6


CLAIMANT = """
import sys
from pathlib import Path
from kdedge.teacher_cache.claims import Claims
claims = Claims(Path(sys.argv[1]))
claims.use()
print(claims.claim(0, 1), flush=True)
sys.stdin.read()
"""


def test_a_shard_that_another_process_is_at_is_left_to_it_until_it_dies(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    missing = cache.prepare(1, pytest.fail)[0]
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIMANT, str(cache.folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        mine = []
        for shard in cache.claimed(0, missing):
            cache.view(0).write(shard, [np.zeros((len(cache.layout.shard(shard)), 7), "<f2")])
            cache.claims.free(0, shard)
            mine.append(shard)
        assert mine == [0, 2]
        assert cache.absent(0, missing) == [1]
        cache.close()
        assert remove_caches(list_caches(tmp_path))[0] == []  # it is in use
    finally:
        other.kill()
        other.wait()
    again = opened(tmp_path)
    again.wait_for(0, 1)
    assert list(again.claimed(0, [1])) == [1]


def test_caches_are_listed_found_and_removed(tmp_path: Path) -> None:
    assert list_caches(tmp_path / "nothing") == []
    filled(tmp_path)[0].close()
    (tmp_path / "notes").mkdir()  # not ours
    (info,) = list_caches(tmp_path)
    assert info.complete
    assert info.views == (1.0,)
    assert info.size_bytes >= SAMPLES * 14
    assert find_cache(tmp_path, KEY[:3]) == info
    with pytest.raises(UserError, match="no teacher's cache of key 'ffff'"):
        find_cache(tmp_path, "ffff")
    assert older_than([info], 3600) == []
    assert older_than([info], -1) == [info]
    assert remove_caches([info]) == ([info], [])
    (tmp_path / f".kdedge-pruned-{KEY[:16]}.4711").mkdir()  # of a prune that was killed
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_folders_that_are_no_caches_stay_whatever_their_names(tmp_path: Path) -> None:
    filled(tmp_path)[0].close()
    theses = [tmp_path / name / "thesis.txt" for name in ("f" * 16, ".fedcba9876543210.7", "e" * 16)]
    for thesis in theses:
        thesis.parent.mkdir()
        thesis.write_text("mine")
    (tmp_path / ("e" * 16) / MANIFEST).write_text('{"name": "an extension of a browser"}')
    (tmp_path / ("a" * 16)).write_text("a file")
    caches = list_caches(tmp_path)
    assert [info.key for info in caches] == [KEY[:16]]
    with pytest.raises(UserError, match="no teacher's cache of key 'ff'"):
        find_cache(tmp_path, "ff")
    with pytest.raises(UserError, match="no teacher's cache of key 'a"):
        find_cache(tmp_path, "a" * 16)
    remove_caches(caches)
    remove_leftovers(tmp_path)
    assert all(thesis.read_text() == "mine" for thesis in theses)
    write_json(theses[0].with_name(MANIFEST), {"format_version": 1})
    thing = find_cache(tmp_path, "f" * 16)  # asked for by its whole name
    assert thing.unreadable == "this is no teacher's cache"
    remove_caches([thing])
    assert not theses[0].exists()


def test_a_cache_without_a_readable_manifest_is_known_by_its_views(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    cache.close()
    (cache.folder / MANIFEST).write_text("{")
    (info,) = list_caches(tmp_path)
    assert "is damaged" in (info.unreadable or "")
    assert remove_caches([info]) == ([info], [])


def test_many_logits_in_memory_are_said() -> None:
    assert memory_note(6, 50_000, 10) is None
    assert "6 views take 15.4 GB of memory" in (memory_note(6, 1_281_167, 1000) or "")


def test_ages() -> None:
    assert [parse_age_s(text) for text in ("36h", "30d", "2w")] == [129600, 2592000, 1209600]
    with pytest.raises(UserError, match="'30' is no age"):
        parse_age_s("30")
