"""Headless Chromium, driven through its pipe of the DevTools protocol: real keys, real layout, every request noted."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_KEYS = {
    "Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "Escape": ("Escape", 27, ""), " ": ("Space", 32, " "),
    "ArrowRight": ("ArrowRight", 39, ""), "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""), "Home": ("Home", 36, ""), "End": ("End", 35, ""),
}  # fmt: skip
_SHIFT = 8
_WAIT_MS = 30_000


def find_chromium() -> str:
    """The browser of this machine; the test is skipped without one, except where CI runs."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium: apt-get install chromium")
    pytest.skip("no Chromium on this machine: apt-get install chromium")


class Page:
    """One tab.

    Attributes:
        requests: The URLs of all requests.
        bodies: Their bodies, by URL, in order.
        faults: What the browser reports: exceptions, refused scripts, failed requests.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        self.bodies: list[tuple[str, str]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.faults: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, parameters, self._session)

    def noted(self, event: dict[str, Any]) -> None:
        about = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent":
                request = about["request"]
                self.requests.append(request["url"])
                self.bodies.append((request["url"], request.get("postData", "")))
                self.headers.append((request["url"], request["headers"]))
            case "Runtime.exceptionThrown":
                self.faults.append(json.dumps(about["exceptionDetails"]))
            case "Log.entryAdded" if about["entry"]["level"] == "error":
                self.faults.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def goto(self, url: str) -> None:
        """Load a page, until its scripts have run."""
        self.call("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is, as JSON."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until an expression is true; it is asked whenever the page or the focus changes."""
        return self.evaluate(
            f"""new Promise((resolve, reject) => {{
                const ask = () => {{ try {{ return {condition} }} catch {{ return null }} }};
                const settle = (end, value) => {{
                    observer.disconnect();
                    removeEventListener("focusin", check);
                    clearTimeout(timer);
                    end(value);
                }};
                const check = () => {{ const value = ask(); if (value) settle(resolve, value) }};
                const observer = new MutationObserver(check);
                const timer = setTimeout(() => settle(reject, new Error("never true; the page is: "
                    + document.body.innerText.slice(0, 2000))), {_WAIT_MS});
                observer.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
                addEventListener("focusin", check);
                check();
            }})"""
        )

    def press(self, key: str, *, times: int = 1, shift: bool = False) -> None:
        """Press a key, as a hand does."""
        code, number, text = _KEYS[key]
        held = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": _SHIFT if shift else 0,
        }
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **held)
            self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def colours(self, *, dark: bool) -> None:
        """Prefer dark or light colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def size(self, width: int, height: int) -> None:
        """Change the size of the window, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


class Browser:
    """A browser that was started."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._held = b""
        self._number = 0
        self._pages: dict[str, Page] = {}
        self._events: list[tuple[str, str | None]] = []

    def page(self, width: int = 1300, height: int = 900) -> Page:
        """Open a tab, with a session storage of its own."""
        context = self.call("Target.createBrowserContext", {})["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})
        attached = self.call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        made = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = made
        for domain in ("Page", "Runtime", "Network", "Log"):
            made.call(f"{domain}.enable")
        made.size(width, height)
        made.colours(dark=False)
        return made

    def call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                result: dict[str, Any] = found["result"]
                return result

    def wait_for(self, event: str, session: str) -> None:
        while (event, session) not in self._events:
            self._read()
        self._events.clear()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            part = os.read(self._back, 2**16)
            assert part, "the browser has ended"
            self._held += part
        line, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "id" not in message:
            session = message.get("sessionId")
            self._events.append((message["method"], session))
            if page := self._pages.get(session or ""):
                page.noted(message)
        return message


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """Run a browser until the end of the block.

    Args:
        profile: An empty folder for what it stores.
    """
    (low_in, to), (back, low_out) = os.pipe(), os.pipe()
    # The browser reads its commands from descriptor 3 and answers on 4: ours must not have these numbers.
    theirs_in, theirs_out = (fcntl.fcntl(low, fcntl.F_DUPFD, 10) for low in (low_in, low_out))
    command = [
        "bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', find_chromium(), "--headless", "--no-sandbox",
        "--disable-gpu", "--hide-scrollbars", "--disable-background-networking", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for descriptor in (low_in, low_out, theirs_in, theirs_out):
        os.close(descriptor)
    browser = Browser(to, back)
    try:
        yield browser
        browser.call("Browser.close", {})
    finally:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(back)
