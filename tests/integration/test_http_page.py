# SPDX-License-Identifier: Apache-2.0
"""The status page in a real browser: Chromium, without a screen.

With KVCACHED_SCREENSHOTS=docs/images the manual's pictures are taken anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from harness.broker import Daemon, Programs, eventually
from harness.control import open_control
from harness.raw import LEASES, RawPeer, start_raw
from harness.web import Web, start_web

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
]

MIB = 1 << 20
GIB = 1 << 30
CONFIG = "[daemon]\nidle=600\n[instance llama-*]\nlimit=12G\n[instance qwen*]\nlimit=6G\n"


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tempfile.mkdtemp(prefix="kvcached-chromium-")
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


class Page:
    """The page of one daemon, open in the browser."""

    def __init__(self, browser: webdriver.Chrome, web: Web) -> None:
        self.browser = browser
        self.web = web
        self.complaints()
        self.resize(1200, 1000)
        browser.get(f"http://{web.address}/")

    def resize(self, width: int, height: int, *, phone: bool = False, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return self[name].text

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """At one moment: the page may replace elements meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return list(self.browser.execute_script(script, selector))

    def wait_live(self) -> None:
        eventually(lambda: self.text("link-text") == "Live")

    def complaints(self) -> list[str]:
        """What the browser had to say: errors of the script, and of the policy."""
        log = self.browser.execute("getLog", {"type": "browser"})["value"]
        return [entry["message"] for entry in log]


def open_page(programs: Programs, browser: webdriver.Chrome, **options: str) -> tuple[Daemon, Page]:
    daemon, web = start_web(programs, "24G", **({"budget": "20G", "config": CONFIG} | options))
    page = Page(browser, web)
    page.wait_live()
    return daemon, page


def take(programs: Programs, daemon: Daemon, name: str, pages: int) -> tuple[RawPeer, int]:
    """An engine with so many pages of 32 MiB."""
    engine = start_raw(programs, daemon, name)
    engine.open(features=LEASES)
    region = engine.open_region(0, 0, 1)
    engine.take(region, pages)
    return engine, region


def test_it_shows_what_is_so(programs: Programs, browser: webdriver.Chrome) -> None:
    """And follows, without being asked again."""
    daemon, page = open_page(programs, browser)
    assert page.text("total") == "24 GiB"
    assert page.text("tile-budget") == "20 GiB"
    assert page.text("no-rows") == "No engine has asked for memory yet."
    engine, region = take(programs, daemon, "llama-3.1-8b", 64)
    eventually(lambda: page.text("lent") == "2 GiB")
    assert page.texts("#rows .name b") == ["llama-3.1-8b"]
    assert "llama-3.1-8b 2 GiB" in str(page["bar"].get_attribute("aria-label"))
    assert page.texts("#events .chip")[-1] == "started"
    engine.take(region, 32)
    eventually(lambda: page.text("lent") == "3 GiB")
    assert page.browser.title.startswith("3 GiB of 24 GiB")
    shown = page.browser.execute_script(
        "return [...document.querySelectorAll('#bar span')].map(e => e.getBoundingClientRect().width)"
    )
    whole = page["bar"].rect["width"]
    assert abs(shown[0] / whole - 3 / 24) < 0.001
    assert abs(sum(shown) / whole - 1) < 0.01
    assert page.complaints() == []


def test_flags(programs: Programs, browser: webdriver.Chrome) -> None:
    daemon, page = open_page(programs, browser)
    engine, region = take(programs, daemon, "qwen2.5-7b", 64)
    engine.hint(region, 0, 4)
    programs.kvctl("limit", "qwen2.5-7b", "1G", daemon=daemon)
    eventually(lambda: "over limit" in page.texts("#rows .chip"))
    eventually(lambda: "missed notice" in page.texts("#rows .chip"))
    eventually(lambda: "128 MiB pinned" in page.texts("#rows .chip"))
    eventually(lambda: "over limit" in page.texts("#events .chip"))


