"""The built book, opened page by page in Chromium from its files: nothing may need a network.

    sphinx-build -W --keep-going -j 2 -c lessons/book lessons build/book
    MINILORA_BOOK=build/book python -m pytest tests/book

Chromium and chromedriver must be on the PATH.
"""

import json
import os
import re
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import numpy as np
import pytest
from selenium.webdriver import Keys

from minilora import nf4

BOOK = Path(os.environ.get("MINILORA_BOOK", "build/book")).resolve()
PAGES = sorted(str(path.relative_to(BOOK)) for path in BOOK.rglob("*.html"))
PAGES = [page for page in PAGES if not page.endswith("explorer/page.html")]  # a part of others
LESSONS = [page for page in PAGES if page[0].isdigit() or page.startswith("studies/")]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
SIZE = "return [innerWidth, document.documentElement.scrollWidth]"
TYPESET = """return !document.querySelector('.math') || document.querySelector('mjx-container');"""


def visit(browser, page):
    """Open a page and wait until its formulas are set."""
    browser.get(f"{(BOOK / page.partition('?')[0]).as_uri()}?{page.partition('?')[2]}")
    wait_for(lambda: browser.execute_script(TYPESET), "the formulas are not set")


def wait_for(condition, message):
    """Wait at most 20 seconds for a condition."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.05)


def errors(browser):
    return [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]


def requests(browser):
    """Return the addresses that the browser asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_and_its_prose_does_not_scroll_sideways_on_a_phone(browser, page, emulate):
    visit(browser, page)
    assert not errors(browser)
    broken = """return [...document.images].filter(i => !i.complete || !i.naturalWidth)
        .map(i => i.src)"""
    wait_for(lambda: not browser.execute_script(broken), "an image is not loaded")
    schemes = {urlparse(url).scheme for url in requests(browser)}
    assert schemes <= {"file", "data", "blob", "chrome-extension"}  # blob: a worker
    assert not browser.execute_script("return document.querySelectorAll('mjx-merror').length")
    emulate("setDeviceMetricsOverride", **PHONE)
    size = browser.execute_script(SIZE)
    wide = """return [...document.querySelectorAll('article p, article li, article h1, h2, h3')]
        .filter(e => e.offsetParent && !e.closest('table, pre'))
        .filter(e => e.getBoundingClientRect().right > 391).map(e => e.textContent)"""
    assert browser.execute_script(wide) == []
    # the browser zooms out if something is too wide, so both numbers are compared with 390
    assert size == [390, 390]


def test_every_lesson_has_a_notebook_with_outputs():
    for page in LESSONS:
        (name,) = set(re.findall(r'href="([^"]+\.ipynb)"', (BOOK / page).read_text("utf-8")))
        notebook = nbformat.read(BOOK / Path(page).parent / unquote(name), as_version=4)
        outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        assert outputs and not any(out.output_type == "error" for out in outputs), page


def test_the_search_finds_a_function(browser):
    visit(browser, "search.html?q=quantize")
    count = "return document.querySelectorAll('#search-results ul.search li').length"
    wait_for(lambda: browser.execute_script(count) > 3, "the search finds nothing")


@pytest.mark.parametrize("value", [("dark", "reduce"), ("light", "no-preference")])
def test_the_page_follows_the_colours_and_the_motion_of_the_system(browser, value, emulate):
    names = "prefers-color-scheme", "prefers-reduced-motion"
    features = [{"name": name, "value": v} for name, v in zip(names, value)]
    emulate("setEmulatedMedia", features=features)
    visit(browser, "index.html")
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", colour)[0]) < 128) == (value[0] == "dark")
    for name, still in (("moving", False), ("still", True)):
        shown = browser.find_element("css selector", f"img.{name}").is_displayed()
        assert shown == (still == (value[1] == "reduce"))


# ----------------------------------------------------------- the figure that a reader can edit


INT4 = nf4.Codebook.from_values(np.float32(np.arange(-7, 8) / 7))
CODEBOOKS = {
    "NF4": nf4.CODEBOOKS["nf4"],
    "FP4": nf4.CODEBOOKS["fp4"],
    "int4": INT4,
}


