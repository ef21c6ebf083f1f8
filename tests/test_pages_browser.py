"""Reports in a real browser, on a laptop and on a phone; skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import surgeon
from surgeon.pages import render
from surgeon.report import Report
from tests import factories, pages

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def result() -> surgeon.Result:
    torch.manual_seed(0)
    return surgeon.prune(factories.small().eval(), X, filters=6, criterion="magnitude")


def report_of(name: str) -> Report:
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 64, 64)
    return surgeon.prune(model, x, ratio=0.3, criterion="magnitude", scope="local", verify=False).report


LAPTOP, PHONE = (1366, 768), (390, 844)

#: Words that are wider or higher than what they stand in, or that lie on each other.
_TROUBLES = """
const found = [], seen = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode, parent = node.parentElement;
  if (!node.textContent.trim() || parent.closest("script, style, .sr, option")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    if (box.width < 1 || box.height < 1) continue;
    const scrolled = parent.closest(".lanes");
    if (!scrolled && (box.left < -1 || box.right > innerWidth + 1)) found.push("outside: " + node.textContent.trim());
    const style = getComputedStyle(parent);
    const outer = parent.getBoundingClientRect();
    if (style.overflow === "hidden" && (box.right > outer.right + 1 || box.bottom > outer.bottom + 1)) {
      found.push("cut: " + node.textContent.trim());
    }
    if (!parent.closest("nav")) {
      seen.push([box.left, box.top, box.right, box.bottom, node.textContent.trim(), !scrolled]);
    }
  }
}
seen.sort((a, b) => a[1] - b[1]);
for (let i = 0; i < seen.length; i++) {
  for (let j = i + 1; j < seen.length && seen[j][1] < seen[i][3] - 3; j++) {
    const a = seen[i], b = seen[j];
    if (a[5] !== b[5]) continue;  // what is scrolled away lies nowhere on the page
    if (Math.min(a[2], b[2]) - Math.max(a[0], b[0]) > 1.5 && Math.min(a[3], b[3]) - Math.max(a[1], b[1]) > 4) {
      found.push("on each other: " + a[4] + " | " + b[4]);
    }
  }
}
return found.slice(0, 10);
"""


class Browser:
    """A page in a headless Chromium."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self._folder = driver, folder

    def show(self, text: str, size: tuple[int, int], *, dark: bool = False) -> None:
        """Open a page at a width and height in CSS pixels."""
        (self._folder / "page.html").write_text(text, encoding="utf-8")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        self.driver.get((self._folder / "page.html").as_uri())
        self.ask("document.querySelectorAll('details').forEach(part => { part.open = true; })")

    def ask(self, script: str, *args: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *args)

    def errors(self) -> list[Any]:
        """What the console says."""
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    with contextlib.closing(_Quits(running)):
        yield Browser(running, folder)


class _Quits:
    def __init__(self, driver: Any) -> None:
        self.close = driver.quit


@pytest.fixture(scope="module", params=["small", "resnet50", "densenet121"])
def page(request: pytest.FixtureRequest, result: surgeon.Result) -> tuple[Report, str]:
    report = result.report if request.param == "small" else report_of(request.param)
    return report, render(pages.everything(report))


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_a_page_fits_and_nothing_lies_on_anything(
    browser: Browser, page: tuple[Report, str], size: tuple[int, int]
) -> None:
    browser.show(page[1], size)
    assert browser.ask("return document.documentElement.scrollWidth") <= size[0]
    assert browser.ask(_TROUBLES) == []
    assert browser.errors() == []


def test_every_layer_is_found_by_its_name(browser: Browser, page: tuple[Report, str]) -> None:
    report, text = page
    browser.show(text, LAPTOP)
    drawn = browser.ask("return [...document.querySelectorAll('.rows > li')].map(row => row.dataset.name)")
    assert drawn == list(report.flow)
    listed = browser.ask("return [...document.querySelectorAll('#widths tbody th')].map(cell => cell.textContent)")
    assert listed == [row.name for row in report.layers]
    name = report.layers[-2].name
    browser.ask(
        "const f = document.getElementById('find'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))", name
    )
    rows = "document.querySelectorAll('#widths tr[data-name]:not(.hidden)')"
    shown = browser.ask(f"return [...{rows}].map(r => r.dataset.name)")
    assert name in shown
    assert all(name in other for other in shown)
    row = browser.ask(
        "const box = document.querySelector('.lanes').getBoundingClientRect();"
        "const row = document.querySelector('.rows > li:not(.off)').getBoundingClientRect();"
        "return row.top >= box.top && row.bottom <= box.bottom"
    )
    assert row
    assert "match" in browser.ask("return document.getElementById('found').textContent")


def test_links_lead_somewhere_and_lanes_light_up(browser: Browser, page: tuple[Report, str]) -> None:
    browser.show(page[1], LAPTOP)
    assert (
        browser.ask(
            "const links = [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'));"
            "return links.filter(target => !document.querySelector(target)).length"
        )
        == 0
    )
    off = "return document.querySelectorAll('.lane.off').length"
    browser.ask("document.querySelector('.rows a').focus()")
    assert browser.ask(off) == len(page[0].groups) - browser.ask(
        "return document.querySelector('.rows > li.on').dataset.groups.split(' ').length"
    )
    browser.ask("document.activeElement.blur()")
    assert browser.ask(off) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, page: tuple[Report, str], dark: bool) -> None:
    browser.show(page[1], LAPTOP, dark=dark)
    contrast = """
    const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
      return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
    const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!c.endsWith(", 0)")) return c; } return "rgb(255, 255, 255)"; };
    return [...document.querySelectorAll("p, th, td, a, h1, h2, .card b, .pill, summary, dt, dd, li span")].map(e => {
      const a = light(getComputedStyle(e).color), b = light(behind(e));
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.trim().slice(0, 40)];
    }).filter(x => x[0] < 4.5).slice(0, 5);
    """
    assert browser.ask(contrast) == []


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_hostile_names_are_shown_as_they_are(browser: Browser, result: surgeon.Result, size: tuple[int, int]) -> None:
    browser.show(render(pages.hostile(result.report)), size)
    assert "broken in" not in browser.ask("return document.title").replace(pages.HOSTILE[0], "").replace(
        "document.title='broken in'", ""
    )
    assert browser.ask("return document.querySelectorAll('img').length") == 0
    assert browser.ask("return document.documentElement.scrollWidth") <= size[0]
    assert browser.errors() == []
    assert browser.ask(_TROUBLES) == []
    drawn = browser.ask("return [...document.querySelectorAll('.rows > li')].map(row => row.dataset.name)")
    assert set(drawn) <= set(pages.HOSTILE)