def test_hostile_names(programs: Programs, browser: webdriver.Chrome) -> None:
    """A trust domain, and what a process calls itself, may look like markup: it stays text."""
    daemon, page = open_page(programs, browser)
    control = open_control(programs, daemon)
    evil = "<img src=x onerror=document.title='owned'>"
    control.request("SetLimit", instance=f"{evil}/x", bytes=GIB)
    engine = start_raw(programs, daemon, "engine")
    engine.open(program="</script><script>document.title='owned'</script>")
    engine.kill()
    eventually(lambda: page.texts("#rows .name small")[0:1] != [] and evil in page.texts("#rows .name small"))
    eventually(lambda: any(evil in text or "User" in text for text in page.texts("#events p")))
    assert page.all("#rows img, #events img, body script:not([src])") == []
    assert "owned" not in page.browser.title
    assert page.complaints() == []


def test_a_lost_connection(programs: Programs, browser: webdriver.Chrome) -> None:
    """Is said, with the time of what is still shown; and it ends by itself."""
    daemon, page = open_page(programs, browser)
    take(programs, daemon, "llama", 32)
    eventually(lambda: page.text("lent") == "1 GiB")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: page.text("link-text") == "No connection")
        assert "What is shown is as of" in page.text("banner")
        assert page.text("lent") == "1 GiB"
        assert "lost" in str(page.all("body")[0].get_attribute("class"))
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    page.wait_live()
    eventually(lambda: not page["banner"].is_displayed())


