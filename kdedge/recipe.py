"""DistillRecipe: what was asked, frozen and hashed; every key with its meaning and unit (``recipe_file`` reads it)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdedge.errors import RecipeError

Task = Literal["image-classification", "text-classification", "question-answering", "vector-classification"]
Stem = Literal["imagenet", "cifar", "cifar-stride2"]
Precision = Literal["auto", "float32", "bfloat16"]
Activations = Literal["affine", "symmetric"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
QatTeacher = Literal["teacher", "student", "both", "none"]
LogitLoss = Literal["kd", "dkd"]
HiddenLoss = Literal["cosine", "mse"]
OnNonfinite = Literal["error", "skip"]
CacheKind = Literal["run", "shared"]


def _check(condition: bool, key: str, says: str) -> None:
    if not condition:
        raise RecipeError(f"recipe key '{key}' {says}")


_OF_DKD = ("dkd_alpha", "dkd_beta")
_OF_IMAGE_FILES = ("image_size", "channels", "on_corrupt", "streamed", "loader_threads")
_OF_MEMORY = ("crop_padding", "rotation_deg", "cutout")  # augmentations of images in memory
_OF_CROPS = ("crop_scale",)  # of streamed ones
_OF_ANSWERS = ("doc_stride", "n_best", "max_answer_length")
_OF_IMAGES = ("horizontal_flip", "mixup_alpha", "cutmix_alpha", "mix_probability")


@dataclass(frozen=True)
class Idle:
    """Why a key changes nothing.

    Attributes:
        why: In words.
        by: The key that makes it so, if it is another one that a user might change in passing.
    """

    why: str
    by: str = ""


@dataclass(frozen=True)
class DataRecipe:
    """Which data, and how it is split and sized.

    Attributes:
        name: An embedded set (``digits``, of vectors ``breast-cancer``), a Hub name, a folder or a file; ``--data``
            overrides it.
        image_size: Pixels, height and width of what the nets see.
        channels: 1 or 3.
        validation_fraction: Share of the training images kept out of training, for choosing and tuning.
        test_fraction: Share kept for testing where the data set has no test split of its own.
        split_seed: Seed of the splits; apart from ``seed`` so that repeats share one test split.
        on_corrupt: ``error`` stops at an image that cannot be read; ``skip`` leaves it out and says so.
        train_limit: Train on so many samples alone, drawn evenly from the classes; 0 takes all. For trials.
        streamed: Decode images when they are needed, for sets that do not fit into memory. Training then sees random
            resized crops, evaluation the middle of each image.
        loader_threads: Of streamed images: threads that decode ahead; 0 takes one for each processor, at most 16.
    """

    name: str
    image_size: int = 32
    channels: int = 3
    validation_fraction: float = 0.1
    test_fraction: float = 0.25
    split_seed: int = 0
    on_corrupt: Literal["error", "skip"] = "error"
    train_limit: int = 0
    streamed: bool = False
    loader_threads: int = 0

    def __post_init__(self) -> None:
        _check(self.image_size >= 4, "data.image_size", "must be at least 4 px")
        _check(self.channels in (1, 3), "data.channels", "must be 1 or 3")
        _check(0 < self.validation_fraction < 0.9, "data.validation_fraction", "must lie between 0 and 0.9")
        _check(0 < self.test_fraction < 0.9, "data.test_fraction", "must lie between 0 and 0.9")
        _check(0 <= self.split_seed < 2**63, "data.split_seed", "must lie in [0, 2^63)")
        _check(self.train_limit >= 0, "data.train_limit", "must be 0 samples or more")
        _check(self.loader_threads >= 0, "data.loader_threads", "must be 0 threads or more")


@dataclass(frozen=True)
class AugmentRecipe:
    """Random changes of the training samples: of images, but for the last three keys, which are of sentences.

    Attributes:
        crop_padding: Pixels of reflected border from which a crop of the image's size is taken.
        horizontal_flip: Mirror one image in two.
        rotation_deg: Rotate by a uniform angle within ± so many degrees.
        cutout: Side in pixels of a square blanked at a random place (DeVries & Taylor 2017); 0 for none.
        crop_scale: Of streamed images: smallest share of the image's area that a random resized crop covers
            (Szegedy et al. 2015, arXiv:1409.4842, section 6). Padding, rotation and cutout are for images in memory.
        mixup_alpha: Of the Beta distribution that blends two images and their labels (Zhang et al. 2018); 0 for none.
        cutmix_alpha: Of the Beta distribution of a rectangle pasted from another image (Yun et al. 2019); 0 for none.
        mix_probability: Share of the images that are mixed at all; where both kinds are on, each in half of them.
        span_probability: Share of the sentences cut to a run of their tokens, its length and place random, in stages
            that follow a teacher (n-gram sampling, Tang et al. 2019, arXiv:1903.12136).
        masked_tokens: Share of the tokens blanked by the tokenizer's mask token in such stages (same paper).
        word_dropout: The same in stages that learn from labels alone, such as the teacher's (Iyyer et al. 2015,
            aclanthology.org/P15-1162).
    """

    crop_padding: int = 4
    horizontal_flip: bool = True
    rotation_deg: float = 0.0
    cutout: int = 0
    crop_scale: float = 0.08
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0
    span_probability: float = 0.0
    masked_tokens: float = 0.0
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(self.crop_padding >= 0, "augment.crop_padding", "must be 0 px or more")
        _check(0 <= self.rotation_deg <= 180, "augment.rotation_deg", "must lie between 0 and 180")
        _check(self.cutout >= 0, "augment.cutout", "must be 0 px or more")
        _check(0 < self.crop_scale <= 1, "augment.crop_scale", "must lie in (0, 1]")
        _check(self.mixup_alpha >= 0, "augment.mixup_alpha", "must be 0 or more")
        _check(self.cutmix_alpha >= 0, "augment.cutmix_alpha", "must be 0 or more")
        _check(0 <= self.mix_probability <= 1, "augment.mix_probability", "must lie between 0 and 1")
        _check(0 <= self.span_probability <= 1, "augment.span_probability", "must lie between 0 and 1")
        _check(0 <= self.masked_tokens < 1, "augment.masked_tokens", "must lie in [0, 1)")
        _check(0 <= self.word_dropout < 1, "augment.word_dropout", "must lie in [0, 1)")


@dataclass(frozen=True)
class TextRecipe:
    """How text becomes tokens, and tokens answers.

    Attributes:
        tokenizer: Hub name or folder of the tokenizer; None takes the teacher's.
        max_length: Tokens of an input, special ones included; longer text is cut, longer contexts slide.
        doc_stride: Tokens that two windows over one context share (questions alone).
        n_best: Likeliest starts and ends that are combined to answers (questions alone).
        max_answer_length: Tokens of an answer at most (questions alone).
        group_by_length: Put texts of like length into a batch, which is padded to its longest one; the order of the
            batches stays random. Cheaper epochs, hardly less random ones.
    """

    tokenizer: str | None = None
    max_length: int = 128
    doc_stride: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    group_by_length: bool = False

    def __post_init__(self) -> None:
        _check(self.max_length >= 8, "text.max_length", "must be at least 8 tokens")
        _check(self.doc_stride >= 0, "text.doc_stride", "must be 0 tokens or more")
        _check(self.n_best >= 1, "text.n_best", "must be 1 or more")
        _check(self.max_answer_length >= 1, "text.max_answer_length", "must be 1 token or more")


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
            ``bfloat16`` falls back to float32, and says so, on a CPU that is no faster in it.
        start_size: Pixels of images in the first epochs (progressive resizing): grows linearly, in steps of 4,
            to ``data.image_size`` over the first 60% of the epochs, and in the last epoch in any case; 0 keeps the
            full size throughout.
        start_depth: Share of the residual blocks that the first epochs train (progressive depth); the others join,
            evenly over the net and as identities at first, until half of the epochs are over; 1 trains all throughout.
            For float stages of torchvision's residual nets.
        patience: Epochs without a better validation figure after which the stage stops; its best weights are kept.
            0 trains all epochs and keeps the last weights.
        ema_decay: Of the exponential moving average of the weights that the stage ends with, a step; 0 for none.
            For float stages: averaged weights would not be those that the ranges of QAT were frozen for.
        on_nonfinite: Of a step whose loss is NaN or infinite: ``error`` ends the stage with the step and its samples;
            ``skip`` leaves the step out, also where a gradient is not finite, and ends it after ten in a row.
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
    start_depth: float = 1.0
    patience: int = 0
    ema_decay: float = 0.0
    on_nonfinite: OnNonfinite = "error"

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
        _check(0 <= self.start_depth <= 1, "start_depth", "must lie in [0, 1]")
        _check(self.patience >= 0, "patience", "must be 0 or more epochs")
        _check(0 <= self.ema_decay < 1, "ema_decay", "must lie in [0, 1)")


@dataclass(frozen=True)
class QatTrainingRecipe(TrainingRecipe):
    """The stage of QAT: as any other, but for two defaults.

    Attributes:
        weight_decay: Not applied to biases and normalisation; 0 here, since decay fights the scales.
        gradient_clip: Largest norm of the gradient; 0 for none. Frozen batch norms do not bear the steps that the float
            stage took: SGD cost a student 5.7 points that it keeps with clipping.
    """

    weight_decay: float = 0.0
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class ModelRecipe:
    """A net and how it is trained.

    Attributes:
        model: Name in ``models.TEACHERS`` or ``models.STUDENTS``, or ``module:function`` of the user's own. Of text:
            a teacher's Hub name, folder, ``package:NAME`` (in an installed package) or an architecture with random
            weights (``bert-base``); a student's architecture (``bert``, ``distilbert``), or a Hub name or folder.
        stem: ``imagenet`` (as torchvision has it), ``cifar`` (stride 1, no max-pool; every stage sees twice to
            four times the resolution) or ``cifar-stride2`` (between the two).
        width: Width multiplier, for nets that have one.
        dropout: Before the classifier (of the MLP: after each hidden layer; of text nets: every rate); None keeps the
            net's own.
        layers: Layers of the teacher that a text student starts from (Sanh et al. 2019), the first is 0; None takes
            every other one.
        training: Its stage.
    """

    model: str
    training: TrainingRecipe
    stem: Stem = "imagenet"
    width: float = 1.0
    dropout: float | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self.layers is None or len(self.layers) > 0, "layers", "must name at least one layer")
        _check(self.width > 0, "width", "must be above 0")
        _check(self.dropout is None or 0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")

    @property
    def idle_keys(self) -> list[str]:
        """Those that are given and that a net of the user's own (``module:function``) never hears of."""
        if ":" not in self.model or self.model.startswith("package:"):
            return []
        given = {"stem": self.stem != "imagenet", "width": self.width != 1.0, "dropout": self.dropout is not None}
        return [key for key, is_given in given.items() if is_given]


