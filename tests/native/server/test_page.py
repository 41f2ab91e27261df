"""The page at ``/`` of ``arcflow-serve``: its headers, and what a person does with it in Chromium."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.serving import GENERATIONS, Server
from tests.native.server.browser import PROGRAMS, Browser
from tests.native.server.serving import PROMPT, Start, images, logged

HARD = 'a "red" apple, that\'s $HOME `and` back\\slash \u00e9\u4e2d\U0001f34e'
KEY = "a-secret-of-ann"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if None in PROGRAMS.values():
        pytest.skip("there is no chromium with chromedriver: scripts/browser.sh gets both on Debian, as root")
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(window: Browser, server: Server) -> Iterator[Browser]:
    """The page as a new visitor has it. Whatever is done with it, nobody but its server hears of it."""
    window.open(server)
    if window["past"].is_displayed():
        window["clear"].click()
        window.until(lambda: not window["past"].is_displayed())
    window.run("sessionStorage.clear()")
    window.open(server)
    yield window
    home = (f"http://127.0.0.1:{server.port}/", "data:", "blob:")
    assert [url for url in window.requests() if not url.startswith(home)] == []
    said = [line["message"] for line in window.driver.get_log("browser")]
    assert [line for line in said if "400 (Bad Request)" not in line] == []


@pytest.fixture(scope="module")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ann {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    return start("--api-keys", str(keys), "--allowed-host", "127.0.0.1")


def download(page: Browser) -> bytes:
    """The image that the page shows, as the file that it gives."""
    target = page.downloads / str(page["download"].get_attribute("download"))
    target.unlink(missing_ok=True)
    page["download"].click()
    page.until(target.exists)
    return target.read_bytes()


def clipboard(page: Browser, button: str) -> str:
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    page[button].click()
    page.until(lambda: page["status"].text == "Copied")
    text: str = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    return text


def seen(page: Browser, part: str) -> list[str]:
    """What the images of a list are called."""
    names: list[str] = page.run(
        "return [...document.querySelectorAll(`#${arguments[0]} img`)].map((one) => one.alt)", part
    )
    return names


def test_the_page_comes_with_a_strict_policy_and_is_cached(server: Server) -> None:
    answer = server.get("/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert b"{{" not in answer.body and b"</html>" in answer.body
    again = server.request("GET", "/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert server.request("HEAD", "/").headers["content-length"] == str(len(answer.body))


def test_who_gets_the_page(guarded: Server, start: Start) -> None:
    assert guarded.get("/").status == guarded.get("/openapi.json").status == 200
    for path in ("/", "/openapi.json"):
        strange = guarded.request("GET", path, headers={"Host": "evil.example"})
        assert (strange.status, strange.json()["error"]["code"]) == (400, "invalid_host")
    without = start("--no-page")
    assert without.get("/").status == 404
    assert without.get("/openapi.json").status == 200


def test_an_image_takes_shape_and_is_that_of_the_api(page: Browser, server: Server) -> None:
    page.fill(prompt=HARD, seed=2**64 - 1, nfe=64, partials=8)
    page["size"].send_keys("128")
    page["generate"].click()
    page.until(lambda: page.run("return document.querySelectorAll('.busy #strip img').length"))
    page.until(page["generate"].is_enabled)
    *levels, last = seen(page, "strip")
    assert len(levels) == 8 and levels == sorted(levels, reverse=True)
    assert levels[0].startswith("Noise level 0.") and last == HARD
    fields = {"prompt": HARD, "seed": 2**64 - 1, "nfe": 64, "size": "128x128"}
    assert download(page) == images(server.generate(**fields))[0]
    assert str(2**64 - 1) in page["facts"].text and "128 \u00d7 128" in page["facts"].text
    width, rendering = page.run("return [image.getBoundingClientRect().width, getComputedStyle(image).imageRendering]")
    assert (width % 128, rendering) == (0, "pixelated") and width > 128


def test_a_drawn_seed_is_told_and_gives_the_image_again(page: Browser, server: Server) -> None:
    page["prompt"].send_keys(PROMPT, Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page["result"].is_displayed())
    first = download(page)
    page.fill(prompt="a rose")
    page["again"].click()
    page.until(lambda: len(seen(page, "history")) == 2 and page["generate"].is_enabled())
    seed = int(str(page["seed"].get_property("value")))
    assert page["prompt"].get_property("value") == PROMPT
    assert download(page) == first == images(server.generate(prompt=PROMPT, seed=seed))[0]


def test_what_is_copied_makes_the_image_again(page: Browser, tmp_path: Path) -> None:
    page.generate(prompt=HARD, seed=7, nfe=3)
    wanted = download(page)
    subprocess.run(["bash", "-euc", clipboard(page, "curl")], cwd=tmp_path, check=True, timeout=60)
    (made,) = tmp_path.iterdir()
    assert (made.name, made.read_bytes()) == ("tiny-7.png", wanted)
    made.unlink()
    page.until(lambda: page["curl"].text != "Copied")
    page.run("document.getElementById('status').textContent = ''")
    program = clipboard(page, "python")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    assert made.read_bytes() == wanted


def test_one_of_several_models(window: Browser, start: Start) -> None:
    server = start("--alias", "faces=tiny", "--alias", "apples=tiny", "--max-nfe", "3")
    window.open(server)
    window["model"].send_keys("apples")
    assert window["nfe"].get_attribute("max") == "3"
    window.generate(prompt=PROMPT, seed=7)
    assert "apples" in window["facts"].text
    logged(server, status=200, path=GENERATIONS)
    window["model"].send_keys("tiny")
    window["again"].click()
    window.until(lambda: len(seen(window, "history")) == 2 and window["generate"].is_enabled())
    assert window["model"].get_property("value") == "apples"
    window["clear"].click()
    window.requests()


def test_history_is_kept_and_cleared(page: Browser, server: Server) -> None:
    for prompt in ("a rose", "a star"):
        page.generate(prompt=prompt, seed=7)
    for _ in range(2):
        assert seen(page, "history") == ["a star (seed 7)", "a rose (seed 7)"]
        page["history"].find_elements(By.TAG_NAME, "button")[1].click()
        assert page["said"].text == "a rose"
        assert download(page) == images(server.generate(prompt="a rose", seed=7))[0]
        page.open(server)
    page["clear"].click()
    page.until(lambda: not page["past"].is_displayed())
    page.open(server)
    assert not page["past"].is_displayed()


def test_history_is_bounded(page: Browser, server: Server) -> None:
    page.fill(prompt="a rose", nfe=1, partials=0)
    for seed in range(26):
        page.run("seed.value = arguments[0]; document.getElementById('form').requestSubmit()", seed)
        page.until(lambda seed=seed: [f"a rose (seed {seed})"] == seen(page, "history")[:1])
        page.until(page["generate"].is_enabled)
    wanted = [f"a rose (seed {seed})" for seed in range(25, 1, -1)]
    assert seen(page, "history") == wanted
    page.open(server)
    assert seen(page, "history") == wanted


def test_cancel_ends_it_on_the_server_too(page: Browser, server: Server) -> None:
    page.generate(prompt="a rose", seed=7)
    before = server.metrics().get('arcflow_cancelled_total{reason="client_gone"}', 0)
    page["size"].send_keys("128")
    page.fill(nfe=64, prompt=PROMPT)
    page["generate"].click()
    page["cancel"].click()
    page.until(page["generate"].is_enabled)
    assert (page["status"].text, page["said"].text, page.error()) == ("Cancelled", "a rose", "")
    assert seen(page, "history") == ["a rose (seed 7)"]
    page.until(lambda: server.metrics().get('arcflow_cancelled_total{reason="client_gone"}', 0) == before + 1)


@pytest.mark.parametrize(("field", "value"), [("seed", "x"), ("seed", str(2**64)), ("nfe", "65"), ("prompt", " ")])
def test_errors_are_the_servers_sentences(page: Browser, server: Server, field: str, value: str) -> None:
    fields = {"prompt": PROMPT, field: value}
    page.generate(**fields)
    number = int(value) if value.isdigit() else value
    assert page.error() == server.generate(**{**fields, field: number}).json()["error"]["message"]
    assert page[field].get_attribute("aria-invalid") == "true"
    assert page.driver.switch_to.active_element == page[field]


def test_a_key_is_asked_for_and_never_shown(window: Browser, guarded: Server, tmp_path: Path) -> None:
    window.open(guarded)
    assert window.error() == "an API key is needed, in the header Authorization: Bearer KEY"
    for key, told in (("wrong", "this API key is not one that the server knows"), (KEY, "")):
        window.fill(key=key)
        window["key"].submit()
        window.until(lambda told=told: window.error() == told)
    assert not window["access"].is_displayed()
    window.until(lambda: window["nfe"].get_property("value"))
    window.generate(prompt=PROMPT, seed=7)
    for button in ("curl", "python"):
        window.run("document.getElementById('status').textContent = ''")
        text = clipboard(window, button)
        assert KEY not in text and "ARCFLOW_API_KEY" in text
    assert window.run("return [localStorage.length, sessionStorage.length]") == [0, 1]
    compile(text, "copied", "exec")
    environment = {**os.environ, "ARCFLOW_API_KEY": KEY}
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "tiny-7.png").read_bytes() == download(window)
    window.driver.get_log("browser"), window.requests()


@pytest.mark.parametrize("width", [320, 760, 1280])
def test_it_fits_the_width(page: Browser, server: Server, width: int) -> None:
    page.open(server, width=width, height=640, scheme="dark")
    page.generate(prompt="a " + "very" * 60 + " long word", seed=2**64 - 1, partials=8)
    assert page.run("return document.documentElement.scrollWidth") == width
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 18)"
    controls = page.driver.find_elements(By.CSS_SELECTOR, "input, select, textarea, button, a, img")
    assert [one.get_attribute("id") for one in controls if one.is_displayed() and not one.accessible_name] == []
