from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.record import build_record
from kdedge_agent.run_record import RunRecord


def result(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "type": "result",
        "of": "measure",
        "artifact_sha256": "0" * 64,
        "runtime": {"name": "onnxruntime", "version": "1.0", "provider": "CPUExecutionProvider"},
        "threads": 1,
        "request": {},
        "latency_s": {
            "samples": [0.002, 0.001, 0.003],
            "warmup_samples": [0.01],
            "warmup_steady": True,
            "warmup_rule": "three blocks",
            "preempted": 2,
            "p50": 999.0,
        },
        "load_s": 0.1,
        "first_inference_s": 0.01,
        "memory_bytes": {"peak": 1000},
        "power_w": None,
        "energy_j_per_inference": None,
        "power": None,
        "unmeasured": {"power_w": "no sensor"},
        "facts": {},
        "verdict": "steady",
        "verdict_reasons": [],
        "versions": {"agent": "0.1.0", "protocol": 1},
    }
    return {**good, **changes}


def record(changed: dict[str, Any], **more: Any) -> RunRecord:
    return build_record(
        changed,
        device="pi",
        device_kind="pi",
        run_id="r1",
        created_at="2026-01-01T00:00:00+00:00",
        artifact={"path": "m.onnx"},
        versions={"kdedge": "0.1.0"},
        **more,
    )


def test_statistics_come_from_the_raw_samples_and_not_from_the_device() -> None:
    built = record(result())
    assert built.latency_s["p50"] == 0.002
    assert built.latency_s["n"] == 3
    assert built.latency_s["warmup_steady"] is True
    assert built.unmeasured["power_w"] == "no sensor"
    assert "latency_s.p99" in built.unmeasured
    assert built.versions == {"agent": "0.1.0", "protocol": 1, "kdedge": "0.1.0"}


def test_a_record_survives_json() -> None:
    built = record(result(), accuracy={"n": 10, "accuracy": 0.9, "f1_macro": 0.89})
    assert RunRecord.from_json(json.loads(json.dumps(built.to_dict(), allow_nan=False))) == built
    assert "accuracy" not in built.unmeasured


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "excellent"}, "verdict"),
        ({"latency_s": None}, "latency_s"),
        ({"latency_s": {"samples": [], "warmup_samples": []}}, "there is none"),
        ({"latency_s": {"samples": [float("nan")], "warmup_samples": []}}, "duration"),
        ({"latency_s": {"samples": [-1.0], "warmup_samples": []}}, "duration"),
        ({"latency_s": {"samples": ["1"], "warmup_samples": []}}, "duration"),
        ({"latency_s": {"samples": "1234", "warmup_samples": []}}, "list"),
        ({"unmeasured": {"power_w": 3}}, "unmeasured"),
        ({"verdict_reasons": "no"}, "verdict_reasons"),
        ({"runtime": "onnxruntime"}, "runtime"),
        ({"memory_bytes": [1]}, "memory_bytes"),
        ({"load_s": "fast"}, "load_s"),
    ],
)
def test_what_a_device_may_not_send(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        record(result(**change))


ONE: dict[str, Any] = {"n": 1, "warmup_n": 1, "first_inference_s": 0.02, "peak_rss_bytes": 7}
THREE = [{**ONE, "load_s": load_s} for load_s in (0.3, 0.1, 0.2)]


def started(starts: object) -> dict[str, Any]:
    raw = {"samples": [0.002, 0.001, 0.003], "warmup_samples": [0.01, 0.02, 0.03], "starts": starts}
    return result(latency_s=raw, load_s=9.0)


def test_what_is_measured_once_a_start_is_the_median_of_the_starts() -> None:
    built = record(started(THREE))
    assert (built.starts, built.load_s, built.first_inference_s) == (3, 0.2, 0.02)
    assert [start["p50"] for start in built.latency_s["starts"]] == [0.002, 0.001, 0.003]
    assert [start["load_s"] for start in built.latency_s["starts"]] == [0.3, 0.1, 0.2]
    assert record(started(None)).load_s == 9.0  # one start: the answer's own


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ("three", "a list"),
        ([], "a list"),
        (THREE * 17, "at most 50"),
        ([1, 2, 3], "objects"),
        ([{}], "Start"),
        (THREE[:2], "add up"),
        ([{**THREE[0], "n": 4}], "add up"),
        ([{"n": 3, "warmup_n": 4}], "add up"),
        ([*THREE, {"n": 0, "warmup_n": 0}], "no samples"),
        ([{"n": 4, "warmup_n": 3}, {"n": -1, "warmup_n": 0}], "no samples"),
        ([{"n": 3.0, "warmup_n": 3}], "n cannot be"),
        ([{"n": True, "warmup_n": 3}], "n cannot be"),
        ([{"n": 10**400, "warmup_n": 3}], "n cannot be"),
        ([{"n": 3, "warmup_n": 3, "load_s": 10**400}], "load_s cannot be"),
        ([{"n": 3, "warmup_n": 3, "load_s": -1.0}], "load_s cannot be"),
        ([{"n": 3, "warmup_n": 3, "load_s": "soon"}], "load_s cannot be"),
        ([{"n": 3, "warmup_n": 3, "waited_s": float("nan")}], "waited_s cannot be"),
        ([{"n": 3, "warmup_n": 3, "peak_rss_bytes": -1}], "peak_rss_bytes cannot be"),
        ([{"n": 3, "warmup_n": 3, "warmup_steady": 1}], "warmup_steady cannot be"),
    ],
)
def test_starts_that_a_device_may_not_send(starts: object, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        record(started(starts))


def test_a_record_from_before_there_were_starts_is_read_and_is_of_one() -> None:
    document = record(result()).to_dict()
    del document["latency_s"]["starts"]
    assert RunRecord.from_json(document).starts == 1


def test_offline_reports_samples_a_second_from_the_raw_samples() -> None:
    built = record(result(request={"scenario": "offline"}, batch_size=16))
    assert built.throughput is not None
    assert built.throughput["samples_per_s"] == pytest.approx(16 / 0.002)
    assert "throughput.ci95" in built.unmeasured
    single = record(result())
    assert single.throughput is None
    assert "offline" in single.unmeasured["throughput"]
    several = record({**started(THREE), "request": {"scenario": "offline"}, "batch_size": 16})
    assert several.throughput is not None
    assert several.throughput["samples_per_s"] == pytest.approx(16 / 6e-9 ** (1 / 3))
    assert several.throughput["ci95_method"] == "t over starts"
    for batch in (None, 0, True, "8", 1.5):
        with pytest.raises(ProtocolError, match="batch_size"):
            record(result(request={"scenario": "offline"}, batch_size=batch))


def test_a_record_from_before_there_was_throughput_is_read() -> None:
    document = record(result()).to_dict()
    del document["throughput"]
    assert RunRecord.from_json(document).throughput is None


def test_a_missing_part_is_named() -> None:
    lacking = result()
    del lacking["facts"]
    with pytest.raises(ProtocolError, match="lacks facts"):
        record(lacking)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers())
)


@given(st.dictionaries(st.sampled_from(sorted(result())), VALUES))
def test_hostile_results_make_a_record_or_a_protocol_error(changes: dict[str, Any]) -> None:
    try:
        built = record(result(**changes))
    except ProtocolError:
        return
    json.dumps(built.to_dict())
