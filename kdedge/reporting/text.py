"""Text from records, made safe to show: a device may have sent anything."""

from __future__ import annotations

_LONGEST = 2000


def plain(value: object) -> str:
    r"""One line of printable text; control characters (terminal escapes, line feeds) as ``\xNN``.

    HTML is left as it is: the page escapes it, the terminal does not read it.
    """
    text = str(value)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
