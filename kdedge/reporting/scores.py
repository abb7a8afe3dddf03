"""Cells of a net's scores: accuracy and macro F1 of a classifier; of a reader the exact match and F1 of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdedge.reporting.cells import PROPORTION, Cell, missing, proportion
from kdedge.reporting.check import is_number

_EXACT_MATCH = "exact match of the answers"
_ANSWERS_F1 = "of the answers' words"
_F1_KIND = "no interval for F1"


def score_cells(scores: Mapping[str, Any], reason: str | None, *, note: str | None = None) -> dict[str, Cell]:
    """The cells ``accuracy`` and ``f1_macro``.

    Args:
        scores: As ``Scores.to_dict`` gives them; empty where nothing was scored.
        reason: Why a figure is missing.
        note: What the reader must know beside both.
    """
    n = scores.get("n")
    if is_number(scores.get("exact_match")):
        share = proportion(scores["exact_match"], n, None, note=_joined(_EXACT_MATCH, note))
        return {"accuracy": share, "f1_macro": _f1(scores.get("f1"), n, reason, _joined(_ANSWERS_F1, note))}
    share = proportion(scores.get("accuracy"), n, reason, note=note)
    return {"accuracy": share, "f1_macro": _f1(scores.get("f1_macro"), n, reason, note)}


def _f1(value: object, n: object, reason: str | None, note: str | None) -> Cell:
    """F1 is no share of the samples: it has an n, and no interval that n alone could give."""
    if not is_number(value):
        return missing(PROPORTION, reason)
    count = int(n) if is_number(n) else None
    return Cell(float(value), PROPORTION, count, interval_kind=_F1_KIND, note=note)


def _joined(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)
