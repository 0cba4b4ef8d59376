"""A headless Chromium that is told which pages to show and photographs them. Knows nothing of what they are about."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from PIL import Image
from websockets.sync.client import connect
from websockets.sync.connection import Connection

FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
_START_TIMEOUT_S: Final = 60.0
_SETTLE_S: Final = 6.0
_MAX_MESSAGE: Final = 2**26


class Browser:
    """One page of a running Chromium; see `opened_browser`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._count = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_START_TIMEOUT_S))
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def show(self, url: str, text: str, timeout_s: float = 60.0) -> None:
        """Go to a page and wait until it shows a text.

        Raises:
            TimeoutError: It does not.
        """
        self.call("Page.navigate", url=url)
        self.wait_for(text, timeout_s)

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until the page shows a text, and longer for the rest to settle: drawings have no text.

        Raises:
            TimeoutError: It does not.
        """
        deadline_s = time.monotonic() + timeout_s
        while text not in str(self.evaluate("document.body ? document.body.innerText : ''")):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"The page does not show {text!r}.")
            time.sleep(0.5)
        time.sleep(_SETTLE_S)

    def click(self, text: str) -> None:
        """Click on the last and innermost element with exactly this text, and wait a moment.

        Raises:
            LookupError: There is none.
        """
        script = (
            "(() => { const found = [...document.querySelectorAll('body *')]"
            f".filter(e => e.innerText && e.innerText.trim() === {json.dumps(text)}).pop();"
            " if (found) found.click(); return Boolean(found); })()"
        )
        if not self.evaluate(script):
            raise LookupError(f"The page has nothing to click named {text!r}.")
        time.sleep(3.0)

    def photograph(self, path: Path, wh: tuple[int, int], max_bytes: int) -> None:
        """Write what the page shows as a WebP file.

        Args:
            path: The file.
            wh: Width and height of the window, pixels.
            max_bytes: The picture is compressed until it is not larger.
        """
        self.resize(wh)
        time.sleep(1.0)
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        for quality in (90, 80, 70, 60, 50):
            stream = io.BytesIO()
            Image.open(io.BytesIO(png)).convert("RGB").save(stream, "WEBP", quality=quality, method=6)
            if stream.tell() <= max_bytes:
                break
        path.write_bytes(stream.getvalue())

    def resize(self, wh: tuple[int, int]) -> None:
        """Give the window another size, pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=wh[0], height=wh[1], deviceScaleFactor=1, mobile=False)


@contextmanager
def opened_browser(executable: str) -> Iterator[Browser]:
    """Run a Chromium with an empty profile, which reaches this machine alone, for the length of the block.

    Raises:
        TimeoutError: It does not start.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with connect(_page_address(Path(profile)), max_size=_MAX_MESSAGE, open_timeout=30) as connection:
                yield Browser(connection)
        finally:
            process.terminate()
            process.wait(10)


def _page_address(profile: Path) -> str:
    port_file, deadline_s = profile / "DevToolsActivePort", time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if port_file.exists() and (lines := port_file.read_text("utf-8").splitlines()):
            targets = httpx.get(f"http://127.0.0.1:{lines[0]}/json", timeout=30).json()
            pages = [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.2)
    raise TimeoutError("Chromium has not started.")
