"""What quantising cost: the line that says so, and the tensors that it names."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdedge.cli import output

if TYPE_CHECKING:
    from kdedge.bundle import Bundle
    from kdedge.quantize import TensorError

EXPLAINED_MACS = 5e11
"""Multiply-accumulates that explaining may take; the net runs once for each of its tensors."""
EXPLAINED_SAMPLES = (4, 256)
"""Fewest and most samples for it, whatever the net."""
NAMED = 3
"""Tensors that a line names."""


class QuantizationErrors:
    """What quantising costs in each tensor of an int8 student: looked at when first asked for, and then kept.

    Args:
        bundle: With an int8 student.
        data: Where the samples are; None takes the bundle's own.
        split: Which of them.
    """

    def __init__(self, bundle: Bundle, data: str | None = None, split: str = "test") -> None:
        self.bundle = bundle
        self._data = data
        self._split = split

    @cached_property
    def by_tensor(self) -> list[TensorError]:
        """The error of every quantised tensor on samples spread over the split, the costliest first.

        Raises:
            KdedgeError: the bundle is float, or its data are missing.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from kdedge.cli import samples
        from kdedge.inputs import examples
        from kdedge.quantize import explain, qparams

        output.line("measuring what each quantised tensor costs: one pass of the net a tensor")
        prepared = self.bundle.qat_student()
        found = samples.for_bundle(self.bundle, self._data, self._split)
        inputs = examples(self.bundle.inputs, 1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.bundle.float_student()(*inputs)
        affordable = EXPLAINED_MACS / (counter.get_total_flops() / 2 * len(qparams(prepared)) + 1)
        fewest, most = EXPLAINED_SAMPLES
        count = min(max(fewest, int(affordable)), most, len(found.data))
        # Spread over the split, which may stand in the order of its classes.
        some = found.data.take(torch.arange(count) * len(found.data) // count)
        batches = zip(*(torch.split(x, 16) for x in found.preprocessing.prepare(some.columns)), strict=True)
        return explain(prepared, list(batches))

    @property
    def worst(self) -> str:
        """The costliest tensors in a few words.

        Raises:
            KdedgeError: as ``by_tensor``.
        """
        return f"Most noise comes from {', '.join(tensor.name for tensor in self.by_tensor[:NAMED])}"


def say_trained_loss(errors: QuantizationErrors) -> None:
    """`say_loss` of a bundle's own int8 student, by the figures of its training."""
    metrics = errors.bundle.manifest.get("metrics", {})
    say_loss(errors, metrics.get("student_int8"), metrics.get("student_float"))


def say_loss(errors: QuantizationErrors, int8: dict[str, Any] | None, float_: dict[str, Any] | None) -> None:
    """Say where int8 costs more of the deciding figure than the recipe tolerates, and which tensors cost most.

    Args:
        errors: Of the student; looked at only where there is something to say.
        int8: Its scores, as ``Scores.to_dict`` gives them; without them nothing is said.
        float_: The float student's.
    """
    from kdedge.errors import KdedgeError
    from kdedge.metrics import scores_from_dict

    if int8 is None or float_ is None:
        return
    (figure, ours), (_, theirs) = scores_from_dict(int8).leading, scores_from_dict(float_).leading
    if theirs - ours > errors.bundle.recipe.tolerance.int8_drop:
        try:
            worst = f"{errors.worst}: "
        except KdedgeError:  # without its data the line is worth something still, and what was trained all the more
            worst = ""
        output.line(
            f"note: {figure.replace('_', ' ')} of the int8 student is {ours:.4f}, of the float one {theirs:.4f}. "
            f"{worst}see --explain-quantization of `kdedge export`"
        )
