"""What a device says is harmless before it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge_bench.text import MAX_DEPTH, clean, last_line, one_line, plain


@pytest.mark.parametrize(
    ("dirty", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1;2|payload\x1b\\after", "after"),
        ("\x1bc reset", " reset"),
        ("\x1b]0;never ends", ""),
        ("a\rb\x08c\x7fd\x9b31m", "abcd31m"),
        ("safe\u202egnirts\u200b", "safegnirts"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_escapes_go(dirty: str, harmless: str) -> None:
    assert plain(dirty) == harmless


@given(st.text())
def test_nothing_harmful_passes(text: str) -> None:
    assert one_line(text).isprintable()
    assert "\x1b" not in plain(text) and "\x9b" not in plain(text)
    assert len(one_line(text, 20)) <= 20


def test_the_last_line_that_says_something() -> None:
    assert last_line("first\n\x1b[1msecond\x1b[0m\n\n  \n") == "second"
    assert last_line("") == ""


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_clean_keeps_what_is_clean(value: object) -> None:
    assert clean(clean(value)) == clean(value)


def test_depth_has_a_bound() -> None:
    value: object = "x"
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(ValueError, match="deep"):
        clean(value)
