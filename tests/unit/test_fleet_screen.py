"""What is said of the cells of a matrix: single inferences by their latency, batches by their throughput too."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from kdedge.cli.fleet_screen import cells_table, said_of_record
from kdedge.errors import DeviceError
from rich.console import Console
from tests.unit.report_records import offline, record

from kdedge_agent.run_record import RunRecord
from kdedge_bench.artifact_file import check_artifact
from kdedge_bench.devices import LOCAL
from kdedge_bench.fleet import Outcome
from kdedge_bench.matrix import Cell


def shown(folder: Path, *outcomes: Outcome[RunRecord]) -> str:
    artifact = folder / "a.onnx"
    artifact.write_text("never opened")
    cells = [Cell(check_artifact(artifact), LOCAL, "onnxruntime", 1) for _ in outcomes]
    out = io.StringIO()
    Console(file=out, width=80).print(cells_table(cells, outcomes))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "…" not in out.getvalue()
    return out.getvalue()


def test_batches_are_told_by_their_throughput(tmp_path: Path) -> None:
    run = offline(latency_s={**offline().latency_s, "p50": 0.04})
    assert said_of_record(run) == ("throughput 31338 samples/s [31000–32000], p50 40.00 ms of one batch of 16, steady")
    few = replace(run, throughput={**(run.throughput or {}), "ci95": None})
    assert said_of_record(few) == "throughput 31338 samples/s, p50 40.00 ms of one batch of 16, steady"
    text = shown(tmp_path, Outcome(run), Outcome(None, DeviceError("no answer", where="local")), Outcome())
    assert "samples/s" in text
    assert "31338" in text
    assert "31000–32000" in text
    assert "40.00¹" in text
    assert "¹ of one batch of 16" in text
    assert "5000 samples in 10 s" in text


def test_single_inferences_are_told_by_their_latency(tmp_path: Path) -> None:
    run = record()
    run = replace(run, latency_s={**run.latency_s, "p50": 0.004})
    assert said_of_record(run) == "p50 4.000 ms, steady"
    text = shown(tmp_path, Outcome(run))
    assert "4.000" in text
    assert "samples/s" not in text
    assert "batch" not in text
