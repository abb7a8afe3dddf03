"""DistillRecipe: what was asked, frozen and hashed; every key with its meaning and unit (``recipe_file`` reads it)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from kdedge.errors import RecipeError

Stem = Literal["imagenet", "cifar", "cifar-stride2"]
Precision = Literal["auto", "float32", "bfloat16"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
QatTeacher = Literal["teacher", "student", "both", "none"]


def _check(condition: bool, key: str, says: str) -> None:
    if not condition:
        raise RecipeError(f"recipe key '{key}' {says}")


@dataclass(frozen=True)
class DataRecipe:
    """Which data, and how it is split and sized.

    Attributes:
        name: ``digits`` (embedded), a Hub name, or a folder; ``--data`` overrides it.
        image_size: Pixels, height and width of what the nets see.
        channels: 1 or 3.
        validation_fraction: Share of the training images kept out of training, for choosing and tuning.
        test_fraction: Share kept for testing where the data set has no test split of its own.
        split_seed: Seed of the splits; apart from ``seed`` so that repeats share one test split.
        on_corrupt: ``error`` stops at an image that cannot be read; ``skip`` leaves it out and says so.
    """

    name: str
    image_size: int = 32
    channels: int = 3
    validation_fraction: float = 0.1
    test_fraction: float = 0.25
    split_seed: int = 0
    on_corrupt: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        _check(self.image_size >= 4, "data.image_size", "must be at least 4 px")
        _check(self.channels in (1, 3), "data.channels", "must be 1 or 3")
        _check(0 < self.validation_fraction < 0.9, "data.validation_fraction", "must lie between 0 and 0.9")
        _check(0 < self.test_fraction < 0.9, "data.test_fraction", "must lie between 0 and 0.9")


@dataclass(frozen=True)
class AugmentRecipe:
    """Random changes of the training images.

    Attributes:
        crop_padding: Pixels of reflected border from which a crop of the image's size is taken.
        horizontal_flip: Mirror one image in two.
        rotation_deg: Rotate by a uniform angle within ± so many degrees.
        cutout: Side in pixels of a square blanked at a random place (DeVries & Taylor 2017); 0 for none.
    """

    crop_padding: int = 4
    horizontal_flip: bool = True
    rotation_deg: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        _check(self.crop_padding >= 0, "augment.crop_padding", "must be 0 px or more")
        _check(0 <= self.rotation_deg <= 180, "augment.rotation_deg", "must lie between 0 and 180")
        _check(self.cutout >= 0, "augment.cutout", "must be 0 px or more")


@dataclass(frozen=True)
class TrainingRecipe:
    """One stage of training.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        optimizer: ``adam`` (L2), ``adamw`` (decoupled decay) or ``sgd`` (Nesterov).
        learning_rate: Its peak.
        momentum: Of SGD; Adam's beta1 stays 0.9.
        weight_decay: Not applied to biases and normalisation.
        warmup_fraction: Share of the steps in which the rate rises linearly from zero.
        schedule: ``cosine`` down to zero, or ``constant``.
        label_smoothing: Of the cross-entropy.
        gradient_clip: Largest norm of the gradient; 0 for none.
        precision: Autocast of the forward pass; ``auto`` is bfloat16 on a GPU that has it, else float32;
            ``bfloat16`` falls back to float32, and says so, on a CPU that would only emulate it.
        start_size: Pixels in the first epochs (progressive resizing): grows linearly, in steps of 4,
            to ``data.image_size`` over the first 60% of the epochs; 0 keeps the full size throughout.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Optimizer = "adam"
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.0
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.0
    gradient_clip: float = 0.0
    precision: Precision = "auto"
    start_size: int = 0

    def __post_init__(self) -> None:
        _check(self.epochs >= 0, "epochs", "must be 0 or more")
        _check(self.batch_size >= 1, "batch_size", "must be 1 or more")
        _check(self.learning_rate > 0, "learning_rate", "must be above 0")
        _check(0 <= self.momentum < 1, "momentum", "must lie in [0, 1)")
        _check(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
        _check(0 <= self.warmup_fraction < 1, "warmup_fraction", "must lie in [0, 1)")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", "must lie in [0, 1)")
        _check(self.gradient_clip >= 0, "gradient_clip", "must be 0 or more")
        _check(self.start_size == 0 or self.start_size >= 4, "start_size", "must be 0 or at least 4 px")


@dataclass(frozen=True)
class ModelRecipe:
    """A net and how it is trained.

    Attributes:
        model: Name in ``models.TEACHERS`` or ``models.STUDENTS``, or ``module:function`` of the user's own.
        stem: ``imagenet`` (as torchvision has it), ``cifar`` (stride 1, no max-pool; every stage sees twice to
            four times the resolution) or ``cifar-stride2`` (between the two).
        width: Width multiplier, for nets that have one.
        dropout: Before the classifier (of the MLP: after each hidden layer); None keeps the net's own.
        training: Its stage.
    """

    model: str
    training: TrainingRecipe
    stem: Stem = "imagenet"
    width: float = 1.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        _check(self.width > 0, "width", "must be above 0")
        _check(self.dropout is None or 0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")


@dataclass(frozen=True)
class DistillationRecipe:
    """The loss: alpha * T^2 * KL(teacher/T || student/T) + (1 - alpha) * CE (Hinton et al. 2015).

    Attributes:
        temperature: T, softens both logits.
        alpha: Weight of the teacher; 0 trains the student alone (the teacher is then not needed).
        teacher_precision: Of the teacher's forward pass, as ``training.precision``.
        cached_views: Each sample is shown in so many views, cycled over the epochs; the teacher scores a view
            once and its logits are replayed. 0: new views every epoch, the teacher always on the fly.
    """

    temperature: float = 3.0
    alpha: float = 0.5
    teacher_precision: Precision = "auto"
    cached_views: int = 0

    def __post_init__(self) -> None:
        _check(self.temperature > 0, "distillation.temperature", "must be above 0")
        _check(0 <= self.alpha <= 1, "distillation.alpha", "must lie in [0, 1]")
        _check(self.cached_views >= 0, "distillation.cached_views", "must be 0 or more")


@dataclass(frozen=True)
class QatRecipe:
    """Quantization-aware training from the converged float student.

    Attributes:
        training: Its stage; weight decay 0 by default, since decay fights the scales.
        observer_fraction: Share of the steps in which the activation ranges still move; frozen after.
        teacher: Whose logits are followed: ``teacher``, the float ``student``, ``both`` (their mean) or ``none``.
        alpha: Weight of that teacher in QAT's loss.
        calibration_batches: Batches through the observers before the first step.
    """

    training: TrainingRecipe
    observer_fraction: float = 0.5
    teacher: QatTeacher = "teacher"
    alpha: float = 0.5
    calibration_batches: int = 8

    def __post_init__(self) -> None:
        _check(0 <= self.alpha <= 1, "qat.alpha", "must lie in [0, 1]")
        _check(0 <= self.observer_fraction <= 1, "qat.observer_fraction", "must lie in [0, 1]")
        _check(self.calibration_batches >= 1, "qat.calibration_batches", "must be 1 or more")


@dataclass(frozen=True)
class ToleranceRecipe:
    """What quantising may cost before kdedge says no, as accuracies in [0, 1].

    Attributes:
        int8_drop: Largest fall of an artifact's accuracy below its student's in torch.
        agreement: Least share of samples on which artifact and student choose the same class.
    """

    int8_drop: float = 0.005
    agreement: float = 0.99

    def __post_init__(self) -> None:
        _check(0 <= self.int8_drop < 1, "tolerance.int8_drop", "must lie in [0, 1)")
        _check(0 <= self.agreement <= 1, "tolerance.agreement", "must lie in [0, 1]")


@dataclass(frozen=True)
class DistillRecipe:
    """Everything that decides the outcome of a training run, apart from the data and the machine."""

    name: str
    description: str
    data: DataRecipe
    teacher: ModelRecipe
    student: ModelRecipe
    qat: QatRecipe
    task: Literal["image-classification"] = "image-classification"
    seed: int = 0
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    tolerance: ToleranceRecipe = field(default_factory=ToleranceRecipe)

    def __post_init__(self) -> None:
        _check(bool(self.name) and "/" not in self.name, "name", "must be a word without '/'")
        _check(0 <= self.seed < 2**31, "seed", "must lie in [0, 2^31)")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def sha256(self) -> str:
        """Hash of every value, whatever the order or the comments of the file."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
