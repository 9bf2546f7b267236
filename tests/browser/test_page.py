"""The page of `strlab serve` in headless Chromium: choose, paste, drop, crop, copy, CSV, keyboard, both widths."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.infer import shipped
from tests.common import toy

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
WIDTHS = (390, 1280, 1600)
PATIENCE = 300_000  # milliseconds: what is slow on a busy machine is no fault of the page


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from common.serve.guard import Limits
    from tests.common.test_serve import Running

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "folders", list)
        with Running(Limits()) as running:
            yield f"http://127.0.0.1:{running.port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: object, address: str) -> Iterator[object]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#reader option", state="attached")
    yield page
    assert not page.faults
    assert all(url.startswith((address, "blob:", "data:")) for url in page.requests)
    context.close()


def files(*letters: str) -> list[dict]:
    return [
        {"name": f"{letter}{i}.png", "mimeType": "image/png", "buffer": toy.crop(letter, (300, 100))}
        for i, letter in enumerate(letters)
    ]


def until(page: object, expression: str) -> None:
    """Wait until a JavaScript expression is true (Playwright's own way needs eval, which the page's policy forbids)."""
    ends = time.monotonic() + 300
    while not page.evaluate(expression):
        assert time.monotonic() < ends, expression
        time.sleep(0.03)


def texts(page: object, count: int) -> list[str]:
    until(page, f"document.querySelectorAll('.card').length == {count}")
    return [one.inner_text() for one in page.query_selector_all(".card .text")]


def test_choose_copy_and_download(page: object, tmp_path: Path) -> None:
    page.set_input_files("#files", files("a", "b", "c"))
    assert texts(page, 3) == ["c", "b", "a"]  # the newest first
    until(page, "document.getElementById('status').textContent.startsWith('3 pictures read: a, b, c')")
    page.click("#copy")
    until(page, "document.getElementById('status').textContent == 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == "a\nb\nc"
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "readings.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "readings.csv").read_text("utf-8-sig"))))
    assert [(row["name"], row["text"]) for row in rows] == [("a0.png", "a"), ("b1.png", "b"), ("c2.png", "c")]
    assert 0.5 < float(rows[0]["confidence"]) <= 1
    page.click("#clear")
    assert page.query_selector(".card") is None


def test_a_file_that_is_no_picture_is_named(page: object) -> None:
    notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.set_input_files("#files", [*files("a"), notes])
    assert texts(page, 1) == ["a"]
    told = "1 picture read: a. Skipped, not a picture: notes.txt"
    until(page, f"document.getElementById('status').textContent == '{told}'")


def test_paste_and_drop(page: object) -> None:
    data = base64.b64encode(toy.crop("b", (90, 30))).decode()
    for kind, place in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([kind, place, data]) => {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "word.png", {type: "image/png"}));
                const event = new Event(kind, {bubbles: true, cancelable: true});
                Object.defineProperty(event, place, {value: transfer});
                document.body.dispatchEvent(event);
            }""",
            [kind, place, data],
        )
    assert texts(page, 2) == ["b", "b"]


def test_a_box_reads_a_part_and_characters_show_their_confidence(page: object) -> None:
    page.set_input_files("#files", files("a"))
    texts(page, 1)
    box = page.locator(".picture canvas").first.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 60)
    page.mouse.up()
    assert texts(page, 2) == ["a", "a"] and "part" in page.inner_text(".card .name")
    page.hover(".card .text span")
    assert page.query_selector(".card .map") is not None
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert "%" in page.inner_text(".card details table")


