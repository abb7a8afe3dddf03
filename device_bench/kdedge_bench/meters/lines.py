"""Lines of a logger: ``timestamp,watts``.

The timestamp is seconds since 1970 (``1760000000.25``), or ISO 8601 (``2026-10-05T12:00:00.25Z``; without a zone it
is this machine's local time). The first line may be a header. Empty lines are skipped, any other line is refused.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import NamedTuple

from kdedge.errors import DataError

from kdedge_bench.text import one_line

MAX_LINE_BYTES = 256
MAX_WATTS = 100_000.0
_DECIMALS = re.compile(r"\.(\d+)")
_FORM = "Write lines of timestamp,watts: seconds since 1970 or ISO 8601, a comma, a number"


class Stamped(NamedTuple):
    """One line: seconds since 1970, watts."""

    unix_s: float
    watts: float


class LineReader:
    """Turns bytes as they come into stamped watts, line by line.

    Args:
        where: What the lines come from, for messages.

    Attributes:
        resolution_s: Of the timestamps, by the most decimals seen: 1 where they are whole seconds.
    """

    def __init__(self, where: str) -> None:
        self.resolution_s = 1.0
        self._where = where
        self._rest = b""
        self._number = 0
        self._last_s = -math.inf

    def feed(self, data: bytes) -> list[Stamped]:
        """The lines that ``data`` completes; what follows the last line break waits for the next call.

        Raises:
            DataError: a line that is none, with its number and what to do.
        """
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._number += len(whole) + 1
            raise self._refused(f"a line of more than {MAX_LINE_BYTES} bytes", _FORM)
        found = [self._line(line) for line in whole]
        return [stamped for stamped in found if stamped is not None]

    def _line(self, raw: bytes) -> Stamped | None:
        self._number += 1
        text = raw[: MAX_LINE_BYTES + 1].decode("utf-8-sig", "replace").strip()
        if not text:
            return None
        first, comma, second = text.partition(",")
        if self._number == 1 and comma and _is_header(first, second):
            return None
        shown = repr(one_line(text, 60))
        if not comma or "," in second:
            raise self._refused(f"{shown} has {text.count(',') + 1} fields", _FORM)
        unix_s, watts = _moment(first.strip()), _number(second)
        if unix_s is None:
            raise self._refused(f"{shown} begins with no timestamp", _FORM)
        if watts is None:
            raise self._refused(f"{shown} ends with no number of watts", _FORM)
        if not 0 <= watts <= MAX_WATTS:
            cure = "Watts are from 0 on: if the meter counts the other way, exchange its input and output"
            raise self._refused(f"{shown} has impossible watts", cure)
        if unix_s > 1e11:
            raise self._refused(f"{shown} is stamped with milliseconds", "Divide the timestamps by 1000")
        if unix_s <= self._last_s:
            cure = "Let the logger stamp each reading later than the one before, and begin a new file for a new log"
            raise self._refused(f"{shown} is not later than the line before", cure)
        self._last_s = unix_s
        decimals = _DECIMALS.search(first)
        if decimals is not None:
            self.resolution_s = min(self.resolution_s, 10.0 ** -len(decimals[1]))
        return Stamped(unix_s, watts)

    def _refused(self, what: str, cure: str) -> DataError:
        return DataError(f"line {self._number}: {what}", where=self._where, cure=cure)


def _is_header(first: str, second: str) -> bool:
    return _moment(first.strip()) is None and _number(second) is None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _moment(text: str) -> float | None:
    """Seconds since 1970."""
    seconds = _number(text)
    if seconds is not None:
        return seconds
    if text[-1:] in ("Z", "z"):
        text = f"{text[:-1]}+00:00"
    try:  # Python 3.10 takes no fraction but one of 3 or 6 digits
        return datetime.fromisoformat(_DECIMALS.sub(lambda found: f".{found[1]:0<6.6}", text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
