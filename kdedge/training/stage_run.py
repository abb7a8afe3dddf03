"""Where a stage of training stands: what its checkpoint holds, and the figures after each epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kdedge import quantize
from kdedge.evaluation import evaluate
from kdedge.teacher_cache.memory import TeacherCache, ViewLogits
from kdedge.training.averaging import WeightAverage
from kdedge.training.checkpoint import load_checkpoint, save_checkpoint
from kdedge.training.depth import Depth
from kdedge.training.finite import MOST_IN_A_ROW, FiniteSteps
from kdedge.training.optimization import make_optimizer
from kdedge.training.patience import Patience
from kdedge.training.stage import Setting, Stage

CHECKPOINT_PERIOD_S = 60.0


@dataclass
class Position:
    """Where the loop is; kept in the checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    right: float = 0.0
    seen: int = 0
    reported: int = 0  # epochs whose figures stand in the log
    stopped: bool = False  # patience ran out

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.loss_sum, self.right, self.seen = 0.0, 0.0, 0

    @property
    def loss(self) -> float:
        """Mean of the epoch so far."""
        return self.loss_sum / self.seen if self.seen else math.nan

    @property
    def accuracy(self) -> float:
        """Share of right arg-maxes of the epoch so far."""
        return self.right / self.seen if self.seen else math.nan

    def add(self, loss: float, right: float, count: int) -> None:
        """The figures of one step: its mean loss, share of right arg-maxes and number of samples."""
        self.loss_sum += loss * count
        self.right += right * count
        self.seen += count


