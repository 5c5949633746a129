"""The page in a real browser: Chromium without a window, opened from a file, as a reader opens it.

Without Chromium these are skipped, unless BWDLN_REQUIRE_BROWSER=1; BWDLN_CHROMIUM names another one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pages
import pytest
import sweeps

from bwdln import report

CHROMIUM = (
    os.environ.get("BWDLN_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
REQUIRED = os.environ.get("BWDLN_REQUIRE_BROWSER") == "1"
if REQUIRED:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api")
if CHROMIUM is None and not REQUIRED:
    pytest.skip("there is no Chromium; name one by BWDLN_CHROMIUM", allow_module_level=True)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page; in the end nothing may have been complained about, nor asked for."""
    complaints: list[str] = []
    contexts = []

    def opened(path: Path, ready: bool = True, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(15_000)
        tab.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        inside = ("data:", path.as_uri())
        tab.on(
            "request", lambda sent: sent.url.startswith(inside) or complaints.append(f"request: {sent.url}")
        )
        tab.goto(path.as_uri())
        if ready:
            tab.wait_for_selector(".explore[data-drawn]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


FAILED = {18: ({"network.depth": 2, "dynamics.step_size": 0.1, "loss.tau": 0.3}, "loss.tau: got 0.3")}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = pages.sweep(tmp_path_factory.mktemp("sweep") / "sweep", failed=FAILED)
    return report.make([folder])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return report.make([pages.run(tmp_path_factory.mktemp("run") / "run")])


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    pages.findings(folder, kind="claims", columns=["study", "held"], rows=[["rates", "yes"]])
    pages.findings(folder / "rates")
    pages.run(folder / "run")
    pages.sweep(folder / "sweep")
    return report.make([folder])


def choose(tab, name: str, value: str) -> None:
    """Choose a value, and wait for the view of it."""
    before = tab.get_attribute(".explore", "data-drawn")
    tab.select_option(f".explore [name='{name}']", value)
    tab.wait_for_function("before => document.querySelector('.explore').dataset.drawn !== before", arg=before)


def marks(tab, kind: str) -> int:
    return tab.locator(f".drawn svg .mark-{kind}.role-mark path").count()


def shown(tab) -> list[dict]:
    """The points of the view."""
    return tab.evaluate(
        "() => document.querySelector('.explore').explorer.shown"
        ".map(point => ({...point, y: point.y === Infinity ? 'inf' : point.y}))"
    )


def column(tab, place: int) -> list[str]:
    return tab.locator(f"#s1-jobs tbody td:nth-child({place})").all_inner_texts()


# --- the view -------------------------------------------------------------------------------------


def test_view_shows_a_point_for_each_pair_of_values(visit, sweep: Path) -> None:
    tab = visit(sweep)
    points = shown(tab)
    size = tab.input_value(".explore [name='x']")
    assert size == "0"  # dynamics.step_size, of the most influence
    assert {point["x"] for point in points} == {0.1, 0.2, 0.4}
    assert all(point["y"] == "inf" for point in points if point["x"] == 0.4)
    assert "diverged (∞)" in tab.inner_text(".legend") and "1 without a result" in tab.inner_text(".legend")
    finite = sum(point["y"] not in ("inf", None) for point in points)
    assert marks(tab, "symbol") == len(points) and 0 < finite < len(points)


def test_choices_change_the_view(visit, sweep: Path) -> None:
    tab = visit(sweep)
    first = shown(tab)
    choose(tab, "quantity", "loss")
    assert shown(tab) != first and "loss" in tab.locator(".drawn svg .role-axis-title").all_text_contents()
    choose(tab, "yscale", "linear")
    choose(tab, "color", "")
    assert len(shown(tab)) == 3 and all(len(point["rows"]) >= 6 for point in shown(tab))
    filters = tab.locator(".filter:not(.used) select")
    assert filters.count() == 2
    choose(tab, filters.first.get_attribute("name"), "0")
    assert sum(len(point["rows"]) for point in shown(tab)) < 19


def test_heat_map_marks_what_has_no_number(visit, sweep: Path) -> None:
    tab = visit(sweep)
    choose(tab, "color", next(x for x in "12" if "tau" in axis_name(tab, x)))
    choose(tab, "view", "map")
    texts = tab.locator(".drawn svg .mark-text.role-mark text").all_text_contents()
    assert texts.count("∞") == 2 and texts.count("–") == 1  # of the job that failed
    assert marks(tab, "rect") >= 7
    choose(tab, "color", "1" if tab.input_value("[name='color']") == "2" else "2")
    assert "∞" in tab.locator(".drawn svg .mark-text.role-mark text").all_text_contents()


def axis_name(tab, value: str) -> str:
    return tab.inner_text(f".explore [name='x'] option[value='{value}']")


def test_curves_on_the_way(visit, sweep: Path) -> None:
    tab = visit(sweep)
    choose(tab, "x", "progress")
    assert tab.locator(".drawn svg .mark-line.role-mark path").count() == 12  # six diverged, one failed
    assert "6 diverged, without a curve" in tab.inner_text(".legend")
    assert tab.locator(".explore [name='quantity'] option:not([disabled])").count() == 1
    choose(tab, "x", "1")
    assert "at the end" in tab.inner_text(".about")


def test_seeds_of_a_run(visit, run: Path) -> None:
    tab = visit(run)
    assert tab.locator(".drawn svg .mark-line.role-mark path").count() == 3
    choose(tab, "x", "0")
    assert [point["x"] for point in shown(tab)] == [0, 1, 2]
    assert tab.locator(".drawn svg .mark-line.role-mark path").count() == 0  # seeds have no order


def test_hover_says_values_and_a_click_leads_to_the_job(visit, sweep: Path) -> None:
    tab = visit(sweep)
    for place in range(tab.locator(".filter").count()):
        select = f"filter-{place}"
        if tab.is_enabled(f"[name='{select}']"):
            choose(tab, select, "0")
    point = tab.locator(".drawn svg .mark-symbol.role-mark path").first
    point.hover(force=True)
    tab.wait_for_selector(".tip:not([hidden])")
    said = tab.inner_text(".tip")
    job = re.search(r"job\s*(\d+)", said).group(1)
    assert "relative gap" in said and "network.depth" in said
    point.click(force=True)
    row = tab.locator(f"#s1-job-{job}")
    assert "found" in row.get_attribute("class")
    assert row.is_visible() and tab.evaluate("document.activeElement.textContent") == job
    assert tab.evaluate("document.activeElement.getAttribute('href')") == f"./{job}/"


def test_click_on_several_jobs_shows_these(visit, sweep: Path) -> None:
    tab = visit(sweep)
    tab.locator(".legend button", has_text="diverged").click()
    assert tab.locator("#s1-jobs tbody tr").count() == 6
    assert set(column(tab, 5)) == {"∞"}
    tab.locator("button.chosen").click()
    assert tab.locator("#s1-jobs tbody tr").count() == 19


def test_values_shown_are_a_table(visit, sweep: Path) -> None:
    tab = visit(sweep)
    tab.locator(".behind summary").click()
    tab.wait_for_selector(".behind table")
    assert tab.locator(".behind tbody tr").count() == len(shown(tab))
    assert "∞ (diverged)" in tab.inner_text(".behind")


# --- tables ---------------------------------------------------------------------------------------


def test_table_sorts_numbers_with_what_is_none_at_the_end(visit, sweep: Path) -> None:
    tab = visit(sweep)
    head = tab.locator("#s1-jobs th", has_text="relative gap")
    head.click()
    playwright.expect(head).to_have_attribute("aria-sort", "ascending")
    cells = column(tab, 5)
    numbers = [float(cell) for cell in cells[:12]]
    assert numbers == sorted(numbers) and cells[12:] == ["∞"] * 6 + ["–"]
    head.click()
    playwright.expect(head).to_have_attribute("aria-sort", "descending")


def test_table_filters(visit, sweep: Path) -> None:
    tab = visit(sweep)
    tab.fill(".dt-search input", "got 0.3")
    assert [cell.split()[0] for cell in column(tab, 1)] == ["18"]
    tab.fill(".dt-search input", "")
    tab.select_option(".filters [data-column='1']", "2")
    assert set(column(tab, 2)) == {"2"} and len(column(tab, 2)) == 7
    tab.select_option(".filters select >> nth=-1", "failed")
    assert len(column(tab, 2)) == 1


# --- reading it otherwise -------------------------------------------------------------------------


def test_keyboard_reaches_and_moves_everything(visit, sweep: Path) -> None:
    tab = visit(sweep)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.focus(".explore [name='quantity']")
    before = tab.get_attribute(".explore", "data-drawn")
    tab.keyboard.press("ArrowDown")
    tab.wait_for_function("before => document.querySelector('.explore').dataset.drawn !== before", arg=before)
    tab.locator("#s1-jobs th .dt-column-order").first.focus()
    tab.keyboard.press("Enter")
    playwright.expect(tab.locator("#s1-jobs th").first).to_have_attribute("aria-sort", "ascending")
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ("none", "")


def test_every_control_has_a_name(visit, sweep: Path) -> None:
    tab = visit(sweep)
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll('select, input, button')].filter(each =>
            !(each.labels && each.labels.length && each.labels[0].textContent.trim())
            && !each.getAttribute('aria-label') && !each.textContent.trim()).map(each => each.outerHTML)"""
    )
    assert unnamed == []
    assert tab.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_follow_the_system_and_the_button(visit, sweep: Path, scheme: str) -> None:
    tab = visit(sweep, color_scheme=scheme)

    def ground() -> int:
        color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    bright = ground()
    assert (bright > 600) == (scheme == "light")
    tab.locator("button.theme").click()
    assert (ground() > 600) != (bright > 600)
    chosen = ground()
    tab.reload()
    tab.wait_for_selector(".explore[data-drawn]")
    assert ground() == chosen
    card = tab.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor")
    assert card == "rgb(255, 255, 255)"


@pytest.mark.parametrize("which", ["sweep", "run", "paper"])
def test_phone_needs_no_scrolling_to_the_side(visit, which: str, request) -> None:
    tab = visit(request.getfixturevalue(which), viewport=PHONE)
    for details in tab.locator("details").all():
        details.evaluate("each => { each.open = true; }")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_print_shows_all_and_hides_controls(visit, sweep: Path) -> None:
    tab = visit(sweep, color_scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in (".controls", ".theme", ".dt-search", ".copy", ".filters"):
        assert not tab.locator(hidden).first.is_visible()
    assert tab.locator("figure img").first.is_visible() and tab.locator(".drawn svg").is_visible()
    assert tab.pdf()[:4] == b"%PDF"


def test_print_has_all_rows(visit, tmp_path: Path) -> None:
    jobs = sweeps.product(network__depth=range(1, 9), loss__tau=range(5))
    tab = visit(report.make([pages.sweep(tmp_path / "sweep", jobs)]))
    assert tab.locator("#s1-jobs tbody tr").count() == 25
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("#s1-jobs tbody tr").count() == 40
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("#s1-jobs tbody tr").count() == 25


def test_command_is_copied(visit, sweep: Path) -> None:
    tab = visit(sweep)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = tab.locator("#s1-reproduce .copy")
    button.click()
    tab.wait_for_function("() => document.querySelector('#s1-reproduce .copy').textContent === 'Copied'")
    expected = "python -m experiments.train -m loss.tau=0,0.1 'sweep.zip=[a,b]' 'hydra.sweep.dir=x y'"
    assert tab.evaluate("navigator.clipboard.readText()") == expected


def test_paper_draws_every_view(visit, paper: Path) -> None:
    tab = visit(paper)
    tab.wait_for_function("() => document.querySelectorAll('.explore[data-drawn]').length === 2")
    tab.locator("#s1 a", has_text="rates").first.click()
    assert tab.url.endswith("#s2")


def test_hostile_texts_do_nothing(visit, tmp_path: Path) -> None:
    hostile = pages.HOSTILE
    jobs = [{"network.depth": depth, "name": value} for depth in (1, 2) for value in (hostile, "b")]
    failed = {9: ({"network.depth": 1, "name": hostile}, f"message {hostile}")}
    tab = visit(report.make([pages.sweep(tmp_path / "sweep", jobs, failed)]))
    choose(tab, "x", next(x for x in "01" if axis_name(tab, x) == "name"))
    tab.locator(".behind summary").click()
    tab.wait_for_selector(".behind table")
    assert hostile in tab.inner_text(".behind")
    assert tab.locator("b").count() == 0 and tab.title() != "1"


# --- size and speed -------------------------------------------------------------------------------


def test_page_of_1155_jobs_is_there_at_once(visit, tmp_path: Path) -> None:
    def make(options):
        rate = 1e-3 * (1 + options["loss.tau"]) * (1 + 0.01 * options["network.depth"])
        return sweeps.result(rate, seeds=(0,), records=100)

    taus = [0.1 * each for each in range(5)]
    jobs = sweeps.product(network__depth=range(1, 22), loss__tau=taus, dynamics__step_size=range(1, 12))
    assert len(jobs) == 1155
    path = report.make([pages.sweep(tmp_path / "sweep", jobs, make=make)])
    assert path.stat().st_size < 5e6
    began = time.perf_counter()
    tab = visit(path)
    seconds = time.perf_counter() - began
    print(json.dumps({"bytes": path.stat().st_size, "seconds": round(seconds, 2)}))
    assert seconds < 2
    choose(tab, "x", "progress")
    assert tab.locator(".drawn svg .mark-line.role-mark path").count() == 1155
