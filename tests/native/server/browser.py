"""Headless Chromium on the page of ``arcflow-serve``: for the tests, and for the screenshot in the documents.

python -m tests.native.server.browser        # writes docs/images/page.png
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

from benchmarks.serving import Server, serve_tiny

SCREENSHOT = Path(__file__).parents[3] / "docs" / "images" / "page.png"
SHOWN = (("a rocket", 1), ("a star", 4), ("a rose", 3), ("a whale", 11), ("a smiling face with sunglasses", 7))
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nobody but the server can be reached
)


class Browser:
    """A window with a profile of its own, to be used as a context."""

    def __init__(self) -> None:
        """Start it. Raises selenium's WebDriverException where that fails."""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.downloads = Path(self._profile.name) / "downloads"
        options = webdriver.ChromeOptions()
        options.binary_location = str(PROGRAMS["chromium"])
        for option in (*OPTIONS, f"--user-data-dir={self._profile.name}/profile"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, Service(str(PROGRAMS["chromedriver"])))
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(self.downloads)}
        )
        self.driver.get("about:blank")
        self.requests()  # of the browser's own first page

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def open(self, server: Server, width: int = 1000, height: int = 700, scheme: str = "light") -> None:
        """Open the page in a window of that size in CSS pixels; wait until it knows the models or says why not."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(f"http://127.0.0.1:{server.port}/")
        self.until(lambda: self["nfe"].get_property("value") or self.error())

    def __getitem__(self, name: str) -> WebElement:
        """The element with that id."""
        return self.driver.find_element("id", name)

    def run(self, script: str, *arguments: object) -> Any:
        """What the function body `script` returns."""
        return self.driver.execute_script(script, *arguments)

    def fill(self, **fields: object) -> None:
        """Type these into the inputs with those ids, in place of what is there."""
        for name, value in fields.items():
            self[name].clear()
            if max(str(value)) > "\uffff":  # Some releases of ChromeDriver have no keys for these.
                self.run("arguments[0].focus()", self[name])
                self.driver.execute_cdp_cmd("Input.insertText", {"text": str(value)})
            else:
                self[name].send_keys(str(value))

    def generate(self, **fields: object) -> None:
        """Fill the form, press the button, wait for the end."""
        self.fill(**fields)
        self["generate"].click()
        self.until(lambda: self["generate"].is_enabled())

    def error(self) -> str:
        """The sentence about what went wrong, or nothing."""
        text: str = self["error"].text
        return text

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait. Raises TimeoutError with what the page and the console say."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{self['status'].text!r}, {self.error()!r}, {self.driver.get_log('browser')}")
            time.sleep(0.02)

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def main() -> None:
    """Make the screenshot of the documents, with the embedded model."""
    with serve_tiny("--threads", "1") as server, Browser() as browser:
        browser.open(server, height=880)
        for prompt, seed in SHOWN:
            browser.generate(prompt=prompt, seed=seed, partials=6)
        browser.run("document.activeElement.blur()")
        shot = {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": 1000, "scale": 1}}
        shot["clip"]["height"] = browser.run("return document.documentElement.scrollHeight")
        made = browser.driver.execute_cdp_cmd("Page.captureScreenshot", shot)
    SCREENSHOT.write_bytes(base64.b64decode(made["data"]))


if __name__ == "__main__":
    main()
