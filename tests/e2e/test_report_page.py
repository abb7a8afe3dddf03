"""The page in a real browser, from file://, with the network off: what a reader sees, not what was meant."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from kdedge.reporting import COLUMNS, load_runs, report, table
from playwright.sync_api import Browser, Page, sync_playwright
from tests.unit.report_records import fleet, offline, record, write_fleet, write_record

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
RUNS = ("tflite-local", "onnx-local", "tflite-pi", "onnx-pi")  # in the page's order

pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="NO BROWSER: the page was not looked at. Install one: apt-get install -y --no-install-recommends chromium",
)


@dataclass
class Opened:
    """A page with all that it asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def drawn(self) -> None:
        """Wait until every plot that has room is drawn."""
        self.until(
            "[...document.querySelectorAll('.canvas')].every((canvas) => "
            "canvas.closest('details:not([open])') || canvas.querySelector('svg.main-svg'))"
        )

    def until(self, expression: str) -> None:
        """Wait for an expression to hold; the page's own policy forbids the eval of ``wait_for_function``."""
        deadline = time.monotonic() + 60
        while not self.page.evaluate(expression):
            if time.monotonic() > deadline:
                pytest.fail(f"never came true: {expression}")
            self.page.wait_for_timeout(50)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    contexts = []

    def open_it(file: Path, **options: Any) -> Opened:
        context = browser.new_context(**{"offline": True, "viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(file.as_uri())
        opened.drawn()
        return opened

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fleet(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return report([folder], folder / "report.html")


def test_it_opens_offline_and_asks_for_nothing(open_page: Open, file: Path) -> None:
    opened = open_page(file)
    for details in opened.page.query_selector_all("details.run:not([open]) > summary"):
        details.click()
    opened.drawn()
    opened.page.mouse.move(400, 400)
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]
    resources = opened.page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in resources if not name.startswith(("data:", "blob:"))] == []


def test_its_policy_stops_a_request_that_is_tried(open_page: Open, file: Path) -> None:
    opened = open_page(file, offline=False)
    outcome = opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => 'refused: ' + error)")
    assert outcome.startswith("refused")
    assert any("Content Security Policy" in text for text in opened.complaints)


def test_the_tables_numbers_are_the_records(open_page: Open, file: Path, folder: Path) -> None:
    page = open_page(file).page
    records = {run.run_id: run for run in fleet()}
    shown = page.eval_on_selector_all("tr.run", "(rows) => rows.map((row) => row.dataset.run)")
    assert tuple(shown) == RUNS
    expected = {row.key: row for row in table(load_runs([folder]))}
    for run_id in RUNS:
        row = page.locator(f'tr.run[data-run="{run_id}"]')
        latency = records[run_id].latency_s
        for key in ("p50", "p90", "p99"):
            value = row.locator(f'td[data-column="{key}"]').get_attribute("data-value")
            assert value == ("" if latency[key] is None else repr(latency[key]))
        size = row.locator('td[data-column="size"]').get_attribute("data-value")
        assert float(size or "nan") == records[run_id].artifact["size_bytes"]
        for column in COLUMNS:
            text = row.locator(f'td[data-column="{column.key}"]').inner_text()
            cell = expected[run_id].cells[column.key]
            if cell.value is None:
                assert cell.reason is not None
                assert "not measured" in text
                assert cell.reason in text
            else:
                assert cell.text in text
                assert cell.interval_text in text
                assert cell.n_text in text
        assert records[run_id].verdict in row.locator('td[data-column="verdict"]').inner_text()


def test_the_plots_hold_every_point(open_page: Open, file: Path) -> None:
    page = open_page(file).page

    def count(plot: str, selector: str) -> int:
        return page.locator(f"#{plot} svg.main-svg {selector}").count()

    assert count("plot-accuracy-p50", ".scatterlayer .points path.point") == 3  # one run has no accuracy
    assert count("plot-accuracy-p50", ".scatterlayer .errorbars path.yerror") == 3
    assert count("plot-accuracy-p50", ".scatterlayer .errorbars path.xerror") == 3
    assert count("plot-accuracy-size", ".scatterlayer .points path.point") == 3 + 2  # and the students in torch
    assert count("plot-latency", ".scatterlayer path.js-line") == 4
    assert count("plot-memory", ".barlayer .point path") == 4 * 6
    not_drawn = page.locator("figure:has(#plot-accuracy-p50) figcaption").inner_text()
    assert "Not drawn: student-int8.tflite · local" in not_drawn


def test_details_open_with_the_raw_samples_and_conditions(open_page: Open, file: Path) -> None:
    opened = open_page(file)
    page = opened.page
    is_open = page.eval_on_selector_all("details.run", "(all) => all.map((details) => details.open)")
    assert is_open == [False, False, True, False]  # the run that drifted
    closed = page.locator("details.run").nth(0)
    assert closed.locator("svg.main-svg").count() == 0
    closed.locator("summary").first.click()
    opened.drawn()
    assert closed.locator(".scatterlayer .points path.point").count() == 200 + 3  # every sample, and the warm-up
    assert closed.locator("svg.main-svg").first.bounding_box() is not None
    text = closed.inner_text()
    for fact in (
        "performance",
        "1.8 to 2.4 GHz",
        "40 to 46 °C",
        "ai-edge-litert 2.0.0",
        "Synthetic OS 12",
        "2026-01-02",
    ):
        assert fact in text
    page.locator("a", has_text="student-int8.onnx").first.click()
    # A link opens its target: in the event that the browser sends after the click, hence the wait.
    opened.until("document.querySelectorAll('details.run')[1].open")