def expected(weights, name):
    """Compute what the figure must show: absmax, codes, bytes, values and error of one block."""
    weights = np.float32(weights)
    x, absmax = nf4.normalize(weights, 16)
    codes = nf4.nearest(x, CODEBOOKS[name])
    restored = CODEBOOKS[name].values[codes] * absmax
    if name == "int4":  # not in minilora: q in two's complement
        codes = (codes + 9) % 16
    packed = nf4.pack_4bit(codes)
    error = np.sqrt(np.mean((restored.astype(np.float64) - weights) ** 2))
    return float(absmax[0]), codes.tolist(), packed.tolist(), restored.tolist(), float(error)


def blocks(size, codebooks):
    """Return blocks of weights: normal ones of many sizes, ties, zeros, outliers, subnormals."""
    rng = np.random.default_rng(0)
    found = [rng.standard_normal(size) * 10.0**exponent for exponent in (-41, *range(-30, 30, 3))]
    found += [np.resize(np.append(1.0, code.midpoints), size) for code in codebooks]
    found += [np.zeros(size), np.full(size, 0.3), np.append(1e6, found[0][1:])]
    return [block.astype(np.float32) for block in found]


@pytest.fixture
def figure(browser):
    """Return the browser at the lesson with the figure."""
    visit(browser, next(p for p in LESSONS if "quantize_a_block" in (BOOK / p).read_text("utf-8")))
    return browser


QUANTIZE = """const q = quantizeBlock(arguments[0], arguments[1]);
return [q.absmax, q.codes, q.bytes, q.values, q.rmse]"""


@pytest.mark.parametrize("name", CODEBOOKS)
def test_the_figure_computes_what_minilora_computes(figure, name):
    for block in blocks(16, CODEBOOKS.values()):
        absmax, codes, packed, values, error = figure.execute_script(QUANTIZE, block.tolist(), name)
        right = expected(block, name)
        assert (absmax, codes, packed) == right[:3], block
        assert np.array_equal(np.float32(values), np.float32(right[3])), block
        assert error == pytest.approx(right[4], rel=1e-12, abs=1e-300), block


def test_the_figure_shows_what_the_reader_enters(figure):
    inputs = figure.find_elements("css selector", ".quantize-table input")
    inputs[2].clear()
    inputs[2].send_keys("-0.25")
    block = [float(i.get_property("value")) for i in inputs]
    assert len(block) == 16 and block[2] == -0.25
    rows = figure.find_elements("css selector", ".quantize-table tbody tr")
    for column, name in enumerate(CODEBOOKS, 1):
        _, codes, packed, values, error = expected(block, name)
        cells = [row.find_elements("css selector", "td, th")[column].text for row in rows]
        for cell, code, value in zip(cells, codes, values):
            shown, _, decoded = cell.partition(" → ")
            assert int(shown) % 16 == code
            assert float(decoded) == pytest.approx(value, rel=1e-3, abs=1e-9)
        assert cells[16] == " ".join(f"{byte:02x}" for byte in packed)
        assert float(cells[17]) == pytest.approx(error, rel=1e-2)
    inputs[0].clear()
    inputs[0].send_keys("1e39")
    status = figure.find_element("css selector", ".quantize [role=status]")
    assert status.text == "Each weight must be a finite float32 number."


def test_the_figure_works_with_the_keyboard_alone(figure):
    """Tab reaches the buttons, the table (which may scroll) and each weight, in this order."""
    figure.execute_script("document.querySelector('.quantize button').focus()")
    order = []
    for _ in range(20):
        order.append(figure.execute_script("return document.activeElement.tagName"))
        figure.switch_to.active_element.send_keys(Keys.TAB)
    assert order == ["BUTTON"] * 3 + ["DIV"] + ["INPUT"] * 16
    first = figure.find_element("css selector", ".quantize-table input")
    button = figure.find_elements("css selector", ".quantize button")[1]
    button.send_keys(Keys.ENTER)
    assert float(first.get_property("value")) == 10
    first.send_keys(Keys.ARROW_UP)
    assert float(first.get_property("value")) == pytest.approx(10.05)


# ------------------------------------------------ the explorer, which test_explorer.py tests alone


def test_the_explorer_answers_in_the_book(browser):
    visit(browser, "explorer.html")
    answer = "return document.getElementById('x-base').textContent"
    wait_for(lambda: len(browser.execute_script(answer)) > 10, "the base does not answer")
    links = browser.find_elements("css selector", "#x-tour a")
    assert len(links) == 5
    for link in links:
        assert Path(unquote(urlparse(link.get_attribute("href")).path)).exists()
