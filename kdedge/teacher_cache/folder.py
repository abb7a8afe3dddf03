"""One cache: a folder named by its key, with a manifest, and a file and a ledger for each view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import KdedgeError, UserError
from kdedge.files import read_json, write_json
from kdedge.teacher_cache.claims import Claims
from kdedge.teacher_cache.layout import Layout
from kdedge.teacher_cache.view_file import Rows, ViewFile, cannot_write

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
MANIFEST, LOCK = "manifest.json", "lock"
KEY_LETTERS = 16


class CacheFolder:
    """A cache that is there, or is begun.

    Args:
        root: Of all caches.
        key: SHA-256 of ``made_of``, hexadecimal; its first letters name the folder.
        made_of: All that decides the logits, in plain words (``key.made_of``).
        layout: Sizes.
        about: What a reader of the manifest wants to know beside that.

    Raises:
        UserError: a folder of that name holds a cache of another format, or something else; or it cannot be written.
    """

    def __init__(
        self, root: Path, key: str, made_of: dict[str, Any], layout: Layout, about: dict[str, Any] | None = None
    ) -> None:
        self.folder = root / key[:KEY_LETTERS]
        self.key, self.layout = key, layout
        path = self.folder / MANIFEST
        told = {"format_version": FORMAT_VERSION, "key": key, "made_of": made_of, "layout": layout.to_dict()}
        if not path.exists():
            try:
                write_json(path, {**told, "created": time.time(), **(about or {})})
            except UserError as error:
                raise cannot_write(path, error.what.removeprefix("cannot write: ")) from error
        manifest = read_manifest(self.folder)
        for name, value in told.items():
            if manifest.get(name) != value:
                raise UserError(
                    f"the manifest of this teacher's cache says another {name.replace('_', ' ')} than its key",
                    where=path,
                    cure=_removal(self.folder),
                )
        with suppress(OSError):
            os.utime(path)  # "last used"; what the manifest says never changes
        self.claims = Claims(self.folder / LOCK)
        self.claims.use()
        self._rows: dict[int, Rows] = {}

    def view(self, number: int) -> ViewFile:
        """The file of a view."""
        return ViewFile(self.folder, self.layout, self.key, number)

    def prepare(self, views: int, warn: Callable[[str], None]) -> dict[int, list[int]]:
        """Make the files of so many views where they are missing, and check every shard that is there by its hash.

        Args:
            views: How many.
            warn: Gets a line for each view that is damaged.

        Returns:
            View -> its shards that are absent.

        Raises:
            UserError: the disk has too little space.
        """
        missing = {}
        for number in range(views):
            view = self.view(number)
            self.claims.creation()
            try:
                for left in self.folder.glob(".view-*.part"):  # by a process that was killed while it made files
                    left.unlink(missing_ok=True)
                if not view.exists():
                    if view.path.exists():
                        warn(f"warning: {view.path} is damaged: the view is built anew")
                    view.create()
                bad = view.damaged()
                for shard in bad:
                    view.forget(shard)
            finally:
                self.claims.created()
            if bad:
                numbers = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
                warn(f"warning: {view.path} is damaged in shards {numbers}: they are built anew")
            missing[number] = [shard for shard, signed in enumerate(view.signed()) if not signed]
        return missing

    def claimed(self, view: int, shards: list[int]) -> Iterator[int]:
        """Those of ``shards`` that are absent and that no other process is at, each claimed; free it when built."""
        file = self.view(view)
        for shard in shards:
            if self.claims.claim(view, shard):
                if file.signed()[shard]:
                    self.claims.free(view, shard)
                else:
                    yield shard

    def absent(self, view: int, shards: list[int]) -> list[int]:
        """Those of ``shards`` that nobody has built yet."""
        signed = self.view(view).signed()
        return [shard for shard in shards if not signed[shard]]

    def wait_for(self, view: int, shard: int) -> None:
        """Until no other process is at a shard, because it built it or died; hold no claim meanwhile."""
        self.claims.claim(view, shard, wait=True)
        self.claims.free(view, shard)

    def logits(self, view: int, index: Tensor, compute: object = None) -> Tensor:
        """Logits float32 [n, classes] of one view of the samples at ``index``, as they are stored.

        Args:
            view: Its number; it must be built.
            index: int64 [n], positions in the training set.
            compute: Not called: everything is there.
        """
        import torch

        from kdedge.losses import marginal_smoothing

        del compute
        if view not in self._rows:
            self._rows[view] = self.view(view).rows()
        rows = [torch.from_numpy(column) for column in self._rows[view].take(index.numpy())]
        if not self.layout.top_k:
            return rows[0].float()
        classes, logits, rest = rows
        return marginal_smoothing(classes.long(), logits.float(), rest.float(), self.layout.classes)

    def close(self) -> None:
        """Free the locks."""
        self._rows.clear()
        self.claims.close()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache.

    Raises:
        UserError: damaged, or of another format version.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except KdedgeError as error:
        raise UserError(f"this teacher's cache is damaged: {error.what}", where=path, cure=_removal(folder)) from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"this teacher's cache has format version {version}, this kdedge knows {FORMAT_VERSION}",
            where=path,
            cure=_removal(folder),
        )
    return dict(manifest)


def _removal(folder: Path) -> str:
    return f"Remove it with: kdedge cache prune {folder.name} --cache-dir {folder.parent}; it is then built anew"
