"""Text and JSON that come from a device, made harmless before anybody reads them.

A device may be compromised or just noisy: escape sequences in what it says could rewrite the user's
terminal, and endless strings could fill it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erase
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC, DCS, SOS, PM, APC: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]",  # two-character escapes
    re.DOTALL,
)
MAX_DEPTH = 32


def plain(text: str, max_chars: int = 100_000) -> str:
    """``text`` without terminal escapes, control and direction-changing characters, cut at ``max_chars``."""
    without_escapes = _ESCAPES.sub("", text[:max_chars])
    return "".join(map(_shown, without_escapes))


def _shown(character: str) -> str:
    """The character where it can be seen; a blank for other spaces; nothing for controls and invisible ones."""
    if character.isprintable() or character in "\n\t":
        return character
    return " " if unicodedata.category(character) in ("Zs", "Zl", "Zp") else ""


def one_line(text: str, max_chars: int = 300) -> str:
    """``text`` as one harmless line of at most ``max_chars`` characters, white space collapsed."""
    line = " ".join(plain(text).split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def last_line(text: str) -> str:
    """The last line that says something, as one harmless line; empty if there is none."""
    lines = [line for line in plain(text).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def clean(value: Any, depth: int = 0) -> Any:
    """A parsed JSON value with every string in it, keys included, made ``plain``.

    Raises:
        ValueError: nested more than ``MAX_DEPTH`` deep.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {plain(key): clean(item, depth + 1) for key, item in value.items()}
    return value