@dataclass(frozen=True)
class TeacherRecipe(ModelRecipe):
    """The teacher, and how it is trained.

    Attributes:
        generations: How often a teacher that is trained here goes through its stage: from the second time on it
            follows itself of the time before, by the losses that the student follows a teacher by (born-again
            networks, Furlanello et al. 2018, arXiv:1805.04770), and goes on from its weights.
    """

    generations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.generations >= 1, "generations", "must be 1 or more")

    @property
    def stages(self) -> list[str]:
        """The stage of each generation, the last ``teacher``."""
        return [*(f"teacher_{number}" for number in range(1, self.generations)), "teacher"]


@dataclass(frozen=True)
class DistillationRecipe:
    """The loss: alpha * T^2 * KL(teacher/T || student/T) + (1 - alpha) * CE (Hinton et al. 2015), and what is added.

    Attributes:
        temperature: T, softens both logits.
        alpha: Weight of the teacher; 0 trains the student alone (the teacher is then not needed).
        loss: Between the softened logits: ``kd`` (KL), or ``dkd``, which weighs the right class and the order among
            the others apart (Zhao et al. 2022, arXiv:2203.08679). QAT has ``kd`` always.
        dkd_alpha: Of ``dkd``: weight of the right class.
        dkd_beta: Of ``dkd``: weight of the others.
        hidden_weight: Weight of the loss between hidden states of student and teacher, text nets alone; 0 for none.
        hidden_loss: ``cosine`` (Sanh et al. 2019) or ``mse``, with a projection where the widths differ
            (Jiao et al. 2020).
        attention_weight: Weight of the loss between attention probabilities, text nets alone; 0 for none.
        teacher_precision: Of the teacher's forward pass, as ``training.precision``.
        cached_views: Each sample is shown in so many views, cycled over the epochs; the teacher scores a view
            once and its logits are replayed. 0: new views every epoch, the teacher always on the fly.
        cache: Where these logits stay: ``run`` keeps them in memory until the student is trained; ``shared`` builds
            them into files before it is (`kdedge cache`), which every run with the same teacher, data, augmentation
            and seed replays, and which may be larger than memory.
        cache_top_k: Of ``shared``: keep so many logits of a sample, the largest, and the mass of the others at this
            temperature, spread evenly over them (Shen & Xing 2022, arXiv:2112.01528); 0 keeps all.
    """

    temperature: float = 3.0
    alpha: float = 0.5
    loss: LogitLoss = "kd"
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    hidden_weight: float = 0.0
    hidden_loss: HiddenLoss = "cosine"
    attention_weight: float = 0.0
    teacher_precision: Precision = "auto"
    cached_views: int = 0
    cache: CacheKind = "run"
    cache_top_k: int = 0

    def __post_init__(self) -> None:
        for key in ("dkd_alpha", "dkd_beta", "hidden_weight", "attention_weight"):
            _check(getattr(self, key) >= 0, f"distillation.{key}", "must be 0 or more")
        _check(self.temperature > 0, "distillation.temperature", "must be above 0")
        _check(0 <= self.alpha <= 1, "distillation.alpha", "must lie in [0, 1]")
        _check(self.cached_views >= 0, "distillation.cached_views", "must be 0 or more")
        shared = self.cache == "shared"
        _check(not shared or self.cached_views > 0, "distillation.cached_views", "must be above 0 for a shared cache")
        _check(self.cache_top_k >= 0, "distillation.cache_top_k", "must be 0 logits or more")
        _check(shared or not self.cache_top_k, "distillation.cache_top_k", "must be 0 but for a shared cache")
        says = "must be 0 for 'dkd', which weighs the order of all classes"
        _check(self.loss == "kd" or not self.cache_top_k, "distillation.cache_top_k", says)


