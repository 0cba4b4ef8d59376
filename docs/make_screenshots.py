"""Photographs the pages of Prefect's own web page that docs/operators.md explains, from runs on a real server.

Start a server, workers and the runs first, as docs/operators.md says; then, with the server's password in
PREFECT_API_AUTH_STRING:

    python docs/make_screenshots.py --done RUN --failed RUN --cancelled RUN [--under-way RUN] [--only NAME ...]

Needs Chromium, which must not reach beyond this machine. Run ids are Prefect's.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from browser import Browser, opened_browser

FOLDER: Final = Path(__file__).resolve().parent / "images" / "ui"
MAX_BYTES: Final = 150_000
WIDTH_PX: Final = 1280
FORMS: Final = {
    "form-reconstruct": ("reconstruct/on-demand", 1500),
    "form-cancel": ("cancel/operator", 900),
    "form-reprocess": ("reprocess/nightly", 1700),
    "form-expire": ("expire/daily", 1250),
}


@dataclass(frozen=True)
class Page:
    """One picture.

    Attributes:
        name: Of its file.
        path: Of the page.
        text: What the page shows once it is loaded.
        height: Of the window, pixels.
        tab: What to click first, if anything.
    """

    name: str
    path: str
    text: str
    height: int
    tab: str = ""


class Server:
    """What the pictures need to know from the server's API."""

    def __init__(self, url: str, auth: str) -> None:
        self.url = url
        credentials = tuple(auth.split(":", 1)) if auth else None
        self._client = httpx.Client(base_url=f"{url}/api", auth=credentials, timeout=60)  # type: ignore[arg-type]

    def deployment(self, name: str) -> str:
        """Return a deployment's id."""
        return str(self._get(f"/deployments/name/{name}")["id"])

    def artifacts(self, flow_run_id: str) -> dict[str, str]:
        """Return the ids of a run's artifacts by key."""
        body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        answer = self._client.post("/artifacts/filter", json=body).raise_for_status()
        return {artifact["key"]: artifact["id"] for artifact in answer.json()}

    def _get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()


def pages(server: Server, runs: argparse.Namespace) -> Iterator[Page]:
    """Yield every page that the given runs allow."""
    yield Page("deployments", "/deployments", "on-demand", 780)
    yield Page("work-pools", "/work-pools", "cpu", 420)
    yield Page("automations", "/automations", "recover crashed", 560)
    for name, (deployment, height) in FORMS.items():
        yield Page(name, f"/deployments/deployment/{server.deployment(deployment)}/run", "Parameters", height)
    if runs.under_way:
        yield Page("run-under-way", f"/runs/flow-run/{runs.under_way}", "Task Runs", 640)
        progress = server.artifacts(runs.under_way)["nvdiffrec-progress"]
        yield Page("progress", f"/artifacts/artifact/{progress}", "share of the work", 700)
    if runs.done:
        yield Page("runs", "/runs", "nvdiffrec", 1150)
        yield Page("run-artifacts", f"/runs/flow-run/{runs.done}", "Task Runs", 1300, tab="Artifacts")
        own = server.artifacts(runs.done)
        yield Page("preview", f"/artifacts/artifact/{own['nvdiffrec-preview']}", "seen from", 520)
        yield Page("previews", f"/artifacts/artifact/{own['nvdiffrec-previews']}", "bottom", 820)
        yield Page("quality", f"/artifacts/artifact/{own['nvdiffrec-quality']}", "SSIM", 660)
        yield Page("mesh", f"/artifacts/artifact/{own['nvdiffrec-mesh']}", "watertight", 620)
        yield Page("cameras", f"/artifacts/artifact/{own['nvdiffrec-cameras']}", "field of view", 560)
        yield Page("summary", f"/artifacts/artifact/{own['nvdiffrec-summary']}", "reconflow fetch", 1000)
    if runs.failed:
        yield Page("run-failed", f"/runs/flow-run/{runs.failed}", "Task Runs", 1180, tab="Details")
    for name in ("failed", "cancelled"):
        run = getattr(runs, name)
        if run:
            yield Page(name, f"/artifacts/artifact/{server.artifacts(run)['nvdiffrec-failure']}", "Next step", 680)


def log_in(browser: Browser, server: Server, auth: str) -> None:
    """Leave the password where the page looks for it."""
    browser.show(server.url, "")
    encoded = base64.b64encode(auth.encode()).decode()
    browser.evaluate(f"localStorage.setItem('prefect-password', '{encoded}')")


def photograph(browser: Browser, server: Server, page: Page) -> None:
    """Take one picture."""
    size = (WIDTH_PX, page.height)
    browser.resize(size)
    browser.show(server.url + page.path, page.text)
    if page.tab:
        browser.click(page.tab)
    browser.photograph(FOLDER / f"{page.name}.webp", size, MAX_BYTES)


def main() -> None:
    """Take the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:4200")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    for name in ("done", "failed", "cancelled", "under-way"):
        parser.add_argument(f"--{name}", metavar="RUN")
    parser.add_argument("--only", nargs="*", metavar="NAME")
    chosen = parser.parse_args()
    auth = os.environ.get("PREFECT_API_AUTH_STRING", "")
    server = Server(chosen.server, auth)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with opened_browser(chosen.chromium) as browser:
        log_in(browser, server, auth)
        for page in pages(server, chosen):
            if not chosen.only or page.name in chosen.only:
                photograph(browser, server, page)
                sys.stdout.write(f"{page.name}\n")


if __name__ == "__main__":
    main()
