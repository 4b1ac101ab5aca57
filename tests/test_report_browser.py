"""The report page in a real browser: two widths, printed, by keyboard, and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests import browser
from tests.browser import Browser
from tests.reporting.test_report import make_run, page

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no chromium on this machine")

NARROW, WIDE = (390, 844), (1440, 900)
TEXTS = """
(() => {
  const lightness = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const e of document.querySelectorAll("body *:not(svg *):not(script)")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const a = lightness(getComputedStyle(e).color), b = lightness(behind(e));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push([e.tagName, e.textContent.slice(0, 30), contrast]);
  }
  return low;
})()
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(page(make_run(n_factors=40), make_run("linear", 40)), encoding="utf-8")
    with Browser(folder / "profile") as open_browser:
        address = (folder / "report.html").as_uri()
        open_browser.resize(*WIDE)
        open_browser.open(address)
        yield open_browser, address


def column(open_browser: Browser, number: int) -> list[str]:
    script = f"[...document.querySelectorAll('#every_factor tbody tr')].map(r => r.cells[{number}].textContent.trim())"
    found: list[str] = open_browser.value(script)
    return found


def test_the_page_asks_for_nothing_but_itself_and_no_script_fails(shown: tuple[Browser, str]) -> None:
    open_browser, address = shown
    assert set(open_browser.requests) == {address}
    assert open_browser.errors == []


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["390", "1440"])
def test_nothing_is_wider_than_the_window_but_what_scrolls_in_itself(
    shown: tuple[Browser, str], size: tuple[int, int], tmp_path: Path
) -> None:
    open_browser, _ = shown
    open_browser.resize(*size, is_phone=size == NARROW)
    assert open_browser.value("document.documentElement.scrollWidth") <= size[0]
    outside = """
        [...document.querySelectorAll("body *:not(svg *):not(.scroll *):not(.skip)")]
          .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))
    """
    assert open_browser.value(outside) == []
    assert open_browser.value("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    smallest = "Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width))"
    assert open_browser.value(smallest) > 300
    open_browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_columns_sort_by_number_and_by_name(shown: tuple[Browser, str]) -> None:
    open_browser, _ = shown
    heads = [head.strip() for head in open_browser.value(
        "[...document.querySelectorAll('#every_factor thead th')].map(h => h.textContent)"
    )]  # fmt: skip
    for name in ("AUPRC", "factor"):
        number = heads.index(name)
        press = f"document.querySelectorAll('#every_factor thead th button')[{number}].click()"
        open_browser.value(press)
        falling = column(open_browser, number)
        open_browser.value(press)
        rising = column(open_browser, number)
        numbers = [float(text) for text in rising] if name == "AUPRC" else None
        assert rising != falling
        if numbers is not None:
            assert numbers == sorted(numbers)
        sort = f"document.querySelectorAll('#every_factor thead th')[{number}].getAttribute('aria-sort')"
        assert open_browser.value(sort) == "ascending"


def test_rows_can_be_searched_and_their_number_is_said(shown: tuple[Browser, str]) -> None:
    open_browser, _ = shown
    typed = """
        (text => {
          const box = document.getElementById("filter");
          box.value = text;
          box.dispatchEvent(new Event("input"));
          const rows = [...document.querySelectorAll("#every_factor tbody tr")];
          return [rows.filter(r => !r.hidden).length, document.getElementById("shown").textContent];
        })
    """
    assert open_browser.value(f"{typed}('ARG5,6')") == [2, "2 of 80"]
    assert open_browser.value(f"{typed}('')") == [80, ""]


def test_every_figure_has_a_name_for_those_who_do_not_see_it(shown: tuple[Browser, str]) -> None:
    open_browser, _ = shown
    nodes = open_browser.call("Accessibility.getFullAXTree")["nodes"]
    images = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    assert len(images) == open_browser.value("document.querySelectorAll('figure').length")
    assert min(map(len, images)) > 20
    regions = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "region"]
    assert {"Model against baselines", "Runs side by side", "Factor by factor"} <= set(regions)
    levels = open_browser.value("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert max(later - earlier for earlier, later in pairwise(levels)) <= 1


def test_text_stands_out_from_what_is_behind_it(shown: tuple[Browser, str]) -> None:
    assert shown[0].value(TEXTS) == []


def test_printed_tables_are_whole(shown: tuple[Browser, str]) -> None:
    open_browser, _ = shown
    open_browser.call("Emulation.setEmulatedMedia", {"media": "print"})
    cut = "[...document.querySelectorAll('.tall')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    try:
        assert open_browser.value(cut) == 0
    finally:
        open_browser.call("Emulation.setEmulatedMedia", {"media": ""})
    assert open_browser.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_a_page_of_two_runs_of_350_factors_can_be_used_within_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(make_run(n_factors=700), make_run("linear", 700)), encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    with Browser(tmp_path / "profile") as open_browser:
        assert min(open_browser.open(path.as_uri()) for _ in range(3)) < 2