class StageRun:
    """All that a stage's checkpoint holds, and the figures after each epoch."""

    def __init__(self, net: nn.Module, stage: Stage, setting: Setting) -> None:
        recipe = stage.training
        self.net, self.stage, self.setting = net, stage, setting
        self.path = setting.folder / f"{stage.name}.pt"
        self.trained = nn.ModuleList([net] if stage.projection is None else [net, stage.projection])
        self.optimizer = make_optimizer(self.trained, recipe)
        in_memory = bool(stage.cached_views and stage.guides) and stage.stored is None
        views = min(stage.cached_views, recipe.epochs)
        self._memory = TeacherCache(views, len(setting.feed)) if in_memory else None
        self.cache: ViewLogits | None = stage.stored or self._memory
        self.average = WeightAverage(net, recipe.ema_decay) if recipe.ema_decay else None
        self.patience = Patience(recipe.patience or None)
        self.depth = Depth(net, recipe.start_depth) if recipe.start_depth < 1 else None
        self.at = Position()
        self.steps = FiniteSteps(
            self.trained,
            stage.name,
            skip=recipe.on_nonfinite == "skip",
            most_in_a_row=min(MOST_IN_A_ROW, max(1, len(setting.feed) // recipe.batch_size)),  # less than an epoch
            log=setting.log,
            ranks=setting.ranks,
        )
        self._saved_at = time.monotonic()

    @property
    def nets(self) -> list[nn.Module]:
        """The net, and its moving average where there is one."""
        return [self.net] if self.average is None else [self.net, self.average.module]

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Let the blocks join that are to be in use from this epoch on; forget the sums of the one before.

        Args:
            epoch: Its number, from 0 on.
            first: The batch that it begins with, or goes on with.
        """
        if first == 0:
            self.at.begin_epoch()
        if self.depth is not None:
            self.depth.grow(self.depth.wanted(epoch, self.stage.training.epochs), *self.nets)

    def take_in(self, loss: float, right: float, index: Tensor) -> None:
        """A step was tried: its figures, and the weights that it left for the moving average, where there is one.

        Args:
            loss: Mean of the whole batch.
            right: Share of right arg-maxes of the whole batch.
            index: The batch's samples.
        """
        if self.steps.counts(loss, self.at.step, index):
            if self.average is not None:
                self.average.update_parameters(self.net)
            self.at.add(loss, right, len(index))
        self.at.step += 1

    def choose_weights(self) -> None:
        """Leave in the net what the stage ends with: the best weights, else their average, else the last ones."""
        if self.depth is not None:
            self.depth.release(*self.nets)
        best = self.patience.best_state()
        if best is not None:
            self.net.load_state_dict(best)
        elif self.average is not None:
            self.average.apply_to(self.net)

    def end_epoch(self, epochs: int) -> None:
        """Score and log the last of ``epochs`` whole epochs, and see whether to go on."""
        at, stage, setting = self.at, self.stage, self.setting
        at.reported = epochs
        if stage.observer_fraction is not None:
            observe(self.net, False)  # observers move even in eval mode
        judged = self.net if self.average is None else self.average.module
        scores = evaluate(judged, setting.validation, setting.preprocessing, device=setting.device, ranks=setting.ranks)
        figure, value = scores.leading
        if self.depth is None or self.depth.is_whole:  # the best weights are those of the whole net
            at.stopped = self.patience.update(epochs, value, judged)
        setting.log.write(
            "epoch",
            stage=stage.name,
            epoch=epochs,
            loss=at.loss,
            train_accuracy=at.accuracy,
            **{f"validation_{figure}": value},
            elapsed_s=at.elapsed_s,
        )
        setting.progress.say(
            f"{stage.name:<8} epoch {epochs}/{stage.training.epochs}  loss {at.loss:.3f}  "
            f"train {at.accuracy:.4f}  validation {value:.4f}  {at.elapsed_s:.0f} s"
        )
        if at.stopped:
            best, patience = self.patience.best_epoch, stage.training.patience
            setting.progress.say(f"{stage.name:<8} no better for {patience} epochs: kept the weights of epoch {best}")

    def save_or_stop(self, *, asked: bool) -> None:
        """Write the checkpoint whenever ``CHECKPOINT_PERIOD_S`` have passed, and if the user ``asked`` to stop.

        Raises:
            KeyboardInterrupt: the user did; the checkpoint holds everything until now.
        """
        if asked or time.monotonic() - self._saved_at > CHECKPOINT_PERIOD_S:
            self.save()
            self._saved_at = time.monotonic()
        if asked:
            self.setting.ranks.wait()  # for the one that writes
            self.setting.progress.end(self.stage.name)
            raise KeyboardInterrupt

    def save(self) -> None:
        """Write the checkpoint, on the rank that writes; the others meet it again in the next step."""
        if self.setting.ranks.writes:
            save_checkpoint(self.path, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "net": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "cache": None if self._memory is None else self._memory.state(),
            "average": None if self.average is None else self.average.state_dict(),
            "patience": self.patience.state_dict(),
            "blocks_in_use": None if self.depth is None else self.depth.in_use,
            "position": dataclasses.asdict(self.at),
        }

    def restore(self) -> None:
        """Take over the checkpoint where there is one."""
        state = load_checkpoint(self.path)
        if state is None:
            return
        self.trained.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._restore_numbers(state["rng"], state["cuda_rng"])
        if self._memory is not None:
            self._memory.restore(state["cache"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.patience.load_state_dict(state["patience"])
        if self.depth is not None:
            self.depth.restore(state["blocks_in_use"], *self.nets)
        self.at = Position(**state["position"])

    def _restore_numbers(self, rng: Tensor, cuda_rng: list[Tensor]) -> None:
        """Go on drawing where rank 0 was; on the others, whose numbers nobody kept, from another place."""
        rank = self.setting.ranks.rank
        if rank:
            torch.manual_seed(
                int.from_bytes(hashlib.sha256(bytes(rng.tolist()) + bytes([rank % 256])).digest()[:7], "big")
            )
            return
        torch.set_rng_state(rng)
        for number, of_device in enumerate(cuda_rng[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(of_device, number)


def set_mode(net: nn.Module, stage: Stage, step: int, total: int) -> None:
    """Training mode; in QAT with ranges that move until ``freezes_at``."""
    net.train()
    if stage.observer_fraction is not None:
        observe(net, step < freezes_at(stage.observer_fraction, total))


def freezes_at(fraction: float, total: int) -> int:
    """The step, from 0 on, from which the ranges stay; a whole number, so that a run which goes on freezes there."""
    return math.ceil(fraction * total - 1e-9)


def observe(net: nn.Module, enabled: bool) -> None:
    """Let the activation ranges of a prepared graph move, or freeze them."""
    quantize.set_observers(cast(GraphModule, net), enabled)
