"""A limit on the memory of a process and of all that it starts, by the kernel's control groups of either version."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(pid: int, limit_bytes: int) -> Iterator[None]:
    """In the block, the process and what it starts from now on have so much memory; beyond it the kernel kills one.

    A skip where this machine does not let us.
    """
    version_1 = (_ROOT / "memory").is_dir()
    group = (_ROOT / "memory" if version_1 else _ROOT) / f"kdedge-test-{os.getpid()}-{pid}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"NOT TESTED: a kernel out of memory needs a control group, and none can be made here: {error}")
    try:
        yield
    finally:
        parent = group.parent / "cgroup.procs"
        for _ in range(50):
            with suppress(OSError):
                for member in (group / "cgroup.procs").read_text().split():
                    parent.write_text(member)
                group.rmdir()
                break
            time.sleep(0.1)