@dataclass(frozen=True)
class QatRecipe:
    """Quantization-aware training from the converged float student.

    Attributes:
        training: Its stage.
        observer_fraction: Share of the steps in which the activation ranges still move; frozen after.
        teacher: Whose logits are followed: ``teacher`` (where there is an assistant, that), the float ``student``,
            ``both`` (their mean) or ``none``.
        alpha: Weight of that teacher in QAT's loss.
        calibration_batches: Batches through the observers before the first step.
        activations: ``affine``, or ``symmetric`` (zero point 0) for TensorRT and others that want it; a bit is lost
            wherever a tensor has one sign, as after a ReLU.
    """

    training: QatTrainingRecipe
    observer_fraction: float = 0.5
    teacher: QatTeacher = "teacher"
    alpha: float = 0.5
    calibration_batches: int = 8
    activations: Activations = "affine"

    def __post_init__(self) -> None:
        _check(0 <= self.alpha <= 1, "qat.alpha", "must lie in [0, 1]")
        _check(0 <= self.observer_fraction <= 1, "qat.observer_fraction", "must lie in [0, 1]")
        _check(self.calibration_batches >= 1, "qat.calibration_batches", "must be 1 or more")


@dataclass(frozen=True)
class ToleranceRecipe:
    """What quantising may cost before kdedge says no, as accuracies in [0, 1].

    Attributes:
        int8_drop: Fall of the int8 student's accuracy below the float student's (F1 in question answering) from
            which `kdedge distill` and `kdedge export` say so and name the tensors that cost most.
        artifact_drop: Largest fall of an artifact's accuracy below its student's in torch, beyond a single sample;
            None is 0.003, and 0.005 for text.
        agreement: Least share of samples on which artifact and student choose the same class.
    """

    int8_drop: float = 0.005
    artifact_drop: float | None = None
    agreement: float = 0.99

    def __post_init__(self) -> None:
        _check(0 <= self.int8_drop < 1, "tolerance.int8_drop", "must lie in [0, 1)")
        _check(0 <= (self.artifact_drop or 0) < 1, "tolerance.artifact_drop", "must lie in [0, 1)")
        _check(0 <= self.agreement <= 1, "tolerance.agreement", "must lie in [0, 1]")


