"""The training loop, top to bottom: one function serves the teacher, the float student and QAT."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kdedge import quantize
from kdedge.augment import epoch_order
from kdedge.checkpoint import load_checkpoint, save_checkpoint, stoppable
from kdedge.errors import CheckError
from kdedge.evaluation import evaluate
from kdedge.examples import Examples, Preprocessing
from kdedge.feeds import Batch, Feed
from kdedge.losses import distillation_loss
from kdedge.optimization import autocast_dtype, image_size, learning_rate, make_optimizer
from kdedge.progress import JsonLog, Progress
from kdedge.recipe import Precision, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.teacher_cache import TeacherCache

CHECKPOINT_PERIOD_S = 60.0


@dataclass(frozen=True)
class Stage:
    """One pass of the loop.

    Attributes:
        name: ``teacher``, ``student`` or ``qat``; seeds and files are named by it.
        training: Its hyper-parameters.
        guides: Nets in eval mode whose mean logits are followed; none for plain cross-entropy.
        temperature: Of the softened logits.
        alpha: Weight of the guides.
        observer_fraction: For QAT: share of the steps after which the activation ranges are frozen; else None.
        guide_precision: Autocast of the guides' forward pass.
        cached_views: Views a sample that are cycled over the epochs, their guide logits replayed; 0 for none. Without
            guides there is nothing to replay, and every epoch has new views.
    """

    name: str
    training: TrainingRecipe
    guides: Sequence[nn.Module] = ()
    temperature: float = 1.0
    alpha: float = 0.0
    observer_fraction: float | None = None
    guide_precision: Precision = "auto"
    cached_views: int = 0


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share.

    Attributes:
        feed: Training samples.
        validation: Samples for the figure after each epoch.
        preprocessing: Their columns -> the nets' inputs.
        seed: Of the order.
        device: ``cpu`` or ``cuda``.
        folder: Where checkpoints go.
        log: JSON lines.
        progress: The live line.
    """

    feed: Feed
    validation: Examples
    preprocessing: Preprocessing
    seed: int
    device: str
    folder: Path
    log: JsonLog
    progress: Progress


