"""Messages between host and agent, and what of JSON becomes a dataclass.

The host imports this module too; it therefore keeps to the standard library and to Python 3.8 syntax.
On the wire every message is one JSON object on one line (UTF-8, no more than ``MAX_LINE_BYTES``),
host to agent on stdin, agent to host on stdout.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import (
    Any,
    Dict,
    Mapping,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

PROTOCOL_VERSION = 1
MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_SAMPLES = 1000000
"""Latencies of one run; more would not fit into a message, and no statistic gains by more."""
REQUESTS = ("facts", "probe", "measure", "score", "remove", "clock", "bye")
REPLIES = ("hello", "progress", "result", "error")

_MOST_DIGITS = 20
_MOST_WHOLE = 2**63 - 1

T = TypeVar("T")


class ProtocolError(Exception):
    """A line that is no message of this protocol."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line of UTF-8 JSON; NaN and Inf are refused.

    Raises:
        ProtocolError: the message is larger than ``MAX_LINE_BYTES`` or holds a value JSON has no word for.
    """
    try:
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"message cannot be encoded: {error}") from None
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"message of {len(line)} bytes exceeds {MAX_LINE_BYTES}")
    return line


def decode(line: bytes) -> Dict[str, Any]:
    """The message on one line.

    Raises:
        ProtocolError: too long, not JSON, not an object, or without a string ``type``.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"line of more than {MAX_LINE_BYTES} bytes")
    try:
        message = json.loads(
            line.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON line: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a message is an object with a string 'type'")
    return message


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _whole(word: str) -> int:
    """A whole number of at most 63 bits: larger ones are no figure, and not every sum can take them."""
    number = int(word) if len(word) <= _MOST_DIGITS else _MOST_WHOLE + 1
    if abs(number) > _MOST_WHOLE:
        raise ValueError(f"a whole number of {len(word)} digits")
    return number


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:40]} is larger than a float")
    return number


def fits(value: object, hint: Any) -> bool:
    """Whether ``value`` is of the top-level type that the annotation names (elements are not looked at)."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin is Union:
        return any(fits(value, option) for option in get_args(hint))
    wanted = origin or hint
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is tuple:
        return isinstance(value, (tuple, list))
    return isinstance(value, wanted)


def from_dict(cls: Type[T], data: Mapping[str, Any]) -> T:
    """A dataclass instance from a mapping; unknown keys are refused by name.

    Raises:
        ProtocolError: unknown or missing keys, or a value of another type than the field's.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise ProtocolError(f"{cls.__name__}: unknown key {str(unknown[0])[:80]!r}")
    hints = get_type_hints(cls)
    for name, value in data.items():
        if not fits(value, hints[name]):
            raise ProtocolError(f"{cls.__name__}: {name} cannot be {str(value)[:80]!r}")
    try:
        return cls(**data)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from None


def require(condition: bool, text: str) -> None:
    """Raise ``ProtocolError(text)`` unless the condition holds."""
    if not condition:
        raise ProtocolError(text)
