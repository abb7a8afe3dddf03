"""Building a cache: the teacher sees every view of every sample once, shard by shard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdedge.bundle import library_versions
from kdedge.errors import CheckError, ModelError
from kdedge.losses import cross_entropy, top_logits
from kdedge.progress import Progress
from kdedge.ranks import Ranks
from kdedge.recipe import DistillRecipe, Precision
from kdedge.teacher_cache.folder import CacheFolder
from kdedge.teacher_cache.key import STAGE, key_of, layout_of, made_of
from kdedge.teacher_cache.layout import BATCH_SAMPLES, Layout
from kdedge.training.feeds import Batch, Feed
from kdedge.training.loop import guide_logits
from kdedge.training.material import Material
from kdedge.training.objective import share_right
from kdedge.training.optimization import autocast_dtype


@dataclass(frozen=True)
class Built:
    """What building did.

    Attributes:
        views: That are there now, and maybe more.
        found_shards: That were there.
        built_shards: By this process.
        time_s: Spent on it, checking the found ones included.
    """

    views: int
    found_shards: int
    built_shards: int
    time_s: float

    def by_all(self, ranks: Ranks) -> Built:
        """The same of all ranks, who built it together; the first to look found what was there before them."""
        mine = torch.tensor([[self.found_shards, self.built_shards, self.time_s]], dtype=torch.float64)
        found, made, time_s = ranks.rows(mine).unbind(1)
        return Built(self.views, int(found.min()), int(made.sum()), float(time_s.max()))


def open_cache(
    recipe: DistillRecipe, material: Material, teacher: nn.Module, root: Path, device: str, *, name: str = ""
) -> CacheFolder:
    """The cache of this teacher's logits, begun where there is none.

    Args:
        recipe: Whose views.
        material: Of the recipe.
        teacher: On ``device``, in eval mode.
        root: Of all caches.
        device: ``cpu`` or ``cuda``.
        name: Of the teacher, for `kdedge cache info`.

    Raises:
        UserError: see ``CacheFolder``.
    """
    layout = layout_of(recipe.distillation, len(material.feed), len(material.splits.labels))
    parts = made_of(recipe, material, teacher, layout, device)
    about = {
        "recipe": recipe.name,
        "teacher": name or recipe.teacher.model,
        "data": material.splits.source,
        "device": device,
        "versions": library_versions(),
    }
    return CacheFolder(root, key_of(parts), parts, layout, about)


def build(
    cache: CacheFolder, views: int, recipe: DistillRecipe, feed: Feed, teacher: nn.Module, device: str, say: Progress
) -> Built:
    """Build what is missing of the first ``views`` views. May be killed at any moment: the next call goes on.

    Several processes may build a cache at once, each the shards that no other is at.

    Args:
        cache: Of ``open_cache``.
        views: How many.
        recipe: Of the run: precision and, for top logits, temperature.
        feed: Of the run.
        teacher: On ``device``, in eval mode.
        device: ``cpu`` or ``cuda``.
        say: Shows progress, and warnings about shards that are damaged.

    Raises:
        UserError: the disk is full.
        CheckError: the teacher's logits are not finite.
        ModelError: they are not of the data's classes.
    """
    started = time.monotonic()
    missing = cache.prepare(views, say.say)
    absent = sum(map(len, missing.values()))
    found = views * cache.layout.shards - absent
    work = _Work(cache, recipe, feed, teacher, device, say, found)
    if not absent:
        say.say(f"cache    all there: {cache.folder}")
    else:
        size_mb = views * cache.view(0).size_bytes / 1e6
        say.say(f"cache    {absent} of {found + absent} shards to build: {cache.folder}, {size_mb:.1f} MB")
        say.begin("cache", found + absent, found)
        try:
            for view, shards in missing.items():
                left = shards
                while left:
                    work.build(view, left)
                    left = cache.absent(view, left)
                    if left:
                        cache.wait_for(view, left[0])
        finally:
            say.end("cache")
    return Built(views, found, work.built, time.monotonic() - started)


class _Work:
    """One process at work on a cache."""

    def __init__(
        self,
        cache: CacheFolder,
        recipe: DistillRecipe,
        feed: Feed,
        teacher: nn.Module,
        device: str,
        say: Progress,
        found: int,
    ) -> None:
        self.cache, self.feed, self.teacher, self.device, self.say = cache, feed, teacher, device, say
        self.precision: Precision = recipe.distillation.teacher_precision
        self.temperature = recipe.distillation.temperature
        self.built = 0
        self._found = found
        self._seen, self._loss_sum, self._right = 0, 0.0, 0.0
        self._begun = time.monotonic()

    def build(self, view: int, shards: list[int]) -> None:
        """Those of ``shards`` that no other process is at."""
        layout, file = self.cache.layout, self.cache.view(view)
        ahead: deque[tuple[int, Tensor]] = deque()  # what the feed has asked for and not yet given

        def indices() -> Iterator[Tensor]:
            for shard in self.cache.claimed(view, shards):
                samples = layout.shard(shard)
                for index in torch.split(torch.arange(samples.start, samples.stop), BATCH_SAMPLES):
                    ahead.append((shard, index))
                    yield index

        rows: list[Tensor] = []
        size = self.feed.image_size
        with closing(self.feed.batches(STAGE, view, size, indices(), self.device, guided=True)) as batches:
            for batch in batches:
                shard, index = ahead.popleft()
                rows.append(self._logits(batch, view, index))
                if int(index[-1]) + 1 == layout.shard(shard).stop:
                    file.write(shard, stored(torch.cat(rows), layout, self.temperature))
                    self.cache.claims.free(view, shard)
                    rows = []
                    self._report(view)

    def _logits(self, batch: Batch, view: int, index: Tensor) -> Tensor:
        """Float32 [n, classes] on the CPU."""
        given = batch.shortened() if getattr(self.teacher, "any_length", False) else batch
        dtype = autocast_dtype(self.precision, self.device)
        with torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = guide_logits((self.teacher,), given.guide_inputs)
        wanted = (len(index), self.cache.layout.classes)
        if tuple(logits.shape) != wanted:
            raise ModelError(f"the teacher returns logits of shape {tuple(logits.shape)}, not {wanted}")
        if not bool(torch.isfinite(logits.half()).all()):
            raise CheckError(
                "the teacher's logits are not finite in float16",
                where=f"view {view}, samples {int(index[0])} to {int(index[-1])}",
                cure="Give a teacher whose logits are, or set distillation.cached_views=0",
            )
        labels = batch.labels
        self._loss_sum += float(cross_entropy(logits, labels)) * len(index)
        self._right += share_right(logits, labels) * len(index)
        self._seen += len(index)
        return logits.float().cpu()

    def _report(self, view: int) -> None:
        self.built += 1
        self.say.step(
            self._found + self.built,
            epoch=view,
            loss=self._loss_sum / self._seen,
            accuracy=self._right / self._seen,
            samples_per_s=self._seen / (time.monotonic() - self._begun),
        )


def stored(logits: Tensor, layout: Layout, temperature: float) -> list[np.ndarray]:
    """Logits float32 [n, classes] as the rows of a shard."""
    if not layout.top_k:
        return [logits.half().numpy()]
    classes, values, rest = top_logits(logits, layout.top_k, temperature)
    numbers = classes.numpy().astype(layout.columns[0].dtype)
    return [numbers, values.half().numpy(), rest.half().numpy()]