@dataclass(frozen=True)
class DistillRecipe:
    """Everything that decides the outcome of a training run, apart from the data and the machine.

    Attributes:
        name: A word; names the run's folder.
        description: One line.
        data: Which data, and how they are split.
        teacher: The teacher, and how it is trained.
        student: The student, and how it is trained in float.
        qat: Quantization-aware training.
        assistant: A net between the two in size (Mirzadeh et al. 2020, arXiv:1902.03393): it follows the teacher's
            logits, and the student follows it instead of the teacher. Its keys are those of ``student``. None for no
            such stage.
        task: What the nets are for.
        seed: Of weights, order and views.
        augment: Random changes of training images.
        text: Tokens and answers.
        distillation: What the student learns from.
        tolerance: What quantising may cost.
    """

    name: str
    description: str
    data: DataRecipe
    teacher: TeacherRecipe
    student: ModelRecipe
    qat: QatRecipe
    assistant: ModelRecipe | None = None
    task: Task = "image-classification"
    seed: int = 0
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    tolerance: ToleranceRecipe = field(default_factory=ToleranceRecipe)

    def __post_init__(self) -> None:
        _check(bool(self.name) and not set(self.name) & set("/\\\0"), "name", "must be a word without '/' and '\\'")
        _check(self.name not in (".", ".."), "name", "must be a word: it names the run's folder")
        _check(0 <= self.seed < 2**31, "seed", "must lie in [0, 2^31)")
        _check(
            self.qat.training.ema_decay == 0, "qat.training.ema_decay", "must be 0: QAT's ranges fit its last weights"
        )
        _check(self.qat.training.start_depth == 1, "qat.training.start_depth", "must be 1: QAT has the whole graph")
        given = self.distillation
        mixes = self.augment.mixup_alpha > 0 or self.augment.cutmix_alpha > 0
        _check(given.loss == "kd" or not mixes, "distillation.loss", "must be 'kd' where images are mixed")
        _check(
            given.loss == "kd" or self.task != "question-answering",
            "distillation.loss",
            "must be 'kd' for questions, whose right answer is a place and no class",
        )
        _check(
            not given.cached_views or self.task != "question-answering",
            "distillation.cached_views",
            "must be 0 for questions, whose windows differ in length",
        )
        for key in ("span_probability", "masked_tokens", "word_dropout"):
            says = "must be 0 but for sentences: a changed text may have lost its answer"
            _check(not getattr(self.augment, key) or self.task == "text-classification", f"augment.{key}", says)
        for key in ("hidden_weight", "attention_weight"):
            on = getattr(given, key) > 0
            _check(not on or self.is_text, f"distillation.{key}", "must be 0 for nets that are no text nets")
            _check(not on or not given.cached_views, f"distillation.{key}", "must be 0 where cached_views is above 0")

    @property
    def idle_keys(self) -> dict[str, Idle]:
        """Keys that are given and change nothing."""
        idle = {}
        nets = {"teacher": self.teacher, "assistant": self.assistant, "student": self.student, "qat": self.qat}
        for role, training in ((role, net.training) for role, net in nets.items() if net is not None):
            if training.start_size and self.task != "image-classification":
                idle[f"{role}.training.start_size"] = Idle("only images grow")
            elif training.start_size > self.data.image_size:
                idle[f"{role}.training.start_size"] = Idle(f"data.image_size is {self.data.image_size}")
            if training.momentum != 0.9 and training.optimizer != "sgd":
                why = f"the optimizer is '{training.optimizer}'"
                idle[f"{role}.training.momentum"] = Idle(why, f"{role}.training.optimizer")
        # A text teacher's dropout is set in whatever net it is.
        teacher = None if self.is_text else self.teacher
        for role, net in (("teacher", teacher), ("assistant", self.assistant), ("student", self.student)):
            if net is not None:
                why = f"the function '{net.model}' gets the classes and the shape alone"
                idle.update({f"{role}.{key}": Idle(why, f"{role}.model") for key in net.idle_keys})
        if self.distillation.loss == "kd":
            idle.update(
                _given(self.distillation, "distillation", _OF_DKD, Idle("the loss is 'kd'", "distillation.loss"))
            )
        return {**idle, **self._idle_of_data()}

    def _idle_of_data(self) -> dict[str, Idle]:
        """Those of another kind of data."""
        of_images = self.task == "image-classification"
        idle = {}
        if not self.is_text:
            names = tuple(spec.name for spec in dataclasses.fields(self.text))
            idle.update(_given(self.text, "text", names, Idle("it is of texts, and the task has none")))
        elif self.task != "question-answering":
            idle.update(_given(self.text, "text", _OF_ANSWERS, Idle("it is of questions, and the task has none")))
        if not of_images:
            why = Idle("it is of images, and the task has none")
            idle.update(_given(self.data, "data", _OF_IMAGE_FILES, why))
            idle.update(_given(self.augment, "augment", (*_OF_IMAGES, *_OF_MEMORY, *_OF_CROPS), why))
        elif self.data.streamed:
            why = Idle("it is of images in memory, and data.streamed is on", "data.streamed")
            idle.update(_given(self.augment, "augment", _OF_MEMORY, why))
        else:
            why = Idle("it is of streamed images, and data.streamed is off", "data.streamed")
            idle.update(_given(self.augment, "augment", _OF_CROPS, why))
            idle.update(_given(self.data, "data", ("loader_threads",), why))
        return idle

    @property
    def is_text(self) -> bool:
        """Whether the nets read tokens."""
        return self.task in ("text-classification", "question-answering")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def sha256(self) -> str:
        """Hash of every value that is not the default, whatever the order or the comments of the file.

        So a key that a later kdedge adds leaves the hash of the recipes that do not use it.
        """
        return hashlib.sha256(json.dumps(told(self), sort_keys=True).encode()).hexdigest()


def _given(part: Any, table: str, names: Sequence[str], why: Idle) -> dict[str, Idle]:
    """Those of a table's keys that are not at their defaults."""
    return {f"{table}.{name}": why for name in names if name in told(part)}


def told(value: Any) -> Any:
    """Plain values, of dataclasses those alone that differ from the defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    differing = {}
    for spec in dataclasses.fields(value):
        own = getattr(value, spec.name)
        default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        if own != default:
            differing[spec.name] = told(own)
    return differing
