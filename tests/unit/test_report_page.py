"""The page as text: self-contained, escaped, small, the same for the same runs; plots that plotly accepts."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdedge.errors import UserError
from kdedge.reporting import load_runs, report
from kdedge.reporting.drawing import COLOURS, envelope, points_a_run, ranks
from kdedge.reporting.page import render
from tests.unit.report_records import (
    facts,
    fleet,
    latencies,
    latency,
    offline,
    record,
    write_fleet,
    write_record,
)

HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b> & \'</script><script>document.title=2</script>{{ 7*7 }}'
LIMIT_BYTES = 6_000_000


class Structure(HTMLParser):
    """Elements with their attributes, and the text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def specs(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert found
    document: dict[str, Any] = json.loads(found.group(1))
    return document


def without_tokens(value: Any) -> Any:
    """A specification with every colour token replaced, so that plotly's own validation reads it."""
    if isinstance(value, dict):
        return {k: without_tokens(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_tokens(item) for item in value]
    return "#123456" if isinstance(value, str) and value.startswith("@") else value


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(load_runs([write_fleet(tmp_path_factory.mktemp("demo"))]))


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    structure = Structure(page)
    for tag, attributes in structure.elements:
        for name in ("src", "srcset", "data", "action", "poster"):
            assert name not in attributes, (tag, attributes)
        target = attributes.get("href")
        assert target is None or target.startswith("#") or target == "data:,", (tag, target)
    policy = next(m["content"] for m in structure.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert page.count("plotly.js v") == 1  # one copy


def test_the_page_is_small_and_the_same_for_the_same_runs(tmp_path: Path) -> None:
    folder = write_fleet(tmp_path / "demo")
    out = report(load_runs([folder]), tmp_path / "a.html")
    assert out.stat().st_size <= LIMIT_BYTES
    assert out.read_bytes() == report([folder], tmp_path / "b.html").read_bytes()


def test_many_runs_with_many_samples_stay_below_the_limit(tmp_path: Path) -> None:
    for index in range(40):
        many = latency(latencies(10_000, 0.001, index))
        write_record(tmp_path, record(f"run-{index}", latency_s=many))
    assert report([tmp_path], tmp_path / "out" / "report.html").stat().st_size <= LIMIT_BYTES


def test_headings_tables_and_plots_have_names(page: str) -> None:
    structure = Structure(page)
    assert structure.all("html")[0]["lang"] == "en"
    assert len(structure.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in structure.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(structure.all("table")) == len(structure.all("caption"))
    drawings = [attributes for attributes in structure.all("div") if attributes.get("class") == "canvas"]
    assert len(drawings) == 4 + len(fleet())
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in structure.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in structure.all("a"):
        assert (link["href"] or "")[1:] in ids


def test_what_looks_like_html_is_shown_as_text(tmp_path: Path) -> None:
    plain_ids = record()
    hostile = record(
        HOSTILE,
        device=HOSTILE,
        device_kind=HOSTILE,
        artifact={**plain_ids.artifact, "path": HOSTILE.replace("/", "|"), "precision": HOSTILE},
        runtime={"name": HOSTILE, "version": HOSTILE, "provider": HOSTILE},
        facts={"board": HOSTILE, HOSTILE: HOSTILE, "before": {"governor": HOSTILE}},
        unmeasured={"energy_j_per_inference": HOSTILE, "power_w": HOSTILE},
        verdict="noisy",
        verdict_reasons=[HOSTILE],
        versions={HOSTILE: HOSTILE},
    )
    (tmp_path / "record.json").write_text(json.dumps(hostile.to_dict()))
    page = render(load_runs([tmp_path]))
    structure = Structure(page)
    assert structure.all("img") == []
    assert structure.all("b") == []
    assert len(structure.all("script")) == 3
    assert structure.text.count(HOSTILE) >= 8
    for spec in specs(page).values():
        for trace in spec["data"]:
            for text in (json.dumps(trace.get(key)) for key in ("name", "text", "hovertext")):
                assert "<b>" not in text
                assert "<img" not in text


def test_a_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    def entry(op: str, mean_s: float, share: float) -> dict[str, Any]:
        return {"op": op, "name": f"/features/{op}", "provider": "CPU", "count": 3, "mean_s": mean_s, "share": share}

    ops = [entry("QLinearConv", 2e-3, 0.8), entry(HOSTILE, 5e-4, 0.2)]
    profile = {"runs": 9, "inference_s": 3e-3, "ops_s": 2.5e-3, "by_op": ops, "ops": ops, "method": "-"}
    for name, content in (("a", record("with", profile=profile)), ("b", record("without"))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content.to_dict()))
    structure = Structure(render(load_runs([tmp_path])))
    assert structure.text.count("Where the time goes") == 1
    assert "2.500 of 3.000 ms in ops" in structure.text
    assert [attributes for attributes in structure.all("table") if attributes.get("class") == "ops"] != []
    assert HOSTILE in structure.text
    assert structure.all("img") == []


def test_plotly_accepts_every_specification(page: str) -> None:
    found = specs(page)
    assert set(found) >= {"plot-accuracy-p50", "plot-accuracy-size", "plot-latency", "plot-memory", "plot-run-0"}
    for spec in found.values():
        go.Figure(without_tokens(spec))  # raises ValueError for a key or value that plotly does not know


def test_colour_tokens_are_defined_in_light_and_dark(page: str) -> None:
    tokens = set(re.findall(r'"@([a-z]+(?:-\d)?)"', json.dumps(specs(page))))
    assert f"run-{len(fleet()) - 1}" in tokens
    light, dark = page.split("@media (prefers-color-scheme: dark)")[:2]
    for token in tokens | {f"run-{index}" for index in range(COLOURS)}:
        assert f"--{token}:" in light
        assert f"--{token}:" in dark


def test_raw_samples_stand_in_the_plots(page: str) -> None:
    found = specs(page)
    runs = {run.run_id: run for run in fleet()}
    drawn = found["plot-latency"]["data"]
    assert len(drawn) == len(runs)
    for trace, run_id in zip(drawn, ("tflite-local", "onnx-local", "tflite-pi", "onnx-pi"), strict=True):
        samples = sorted(runs[run_id].latency_s["samples"])
        assert trace["x"][0] == pytest.approx(samples[0] * 1e3, rel=1e-5)
        assert trace["x"][-1] == pytest.approx(samples[-1] * 1e3, rel=1e-5)
        assert trace["y"][-1] == 1


def test_starts_are_parted_in_the_plot_over_time(tmp_path: Path) -> None:
    run = record(n=600)
    starts = [{"n": n, "warmup_n": 1} for n in (100, 200, 300)]
    page = render(load_runs([write_record(tmp_path, record(latency_s={**run.latency_s, "starts": starts}))]))
    shapes = specs(page)["plot-run-0"]["layout"]["shapes"]
    assert [shape["x0"] for shape in shapes if shape["x0"] == shape["x1"]] == [100, 300]
    assert "3 starts, parted by upright lines" in Structure(page).text


def test_batches_are_compared_with_batches_of_their_size_alone(tmp_path: Path) -> None:
    for run in (record("single"), offline("eight", 8), offline("sixteen", 16), offline("sixteen-too", 16)):
        write_record(tmp_path, run)
    page = render(load_runs([tmp_path]))
    found = specs(page)
    assert {key: len(spec["data"]) for key, spec in found.items() if not key.startswith("plot-run-")} == {
        "plot-accuracy-p50": 1, "plot-accuracy-throughput": 3, "plot-accuracy-size": 4,
        "plot-latency": 1, "plot-latency-batch-of-8": 1, "plot-latency-batch-of-16": 2, "plot-memory": 4,
    }  # fmt: skip
    numbers = {key: [trace["text"][0] for trace in found[f"plot-accuracy-{key}"]["data"]] for key in ("p50", "size")}
    assert numbers["p50"] == ["1"]
    assert numbers["size"] == ["1, 2, 3, 4"] * 4
    assert [trace["x"] for trace in found["plot-accuracy-throughput"]["data"]] == [[31337.5]] * 3
    titles = {key: spec["layout"]["xaxis"]["title"]["text"] for key, spec in found.items()}
    assert titles["plot-latency"] == "latency of one inference (ms)"
    assert titles["plot-latency-batch-of-16"] == "latency of one batch of 16 (ms)"
    assert titles["plot-accuracy-throughput"] == "throughput (samples/s)"
    text = Structure(page).text
    assert "Runs in batches stand against their throughput instead (3 of 4)." in text
    assert "200 timed batches of 8 in order" in text
    assert found["plot-run-1"]["layout"]["yaxis"]["title"]["text"] in (
        "latency of one batch of 8 (ms)",
        "latency of one batch of 16 (ms)",
    )
    for spec in found.values():
        go.Figure(without_tokens(spec))


def test_throughput_stands_in_the_tables_and_energy_is_that_of_a_sample(tmp_path: Path) -> None:
    write_record(tmp_path, offline())
    found = render(load_runs([tmp_path]))
    structure = Structure(found)
    assert {"plot-accuracy-p50", "plot-latency"}.isdisjoint(specs(found))  # nothing to draw in them
    headings = [a["data-column"] for a in structure.all("td") if "data-column" in a]
    assert headings[:8] == ["accuracy", "size", "p50", "p90", "p99", "throughput", "peak", "energy"]
    assert structure.text.count("31338 samples/s") == 3  # results, summary of the run, its figures
    assert structure.text.count("31000–32000") == 2
    assert structure.text.count("Energy per sample") == 2
    assert "Energy per inference" not in structure.text
    assert "p50 of one batch of 16" in structure.text
    assert "in batches (offline): latency of one batch, energy of one sample" in structure.text


def test_a_page_without_batches_does_not_speak_of_them(page: str) -> None:
    text = Structure(page).text
    assert "batch" not in text
    assert "Throughput" not in text


def test_a_profile_of_batches_is_one_of_batches(tmp_path: Path) -> None:
    ops = [{"op": "Conv", "name": "c", "provider": "CPU", "count": 1, "mean_s": 0.1, "share": 1.0}]
    profile = {"runs": 9, "inference_s": 3e-3, "ops_s": 2.5e-3, "by_op": ops, "ops": ops}
    write_record(tmp_path, offline(profile=profile))
    structure = Structure(render(load_runs([tmp_path])))
    assert "mean of 9 profiled batches of 16" in structure.text
    assert "Time a batch of 16" in structure.text


def test_memory_by_whose_it_is_stands_in_the_details(tmp_path: Path) -> None:
    shares = {"pss": 123_000_000, "private": 98_000_000, "private_dirty": 97_000_000, "gpu_shared": 777_000_000}
    write_record(tmp_path, record(memory_bytes={**record().memory_bytes, **shares}))
    text = Structure(render(load_runs([tmp_path]))).text
    for megabytes in ("123 MB", "98.0 MB", "97.0 MB", "777 MB"):
        assert megabytes in text
    write_record(tmp_path, record(unmeasured={"memory_bytes.pss": "no smaps_rollup"}))
    text = Structure(render(load_runs([tmp_path]))).text
    assert "no smaps_rollup" in text
    assert "GPU" not in text


def test_machines_of_one_name_are_as_many_devices(tmp_path: Path) -> None:
    for run_id, board, cpu in (("a", "Laptop X", "Alpha"), ("b", "Server Y", "Beta"), ("c", "Server Y", "Gamma")):
        machine = {**facts(), "board": board, "cpu": cpu}
        write_record(tmp_path, record(run_id, device="local", device_kind="local", facts=machine))
        write_record(tmp_path, offline(f"{run_id}-batches", device="local", device_kind="local", facts=machine))
    page = render(load_runs([tmp_path]))
    heads = [re.sub("<.*?>", "", head) for head in re.findall(r'<tr class="device".*?</tr>', page, re.DOTALL)]
    assert ["batches" in head for head in heads] == [False, True] * 3
    for head, what in zip(heads[::2], ("Laptop X · Alpha", "Server Y · Beta", "Server Y · Gamma"), strict=True):
        assert head.startswith(f"local {what}")
    assert re.search(r"<dt>Devices</dt><dd>3</dd>", page)
    assert "<title>kdedge report: local</title>" in page
    drawn = [trace["name"] for trace in specs(page)["plot-latency"]["data"]]
    for name, machine_name in zip(drawn, ("Laptop X, Alpha", "Server Y, Beta", "Server Y, Gamma"), strict=True):
        assert f"local ({machine_name})" in name


def test_runs_without_samples_or_memory_or_bundle_are_said_to_be_so(tmp_path: Path) -> None:
    bare = record(
        latency_s={"p50": None, "n": 0},
        memory_bytes={},
        accuracy=None,
        unmeasured={"latency_s.p50": "the worker died (SIGILL)", "memory_bytes.peak": "no /proc here"},
        facts={},
        power=None,
    )
    write_record(tmp_path, bare)
    text = Structure(render(load_runs([tmp_path]))).text
    assert "the worker died (SIGILL)" in text
    assert "no /proc here" in text
    assert "Nothing to draw." in text
    assert "governor, frequency and temperature not recorded" in text
    assert "No bundle lies beside these runs" in text


def test_the_page_cannot_be_written_where_a_folder_stands(tmp_path: Path) -> None:
    write_record(tmp_path / "runs", record())
    with pytest.raises(UserError, match="is a folder"):
        report([tmp_path / "runs"], tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        report([tmp_path / "runs"], tmp_path / "file" / "report.html")


def test_a_failing_report_leaves_the_old_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(UserError):
        report([tmp_path / "nowhere"], out)
    assert out.read_text() == "old"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_PATHS = [
    ("device",), ("artifact",), ("artifact", "path"), ("artifact", "size_bytes"), ("runtime",), ("runtime", "name"),
    ("latency_s",), ("latency_s", "p50"), ("latency_s", "samples"), ("latency_s", "ci95"), ("latency_s", "n"),
    ("memory_bytes",), ("memory_bytes", "peak"), ("power",), ("power", "samples"), ("power", "reasons"),
    ("power", "net_j_per_inference"), ("accuracy",), ("accuracy", "n"), ("facts",), ("facts", "before"),
    ("facts", "before", "frequency"), ("facts", "after", "throttle"), ("request",), ("unmeasured",), ("versions",),
    ("verdict_reasons",), ("threads",), ("created_at",), ("profile",), ("profile", "by_op"), ("profile", "ops"),
    ("request", "scenario"), ("throughput",), ("throughput", "samples_per_s"), ("throughput", "ci95"),
    ("throughput", "batch_size"), ("throughput", "batches"),
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(_PATHS), value=_JSON)
def test_any_record_gives_a_page_or_one_clear_error(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    ops = [{"op": "Conv", "name": "c", "provider": "CPU", "count": 1, "mean_s": 0.1, "share": 1.0}]
    document: dict[str, Any] = json.loads(json.dumps(fleet()[3].to_dict()))
    document["profile"] = {"runs": 1, "inference_s": 0.1, "ops_s": 0.1, "by_op": ops, "ops": ops}
    document["latency_s"]["samples"] = document["latency_s"]["samples"][:50]
    if place[0] == "throughput":
        document["throughput"] = offline().throughput
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    try:
        page = render(load_runs([path]))
    except UserError as error:
        assert "record.json" in str(error)
    else:
        assert "</html>" in page[-200:]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=400), st.integers(4, 50))
def test_thinning_keeps_both_ends_and_every_extreme(values: list[float], most: int) -> None:
    chosen = ranks(len(values), most)
    assert chosen[0] == 0
    assert chosen[-1] == len(values) - 1
    assert len(chosen) == len(values) if len(values) <= most else len(chosen) <= most
    order, thinned = envelope(values, most)
    assert thinned == (len(values) > most)
    assert len(order) <= most
    assert max(values[i] for i in order) == max(values)
    assert min(values[i] for i in order) == min(values)


def test_points_a_run_fall_with_the_number_of_runs() -> None:
    assert points_a_run(1) == points_a_run(8) == 2000
    assert points_a_run(40) == 400
    assert points_a_run(10_000) == 100
