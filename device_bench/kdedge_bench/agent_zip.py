"""The agent as one file: a zipapp whose bytes depend on nothing but the agent's source."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_MAIN = b'import runpy\n\nrunpy.run_module("kdedge_agent", run_name="__main__", alter_sys=True)\n'
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class AgentZip:
    """The agent's file: its bytes and their hash, by which it is named on the device."""

    data: bytes
    sha256: str

    @property
    def file_name(self) -> str:
        """``agent-<sha256>.pyz``."""
        return f"agent-{self.sha256}.pyz"


@lru_cache(maxsize=1)
def agent_zip() -> AgentZip:
    """The agent of this installation.

    Entries are sorted, stored (compressors differ between zlib versions) and stamped with one fixed time:
    two hosts with the same source make the same file, so that it is sent to a device once.
    """
    import kdedge_agent

    return build(Path(kdedge_agent.__file__).parent)


def build(package: Path) -> AgentZip:
    """A zipapp of the agent's package; ``package`` is its folder."""
    buffer = io.BytesIO(b"")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", _MAIN)
        for source in sorted(package.rglob("*.py")):
            _add(archive, f"kdedge_agent/{source.relative_to(package).as_posix()}", source.read_bytes())
    data = buffer.getvalue()
    return AgentZip(data=data, sha256=hashlib.sha256(data).hexdigest())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=_EPOCH)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3  # Unix, whatever the host is
    archive.writestr(entry, data)
