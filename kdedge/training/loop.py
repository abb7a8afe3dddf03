"""The training loop, top to bottom: one function serves the teacher, the float student and QAT."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from kdedge.dropout import quick_dropout
from kdedge.errors import RecipeError
from kdedge.ranks import Ranks
from kdedge.small_maps import products_on_small_maps
from kdedge.teacher_cache.memory import ViewLogits
from kdedge.training.checkpoint import stoppable
from kdedge.training.feeds import Batch
from kdedge.training.finite import FiniteSteps
from kdedge.training.objective import Outputs, States, share_right
from kdedge.training.optimization import autocast_dtype, image_size, learning_rate
from kdedge.training.order import epoch_batches
from kdedge.training.stage import Setting, Stage
from kdedge.training.stage_run import StageRun, freezes_at, observe, set_mode


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
        RankError: one of the other ranks ended.
    """
    recipe = stage.training
    data, ranks = setting.feed, setting.ranks
    batch = shareable(recipe.batch_size, len(data), ranks, stage.name)
    per_epoch = len(data) // batch  # the rest of an epoch is left out: a tiny batch would upset batch norm
    total = recipe.epochs * per_epoch
    run = StageRun(net, stage, setting)
    run.restore()
    at, cache, optimizer = run.at, run.cache, run.optimizer
    compute = ranks.parallel(Computation(net, stage), grows=run.depth is not None)
    any_length = all(getattr(each, "any_length", False) for each in (net, *stage.guides))
    setting.progress.begin(stage.name, total, at.step)
    started = time.monotonic()
    before_s = at.elapsed_s
    with (
        stoppable() as interrupt,
        products_on_small_maps(net, setting.device),
        quick_dropout(net, setting.device),
        ranks.whole_batch_norm(net),
    ):
        # Stopped between an epoch's last step and its figures, it still owes them.
        if at.step and at.step % per_epoch == 0 and at.reported < at.step // per_epoch:
            run.end_epoch(at.step // per_epoch)
        while at.step < total and not at.stopped:
            epoch, first = divmod(at.step, per_epoch)
            guided = bool(stage.guides) and stage.objective.needs_guides
            view = epoch % stage.cached_views if cache is not None else epoch
            size = image_size(recipe, epoch, data.image_size)
            run.begin_epoch(epoch, first)
            set_mode(net, stage, at.step, total)
            lengths = data.lengths(stage.name, view, guided=guided)
            order = epoch_batches(len(data), setting.seed, stage.name, epoch, batch=batch, lengths=lengths)[first:]
            indices = [ranks.share(index) for index in order]
            samples = data.batches(stage.name, view, size, indices, setting.device, guided=guided)
            with closing(samples):
                for all_of_it, index, padded in zip(order, indices, samples, strict=True):
                    given = padded.shortened() if any_length else padded
                    guide = _guide(stage, given, cache, view=view, index=index)
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(recipe, at.step, total)
                    if stage.observer_fraction is not None and at.step >= freezes_at(stage.observer_fraction, total):
                        observe(net, False)
                    mine = train_step(net, optimizer, stage, given, guide, compute, run.steps)
                    loss, right = ranks.means(*mine)
                    run.take_in(loss, right, all_of_it)
                    at.elapsed_s = before_s + time.monotonic() - started
                    setting.progress.step(
                        at.step,
                        epoch=epoch,
                        loss=at.loss,
                        accuracy=at.accuracy,
                        samples_per_s=at.step * batch / at.elapsed_s,
                    )
                    run.save_or_stop(asked=ranks.any(interrupt.asked))
            run.end_epoch(at.step // per_epoch)
            run.save_or_stop(asked=ranks.any(interrupt.asked))
    at.elapsed_s = before_s + time.monotonic() - started
    set_mode(net, stage, total, total)
    run.choose_weights()
    net.eval()
    setting.progress.end(stage.name)
    return at.elapsed_s


def shareable(wanted: int, samples: int, ranks: Ranks, stage: str) -> int:
    """The size of a batch, of no more samples than there are, if every rank can have as many as the others.

    Raises:
        RecipeError: they cannot.
    """
    batch = min(wanted, samples)
    if batch % ranks.count:
        fitting = batch // ranks.count * ranks.count
        raise RecipeError(
            f"a batch of {batch} samples cannot be shared out to {ranks.count} processes",
            where=f"{stage}.training.batch_size",
            cure=f"Set it to {fitting or ranks.count}, or start another number of processes",
        )
    return batch


def _guide(stage: Stage, batch: Batch, cache: ViewLogits | None, *, view: int, index: Tensor) -> States | None:
    """What the guides make of these views, logits from the cache where it has them; None without guides."""
    if not stage.guides or not stage.objective.needs_guides:
        return None
    device = batch.labels.device
    dtype = autocast_dtype(stage.guide_precision, device.type)

    def compute(part: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return guide_logits(stage.guides, batch.guide_rows(part))

    if stage.objective.needs_states:
        (guide,) = stage.guides
        with torch.no_grad(), torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return with_states(guide, batch.guide_inputs)
    if cache is None:
        return Outputs(compute(torch.arange(len(index))))
    return Outputs(cache.logits(view, index, compute).to(device))


class Computation(nn.Module):
    """From a batch to its loss, as one module: what is trained in it, net and projection, is a submodule."""

    def __init__(self, net: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.net, self.projection = net, stage.projection
        self._stage = stage

    def forward(self, batch: Batch, guide: States | None) -> tuple[Tensor, Tensor]:
        """(loss, scalar in nats; logits as the net returns them, without a gradient)."""
        stage, device = self._stage, batch.labels.device.type
        dtype = autocast_dtype(stage.training.precision, device)
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            states = stage.objective.needs_states and guide is not None
            made = with_states(self.net, batch.inputs) if states else Outputs(self.net(*batch.inputs))
        return stage.objective(made, batch.labels, guide, batch.mask, self.projection), made.logits.detach()


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    batch: Batch,
    guide: States | None,
    compute: nn.Module | None = None,
    steps: FiniteSteps | None = None,
) -> tuple[float, float]:
    """One optimizer step.

    Args:
        net: In train mode.
        optimizer: Of its parameters.
        stage: Loss and precision.
        batch: Samples; images channels_last for speed.
        guide: What the guides made of them, or None.
        compute: ``Computation`` of net and stage, or what ``Ranks.parallel`` makes of it.
        steps: Says whether the weights may change.

    Returns:
        (loss in nats, share of right arg-maxes); of this rank's samples.
    """
    if steps is not None:
        steps.begin()
    compute = compute or Computation(net, stage)
    loss, logits = compute(batch, guide)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [weight.grad for weight in compute.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if stage.training.gradient_clip:
        nn.utils.clip_grads_with_norm_(compute.parameters(), stage.training.gradient_clip, norm)
    value = float(loss.detach())
    if steps is None or steps.may_step(value, norm):
        optimizer.step()
    return value, share_right(logits, batch.labels)


def with_states(net: nn.Module, inputs: tuple[Tensor, ...]) -> States:
    """A text net's logits with its hidden states and attention probabilities."""
    states: States = net.forward_with_states(*inputs)  # type: ignore[operator]
    return states


@torch.no_grad()
def guide_logits(guides: Sequence[nn.Module], inputs: tuple[Tensor, ...]) -> Tensor:
    """Mean logits float32 [N, ...] of at least one guide."""
    return torch.stack([_logits_of(guide, inputs) for guide in guides]).mean(0)


def _logits_of(guide: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with products_on_small_maps(guide, inputs[0].device.type):
        logits: Tensor = guide(*inputs)
    return logits.float()


def place(net: nn.Module, device: str) -> nn.Module:
    """Move a net to its device, in the layout that the fast convolutions of CPU and GPU want (see distill_step.py)."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
