"""Reading runs: what is found, what belongs together, and how bad files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kdedge.errors import UserError
from kdedge.reporting import load_runs
from tests.unit.report_records import facts, fleet, manifest, offline, parity, record, write_fleet, write_record


def test_a_run_folder_gives_records_parity_and_bundle(tmp_path: Path) -> None:
    runs = load_runs([write_fleet(tmp_path / "demo")])
    assert {run.record.run_id for run in runs.runs} == {run.run_id for run in fleet()}
    assert [run.record for run in runs.runs if run.record.run_id == "onnx-pi"] == [fleet()[2]]
    joined = {run.record.run_id: run.parity is not None for run in runs.runs}
    assert joined == {"onnx-local": True, "onnx-pi": True, "tflite-local": False, "tflite-pi": False}
    assert [trained.manifest for trained in runs.trained] == [manifest()]


def test_a_single_file_finds_what_lies_beside_it_and_above(tmp_path: Path) -> None:
    folder = write_fleet(tmp_path / "demo")
    runs = load_runs(folder / "records" / "onnx-pi.json")
    assert len(runs.runs) == 1
    assert runs.runs[0].parity is not None
    assert len(runs.trained) == 1


def test_a_record_named_twice_or_copied_counts_once(tmp_path: Path) -> None:
    path = write_record(tmp_path, record())
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    assert len(load_runs([tmp_path, path, tmp_path]).runs) == 1


def test_two_different_records_of_one_id_are_refused(tmp_path: Path) -> None:
    write_record(tmp_path / "a", record())
    write_record(tmp_path / "b", record(threads=2))
    with pytest.raises(UserError, match="two different records of one run id 'run-1'") as caught:
        load_runs([tmp_path])
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)


def test_other_json_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / ".half.json").write_text('{"run_id": "x", "schema_')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "another tool"}')
    runs = load_runs([tmp_path])
    assert len(runs.runs) == 1
    assert runs.trained == ()


@pytest.mark.parametrize("foreign", ['{"files": []}', '{"name": "another tool"}', "[]"])
def test_records_beside_the_manifest_of_something_else_are_read(tmp_path: Path, foreign: str) -> None:
    write_record(tmp_path / "bench", record("a"))
    write_record(tmp_path / "other", record("b"))
    (tmp_path / "bench" / "manifest.json").write_text(foreign)
    (tmp_path / "bench" / "student.onnx.parity.json").write_text(json.dumps(parity("a" * 64)))
    runs = load_runs([tmp_path])
    assert [run.record.run_id for run in runs.runs] == ["a", "b"]
    assert all(run.parity is not None for run in runs.runs)
    assert runs.trained == ()


def test_in_a_bundle_its_own_files_are_passed_over_and_records_are_not(tmp_path: Path) -> None:
    write_record(tmp_path, record("beside"))
    listed = write_record(tmp_path, record("listed"))
    own: dict[str, Any] = {"quantisation.json": {}, listed.name: {}, "manifest.json": {}}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest(), "files": own}))
    (tmp_path / "quantisation.json").write_text("[damaged")  # the bundle's own: told by who opens it
    runs = load_runs([tmp_path])
    assert [run.record.run_id for run in runs.runs] == ["beside", "listed"]
    assert len(runs.trained) == 1
    (tmp_path / "half.json").write_text('{"run_id": "x", "schema_')
    with pytest.raises(UserError, match=r"half\.json"):
        load_runs([tmp_path])


def test_a_missing_path_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder") as caught:
        load_runs([tmp_path / "nowhere"])
    assert "nowhere" in str(caught.value)
    assert "kdedge bench" in str(caught.value)


def test_no_path_means_the_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder \(runs\)"):
        load_runs()
    write_record(tmp_path / "runs", record())
    assert len(load_runs().runs) == 1


@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_without_records_says_how_to_make_one(tmp_path: Path, beside: bool) -> None:
    if beside:
        (tmp_path / "student.onnx.parity.json").write_text(json.dumps(parity("a" * 64)))
    with pytest.raises(UserError, match="no run record in this folder") as caught:
        load_runs([tmp_path])
    assert "kdedge bench" in (caught.value.cure or "")


def _latency(**changes: Any) -> dict[str, Any]:
    return {**record().latency_s, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"verdict": "splendid"}, "'verdict' is not one of steady"),
        ({"verdict": ["steady"]}, "verdict cannot be"),
        ({"device": 7}, "device cannot be"),
        ({"threads": "two"}, "threads cannot be"),
        ({"load_s": "fast"}, "load_s cannot be"),
        ({"power_w": float("nan")}, "'power_w' is not a finite number or null"),
        ({"facts": None}, "facts cannot be"),
        ({"accuracy": {"n": 3, "accuracy": "good"}}, "'accuracy.accuracy' is not a finite number"),
        ({"memory_bytes": {"peak": True}}, "'memory_bytes.peak' is not a finite number"),
        ({"verdict_reasons": [1]}, "'verdict_reasons' is not all text"),
        ({"unmeasured": {"power_w": 0}}, "'unmeasured' is not all text"),
        ({"latency_s": _latency(samples=[0.1, None])}, "'latency_s.samples' is not finite numbers"),
        ({"latency_s": _latency(p50="1 ms")}, "'latency_s.p50' is not a finite number"),
        ({"latency_s": _latency(starts=5)}, "'latency_s.starts' is not a list"),
        ({"latency_s": _latency(starts=[5])}, "'latency_s.starts' is not a list"),
        ({"latency_s": _latency(starts=[{}])}, "'latency_s.starts.n' is not"),
        ({"latency_s": _latency(starts=[{"n": 1, "load_s": "x"}])}, "'latency_s.starts.load_s' is not"),
        ({"latency_s": _latency(ci95={"p50": [2.0, 1.0]})}, "'latency_s.ci95.p50' is not"),
        ({"throughput": {"samples_per_s": "many"}}, "'throughput.samples_per_s' is not a finite number"),
        ({"throughput": {"batch_size": 1.5}}, "'throughput.batch_size' is not a whole number"),
        ({"throughput": {"ci95": [2.0, 1.0]}}, "'throughput.ci95' is not"),
    ],
)
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_bad_record_is_refused_by_name_with_the_reason(
    tmp_path: Path, change: dict[str, Any], message: str, named: str
) -> None:
    write_record(tmp_path, record("good"))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({**record("bad").to_dict(), **change}))
    with pytest.raises(UserError) as caught:
        load_runs([bad if named == "file" else tmp_path])
    assert message in str(caught.value)
    assert "bad.json" in str(caught.value)


def test_a_missing_key_a_cut_file_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    document = record().to_dict()
    del document["facts"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="facts"):
        load_runs([path])
    whole = json.dumps(record().to_dict())
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not a JSON document.*r\.json"):
        load_runs([tmp_path])
    path.write_text(json.dumps(parity("a" * 64)))
    with pytest.raises(UserError, match="not a run record"):
        load_runs([path])
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match=r"r\.json"):
        load_runs([path])


def test_a_damaged_parity_record_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    broken = {**parity("a" * 64), "parity": {"n": "many"}}
    (tmp_path / "student.onnx.parity.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"'n' is no number.*student\.onnx\.parity\.json"):
        load_runs([tmp_path])
    (tmp_path / "student.onnx.parity.json").write_text("[]")
    with pytest.raises(UserError, match="not a parity record"):
        load_runs([tmp_path])


def test_runs_are_in_order_of_device_runtime_and_artifact(tmp_path: Path) -> None:
    for index, run in enumerate(reversed(fleet())):
        write_record(tmp_path, replace(run, run_id=f"{index}-{run.run_id}"))
    order = [(run.record.device, run.record.runtime["name"]) for run in load_runs([tmp_path]).runs]
    assert order == sorted(order)


def test_runs_of_one_machine_stand_together_and_batches_after_the_rest(tmp_path: Path) -> None:
    cpus = {"1": "Core Beta", "2": "Core Alpha", "3": "Core Beta", "4": "Core Alpha"}
    for run_id, cpu in cpus.items():
        write_record(tmp_path, record(run_id, facts={**facts(), "cpu": cpu}))
    write_record(tmp_path, offline("0", facts={**facts(), "cpu": "Core Alpha"}))
    assert [run.record.run_id for run in load_runs([tmp_path]).runs] == ["2", "4", "0", "1", "3"]
