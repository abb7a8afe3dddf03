from __future__ import annotations

import mmap
import shutil
import sys
from pathlib import Path

import pytest

from kdedge_agent import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the real /proc, which only Linux has")
STATUS = "Name:\tpython\nVmHWM:\t   20000 kB\nVmRSS:\t   15000 kB\nThreads:\t2\n"
ROLLUP = "00400000-7fff0000 ---p 00000000 00:00 0   [rollup]\nRss: 15000 kB\nPss: 9000 kB\nPrivate_Clean: 1000 kB\n"
ROLLUP += "Private_Dirty: 5000 kB\n"


def tree(root: Path, *, clearable: bool = True) -> Path:
    folder = root / "proc" / "self"
    folder.mkdir(parents=True)
    (folder / "status").write_text(STATUS)
    (folder / "smaps_rollup").write_text(ROLLUP)
    if clearable:
        (folder / "clear_refs").write_text("")
    return root


def test_reads_bytes_from_kib(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert memory.status_bytes("VmHWM", root) == (20_000 * 1024, None)
    shares, reason = memory.rollup(root)
    assert reason is None
    assert shares == {"pss": 9000 * 1024, "private": 6000 * 1024, "private_dirty": 5000 * 1024}


def test_the_peak_is_set_back_by_writing_5(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert memory.reset_peak(root) is None
    assert (root / "proc/self/clear_refs").read_text() == "5"


def test_without_proc_everything_is_none_with_a_reason(tmp_path: Path) -> None:
    phases = memory.PhaseMemory(tmp_path)
    for phase in memory.PHASES:
        phases.end(phase)
    result, reasons = phases.result()
    assert set(result.values()) == {None}
    assert set(reasons) == {f"memory_bytes.{key}" for key in result}
    assert "no Linux /proc" in reasons["memory_bytes.peak"]
    shutil.rmtree(tmp_path / "proc", ignore_errors=True)


def test_where_the_mark_cannot_be_set_back_only_the_first_phase_has_a_peak(tmp_path: Path) -> None:
    phases = memory.PhaseMemory(tree(tmp_path, clearable=False))
    for phase in memory.PHASES:
        phases.end(phase)
    result, reasons = phases.result()
    assert result["start"] == result["peak"] == 20_000 * 1024
    assert result["load"] is None
    assert "cannot be set back" in reasons["memory_bytes.load"]


def test_a_phase_that_was_not_reached_is_said(tmp_path: Path) -> None:
    phases = memory.PhaseMemory(tree(tmp_path))
    phases.end("start")
    result, reasons = phases.result()
    assert result["steady"] is None
    assert "did not come" in reasons["memory_bytes.steady"]


@linux
def test_what_a_jetsons_gpu_took_of_the_shared_memory(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert "gpu_shared" not in memory.PhaseMemory(root).result()[0], "no such line elsewhere"
    meminfo = root / "proc/meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nNvMapMemUsed: 65536 kB\n")
    phases = memory.PhaseMemory(root)
    meminfo.write_text("MemTotal: 8000000 kB\nNvMapMemUsed: 165536 kB\n")
    assert phases.result()[0]["gpu_shared"] == 100_000 * 1024


def test_a_phase_that_takes_memory_shows_it_and_the_next_does_not() -> None:
    """The real kernel: 64 MiB that one phase touches are in that phase's peak, and gone from the next one's."""
    if memory.reset_peak() is not None:
        pytest.skip(f"this kernel does not let a process set its peak back: {memory.reset_peak()}")
    phases = memory.PhaseMemory()
    phases.end("start")
    # Pages of its own: a large process's heap may have as much to spare, taken before and kept afterwards.
    with mmap.mmap(-1, 64 << 20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        phases.end("load")
    phases.end("first")
    phases.end("steady")
    result, _ = phases.result()
    start, load, steady = result["start"], result["load"], result["steady"]
    assert start is not None
    assert load is not None
    assert steady is not None
    assert load - steady > 50 << 20
    assert result["peak"] == max(v for v in (start, load, steady, result["first"]) if v is not None)
    assert result["pss"]


def test_the_largest_of_several_processes() -> None:
    found = memory.largest([{"peak": 5, "load": None, "pss": 2}, {"peak": 7, "load": None, "pss": None}])
    assert found == {"peak": 7, "load": None, "pss": 2}
