"""What the comparison of an artifact with its student finds, on logits that are given."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from kdedge.errors import ParityError
from torch import Tensor

from kdedge_exporters.artifact import Artifact
from kdedge_exporters.parity import DIFFERENCE_BOUNDS, ParityRecord, compare

LOGITS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * 3
LABELS = LOGITS.argmax(-1)


class Given:
    """An artifact that says what it is given."""

    def __init__(self, logits: Tensor) -> None:
        self.runtime = {"name": "given", "version": "1"}
        self.logits = logits

    def predict(self, _: object) -> np.ndarray:
        return self.logits.numpy()


def compared(artifact: Tensor, student: Tensor = LOGITS, labels: Tensor = LABELS, **more: Any) -> ParityRecord:
    return compare(cast(Artifact, Given(artifact)), lambda rows: rows, student, labels, **more)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_float_logits_may_not_differ_though_their_arg_maxes_agree(precision: str) -> None:
    bound = DIFFERENCE_BOUNDS[precision]
    shift = float(LOGITS.std()) * bound
    assert compared(LOGITS + 0.9 * shift, difference_bound=bound).failures == []
    record = compared(LOGITS + 1.2 * shift, difference_bound=bound)
    assert record.agreement == 1.0 and record.accuracy_artifact == 1.0
    assert record.difference_relative == pytest.approx(1.2 * bound, rel=0.01)
    with pytest.raises(ParityError, match=r"differ by .* of their spread on average") as caught:
        record.require()
    assert "Train longer" not in str(caught.value) and "--format" in str(caught.value)


def test_int8_logits_that_differ_by_steps_are_noted_and_kept() -> None:
    near, far = (compared(LOGITS + steps * 0.1, step=0.1) for steps in (0.5, 4.3))
    assert near.notes == [] and near.to_dict()["notes"] == []
    assert far.failures == []
    (note,) = far.to_dict()["notes"]
    assert "by 4.3 of their steps" in note


@pytest.mark.parametrize("mask", [float("-inf"), -1e9])
def test_what_both_mask_out_is_no_difference(mask: float) -> None:
    masked = torch.arange(6) >= 4
    theirs = LOGITS.masked_fill(masked, mask)
    labels = theirs.argmax(-1)
    same = compared(theirs, theirs, labels, difference_bound=0.01)
    assert same.failures == [] and same.difference_max == 0
    json.dumps(same.to_dict(), allow_nan=False)
    lowest = torch.finfo(torch.float32).min  # where TFLite's kernels end; -1e9 is -inf in float16
    for other in (theirs.half().float(), theirs.clamp(min=lowest)):
        assert compared(other, theirs, labels, difference_bound=0.01).failures == []
    lost = compared(LOGITS.masked_fill(masked, -8.0), theirs, labels, difference_bound=0.01)
    assert lost.failures


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        (float("nan"), 0.0, 1),
        (0.0, float("nan"), 1),
        (float("nan"), float("nan"), 1),
        (float("inf"), 0.0, 1),
        (float("-inf"), float("inf"), 1),
        (float("inf"), float("inf"), 0),
    ],
)
def test_logits_that_are_not_finite_are_refused_in_words(ours: float, theirs: float, count: int) -> None:
    artifact, student = LOGITS.clone(), LOGITS.clone()
    artifact[3, 2], student[3, 2] = ours, theirs
    record = compared(artifact, student, student.argmax(-1))
    json.dumps(record.to_dict(), allow_nan=False)
    assert record.not_finite == count
    if count:
        with pytest.raises(ParityError, match=r"1 logits are infinite or not numbers"):
            record.require()
    else:
        record.require()


def test_a_refusal_names_quantisation_only_where_something_was_quantised() -> None:
    turned = LOGITS.roll(1, 1)
    with pytest.raises(ParityError, match="Train longer with quantisation"):
        compared(turned, step=0.1).require()
    with pytest.raises(ParityError, match="agreement") as caught:
        compared(turned).require()
    assert "Train longer" not in str(caught.value)


def test_the_record_says_which_samples_it_is_of() -> None:
    data = {"source": "digits", "split": "test"}
    assert compared(LOGITS, data=data).to_dict()["data"] == data
    assert compared(LOGITS).to_dict()["data"] is None


def test_logits_that_do_not_vary_have_no_relative_difference() -> None:
    record = compared(torch.ones(4, 3), torch.ones(4, 3), torch.zeros(4, dtype=torch.long), difference_bound=0.01)
    assert record.difference_relative is None and record.failures == []
