"""Artifact against student on real inputs: agreement, accuracy, and the gate that an export must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdedge.errors import ParityError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from kdedge.metrics import Scores
    from numpy.typing import NDArray

    from kdedge_exporters.artifact import Artifact

ACCURACY_TOLERANCE = 0.003
TEXT_TOLERANCE = 0.005
MIN_AGREEMENT = 0.99
DIFFERENCE_BOUNDS = {"float32": 0.01, "float16": 0.1}
"""Precision -> largest mean difference of the logits that passes, relative to their spread.

Sums in another order cost float32 some 1e-6 of the spread and float16 some 1e-3, deep nets more. An op that computes
another thing costs more than this, and may leave the arg-maxes as they are."""
NOTED_STEPS = 2.0
"""Mean difference of int8 logits, in steps, above which a record says so: rounding alone costs some tenths."""
_MASKED = 1000.0
_BATCH = 128


@dataclass(frozen=True)
class ParityRecord:
    """What the comparison found.

    Attributes:
        n: Samples compared.
        agreement: Share of equal arg-maxes over the last axis of the logits, in [0, 1]; a sample of question answering
            counts with two, start and end.
        accuracy_student: Of the student in torch (int8 for an int8 artifact, else float), in [0, 1]; in question
            answering the share of right places, start and end.
        accuracy_artifact: Of the artifact in its runtime, in [0, 1].
        accuracy_float: Of the float student, in [0, 1]; None where it was not asked.
        scores_student: The student's scores of the task, by name; None where only labels were given.
        scores_artifact: The artifact's.
        scores_float: The float student's.
        difference_mean: Mean absolute difference of the logits, in units of ``difference_unit``; 0 for those that both
            mask out, more than 1000 below the largest of their row.
        difference_max: Largest one.
        difference_unit: ``steps`` (of the logits' quantisation) or ``logit``.
        difference_relative: Mean difference as a share of the standard deviation of the student's logits, what both
            mask out left out of the one, what the student does out of the other. None where nothing varies.
        difference_bound: The largest ``difference_relative`` that passes; None sets no bound.
        not_finite: Logits that are NaN or infinite in one of the two, but for equal infinities and what both mask out.
            One is refused.
        leading: Name of the figure that decides: F1 in question answering, else accuracy.
        accuracy_tolerance: How far that figure of the artifact may lie below the student's, beyond one sample: of few
            samples one alone would be more than the tolerance, and runtimes round differently from torch.
        min_agreement: The least agreement that passes.
        runtime: Name and version of the artifact's runtime.
        data: ``source`` and ``split`` of the samples; None where the caller did not say.
        others: The same figures in the other runtimes of the format that are installed here.
    """

    n: int
    agreement: float
    accuracy_student: float
    accuracy_artifact: float
    difference_mean: float
    difference_max: float
    difference_unit: str
    accuracy_tolerance: float
    min_agreement: float
    runtime: dict[str, str]
    scores_student: dict[str, Any] | None = None
    scores_artifact: dict[str, Any] | None = None
    leading: str = "accuracy"
    accuracy_float: float | None = None
    scores_float: dict[str, Any] | None = None
    difference_relative: float | None = None
    difference_bound: float | None = None
    not_finite: int = 0
    data: dict[str, str] | None = None
    others: tuple[ParityRecord, ...] = ()

    @property
    def failures(self) -> list[str]:
        """Each requirement that is not met, in words; empty if the artifact passes."""
        found = []
        ours, theirs = self.accuracy_artifact, self.accuracy_student
        if self.scores_artifact is not None and self.scores_student is not None:
            ours, theirs = self.scores_artifact[self.leading], self.scores_student[self.leading]
        if theirs - ours > self.accuracy_tolerance + 1 / self.n:
            word = self.leading.replace("_", " ")
            found.append(f"{word} {ours:.4f} is more than {self.accuracy_tolerance} below the student's {theirs:.4f}")
        if self.agreement < self.min_agreement:
            found.append(f"agreement of the arg-maxes is {self.agreement:.4f}, below {self.min_agreement}")
        if self._too_different:
            found.append(
                f"the logits differ by {self.difference_relative:.3g} of their spread on average, "
                f"more than {self.difference_bound}"
            )
        if self.not_finite:
            found.append(
                f"{self.not_finite} logits are infinite or not numbers (NaN), and not the same infinity in both"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """What a passing int8 artifact deserves a second look for, in words."""
        if self.difference_unit != "steps" or self.difference_mean <= NOTED_STEPS:
            return []
        return [
            f"the logits differ from the student's by {self.difference_mean:.3g} of their steps on average; rounding "
            f"alone costs less than {NOTED_STEPS:g}"
        ]

    @property
    def _too_different(self) -> bool:
        found, bound = self.difference_relative, self.difference_bound
        return found is not None and bound is not None and found > bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        others = [other.to_dict() for other in self.others]
        return {**vars(self), "others": others, "passed": not self.failures, "notes": self.notes}

    def require(self) -> None:
        """Pass, or raise.

        Raises:
            ParityError: accuracy or agreement below what is asked, or other logits than the student's.
        """
        for other in self.others:
            other.require()
        if self.failures:
            raise ParityError(
                f"the artifact departs from the student on {self.n} samples: {'; '.join(self.failures)}",
                where=f"{self.runtime['name']} {self.runtime['version']}",
                cure=f"Nothing was kept. {self._cure}",
            )

    @property
    def _cure(self) -> str:
        if self._too_different or self.not_finite:
            return (
                "An op of the student comes out as another in this file: try the other --format, or another --precision"
            )
        if self.difference_unit == "steps":
            return "Train longer with quantisation, or widen the tolerance"
        return "Try another --precision, or widen the tolerance"


def compare(
    artifact: Artifact,
    student: Callable[..., torch.Tensor],
    images: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor,
    *,
    step: float | None = None,
    accuracy_tolerance: float = ACCURACY_TOLERANCE,
    min_agreement: float = MIN_AGREEMENT,
    score: Callable[[torch.Tensor], Scores] | None = None,
    float_student: Callable[..., torch.Tensor] | None = None,
    difference_bound: float | None = None,
    data: dict[str, str] | None = None,
) -> ParityRecord:
    """Run both on the same inputs.

    Args:
        artifact: Loaded.
        student: In eval mode: its inputs to logits float32 [n, classes] (or [n, 2, L]).
        images: float32 [N, C, H, W], normalised; or a tensor for each input of the artifact, in its order. N ≥ 1.
        labels: int64 [N] (or [N, 2], start and end).
        step: Quantisation step of the logits; None compares in logits.
        accuracy_tolerance: See ``ParityRecord``.
        min_agreement: See ``ParityRecord``.
        score: The scores of the task from the logits of all samples; None leaves accuracy alone.
        float_student: Scored too, for the record; None leaves it out.
        difference_bound: See ``ParityRecord``.
        data: See ``ParityRecord``.
    """
    import torch

    inputs = (images,) if isinstance(images, torch.Tensor) else tuple(images)
    if not len(labels):
        raise ParityError("no samples to compare on", cure="Give at least 300 samples of the evaluation split")
    ours = artifact.predict([values.numpy() for values in inputs])
    theirs = _student_logits(student, inputs)
    truth = labels.numpy()
    floats = None if float_student is None else _student_logits(float_student, inputs)
    difference, relative, not_finite = _differences(ours, theirs)
    rows = [theirs, ours, *([] if floats is None else [floats])]
    scores = None if score is None else [score(torch.from_numpy(logits)) for logits in rows]
    return ParityRecord(
        n=len(truth),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        accuracy_student=float((theirs.argmax(-1) == truth).mean()),
        accuracy_artifact=float((ours.argmax(-1) == truth).mean()),
        difference_mean=float(difference.mean()) / (step or 1.0),
        difference_max=float(difference.max()) / (step or 1.0),
        difference_unit="logit" if step is None else "steps",
        accuracy_tolerance=accuracy_tolerance,
        min_agreement=min_agreement,
        runtime=dict(artifact.runtime),
        scores_student=None if scores is None else scores[0].to_dict(),
        scores_artifact=None if scores is None else scores[1].to_dict(),
        leading="accuracy" if scores is None else scores[0].leading[0],
        accuracy_float=None if floats is None else float((floats.argmax(-1) == truth).mean()),
        scores_float=None if scores is None or floats is None else scores[2].to_dict(),
        difference_relative=relative,
        difference_bound=difference_bound,
        not_finite=not_finite,
        data=data,
    )


def _differences(
    ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> tuple[NDArray[np.float64], float | None, int]:
    """How far logits lie apart, their ``difference_relative`` and ``not_finite``.

    A student masks classes or places out with -inf or some -1e9. What both mask out is no difference, whatever numbers
    a runtime has for it (TFLite's kernels end at -3.4e38, float16 begins -inf at -65520); nor are equal infinities.
    """
    import numpy as np

    finite = np.isfinite(ours) & np.isfinite(theirs)
    ours_masked, theirs_masked = (logits < logits.max(-1, keepdims=True) - _MASKED for logits in (ours, theirs))
    masked = ours_masked & theirs_masked
    difference = np.zeros(theirs.shape)  # float64, in which no difference of two float32 is infinite
    np.subtract(ours, theirs, out=difference, where=finite & ~masked, dtype=np.float64)
    difference = np.abs(difference)
    varying = theirs[~theirs_masked & np.isfinite(theirs)]
    counted = difference[finite & ~masked]
    spread = float(varying.std(dtype=np.float64)) if varying.size else 0.0
    relative = float(counted.mean()) / spread if spread > 0 and counted.size else None
    return difference, relative, int((~finite & ~masked & (ours != theirs)).sum())


def _student_logits(student: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> NDArray[np.float32]:
    import torch

    batches = zip(*(values.split(_BATCH) for values in inputs), strict=True)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        parts = [student(*(values.contiguous() for values in batch)) for batch in batches]
    return torch.cat(parts).float().numpy()
