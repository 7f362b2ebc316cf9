"""A page of the report in a real browser: ``make test-browser``.

The browser is the one that CHROMIUM names, or a chromium or chrome on the PATH. The screenshots are kept in
runs/report-screenshots, or where SCREENSHOTS says, for somebody to look at.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from adafisher_hf.report import write_report
from adafisher_hf.report.files import write_page
from adafisher_hf.report.folders import read_runs
from adafisher_hf.report.page import Live
from tests.report.runs import files, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install "adafisher-hf[browser]"')
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", "runs/report-screenshots"))
WIDTHS = (1280, 768, 390)
SCHEMES = ("light", "dark")
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser():
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser: install chromium, or set CHROMIUM to the path of one")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two of ours with everything, their models covered differently, and a baseline with an awkward name."""
    folder = tmp_path_factory.mktemp("runs")
    history = [{"step": 10 * i, "loss": 9.0 - i, "seconds": 5.0 * i, "adamqlr/lr": 0.1 * i} for i in range(1, 5)]
    ours = json.dumps({"global_step": 40, "max_steps": 40, "log_history": [*history, {"step": 40, "eval_loss": 5.5}]})
    runs = [
        write_run(folder / "ours", state=ours),
        write_run(folder / "theirs", coverage=files()["coverage.json"].replace("0.6", "0.5")),
        write_run(folder / "</script>'&\"", curvature=None, config=None),
    ]
    return write_report(runs, folder / "report.html")


@pytest.fixture
def opened(browser, page_file):
    """Opens a page; fails at the end if anything was said on the console or asked of a network."""
    pages, faults = [], []

    def open_page(file=page_file, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(LOCAL) or faults.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-drawn]")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


def violations(page):
    return [(found["id"], found["nodes"][0]["html"]) for found in axe.Axe().run(page).response["violations"]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_is_drawn_and_has_nothing_that_axe_objects_to(opened, width, scheme):
    page = opened(width=width, scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pictures = page.locator(".plot")
    assert pictures.count() >= 8
    for i in range(pictures.count()):
        drawn = pictures.nth(i).locator("svg, canvas").bounding_box()
        room = pictures.nth(i).bounding_box()
        assert drawn["height"] > 100 and drawn["width"] <= room["width"] + 1
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []


def test_axe_would_object(opened):
    page = opened()
    page.evaluate("document.documentElement.removeAttribute('lang')")
    assert [name for name, _ in violations(page)] == ["html-has-lang"]


@pytest.mark.parametrize(
    ("file", "texts"), [("loss", ("loss", "step")), ("curvature_ours", ("mean curvature", "up_proj", "step"))]
)
def test_values_on_hover(opened, file, texts):
    page = opened()
    plot = page.locator(f"figure[data-file={file}] .plot").locator("svg, canvas")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    for offset in (0, 4):
        page.mouse.move(box["x"] + box["width"] * 0.6 + offset, box["y"] + box["height"] * 0.6 + offset)
    page.wait_for_selector("#vg-tooltip-element.visible")
    shown = page.locator("#vg-tooltip-element").inner_text()
    assert all(text in shown for text in texts) and "undefined" not in shown


def test_the_data_of_a_picture_by_keyboard_alone(opened, tmp_path):
    page = opened()
    figure = page.locator("figure[data-file=loss]")
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    assert "evaluation" in figure.locator("table").inner_text()
    contents = {}
    for ending in ("csv", "json"):
        page.keyboard.press("Tab")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == f"loss.{ending}"
        contents[ending] = Path(download.value.path()).read_text()
    assert contents["csv"].startswith("step,run,split,loss\n10,ours,training,8\n")
    assert json.loads(contents["json"])[0] == {"step": 10, "run": "ours", "split": "training", "loss": 8}


def test_a_change_of_the_colour_scheme_is_followed(opened):
    page = opened()
    line = "figure[data-file=learning_rate] path[stroke='{}']"
    assert page.locator(line.format("#1f6feb")).count()
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(line.format("#79b0ff"), state="attached")


def test_a_live_page_comes_again_until_it_is_stopped(opened, tmp_path):
    folder = write_run(tmp_path / "run")
    runs, file = read_runs([folder]), tmp_path / "live.html"
    write_page(runs, file, Live(["step 1"], 0.5))
    page = opened(file)
    write_page(runs, file, Live(["step 2"], 0.5))
    page.wait_for_function("document.querySelector('[role=status]').textContent === 'step 2'")
    page.wait_for_selector("body[data-drawn]")
    page.locator("[data-every]").uncheck()
    write_page(runs, file, Live(["step 3"], 0.5))
    page.wait_for_timeout(1500)
    assert page.locator("[role=status]").inner_text() == "step 2"
    assert violations(page) == []
