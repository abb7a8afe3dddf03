"""All caches of a user: where they lie, what they are, and how they are removed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import KdedgeError, UserError
from kdedge.files import read_json
from kdedge.teacher_cache.claims import Claims
from kdedge.teacher_cache.folder import KEY_LETTERS, LOCK, MANIFEST, read_manifest
from kdedge.teacher_cache.layout import Layout
from kdedge.teacher_cache.view_file import ViewFile

_NAME = re.compile(f"[0-9a-f]{{{KEY_LETTERS}}}")
_DOOMED = re.compile(rf"\.kdedge-pruned-{_NAME.pattern}\.\d+")
_UNIT_S = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def cache_root(given: Path | None) -> Path:
    """Where the caches lie: ``--cache-dir``, else ``KDEDGE_CACHE_DIR``, else the user's cache folder.

    Not in the folder of a run, since a cache serves the runs after it.
    """
    override = os.environ.get("KDEDGE_CACHE_DIR")
    if given is not None or override:
        return Path(given or override or "").expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("kdedge", appauthor=False)) / "teacher"


@dataclass(frozen=True)
class CacheInfo:
    """What there is to say of a cache.

    Attributes:
        key: Name of its folder.
        path: Of its folder.
        size_bytes: That it takes from the disk.
        last_used: Seconds since 1970, UTC.
        views: Of each view, the share of its shards that are built, in [0, 1].
        manifest: See ``folder.CacheFolder``; None where it cannot be read.
        unreadable: Why it cannot.
    """

    key: str
    path: Path
    size_bytes: int
    last_used: float
    views: tuple[float, ...]
    manifest: dict[str, Any] | None
    unreadable: str | None

    @property
    def complete(self) -> bool:
        """Whether every view that was begun is whole."""
        return bool(self.views) and min(self.views) == 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "path": str(self.path), "views": list(self.views), "complete": self.complete}


def list_caches(root: Path) -> list[CacheInfo]:
    """All caches under a root, the last used one first; what else has such a name is none."""
    folders = [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(map(_info, filter(_is_cache, folders)), key=lambda info: -info.last_used)


def _is_cache(folder: Path) -> bool:
    """Whether this is a cache by what it holds; a damaged one has views."""
    try:
        manifest = read_json(folder / MANIFEST)
    except KdedgeError:
        manifest = None
    if isinstance(manifest, dict) and "format_version" in manifest and str(manifest.get("key")).startswith(folder.name):
        return True
    return (folder / LOCK).is_file() and any(folder.glob("view-*.safetensors"))


def find_cache(root: Path, key: str) -> CacheInfo:
    """The cache whose key begins with ``key``, or the folder whose whole name it is, whatever that holds.

    Raises:
        UserError: there is none, or more than one.
    """
    if _NAME.fullmatch(key.lower()) and (root / key.lower()).is_dir():
        return _info(root / key.lower())
    found = [info for info in list_caches(root) if info.key.startswith(key.lower())]
    if len(found) != 1:
        says = "no teacher's cache" if not found else f"{len(found)} teacher's caches"
        raise UserError(f"{says} of key '{key}'", where=root, cure="`kdedge cache info` lists them")
    return found[0]


def parse_age_s(text: str) -> float:
    """Seconds of an age such as ``36h``, ``30d`` or ``2w``.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if match is None:
        raise UserError(f"--older-than: '{text}' is no age", cure="Give hours, days or weeks, such as 36h, 30d, 2w")
    return float(match[1]) * _UNIT_S[match[2]]


def remove_caches(chosen: Sequence[CacheInfo]) -> tuple[list[CacheInfo], list[CacheInfo]]:
    """Remove caches that no running process uses: (removed, those in use)."""
    removed, used = [], []
    for info in chosen:
        claims = Claims(info.path / LOCK)
        if not claims.nobody_uses():
            used.append(info)
            claims.close()
            continue
        # Gone in one step, so that whoever comes now builds anew and never finds a half.
        doomed = info.path.with_name(f".kdedge-pruned-{info.key}.{os.getpid()}")
        try:
            info.path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise UserError(f"cannot remove the cache: {error.strerror or error}", where=info.path) from error
        finally:
            claims.close()
        removed.append(info)
    return removed, used


def remove_leftovers(root: Path) -> None:
    """Remove what a prune that was killed has left."""
    for path in root.glob(".*") if root.is_dir() else ():
        if _DOOMED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def older_than(caches: Sequence[CacheInfo], age_s: float) -> list[CacheInfo]:
    """Those that were last used so long ago."""
    return [info for info in caches if info.last_used < time.time() - age_s]


def _info(folder: Path) -> CacheInfo:
    path = folder / MANIFEST
    files = [file.stat() for file in folder.iterdir() if file.is_file()]
    size_bytes = sum(stat.st_blocks * 512 for stat in files)
    last_used = path.stat().st_mtime if path.exists() else folder.stat().st_mtime
    try:
        manifest = read_manifest(folder)
        views = _views(folder, manifest)
    except KdedgeError as error:
        return CacheInfo(folder.name, folder, size_bytes, last_used, (), None, error.what)
    except (KeyError, TypeError, ValueError):
        return CacheInfo(folder.name, folder, size_bytes, last_used, (), None, "this is no teacher's cache")
    return CacheInfo(folder.name, folder, size_bytes, last_used, views, manifest, None)


def _views(folder: Path, manifest: dict[str, Any]) -> tuple[float, ...]:
    sizes = manifest["layout"]
    layout = Layout(int(sizes["samples"]), int(sizes["classes"]), int(sizes["top_k"]))
    shares = []
    for number in range(len(list(folder.glob("view-*.safetensors")))):
        view = ViewFile(folder, layout, manifest["key"], number)
        shares.append(sum(view.signed()) / layout.shards if view.exists() else 0.0)
    return tuple(shares)