@dataclass
class _Position:
    """Where the loop is; kept in the checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    reported: int = 0  # epochs whose figures stand in the log

    def add(self, loss: float, hits: int, count: int) -> None:
        """One step more: its mean loss, right arg-maxes and number of samples."""
        self.step += 1
        self.loss_sum += loss * count
        self.correct += hits
        self.seen += count


def train(net: nn.Module, stage: Stage, setting: Setting) -> float:
    """Train ``net`` in place, from the stage's checkpoint where there is one.

    The result depends on recipe, data and seed alone: order and views of an epoch come from counters, so that an
    interrupted run that goes on equals one that was never interrupted (bit for bit on the CPU).

    Args:
        net: On ``setting.device``; in QAT a prepared graph.
        stage: What to do.
        setting: With what.

    Returns:
        Seconds spent in this stage, interrupted parts included.

    Raises:
        KeyboardInterrupt: the user stopped; the checkpoint holds everything up to the last whole step.
        CheckError: the loss is not finite.
    """
    recipe = stage.training
    data = setting.feed
    batch = min(recipe.batch_size, len(data))
    per_epoch = len(data) // batch  # the rest of an epoch is left out: a tiny batch would upset batch norm
    total = recipe.epochs * per_epoch
    optimizer = make_optimizer(net, recipe)
    path = setting.folder / f"{stage.name}.pt"
    cache = TeacherCache(stage.cached_views, len(data)) if stage.cached_views and stage.guides else None
    at = _restore(path, net, optimizer, cache) or _Position()
    setting.progress.begin(stage.name, total, at.step)
    started = last_saved = time.monotonic()
    before_s = at.elapsed_s
    with stoppable() as interrupt, products_on_small_maps(net, setting.device):
        # Stopped between an epoch's last step and its figures, it still owes them.
        if at.step and at.step % per_epoch == 0 and at.reported < at.step // per_epoch:
            _end_epoch(net, stage, setting, at, at.step // per_epoch)
        while at.step < total:
            epoch, first = divmod(at.step, per_epoch)
            order = epoch_order(len(data), setting.seed, stage.name, epoch)
            view = epoch % stage.cached_views if cache is not None else epoch
            size = image_size(recipe, epoch, data.image_size)
            _set_mode(net, stage, at.step / total)
            if first == 0:
                at.loss_sum, at.correct, at.seen = 0.0, 0, 0
            indices = [order[number * batch : (number + 1) * batch] for number in range(first, per_epoch)]
            samples = data.batches(stage.name, view, size, indices, setting.device)
            for index, given in zip(indices, samples, strict=True):
                guide = _guide(stage, given, cache, view=view, index=index)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, at.step, total)
                if stage.observer_fraction is not None and at.step >= stage.observer_fraction * total:
                    _observe(net, False)
                loss, hits = train_step(net, optimizer, stage, given.inputs, given.labels, guide=guide)
                _require_finite(loss, stage.name, at.step, index)
                at.add(loss, hits, len(index))
                at.elapsed_s = before_s + time.monotonic() - started
                setting.progress.step(
                    at.step,
                    epoch=epoch,
                    loss=at.loss_sum / at.seen,
                    accuracy=at.correct / at.seen,
                    images_per_s=at.step * batch / at.elapsed_s,
                )
                if interrupt.asked or time.monotonic() - last_saved > CHECKPOINT_PERIOD_S:
                    _save(path, net, optimizer, at, cache)
                    last_saved = time.monotonic()
                if interrupt.asked:
                    setting.progress.end(stage.name)
                    raise KeyboardInterrupt
            _end_epoch(net, stage, setting, at, at.step // per_epoch)
    at.elapsed_s = before_s + time.monotonic() - started
    _set_mode(net, stage, 1.0)
    net.eval()
    setting.progress.end(stage.name)
    return at.elapsed_s


def _require_finite(loss: float, stage: str, step: int, index: Tensor) -> None:
    if not math.isfinite(loss):
        raise CheckError(
            f"the loss is {loss} at step {step} of stage '{stage}'",
            where=f"samples {index[:8].tolist()}...",
            cure="Lower the learning rate or set gradient_clip; the last checkpoint is intact",
        )


def _guide(stage: Stage, batch: Batch, cache: TeacherCache | None, *, view: int, index: Tensor) -> Tensor | None:
    """Guide logits float32 [n, ...] of these views, from the cache where it has them; None without guides."""
    if not stage.guides or stage.alpha == 0:
        return None
    device = batch.labels.device
    dtype = autocast_dtype(stage.guide_precision, device.type)

    def compute(part: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return guide_logits(stage.guides, batch.guide_rows(part))

    if cache is None:
        return compute(torch.arange(len(index)))
    return cache.logits(view, index, compute).to(device)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    guide: Tensor | None,
) -> tuple[float, int]:
    """One optimizer step.

    Args:
        net: In train mode.
        optimizer: Of its parameters.
        stage: Loss and precision.
        inputs: The net's; images channels_last for speed.
        labels: int64 [N].
        guide: Guide logits float32 [N, classes], or None.

    Returns:
        (loss in nats, number of right arg-maxes).
    """
    recipe = stage.training
    device = labels.device.type
    dtype = autocast_dtype(recipe.precision, device)
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        logits = net(*inputs)
    loss = distillation_loss(
        logits,
        labels,
        guide,
        temperature=stage.temperature,
        alpha=stage.alpha,
        label_smoothing=recipe.label_smoothing,
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.gradient_clip:
        nn.utils.clip_grad_norm_(net.parameters(), recipe.gradient_clip)
    optimizer.step()
    return float(loss.detach()), int((logits.detach().argmax(1) == labels).sum())


@torch.no_grad()
def guide_logits(guides: Sequence[nn.Module], inputs: tuple[Tensor, ...]) -> Tensor:
    """Mean logits float32 [N, ...] of at least one guide."""
    total: Tensor = guides[0](*inputs).float()
    for guide in guides[1:]:
        total = total + guide(*inputs).float()
    return total / len(guides)


def place(net: nn.Module, device: str) -> nn.Module:
    """Move a net to its device, in the layout that the fast convolutions of CPU and GPU want (see distill_step.py)."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _set_mode(net: nn.Module, stage: Stage, done: float) -> None:
    net.train()
    if stage.observer_fraction is not None:
        _observe(net, done < stage.observer_fraction)


def _observe(net: nn.Module, enabled: bool) -> None:
    """Let the activation ranges of a prepared graph move, or freeze them."""
    quantize.set_observers(cast(GraphModule, net), enabled)


def _end_epoch(net: nn.Module, stage: Stage, setting: Setting, at: _Position, epochs: int) -> None:
    """Score and log the last of ``epochs`` whole epochs."""
    at.reported = epochs
    if stage.observer_fraction is not None:
        _observe(net, False)  # observers move even in eval mode
    scores = evaluate(net, setting.validation, setting.preprocessing, device=setting.device)
    figure, value = scores.leading
    setting.log.write(
        "epoch",
        stage=stage.name,
        epoch=epochs,
        loss=at.loss_sum / at.seen,
        train_accuracy=at.correct / at.seen,
        **{f"validation_{figure}": value},
        elapsed_s=at.elapsed_s,
    )
    setting.progress.say(
        f"{stage.name:<8} epoch {epochs}/{stage.training.epochs}  loss {at.loss_sum / at.seen:.3f}  "
        f"train {at.correct / at.seen:.4f}  validation {value:.4f}  {at.elapsed_s:.0f} s"
    )


def _save(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, at: _Position, cache: TeacherCache | None
) -> None:
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "cache": None if cache is None else cache.state(),
        "position": dataclasses.asdict(at),
    }
    save_checkpoint(path, state)


def _restore(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, cache: TeacherCache | None
) -> _Position | None:
    state = load_checkpoint(path)
    if state is None:
        return None
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    if cache is not None:
        cache.restore(state["cache"])
    return _Position(**state["position"])
