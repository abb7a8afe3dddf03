"""What a user types about the conditions of a measurement, as what the bench takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.errors import UserError

#: Timed calls by default; a batch of ``offline`` is a call.
REPETITIONS = {"single-stream": 1000, "offline": 200}
_MAX_PROCESSORS = 4096
_OF_EVERY_BUNDLE = (("scenario", "single-stream"), ("starts", 1))


def processors(text: str | None) -> list[int] | None:
    """Numbers, ascending, in ``0``, ``2-3`` or ``0,2-3``.

    Raises:
        UserError: something else.
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < _MAX_PROCESSORS:
            raise UserError(f"--pin {text!r} names no processors", cure="Write numbers and ranges: --pin 0,2-3")
        found |= set(range(first, last + 1))
    return sorted(found)


def rest_before(text: str | None) -> dict[str, float]:
    """``cool_down_s`` of ``60`` or ``60s``, ``cool_down_c`` of ``45C``; empty of None.

    Raises:
        UserError: something else.
    """
    if text is None:
        return {}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:°?([cC])|s)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(
            f"--cool-down {text!r} is neither seconds nor a temperature",
            cure="Write --cool-down 60 to rest for a minute, or --cool-down 45C to wait for 45 degrees Celsius",
        )
    return {"cool_down_c" if match[2] else "cool_down_s": float(match[1])}


def refuse_for_bundle(wishes: Mapping[str, Any], path: Path) -> None:
    """A bundle is measured in torch, to compare with, as this machine is.

    Raises:
        UserError: a wish that only the measurement of an artifact can meet.
    """
    asked = [
        key for key, value in wishes.items() if value not in (None, False) and (key, value) not in _OF_EVERY_BUNDLE
    ]
    if asked:
        option = "cool-down" if asked[0].startswith("cool_down") else asked[0].replace("_", "-")
        raise UserError(
            f"--{option} is for artifacts; a bundle is measured in torch as it is",
            where=path,
            cure="Export it, and bench the artifact",
        )
