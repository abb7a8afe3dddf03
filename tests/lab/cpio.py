"""Archives of files for the kernel's first file system (initramfs).

The format is newc: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

Files = Mapping[str, tuple[int, bytes]]
"""Path without a leading slash -> permissions, content."""


def archive(files: Files) -> bytes:
    """The files with the folders that they lie in."""
    parts: list[bytes] = []
    seen: set[str] = set()
    for name, (mode, content) in files.items():
        steps = name.split("/")[:-1]
        for folder in ("/".join(steps[: i + 1]) for i in range(len(steps))):
            if folder not in seen:
                seen.add(folder)
                parts.append(_entry(len(parts) + 1, folder, stat.S_IFDIR | 0o755, b""))
        parts.append(_entry(len(parts) + 1, name, stat.S_IFREG | mode, content))
    parts.append(_entry(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
