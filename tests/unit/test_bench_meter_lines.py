from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kdedge.errors import DataError

from kdedge_bench.meters.lines import LineReader, Stamped


@pytest.mark.parametrize(
    ("text", "unix_s"),
    [
        ("1760000000", 1760000000.0),
        ("1760000000.25", 1760000000.25),
        ("2025-10-09T08:53:20+00:00", 1760000000.0),
        ("2025-10-09T08:53:20Z", 1760000000.0),
        ("2025-10-09T08:53:20.250000Z", 1760000000.25),
        ("2025-10-09T08:53:20.25Z", 1760000000.25),
        ("2025-10-09T08:53:20.250000999Z", 1760000000.25),
        ("2025-10-09 10:53:20+02:00", 1760000000.0),
        ("2025-10-09T08:53:20", datetime(2025, 10, 9, 8, 53, 20).timestamp()),
    ],
)
def test_timestamps(text: str, unix_s: float) -> None:
    assert LineReader("log").feed(f"{text},3.5\n".encode()) == [Stamped(unix_s, 3.5)]


@pytest.mark.parametrize(
    ("stamp", "resolution_s"), [("1760000000", 1), ("1760000000.25", 0.01), ("2025-10-09T08:53:20.250Z", 0.001)]
)
def test_the_resolution_of_timestamps(stamp: str, resolution_s: float) -> None:
    reader = LineReader("log")
    reader.feed(f"{stamp},3.5\n".encode())
    assert reader.resolution_s == pytest.approx(resolution_s)


@pytest.mark.parametrize("header", ["timestamp,watts", "Time (s),Power [W]", "\ufefftimestamp,watts"])
def test_a_header_is_passed_over_in_the_first_line_only(header: str) -> None:
    assert LineReader("log").feed(f"{header}\n1760000000,1\n".encode()) == [Stamped(1760000000.0, 1.0)]
    with pytest.raises(DataError, match="line 2"):
        LineReader("log").feed(f"1760000000,1\n{header}\n".encode())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "'nonsense' has 1 fields"),
        ("1760000001", "has 1 fields"),
        ("1760000001,2,3", "has 3 fields"),
        ("1760000001;2", "has 1 fields"),
        ("# a remark", "has 1 fields"),
        ("yesterday,2", "begins with no timestamp"),
        (",2", "begins with no timestamp"),
        ("nan,2", "begins with no timestamp"),
        ("2025-13-09T08:53:20Z,2", "begins with no timestamp"),
        ("1760000001,", "ends with no number of watts"),
        ("1760000001,two", "ends with no number of watts"),
        ("1760000001,nan", "ends with no number of watts"),
        ("1760000001,inf", "ends with no number of watts"),
        ("1760000001,2 W", "ends with no number of watts"),
        ("1760000001,-2", "impossible watts.*exchange its input and output"),
        ("1760000001,1e9", "impossible watts"),
        ("1760000001000,2", "milliseconds.*by 1000"),
        ("1760000000,2", "not later than the line before"),
        ("1759999999,2", "not later than the line before"),
        ("1" * 300 + ",2", "line 3"),
        ("\x1b[31m1760000001,2\x00", "begins with no timestamp"),
    ],
)
def test_every_other_line_is_refused_with_its_number_and_a_cure(line: str, said: str) -> None:
    reader = LineReader("power.csv")
    assert len(reader.feed(b"timestamp,watts\n1760000000,1.5\n")) == 1
    with pytest.raises(DataError, match=said) as caught:
        reader.feed(f"{line}\n".encode())
    assert "line 3" in str(caught.value)
    assert "power.csv" in str(caught.value)
    assert caught.value.cure
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(DataError, match="line 2: a line of more than 256 bytes"):
        LineReader("log").feed(b"1760000000,1\n" + b"1" * 300)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1000)), max_size=20), st.integers(1, 40))
def test_lines_are_the_same_however_they_are_cut_into_pieces(steps: list[tuple[int, float]], size: int) -> None:
    stamp, wanted, text = 1.7e9, [], ""
    for step, watts in steps:
        stamp += step / 1000
        wanted.append(Stamped(float(f"{stamp:.3f}"), float(f"{watts:.4f}")))
        text += f"{stamp:.3f},{watts:.4f}\r\n\n"
    reader, data = LineReader("log"), text.encode()
    assert [one for i in range(0, len(data), size) for one in reader.feed(data[i : i + size])] == wanted


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        LineReader("log").feed(data)
    except DataError as error:
        assert "line " in str(error)
