"""The page in a real browser, from disk and without a network."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from lightning_edit.report.page import write_page
from tests.report.browser import chromium
from tests.report.runs import write_ripples, write_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.slow

_READY = "return document.documentElement.dataset.ready === 'yes'"
#: Where a point of a chart is on the page, in pixels from the middle of the chart's element.
_PLACE = """
const [id, x, y] = arguments;
const host = document.getElementById(id), box = host.getBoundingClientRect();
const root = Bokeh.documents.flatMap((d) => d.roots()).find((r) => {
  const view = Bokeh.index.find_one(r);
  return view && host.contains(view.el);
});
const view = Bokeh.index.find_one(root);
const right = view.frame.x_scale.compute(x), down = view.frame.y_scale.compute(y);
const own = view.el.getBoundingClientRect();
return [own.x + right - box.x - box.width / 2, own.y + down - box.y - box.height / 2];
"""
#: The text of every hover box, also inside the shadow trees where Bokeh puts them.
_TOOLTIPS = """
const found = [];
const walk = (node) => {
  for (const child of node.querySelectorAll("*")) {
    if (child.matches(".bk-tooltip-content")) found.push(child.textContent);
    if (child.shadowRoot) walk(child.shadowRoot);
  }
};
walk(document);
return found.join("\\n");
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    curves: Any = {
        "drift/hidden_cosine": lambda after: after / 100,
        "drift/update_norm": lambda after: 0.01 * after,
        "drift.reliability/retention@gen": lambda after: 1 - after / 50,
        "collapse/perplexity_ratio": lambda after: 1 + after / 10,
        "collapse/ngram_entropy": lambda after: 5 - after / 10,
        "collapse/rolled_back": lambda after: 3.0,
        "overfitting.subject_only/leak@gen": lambda after: after / 40,
        "overfitting.multi_hop/leak@gen": lambda after: after / 50,
        "efficiency/search_seconds": lambda after: 0.2,
        "efficiency/solve_seconds": lambda after: 0.1,
    }
    runs = [
        write_run(
            folder / editor,
            20,
            editor,
            "sequential",
            after=[1, 5, 20],
            prompts=HOSTILE,
            answers=HOSTILE,
            extra=curves,
        )
        for editor in ("ROME", "MEMIT")
    ]
    write_ripples(runs[0], ["edit:0", "edit:1"], prompts=HOSTILE)
    write_page(runs[:1], folder / "one.html")
    return write_page(runs, folder / "page.html")


def open_page(browser: Chrome, page: Path, width: int = 1200, scheme: str = "light") -> None:
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},  # or clicks meet a moving page
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(_READY))


def unfold(browser: Chrome) -> None:
    """Open every section, and wait for its charts."""
    script = "document.querySelectorAll('details.fold').forEach((fold) => { fold.open = true; })"
    browser.execute_script(script)
    drawn = """
    return [...document.querySelectorAll("[data-chart]")].every((e) => e.childElementCount > 0)
    """
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn))


def hover(browser: Chrome, chart: str, x: float, y: float) -> str:
    element = browser.find_element(By.ID, chart)
    script = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    browser.execute_script(script, element)
    right, down = browser.execute_script(_PLACE, chart, x, y)
    actions = ActionChains(browser, duration=50)
    actions.move_to_element_with_offset(element, round(right) + 1, round(down)).perform()
    actions.move_to_element_with_offset(element, round(right), round(down)).perform()
    for _ in range(20):
        if text := browser.execute_script(_TOOLTIPS):
            return str(text)
        time.sleep(0.1)
    return ""


def rows(browser: Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('#table tbody tr')].map((r) => r.innerText)"
    return list(browser.execute_script(script))


def count(browser: Chrome) -> str:
    return browser.find_element(By.ID, "count").text


