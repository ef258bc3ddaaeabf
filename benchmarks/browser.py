"""Headless Chromium on a pipe, for the explorer's benchmark and tests; standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIRED = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
for place, end in enumerate(ends):
    os.dup2(end, 3 + place)
    os.set_inheritable(3 + place, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts a program with the ends of two pipes as descriptors 3 and 4: there it is spoken to."""


def chromium() -> str | None:
    """The browser's program, where one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One page of a headless browser, driven by the DevTools protocol.

    Attributes:
      console: what pages said on their consoles, and errors nobody caught.
    """

    def __init__(self, width: int = 1280, height: int = 800):
        program = chromium()
        assert program, "no Chromium is installed"
        self._home = tempfile.mkdtemp(prefix="browser-")
        to_us, theirs_out = os.pipe()
        theirs_in, to_them = os.pipe()

        ends = (theirs_in, theirs_out)
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", WIRED, *map(str, ends),
                program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
                "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                "--disable-background-networking", f"--user-data-dir={self._home}",
                f"--window-size={width},{height}", "about:blank",
            ],
            pass_fds=ends, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_out)
        os.close(theirs_in)
        self._to, self._from = os.fdopen(to_them, "wb", 0), os.fdopen(to_us, "rb", 0)
        self._waiting, self._number, self._session = b"", 0, ""
        self.console: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            more = self._from.read(1 << 16)
            assert more, "the browser ended"
            self._waiting += more
        raw, self._waiting = self._waiting.split(b"\0", 1)
        message = json.loads(raw)
        given = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(given["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded":
            self.console.append(f"{given['entry'].get('text')} {given['entry'].get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(a.get("value")) for a in given["args"]))
        return message

    def evaluate(self, script: str) -> Any:
        """The value of a script's expression; of a promise, what it comes to."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def until(self, script: str, seconds: float = 60.0) -> float:
        """Wait until a script's expression is true; how long it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.evaluate(f"Boolean({script})"):
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds:g} s: {script}; {self.console[-5:]}")

    def press(self, key: str, text: str | None = None) -> None:
        """Press a key."""
        given = {"key": key} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int) -> None:
        """Set the page's size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def colors(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=30)
        self._to.close()
        self._from.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