def test_keyboard_and_names_for_screen_readers(page: object) -> None:
    seen = []
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert seen[:4] == ["reader", "theme", "files", "camera"]
    page.set_input_files("#files", files("c"))
    texts(page, 1)
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, a, [role=img]")].filter(e => e.offsetParent !== null &&
           !(e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length))).length"""
    )
    assert not page.is_visible("#keyform")
    assert nameless == 0 and page.get_attribute("#status", "aria-live") == "polite"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page: object, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.set_input_files("#files", files("a", "b", "c", "b"))
    texts(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    buttons = "[...document.querySelectorAll('button, .button, select')].filter(e => e.offsetHeight)"
    assert page.evaluate(f"Math.min(...{buttons}.map(e => e.offsetHeight))") >= 28
    if folder := os.environ.get("STRLAB_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/page-{width}-{scheme}.png", full_page=True)


def test_errors_are_said_in_words(page: object) -> None:
    page.set_input_files("#files", [{"name": "note.png", "mimeType": "image/png", "buffer": b"no picture"}])
    until(page, "document.getElementById('status').className == 'error'")
    assert "note.png" in page.inner_text("#status")


def test_the_description_of_the_api(page: object, address: str) -> None:
    page.goto(address + "docs")
    page.wait_for_selector("h2")
    assert "POST /read" in page.inner_text("#paths") and "HOST" not in page.inner_text("pre")


def red(image: object, box: list[float], text: str, seed: int) -> object:
    """A painter that fills the region with red."""
    painted = image.copy()
    left, top, right, bottom = map(round, box)
    painted[top:bottom, left:right] = (255, 0, 0)
    return painted


@pytest.mark.parametrize("width", WIDTHS[:2])
def test_painting_a_word(browser: object, width: int) -> None:
    from common.serve.guard import Limits
    from tests.common.test_serve import Running

    with Running(Limits(), paint=red) as running:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{running.port}/")
        until(page, "!document.getElementById('tabs').hidden")
        page.click("#tabpaint")
        assert page.is_visible("#paint") and not page.is_visible("#drop") and page.is_disabled("#paintgo")
        page.set_input_files("#paintfile", files("b"))
        until(page, "!document.getElementById('paintgo').disabled")
        for name, value in (("l", 10), ("t", 20), ("r", 100), ("b", 60)):
            page.fill(f"#box{name}", str(value))
        page.click("#paintgo")
        until(page, "document.getElementById('painted').naturalWidth == 300")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        corner, inside = page.evaluate(
            """(() => { const c = document.createElement('canvas'), i = document.getElementById('painted');
                c.width = 300; c.height = 100; const x = c.getContext('2d'); x.drawImage(i, 0, 0);
                return [[2, 2], [50, 40]].map(([a, b]) => [...x.getImageData(a, b, 1, 1).data].slice(0, 3)); })()"""
        )
        assert inside == [255, 0, 0] and corner == [120, 120, 120]
        if folder := os.environ.get("STRLAB_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/paint-{width}.png", full_page=True)
        page.close()


def test_without_weights_there_is_no_tab_and_a_line_says_why(page: object) -> None:
    until(page, "!document.getElementById('nopaint').hidden")
    assert not page.is_visible("#tabs") and "--paint" in page.inner_text("#nopaint")


def test_whole_pictures(browser: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a detector the page offers to find the words, and shows each over the picture."""
    import numpy as np

    from common.infer import pages
    from common.serve.guard import Limits
    from tests.common.test_serve import Running

    lines = np.float32([[[10, 10], [120, 10], [120, 40], [10, 40]], [[10, 60], [200, 60], [200, 90], [10, 90]]])
    monkeypatch.setattr(pages.pp_ocr, "installed", lambda: "toy")
    monkeypatch.setattr(pages, "detector", lambda: pages.Detector(lambda image: lines, "toy"))
    with Running(Limits()) as running:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{running.port}/")
        until(page, "!document.getElementById('detectrow').hidden")
        page.check("#detect")
        page.set_input_files("#files", files("c"))
        assert texts(page, 1)[0].split() == ["c", "c"]
        assert page.locator(".overlay polygon").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.close()


def test_a_wide_table_of_a_report_says_that_it_scrolls(browser: object, tmp_path: Path) -> None:
    from common.report.page import Report

    wide = [f"protocol {number}" for number in range(8)]
    report = Report("a", "b").table(wide, [[1.5] * 8] * 3).table(["x"], [[1]])
    file, _ = report.write(tmp_path)
    for width, hidden in ((390, [False, True]), (1280, [True, True])):
        page = browser.new_page(viewport={"width": width, "height": 700})
        page.goto(file.as_uri())
        page.wait_for_function("document.querySelectorAll('p.hint').length === 2", timeout=PATIENCE)
        page.wait_for_function(
            f"JSON.stringify([...document.querySelectorAll('p.hint')].map(hint => hint.hidden)) === "
            f"'{json.dumps(hidden, separators=(',', ':'))}'",
            timeout=PATIENCE,
        )
        page.close()