def search(browser: Chrome, text: str) -> None:
    field = browser.find_element(By.ID, "search")
    before = count(browser)
    field.clear()
    field.send_keys(text)
    WebDriverWait(browser, 5).until(lambda b: count(b) != before)


def test_it_opens_without_errors_and_asks_for_nothing(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    bad = [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    assert bad == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert browser.execute_script("return window.hostile") is None
    assert not browser.find_element(By.ID, "failure").is_displayed()


def test_every_chart_is_drawn(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    unfold(browser)
    script = """
    return [...document.querySelectorAll("[data-chart]")].map((e) => [e.id, e.offsetWidth])
    """
    drawn = dict(browser.execute_script(script))
    assert all(width > 100 for width in drawn.values())
    wanted = {"aspects-gen", "aspects-tf", "tradeoff-gen", "sequence-0", "drift-0", "leaks-0"}
    assert wanted | {"ripple-graph", "ripple-distance", "efficiency-stages"} <= set(drawn)


def test_search_and_filters(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    assert count(browser) == "200 questions"
    search(browser, "rephrase")
    assert count(browser) == "40 of 200 questions"
    assert all("rephrase" in row for row in rows(browser))
    Select(browser.find_element(By.ID, "run")).select_by_visible_text("MEMIT")
    assert count(browser) == "20 of 200 questions"
    browser.find_element(By.ID, "wrong").click()
    assert all("✗" in row for row in rows(browser))
    search(browser, "nobody has written this")
    assert rows(browser) == []


def test_pages_and_order(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    first = rows(browser)
    assert len(first) == 5
    browser.find_element(By.ID, "next").click()
    assert browser.find_element(By.ID, "page").text == "page 2 of 40"
    assert rows(browser)[0] != first[0]
    header = browser.find_elements(By.CSS_SELECTOR, "#table th")[2]
    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    cells = (
        "return [...document.querySelectorAll('#table tbody tr')].map((r) => r.cells[2].innerText)"
    )
    questions = browser.execute_script(cells)
    compare = "return arguments[0].toSorted(new Intl.Collator('en', {numeric: true}).compare)"
    assert questions == browser.execute_script(compare, questions)


def test_hover_shows_the_fact(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    script = "return Bokeh.documents.flatMap((d) => d.roots()).flatMap((r) => [...r.references()])"
    script += ".find((m) => m.type === 'StaticLayoutProvider').graph_layout"
    places = browser.execute_script(script)
    at = places.get("1") if isinstance(places, dict) else None
    at = at or browser.execute_script(script.replace(".graph_layout", ".graph_layout.get(1)"))
    text = hover(browser, "ripple-graph", *at)
    assert "lies in" in text
    assert HOSTILE[0] in text  # the prompt, as text
    assert browser.execute_script("return window.hostile") is None


def test_a_finger_shows_the_fact(browser: Chrome, page: Path) -> None:
    open_page(browser, page, width=390)
    unfold(browser)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    element = browser.find_element(By.ID, "ripple-graph")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    middle = "const box = arguments[0].getBoundingClientRect();"
    middle += "return [box.x + box.width / 2, box.y + box.height / 2]"
    x, y = browser.execute_script(middle, element)
    right, down = browser.execute_script(_PLACE, "ripple-graph", 0, 0)
    try:
        tap(browser, x + right, y + down)
        WebDriverWait(browser, 5).until(lambda b: "the edit itself" in b.execute_script(_TOOLTIPS))
        box = "const box = document.querySelector('.bk-Tooltip').getBoundingClientRect();"
        left, end = browser.execute_script(box + "return [box.left, box.right]")
        assert 0 <= left < end <= 390
        tap(browser, 5, 5)
        WebDriverWait(browser, 5).until(lambda b: b.execute_script(_TOOLTIPS) == "")
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def tap(browser: Chrome, x: float, y: float) -> None:
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        event = {"type": kind, "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)


def test_hover_shows_the_numbers(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    text = hover(browser, "sequence-0", 20, _last_reliability(page))
    assert "ROME" in text or "MEMIT" in text
    assert "%" in text


def _last_reliability(page: Path) -> float:
    results = json.loads((page.parent / "ROME" / "results.json").read_text())
    return float(results["points"][-1]["metrics"]["reliability/answer@gen"])


def test_another_edit_can_be_chosen(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    drawing = "const drawn = document.getElementById('ripple-graph').firstElementChild;"
    browser.execute_script(drawing + "drawn.dataset.old = 'yes'")
    documents = browser.execute_script("return Bokeh.documents.length")
    Select(browser.find_element(By.ID, "graph-choice")).select_by_index(1)
    new = drawing + "return drawn !== null && drawn.dataset.old === undefined"
    WebDriverWait(browser, 5).until(lambda b: b.execute_script(new))
    assert browser.execute_script("return Bokeh.documents.length") == documents


def test_dark_and_light(browser: Chrome, page: Path) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    ink = "return Bokeh.documents.flatMap((d) => d.roots()).flatMap((r) => [...r.references()])"
    ink += ".find((m) => m.type === 'LinearAxis').major_label_text_color"
    open_page(browser, page, scheme="dark")
    dark, dark_ink = browser.execute_script(colour), browser.execute_script(ink)
    open_page(browser, page, scheme="light")
    light, light_ink = browser.execute_script(colour), browser.execute_script(ink)
    assert sum(map(int, _numbers(dark))) < 150 < 700 < sum(map(int, _numbers(light)))
    assert dark_ink != light_ink
    button = browser.find_element(By.ID, "theme")
    button.click()
    assert browser.execute_script(colour) == light
    button.click()
    assert browser.execute_script(colour) == dark
    assert browser.execute_script(ink) == dark_ink
    browser.execute_script("localStorage.clear()")


def _numbers(colour: str) -> list[str]:
    return colour.removeprefix("rgb(").removesuffix(")").split(",")


def test_a_phone_scrolls_one_way_only(browser: Chrome, page: Path) -> None:
    open_page(browser, page, width=390)
    width = "return document.documentElement.scrollWidth"
    assert browser.execute_script(width) == 390
    assert not browser.find_element(By.CSS_SELECTOR, "#table thead").is_displayed()
    assert rows(browser)


@pytest.mark.parametrize(("width", "screens"), [(1280, 3), (390, 3.2)])
def test_a_sequential_run_fits_on_three_screens(
    browser: Chrome, page: Path, width: int, screens: float
) -> None:
    open_page(browser, page.with_name("one.html"), width)
    tall = browser.execute_script("return document.documentElement.scrollHeight")
    assert tall <= screens * 900


def test_names_are_not_broken(browser: Chrome, page: Path) -> None:
    script = """
    const broken = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      for (const found of walk.currentNode.textContent.matchAll(/MEMIT|ROME|100%/g)) {
        const range = document.createRange();
        range.setStart(walk.currentNode, found.index);
        range.setEnd(walk.currentNode, found.index + found[0].length);
        const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
        if (lines.size > 1) broken.push(walk.currentNode.parentElement.outerHTML);
      }
    }
    return broken;
    """
    for width in (1200, 390, 320):
        open_page(browser, page, width)
        assert browser.execute_script(script) == []


def test_a_link_opens_the_section_that_it_leads_to(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    about = browser.find_element(By.CSS_SELECTOR, "#about > details")
    assert about.get_attribute("open") is None
    browser.find_element(By.CSS_SELECTOR, "nav a[href='#about']").click()
    assert about.get_attribute("open") is not None


def test_the_keyboard_reaches_the_table(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    names = """
    const all = [...document.querySelectorAll("button, input, select, summary, a[href]")];
    return all.filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length;
    """
    assert browser.execute_script(names) == 0
    levels = "return [...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))"
    found = browser.execute_script(levels)
    assert found[0] == 1
    assert found.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(found))
