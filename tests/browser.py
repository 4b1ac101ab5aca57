"""A real browser without a window, for tests of pages: one chromium process, spoken to through a pipe.

Uses the DevTools protocol (JSON messages, each ended by a zero byte) on file descriptors 3 and 4, so that neither a
port nor a driver is needed. `find` says where a browser is; tests skip where there is none.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT_SECONDS = 60.0


def find() -> str | None:
    """Return the path of a browser on this machine, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    Parameters
    ----------
    profile
        An empty folder for what it keeps.
    options
        More flags of the browser's command line.
    """

    def __init__(self, profile: Path, *options: str) -> None:
        program = find()
        assert program, "no browser here"
        self.requests: list[str] = []
        """Every address that the page asked for."""
        self.errors: list[str] = []
        """Errors of scripts, and what they logged as such."""
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # the shell puts the pipes where the browser looks for them: 3 to read, 4 to write
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        usual = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program, *usual, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._seen = itertools.count(1), b"", set[str]()
        target = self._call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session: str | None = self._call("Target.attachToTarget", attach, session=None)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)  # it ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def resize(self, width: int, height: int = 900, *, is_phone: bool = False) -> None:
        """Show pages in a window of so many CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.call("Emulation.setDeviceMetricsOverride", size)

    def open(self, address: str) -> float:
        """Load a page and return after how many seconds it could be used."""
        self._seen.discard("Page.loadEventFired")
        self.call("Page.navigate", {"url": address})
        self._until("Page.loadEventFired")
        timing = "performance.getEntriesByType('navigation')[0].domInteractive"
        return float(self.value(timing)) / 1000

    def follow(self, script: str) -> None:
        """Do what leads to another page, and wait until it is there."""
        self._seen.discard("Page.loadEventFired")
        self.value(script)
        self._until("Page.loadEventFired")

    def value(self, script: str) -> Any:
        """Return what a script comes to; a promise is waited for."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        found = self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Return the page as printed."""
        return base64.b64decode(self.call("Page.printToPDF", {"printBackground": True})["data"])

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call a method of the protocol on the page."""
        return self._call(method, params or {}, session=self._session)

    def _call(self, method: str, params: dict[str, Any], *, session: str | None) -> dict[str, Any]:
        number = next(self._number)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        text = json.dumps(message).encode() + bytes(1)
        while text:
            text = text[os.write(self._out, text) :]
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _until(self, event: str) -> None:
        while event not in self._seen:
            self._next()

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + WAIT_SECONDS
        while (at := self._buffer.find(0)) < 0:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._in, 1 << 16) if ready else b""
            assert part, "the browser said nothing" if not ready else "the browser ended"
            self._buffer += part
        message: dict[str, Any] = json.loads(self._buffer[:at])
        self._buffer = self._buffer[at + 1 :]
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self._seen.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
