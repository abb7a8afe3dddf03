from __future__ import annotations

import json
from typing import Any

import kdedge
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge_agent import __version__, protocol, run_record
from kdedge_agent.protocol import ProtocolError, decode, encode, from_dict
from kdedge_agent.run_record import RunRecord
from kdedge_agent.run_request import RunRequest, ScoreRequest

GOOD: dict[str, Any] = {"artifact": "/x/m.onnx", "artifact_sha256": "0" * 64, "format": "onnx"}
SCORE: dict[str, Any] = {
    **GOOD,
    "samples": "/x/s.raw",
    "samples_sha256": "1" * 64,
    "shape": [4, 3, 8, 8],
    "dtype": "float32",
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def test_the_agent_has_the_projects_version() -> None:
    assert __version__ == kdedge.__version__


@given(st.dictionaries(st.text(), JSON, max_size=5), st.text())
def test_what_is_encoded_decodes_to_the_same(content: dict[str, Any], kind: str) -> None:
    message = {**content, "type": kind}
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(line: bytes) -> None:
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert isinstance(message["type"], str)


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b'{"type": 1}', b"{}", b'{"type": NaN}', b'{"type":"x","v":Infinity}', b"\xff\xfe", b"[" * 100_000],
)
def test_no_messages(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_values_without_a_word_in_json_are_refused(value: object) -> None:
    with pytest.raises(ProtocolError, match="cannot be encoded"):
        encode({"type": "x", "value": value})


def test_too_long_a_line_is_refused_both_ways() -> None:
    with pytest.raises(ProtocolError, match="exceeds"):
        encode({"type": "x", "v": "a" * protocol.MAX_LINE_BYTES})
    with pytest.raises(ProtocolError, match="more than"):
        decode(b" " * (protocol.MAX_LINE_BYTES + 1))


def test_requests_survive_the_wire() -> None:
    request = RunRequest(**GOOD, threads=2, power_window_s=3.5)
    assert from_dict(RunRequest, json.loads(json.dumps(request.to_dict()))) == request
    score = ScoreRequest(**SCORE, columns=["ids", "mask"], returns="outputs")
    assert from_dict(ScoreRequest, json.loads(json.dumps(score.to_dict()))) == score


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": "2"}, "threads"),
        ({"threads": True}, "threads"),
        ({"format": "pickle"}, "format"),
        ({"artifact": ""}, "artifact"),
        ({"artifact": "a\0b"}, "artifact"),
        ({"artifact_sha256": "zz"}, "artifact_sha256"),
        ({"repetitions": 0}, "repetitions"),
        ({"repetitions": 10**9}, "repetitions"),
        ({"min_duration_s": -1.0}, "min_duration_s"),
        ({"idle_s": 1e9}, "idle_s"),
        ({"external_meter": "csv:x"}, "external_meter"),
        ({"seed": -1}, "seed"),
        ({"code": "import os"}, "unknown key 'code'"),
    ],
)
def test_impossible_measurements_name_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        from_dict(RunRequest, {**GOOD, **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ProtocolError, match="artifact_sha256"):
        from_dict(RunRequest, {"artifact": "x", "format": "onnx"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "object"}, "dtype"),
        ({"shape": [4]}, "shape"),
        ({"shape": [4, -1]}, "shape"),
        ({"shape": [4, "3"]}, "shape"),
        ({"columns": [3]}, "columns"),
        ({"columns": ["x"] * 9}, "columns"),
        ({"returns": "files"}, "returns"),
    ],
)
def test_impossible_scoring_names_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        from_dict(ScoreRequest, {**SCORE, **change})


@given(st.dictionaries(st.sampled_from([*GOOD, "threads", "seed", "power", "runtime", "x"]), JSON))
def test_hostile_requests_are_refused_and_never_crash(content: dict[str, Any]) -> None:
    try:
        request = from_dict(RunRequest, content)
    except ProtocolError:
        return
    assert request.threads >= 1


def test_a_record_of_another_schema_is_refused() -> None:
    with pytest.raises(ProtocolError, match="schema version 2"):
        RunRecord.from_json({"schema_version": 2})


def test_a_measurement_has_a_value_or_a_reason() -> None:
    assert run_record.Measurement("power", "W", None, reason="no sensor").value is None
    for value, reason in ((None, None), (1.0, "why")):
        with pytest.raises(ValueError, match="either"):
            run_record.Measurement("power", "W", value, reason=reason)