def luminance(colour: str) -> float:
    red, green, blue = (int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(", "))
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


STYLE = "(element, name) => getComputedStyle(element)[name]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_reader_and_can_be_read(
    open_page: Open, file: Path, scheme: Literal["light", "dark"]
) -> None:
    opened = open_page(file, color_scheme=scheme)
    page = opened.page
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.05) == (scheme == "dark")
    for selector in ("body", ".detail", ".none", "a", "caption", ".verdict.steady", ".verdict.drifting", "thead th"):
        colour = page.locator(selector).last.evaluate(STYLE, "color")
        assert contrast(colour, background) >= 4.5, selector
    for mark in page.locator(".key .mark").all():
        assert contrast(mark.evaluate(STYLE, "color"), mark.evaluate(STYLE, "backgroundColor")) >= 3
    assert page.locator("#plot-latency .xtick text").first.evaluate(STYLE, "fill") == page.evaluate(
        "getComputedStyle(document.body).color"
    )
    # The reader's system changes while the page is open.
    page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    opened.until(
        "getComputedStyle(document.querySelector('#plot-latency .xtick text')).fill"
        " === getComputedStyle(document.body).color"
    )
    assert opened.complaints == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_does_not_scroll_sideways(open_page: Open, file: Path, width: int) -> None:
    opened = open_page(file, viewport={"width": width, "height": 800}, has_touch=True, is_mobile=True)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    opened.drawn()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plot = page.locator("#plot-latency svg.main-svg").first.bounding_box()
    assert plot is not None
    assert plot["x"] + plot["width"] <= width + 1
    if width < 700:  # every cell names its column and lies within the screen
        for cell in page.locator("tr.run").first.locator("td").all():
            box = cell.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert (
                cell.evaluate("(e) => getComputedStyle(e, '::before').content")
                == f'"{cell.get_attribute("data-label")}"'
            )


def test_batches_have_groups_and_plots_of_their_own(open_page: Open, tmp_path: Path) -> None:
    demo = write_fleet(tmp_path / "demo")
    for run in (offline("eight", 8), offline("sixteen", 16)):
        write_record(demo / "records", run)
    file = report([demo], tmp_path / "report.html")
    opened = open_page(file)
    page = opened.page
    assert page.locator("tr.device").count() == 3
    assert page.locator("tr.device", has_text="in batches (offline)").count() == 1
    assert page.locator("#plot-accuracy-p50 .scatterlayer .points path.point").count() == 3
    assert page.locator("#plot-accuracy-throughput .scatterlayer .points path.point").count() == 2
    assert page.locator("#plot-accuracy-throughput .scatterlayer .errorbars path.xerror").count() == 2
    for plot, lines in (("plot-latency", 4), ("plot-latency-batch-of-8", 1), ("plot-latency-batch-of-16", 1)):
        assert page.locator(f"#{plot} .scatterlayer path.js-line").count() == lines
    cell = page.locator('tr.run[data-run="sixteen"] td[data-column="throughput"]').inner_text()
    assert "31338 samples/s" in cell
    assert "31000–32000" in cell
    assert "of one batch of 16" in page.locator('tr.run[data-run="sixteen"] td[data-column="p50"]').inner_text()
    assert opened.complaints == []
    phone = open_page(file, viewport={"width": 320, "height": 800}, has_touch=True, is_mobile=True)
    phone.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    phone.drawn()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 320


def test_html_in_names_is_text_for_the_browser_too(open_page: Open, tmp_path: Path) -> None:
    hostile = '<img src=x onerror="window.pwned=1"><b>pi</b><a href="javascript:window.pwned=1">x</a>'
    run = record(device=hostile, verdict="noisy", verdict_reasons=[hostile], runtime={"name": hostile, "version": "1"})
    (tmp_path / "r.json").write_text(json.dumps(run.to_dict()))
    opened = open_page(report([tmp_path], tmp_path / "report.html"))
    page = opened.page
    assert page.locator("tr.device strong").inner_text() == hostile
    page.locator("#plot-accuracy-p50").scroll_into_view_if_needed()
    point = page.locator("#plot-accuracy-p50 .points path.point").first.bounding_box()
    assert point is not None
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    hover = page.locator("#plot-accuracy-p50 .hoverlayer .hovertext").first
    hover.wait_for()
    assert "<b>pi</b>" in (hover.text_content() or "")
    assert page.locator("img, main b, a[href^='javascript:']").count() == 0
    assert page.evaluate("window.pwned") is None
    assert opened.complaints == []


def test_it_can_be_read_without_scripts(open_page: Open, browser: Browser, file: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("tr.run").count() == len(RUNS)
    assert "The plots need JavaScript" in page.locator("noscript").inner_text()
    context.close()