def test_nothing_is_known_at_first(programs: Programs, browser: webdriver.Chrome) -> None:
    """Unknown is a dash, not a zero."""
    _, web = start_web(programs)
    page = Page(browser, web)
    page.wait_live()
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/api/*"]})
    try:
        page = Page(browser, web)
        eventually(lambda: page.text("link-text") == "No connection")
        assert "Nothing is known yet." in page.text("banner")
        assert {page.text(name) for name in ("lent", "total", "tile-free", "tile-pool")} == {"\u2013"}
        assert page.all("#rows tr") == []
    finally:
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


# ---- Keyboard ----


def press(page: Page, *keys: str) -> None:
    page.browser.switch_to.active_element.send_keys(*keys)


def focused(page: Page) -> str:
    script = "return document.activeElement.textContent || document.activeElement.id"
    return str(page.browser.execute_script(script))


def test_by_keyboard(programs: Programs, browser: webdriver.Chrome) -> None:
    """What can be clicked is reached with Tab, in the order in which it is seen, and works with Enter."""
    daemon, page = open_page(programs, browser)
    for name, pages in (("b-small", 1), ("a-large", 40), ("c-middle", 8)):
        take(programs, daemon, name, pages)
    eventually(lambda: page.texts("#rows .name b") == ["a-large", "c-middle", "b-small"])
    page.all("body")[0].send_keys(Keys.TAB)
    order = [focused(page)]
    for _ in range(20):
        press(page, Keys.TAB)
        order.append(focused(page))
        if order[-1] == "state as JSON":
            break
    heads = ["Instance", "Used", "Limit", "Cached", "Wanted", "Processes", "State"]
    assert [name for name in order if name in heads] == heads
    assert order[:2] == ["Skip to the instances", "filter"]
    assert order[-2:] == ["metrics", "state as JSON"]

    for button in page.all("#heads button"):
        if button.text == "Instance":
            button.send_keys(Keys.ENTER)
    assert page.texts("#rows .name b") == ["a-large", "b-small", "c-middle"]
    assert page.all("#heads th")[0].get_attribute("aria-sort") == "ascending"
    press(page, Keys.ENTER)
    assert page.texts("#rows .name b") == ["c-middle", "b-small", "a-large"]
    assert page.all("#heads th")[0].get_attribute("aria-sort") == "descending"
    assert focused(page) == "Instance"


def test_filter(programs: Programs, browser: webdriver.Chrome) -> None:
    daemon, page = open_page(programs, browser)
    control = open_control(programs, daemon)
    for number in range(150):
        control.request("SetLimit", instance=f"d/i{number}", bytes=MIB)
    eventually(lambda: page.text("count") == "150")
    assert len(page.texts("#rows tr")) == 100
    page["more"].send_keys(Keys.ENTER)
    eventually(lambda: len(page.texts("#rows tr")) == 150)
    page["filter"].send_keys("I14")
    assert len(page.texts("#rows tr")) == 11
    page["filter"].send_keys("x")
    assert page.text("no-rows") == "No instance has such a name."


# ---- Looks ----


def contrast(page: Page, selector: str) -> float:
    """Between a text and what is behind it, as WCAG counts it."""
    script = """
        const element = document.querySelector(arguments[0]);
        let behind = element;
        const painted = (e) => getComputedStyle(e).backgroundColor;
        while (/rgba\\(.*, 0\\)|transparent/.test(painted(behind)) && behind.parentElement)
            behind = behind.parentElement;
        const light = (color) => {
            const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const [a, b] = [light(getComputedStyle(element).color), light(painted(behind))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    """
    return float(page.browser.execute_script(script, selector))


TEXTS = """h1|.sub|#link-text|h2|.tiles dt|.tiles dd|td.name b|td.name small|td.num|th button|#rows .chip.bad|
#events .chip.good|#events .chip.bad|#events time|#events p|footer a""".replace("\n", "").split("|")


@pytest.fixture
def scene(programs: Programs, browser: webdriver.Chrome) -> Page:
    """A GPU on which much goes on."""
    daemon, page = open_page(programs, browser)
    llama, region = take(programs, daemon, "llama-3.1-8b", 200)
    qwen, qwen_region = take(programs, daemon, "qwen2.5-7b", 80)
    qwen.hint(qwen_region, 20, 2)
    take(programs, daemon, "mistral-nemo", 56)
    guard, _ = take(programs, daemon, "llama-guard-3", 12)
    for _ in range(2):
        llama.take(region, 24)
    programs.kvctl("limit", "batch-eval", "4G", daemon=daemon)
    programs.kvctl("limit", "qwen2.5-7b", "2G", daemon=daemon)
    eventually(lambda: "missed notice" in page.texts("#rows .chip"))
    guard.kill()
    eventually(lambda: "lost" in page.texts("#events .chip"))
    return page


@pytest.mark.parametrize(
    ("name", "scheme", "width", "height"),
    [("light", "light", 1200, 1290), ("dark", "dark", 1200, 1290), ("phone", "light", 390, 844)],
)
def test_looks(scene: Page, name: str, scheme: str, width: int, height: int) -> None:
    """Readable in both schemes, and nothing is wider than a phone."""
    scene.resize(width, height, phone=name == "phone", scheme=scheme)
    scene.wait_live()
    for selector in TEXTS:
        if scene.all(selector) and scene.all(selector)[0].is_displayed():
            assert contrast(scene, selector) >= 4.5, (selector, contrast(scene, selector))
    measure = "return [document.documentElement.scrollWidth, innerWidth]"
    wide, room = scene.browser.execute_script(measure)
    assert wide <= room
    background = scene.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(14, 19, 24)") == (scheme == "dark")
    folder = os.environ.get("KVCACHED_SCREENSHOTS")
    if folder:
        scene.browser.save_screenshot(str(Path(folder) / f"status-{name}.png"))


def test_names_for_those_who_do_not_see(scene: Page) -> None:
    """What is a picture has words, what is a table has heads, what changes is announced."""
    for selector in ("#bar", "#chart", "#rows .meter"):
        for element in scene.all(selector):
            assert element.get_attribute("role") == "img"
            assert "GiB" in str(element.get_attribute("aria-label")), selector
    assert scene["link"].get_attribute("role") == "status"
    assert scene["banner"].get_attribute("role") == "alert"
    for section in scene.all("main section"):
        title = str(section.get_attribute("aria-labelledby"))
        assert scene.text(title)
    assert scene.browser.execute_script("return document.documentElement.lang") == "en"
    assert all(th.get_attribute("scope") == "col" for th in scene.all("#heads th"))
