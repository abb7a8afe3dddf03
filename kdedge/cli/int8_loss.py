"""What quantising cost: the line that says so, and the tensors that it names."""

from __future__ import annotations

from collections.abc import Sequence
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


def say_trained_loss(
    bundle: Bundle, data: str | None = None, split: str = "test", errors: Sequence[TensorError] | None = None
) -> None:
    """`say_loss` of a bundle's own int8 student, by the figures of its training."""
    metrics = bundle.manifest.get("metrics", {})
    say_loss(bundle, metrics.get("student_int8"), metrics.get("student_float"), data, split, errors)


def say_loss(
    bundle: Bundle,
    int8: dict[str, Any] | None,
    float_: dict[str, Any] | None,
    data: str | None = None,
    split: str = "test",
    errors: Sequence[TensorError] | None = None,
) -> None:
    """Say where int8 costs more of the deciding figure than the recipe tolerates, and which tensors cost most.

    Args:
        bundle: With an int8 student.
        int8: Its scores, as ``Scores.to_dict`` gives them; without them nothing is said.
        float_: The float student's.
        data: Where the samples are that the tensors are looked at with; None takes the bundle's own.
        split: Which of them.
        errors: What was found before, the costliest tensor first.
    """
    from kdedge.errors import KdedgeError
    from kdedge.metrics import scores_from_dict

    if int8 is None or float_ is None:
        return
    (figure, ours), (_, theirs) = scores_from_dict(int8).leading, scores_from_dict(float_).leading
    if theirs - ours > bundle.recipe.tolerance.int8_drop:
        try:
            worst = f"Most noise comes from {named(explained(bundle, data, split) if errors is None else errors)}: "
        except KdedgeError:  # without its data the line is worth something still, and what was trained all the more
            worst = ""
        output.line(
            f"note: {figure.replace('_', ' ')} of the int8 student is {ours:.4f}, of the float one {theirs:.4f}. "
            f"{worst}see --explain-quantization of `kdedge export`"
        )


def named(errors: Sequence[TensorError]) -> str:
    """The costliest tensors in a few words."""
    return ", ".join(tensor.name for tensor in errors[:NAMED])


def explained(bundle: Bundle, data: str | None, split: str) -> list[TensorError]:
    """The error of every quantised tensor on samples spread over a split, the costliest first.

    Raises:
        KdedgeError: the bundle is float, or its data are missing.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kdedge.cli import samples
    from kdedge.inputs import examples
    from kdedge.quantize import explain, qparams

    output.line("measuring what each quantised tensor costs: one pass of the net a tensor")
    prepared = bundle.qat_student()
    found = samples.for_bundle(bundle, data, split)
    inputs = examples(bundle.inputs, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bundle.float_student()(*inputs)
    affordable = EXPLAINED_MACS / (counter.get_total_flops() / 2 * len(qparams(prepared)) + 1)
    fewest, most = EXPLAINED_SAMPLES
    count = min(max(fewest, int(affordable)), most, len(found.data))
    # Spread over the split, which may stand in the order of its classes.
    some = found.data.take(torch.arange(count) * len(found.data) // count)
    batches = zip(*(torch.split(x, 16) for x in found.preprocessing.prepare(some.columns)), strict=True)
    return explain(prepared, list(batches))
