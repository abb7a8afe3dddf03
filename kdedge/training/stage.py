"""A stage of training, and what the stages of a run share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from kdedge.examples import Examples, Preprocessing
from kdedge.progress import JsonLog, Progress
from kdedge.ranks import Ranks
from kdedge.recipe import Precision, TrainingRecipe
from kdedge.teacher_cache.memory import ViewLogits
from kdedge.training.feeds import Feed
from kdedge.training.objective import Objective


@dataclass(frozen=True)
class Stage:
    """One pass of the loop.

    Attributes:
        name: ``teacher`` (``teacher_1`` and so on before its last generation), ``assistant``, ``student`` or ``qat``;
            seeds and files are named by it.
        training: Its hyper-parameters.
        guides: Nets in eval mode whose mean logits are followed; none for plain cross-entropy.
        objective: What is minimised.
        projection: Student's hidden states to the guides' width, trained along; None where the widths are equal.
        observer_fraction: For QAT: share of the steps after which the activation ranges are frozen; else None.
        guide_precision: Autocast of the guides' forward pass.
        cached_views: Views a sample that are cycled over the epochs, their guide logits replayed; 0 for none. Without
            guides there is nothing to replay, and every epoch has new views.
        stored: Where their logits are kept, all of them; None keeps them in memory as they come by.
    """

    name: str
    training: TrainingRecipe
    guides: Sequence[nn.Module] = ()
    objective: Objective = field(default_factory=Objective)
    projection: nn.Linear | None = None
    observer_fraction: float | None = None
    guide_precision: Precision = "auto"
    cached_views: int = 0
    stored: ViewLogits | None = None

    @classmethod
    def alone(cls, name: str, training: TrainingRecipe) -> Stage:
        """A stage that learns from labels."""
        return cls(name, training, objective=Objective(label_smoothing=training.label_smoothing))


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
        ranks: This process among those that train together.
    """

    feed: Feed
    validation: Examples
    preprocessing: Preprocessing
    seed: int
    device: str
    folder: Path
    log: JsonLog
    progress: Progress
    ranks: Ranks = field(default_factory=Ranks)
