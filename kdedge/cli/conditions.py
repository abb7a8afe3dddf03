"""What a user types about a measurement and its conditions, as what the bench takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import UserError

#: Timed calls by default; a batch of ``offline`` is a call.
REPETITIONS = {"single-stream": 1000, "offline": 200}
_MAX_PROCESSORS = 4096
_OF_EVERY_BUNDLE = (("scenario", "single-stream"), ("starts", 1))


@dataclass(frozen=True)
class Axes:
    """What is measured, where, by what.

    Attributes:
        artifacts: Files, or one bundle.
        devices: As typed: a name, or what means several.
        runtimes: Names; None for the first that is there.
        threads: Of the runtime.
        are_several: Whether more than one measurement is asked for, by the form of the words alone.
    """

    artifacts: tuple[Path, ...]
    devices: str
    runtimes: tuple[str | None, ...]
    threads: tuple[int, ...]
    are_several: bool


def axes_of(artifacts: Sequence[Path] | None, devices: str, runtimes: str | None, threads: str) -> Axes:
    """The axes of a matrix, which may have one cell; what stands twice in a list counts once.

    Raises:
        UserError: no artifact, or a list with an empty or impossible part.
    """
    from kdedge_bench.selection import names_several

    if not artifacts:
        raise UserError(
            "no artifact was named", cure="Write kdedge bench ARTIFACT..., or name them in a file: --matrix FILE"
        )
    names = _parts("--runtime", runtimes, "onnxruntime,ai-edge-litert")
    counts = thread_counts(threads)
    return Axes(
        artifacts=tuple(dict.fromkeys(artifacts)),
        devices=devices,
        runtimes=tuple(dict.fromkeys(names)) or (None,),
        threads=tuple(dict.fromkeys(counts)),
        are_several=names_several(devices) or max(map(len, (artifacts, names, counts))) > 1,
    )


def _parts(option: str, text: str | None, example: str) -> list[str]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{option} {text!r} has an empty part", cure=f"Write a list like {option} {example}")
    return parts


def thread_counts(text: str) -> list[int]:
    """Numbers in ``1,2,4``.

    Raises:
        UserError: something else.
    """
    return [_count(part) for part in _parts("--threads", text, "1,2,4")]


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < 1:
        raise UserError(f"--threads {text!r} is no number of threads", cure="Write numbers from 1 on: --threads 1,2,4")
    return int(text)


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


def input_shapes(text: str | None) -> dict[str, list[int]] | None:
    """Input -> sizes in ``1x3x224x224``, the only input, or ``ids=1x128,mask=1x128``.

    Raises:
        UserError: something else.
    """
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, _, sizes = part.strip().rpartition("=")
        if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,7}", sizes) or name in found:
            raise UserError(
                f"--input-shape {text!r} names no shapes",
                cure="Write --input-shape 1x3x224x224, or with names --input-shape ids=1x128,mask=1x128",
            )
        found[name] = [int(size) for size in sizes.split("x")]
    return found


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
        words = {"cool_down_s": "cool-down", "cool_down_c": "cool-down", "input_shapes": "input-shape"}
        option = words.get(asked[0], asked[0].replace("_", "-"))
        raise UserError(
            f"--{option} is for artifacts; a bundle is measured in torch as it is",
            where=path,
            cure="Export it, and bench the artifact",
        )
