"""The rows: every figure is the record's, every gap has its reason; the terminal shows the same."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kdedge.reporting import (
    COLUMNS,
    SUMMARY_COLUMNS,
    Cell,
    Parity,
    Row,
    Run,
    Runs,
    Trained,
    load_runs,
    rows_json,
    summary_rows,
    table,
    terminal_table,
)
from kdedge.reporting.cells import MEGABYTES, MILLISECONDS, PROPORTION, proportion, wilson95
from kdedge.reporting.conditions import conditions
from kdedge.reporting.plots import tradeoff
from kdedge.reporting.rows import columns_of
from rich.console import Console
from tests.unit.report_records import NO_SENSOR, facts, fleet, manifest, offline, parity, record, write_fleet

from kdedge_agent.run_record import RunRecord


def row_of(run: RunRecord, found: dict[str, Any] | None = None) -> Row:
    joined = None if found is None else Parity(Path("x.parity.json"), run.artifact_sha256, found)
    return table(Runs((Run(Path("r.json"), run, joined),)))[0]


def test_figures_are_the_records_with_their_n_and_interval() -> None:
    run = record()
    cells = row_of(run).cells
    for key in ("p50", "p90", "p99"):
        assert cells[key].value == run.latency_s[key]
        assert cells[key].interval == tuple(run.latency_s["ci95"][key])
        assert cells[key].n == 1000
    assert cells["accuracy"].value == 0.975
    assert cells["accuracy"].n == 360
    assert cells["accuracy"].note is None
    assert cells["f1_macro"].value == 0.9741
    assert cells["f1_macro"].interval is None
    assert cells["size"].value == 2_500_000
    assert cells["peak"].value == 64_000_000
    assert cells["steady"].value == 60_000_000
    assert cells["load"].value == 0.125
    assert cells["first"].value == 0.0625


def test_a_reader_is_shown_by_the_exact_match_and_f1_of_its_answers() -> None:
    scores = {"n": 138, "exact_match": 0.5, "f1": 0.625}
    on_device = row_of(record(accuracy=scores)).cells
    assert (on_device["accuracy"].value, on_device["accuracy"].n) == (0.5, 138)
    assert on_device["accuracy"].note == "exact match of the answers"
    assert (on_device["f1_macro"].value, on_device["f1_macro"].note) == (0.625, "of the answers' words")
    run = record(accuracy=None)
    on_host = row_of(run, parity(run.artifact_sha256, scores_artifact=scores)).cells
    assert (on_host["accuracy"].value, on_host["f1_macro"].value) == (0.5, 0.625)
    assert on_host["accuracy"].note == "exact match of the answers; measured on the host at export, not on the device"


def test_latencies_of_batches_are_not_taken_for_those_of_samples() -> None:
    run = record()
    assert "batches" not in row_of(run).label
    run = replace(run, throughput={"samples_per_s": 800.0, "ci95": None, "batch_size": 8, "batches": 200})
    assert row_of(run).label.endswith(" in batches of 8")
    row = row_of(offline(batch_size=16))
    for key in ("p50", "p90", "first"):
        assert row.cells[key].note == "of one batch of 16"
    for key in ("energy", "net_energy"):
        assert (row.cells[key].note or "").startswith("per sample · source: INA219")
    assert "5000 samples in 10 s" in (row.cells["power"].note or "")
    assert dict(conditions(offline()))["Scenario"] == "offline, batches of 16"
    assert dict(conditions(run))["Scenario"] == "offline, batches of 8"
    assert dict(conditions(record()))["Scenario"] == "single-stream"
    starts = [{"n": 100, "warmup_n": 3} for _ in range(2)]
    several = row_of(offline(latency_s={**offline().latency_s, "starts": starts})).cells
    assert several["p50"].note == "of one batch of 16 · 2 starts"


def test_throughput_has_its_interval_its_batches_and_its_batch_size() -> None:
    row = row_of(offline())
    cell = row.cells["throughput"]
    assert (cell.value, cell.interval, cell.n) == (31337.5, (31000.0, 32000.0), 200)
    assert cell.text == "31338 samples/s"
    (document,) = rows_json([row])
    assert (document["scenario"], document["batch_size"]) == ("offline", 16)
    assert document["figures"]["throughput"]["value"] == 31337.5
    assert document["figures"]["throughput"]["ci95"] == [31000.0, 32000.0]
    (single,) = rows_json([row_of(record())])
    assert (single["scenario"], single["batch_size"]) == ("single-stream", None)
    assert single["figures"]["throughput"]["value"] is None
    assert single["figures"]["throughput"]["reason"] == "measured by --scenario offline"
    few = {**(offline().throughput or {}), "ci95": None}
    why = {"throughput.ci95": "2 samples are too few"}
    assert row_of(offline(throughput=few, unmeasured=why)).cells["throughput"].interval_text == "2 samples are too few"
    stopped = {**few, "samples_per_s": None}
    why = {"throughput.samples_per_s": "no time passed"}
    assert row_of(offline(throughput=stopped, unmeasured=why)).cells["throughput"].reason == "no time passed"


def test_throughput_is_a_column_where_a_row_has_it() -> None:
    single, batches = row_of(record()), row_of(offline())
    assert columns_of([single]) == COLUMNS
    mixed = {column.key: column.title for column in columns_of([single, batches])}
    assert list(mixed) == ["accuracy", "size", "p50", "p90", "p99", "throughput", "peak", "energy"]
    assert mixed["energy"] == "Energy per sample"
    assert next(column.title for column in COLUMNS if column.key == "energy") == "Energy per inference"


def test_memory_by_whose_it_is_and_the_gpus() -> None:
    shares = {"pss": 123_000_000, "private": 98_000_000, "private_dirty": 97_000_000, "gpu_shared": 777_000_000}
    cells = row_of(record(memory_bytes={**record().memory_bytes, **shares})).cells
    assert {key: cells[key].value for key in shares} == shares
    why = {"memory_bytes.pss": "no smaps_rollup"}
    cells = row_of(record(memory_bytes={"pss": None}, unmeasured=why)).cells
    assert cells["pss"].reason == "no smaps_rollup"
    assert cells["gpu_shared"].reason == "told by a Jetson alone"


def test_devices_of_one_name_are_told_apart() -> None:
    laptop = record("a", device="local", facts={**facts(), "board": "Laptop X", "cpu": "Core Alpha"})
    server = record("b", device="local", facts={**facts(), "board": None, "cpu": "Core Beta"})
    rows = table(Runs(tuple(Run(Path("r.json"), run, None) for run in (laptop, server, record()))))
    assert [row.place for row in rows] == ["local (Laptop X, Core Alpha)", "local (Core Beta)", "pi"]
    assert [row.device for row in rows] == ["local", "local", "pi"]
    assert [(row["device"], row["board"], row["cpu"]) for row in rows_json(rows)] == [
        ("local", "Laptop X", "Core Alpha"),
        ("local", None, "Core Beta"),
        ("pi", "Synthetic Board 1", "Synthetic Core"),
    ]  # fmt: skip


def test_what_is_unmeasured_says_why_and_is_never_zero() -> None:
    cells = row_of(fleet()[1]).cells
    assert cells["p99"].value is None
    assert cells["p99"].reason == "200 repetitions; p99 needs 1000"
    assert cells["energy"].value is None
    assert cells["energy"].reason == NO_SENSOR
    assert cells["power"].reason == NO_SENSOR
    assert "no parity record" in (cells["accuracy"].reason or "")
    without = record(unmeasured={}, accuracy=None, load_s=None)
    for key, cell in row_of(without).cells.items():
        assert (cell.value is None) == (cell.reason is not None), key
    assert row_of(without).cells["load"].reason == "not measured; the record gives no reason"


def test_accuracy_falls_back_to_the_parity_record_and_says_so() -> None:
    cells = row_of(record(accuracy=None, unmeasured={"accuracy": "not asked for"}), parity("a" * 64, 0.9722)).cells
    assert cells["accuracy"].value == 0.9722
    assert cells["accuracy"].n == 360
    assert "host" in (cells["accuracy"].note or "")
    on_device = row_of(record(), parity("a" * 64, 0.5)).cells["accuracy"]
    assert on_device.value == 0.975
    assert on_device.note is None
    neither = row_of(record(accuracy=None, unmeasured={"accuracy": "not asked for"})).cells["accuracy"]
    assert "not asked for" in (neither.reason or "")


def test_energy_counts_the_readings_under_load_and_names_the_source() -> None:
    cells = row_of(fleet()[3]).cells
    assert cells["energy"].value == 0.009
    assert cells["energy"].n == 101  # readings at 0.0, 0.1 .. 10.0 s; those of the idle windows do not count
    assert "INA219" in (cells["energy"].note or "")
    assert cells["net_energy"].value == 0.0039
    assert "idle drift alone: ±0.100 mJ" in (cells["net_energy"].note or "")
    assert cells["power"].value == 4.5


def test_energy_has_its_interval_and_says_what_it_rests_on() -> None:
    cells = row_of(fleet()[3]).cells
    assert cells["energy"].interval == (0.0089, 0.0091)
    assert cells["net_energy"].interval == (0.0037, 0.0041)
    note = cells["energy"].note or ""
    assert "source: INA219 at 0x40 (hwmon) (the board's supply line)" in note
    assert "5000 inferences in 10 s = 100 sensor periods (10 Hz, its readings change as often as it is read)" in note
    assert "idle 2.50 W before, 2.60 W after, drift +0.1 W" in note
    assert "of the load: idle drift ±1.1%, sampling ±1%" in note
    assert "did not answer for 0.3 s" in note
    assert "a reading takes 12.3 ms; reading took 5% of a core" in note
    assert "about 5.74 W at the socket (an estimate: a fit of another board)" in note


def test_why_a_percentile_has_no_interval_is_said() -> None:
    run = record()
    few = {**run.latency_s, "n": 5, "ci95": {"p50": None}}
    unmeasured = {"latency_s.ci95.p50": "5 samples are too few"}
    cell = row_of(record(latency_s=few, unmeasured=unmeasured)).cells["p50"]
    assert cell.interval_text == "5 samples are too few"


def test_several_starts_are_said_beside_every_figure_of_theirs() -> None:
    run = record()
    assert row_of(run).cells["p50"].note is None  # a record from before there were starts
    assert dict(conditions(run))["Starts"] == "1"
    starts = [{"n": 200, "warmup_n": 3, "p50": 0.004, "load_s": 0.1} for _ in range(5)]
    run = replace(run, latency_s={**run.latency_s, "starts": starts})
    cells = row_of(run).cells
    assert cells["p50"].note == cells["p99"].note == "5 starts"
    assert cells["p50"].n == 1000
    assert (cells["load"].n, cells["load"].interval_text) == (5, "median of the starts")
    assert (cells["peak"].n, cells["peak"].interval_text) == (5, "largest of the starts")
    assert dict(conditions(run))["Starts"] == "5"


def test_summary_has_students_then_runs(tmp_path: Path) -> None:
    rows = summary_rows(load_runs([write_fleet(tmp_path / "demo")]))
    assert [row.label for row in rows[:2]] == ["float student", "int8 student"]
    assert [row.format for row in rows] == ["torch", "torch", "tflite", "onnx", "tflite", "onnx"] or {
        row.format for row in rows[2:]
    } == {"onnx", "tflite"}
    assert rows[0].cells["accuracy"].value == 0.9806
    assert rows[1].cells["accuracy"].value == 0.9778
    assert rows[0].cells["size"].value == 9_000_000
    assert rows[0].runtime == "torch 2.0.0"
    for column in SUMMARY_COLUMNS:
        for row in rows:
            assert column.key in row.cells


def test_a_manifest_without_parts_leaves_reasons() -> None:
    bare = {key: value for key, value in manifest().items() if key not in ("metrics", "files", "versions")}
    run = Run(Path("r.json"), record(), None)
    rows = summary_rows(Runs((run,), (Trained(Path("bundle"), bare),)))
    assert rows[0].cells["accuracy"].reason == "the bundle's manifest has no metrics of student_float"
    assert "does not list" in (rows[0].cells["size"].reason or "")
    assert rows[0].runtime == "torch"


def test_rows_as_json_hold_the_same_numbers(tmp_path: Path) -> None:
    rows = table(load_runs([write_fleet(tmp_path / "demo")]))
    document = json.loads(json.dumps(rows_json(rows), allow_nan=False))
    for row, plain_row in zip(rows, document, strict=True):
        for key, cell in row.cells.items():
            assert plain_row["figures"][key]["value"] == cell.value
            assert plain_row["figures"][key]["reason"] == cell.reason
            assert plain_row["figures"][key]["n"] == cell.n


@pytest.mark.parametrize(("width", "spread"), [(110, True), (80, False)])
def test_the_terminal_shows_the_same_rows_uncut(tmp_path: Path, width: int, spread: bool) -> None:
    rows = summary_rows(load_runs([write_fleet(tmp_path / "demo")]))
    out = io.StringIO()
    columns = SUMMARY_COLUMNS if not spread else COLUMNS
    Console(file=out, width=width).print(terminal_table(rows, columns, spread=spread))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        for column in columns:
            cell = row.cells[column.key]
            if cell.value is not None:
                assert cell.unit.number(cell.value) in text
                assert not spread or cell.interval is None or cell.interval_text in text
    assert NO_SENSOR in text
    assert "drifting" in text
    assert "…" not in text  # no cell was cut off


@pytest.mark.parametrize(("width", "spread"), [(110, True), (80, False)])
def test_the_terminal_shows_throughput_uncut_too(width: int, spread: bool) -> None:
    out = io.StringIO()
    rows = [row_of(record()), row_of(offline())]
    Console(file=out, width=width).print(terminal_table(rows, spread=spread))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "31338" in text
    assert "samples/s" in text
    assert ("31000–32000" in text) == spread
    assert "of one batch of 16" in text
    assert "per sample" in text
    assert "…" not in text


def test_terminal_escapes_and_markup_from_a_device_are_shown_as_text() -> None:
    run = record(device="\x1b[31mred[bold]", verdict_reasons=["a\nb\x07"])
    row = row_of(run)
    assert "\x1b" not in row.device
    assert row.verdict_reasons == ("a\\nb\\x07",)
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(terminal_table([row]))
    assert "\x1b" not in out.getvalue()
    assert "[bold]" in out.getvalue()


def test_conditions_tell_before_and_after() -> None:
    told = dict(conditions(fleet()[3]))
    assert told["Governor"] == "ondemand"
    assert told["Temperature"] == "40 to 45 °C → 40 to 78.5 °C"
    assert told["Frequency"] == "1.8 to 2.4 GHz"
    assert told["Throttle flags"] == "none set"
    assert told["OS"] == "Synthetic OS 12"
    assert told["Kernel"] == "6.0.0-synthetic"
    assert told["Runtime"] == "ai-edge-litert 2.0.0"
    assert told["Threads"] == "1"
    assert told["Measured"] == "2026-01-02 03:04:05 UTC"


def test_conditions_name_what_is_missing_and_flags_that_are_up() -> None:
    assert dict(conditions(record(facts={})))["Governor"] == "not recorded"
    hot = facts()
    hot["after"]["throttle"] = {"raw": 5, "set": ["undervoltage", "throttled"]}
    assert dict(conditions(record(facts=hot)))["Throttle flags"] == "none set → undervoltage, throttled"
    hot["before"]["throttle"] = hot["after"]["throttle"] = {"raw": None, "set": [], "reason": "no vcgencmd here"}
    assert dict(conditions(record(facts=hot)))["Throttle flags"] == "no vcgencmd here"


def test_wilson_agrees_with_the_published_example() -> None:
    # R. G. Newcombe, Statist. Med. 17 (1998) 857-872, table I, method 3: 81/263 and 15/148.
    assert wilson95(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson95(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_in_range(n: int, share: float) -> None:
    low, high = wilson95(share, n)
    assert 0 <= low <= share <= high <= 1


@given(st.floats(1e-9, 1e6))
def test_a_written_figure_keeps_its_digits(value: float) -> None:
    assert math.isclose(float(MILLISECONDS.number(value)), value * 1e3, rel_tol=1e-3)
    assert "e" not in MILLISECONDS.number(value)


def test_a_cell_is_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either a value or the reason"):
        Cell(None, MEGABYTES)
    with pytest.raises(ValueError, match="either a value or the reason"):
        Cell(1.0, MEGABYTES, reason="both")
    assert Cell(0.0, MEGABYTES).text == "0 MB"
    assert Cell(None, PROPORTION, reason="why").text == "not measured"
    assert proportion(0.9, None, None).interval_text == "no interval without n"


def test_a_student_that_was_measured_is_one_point_of_the_plot(tmp_path: Path) -> None:
    both = summary_rows(load_runs([write_fleet(tmp_path / "demo")]))[:2]
    for students, points in ((both[:0], 1), (both[1:], 2), (both, 2)):
        assert len(tradeoff(both[:1], "size", "title", "size (MB)", students).spec["data"]) == points
