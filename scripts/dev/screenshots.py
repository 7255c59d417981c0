"""Pictures of what a browser shows of logged runs: runs table, charts of all runs and of one, a report.

    python scripts/dev/screenshots.py --experiment digits --tracking_uri sqlite:///mlflow.db --out /tmp/shots
    python scripts/dev/screenshots.py --experiment digits --report runs/digits/report/report.html

Starts an MLflow server on the store (or takes --url) and Chromium without a window, 1280 pixels wide, with a
new profile: the pages are those that a newcomer sees, and nothing in them is clicked. runs.png is the page
whose address a run prints. To look at, not to compare by machine; pictures stay out of git.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.experiment_view import address

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1280, 900
START_SECONDS, PAGE_SECONDS, SETTLE_SECONDS = 300, 180, 4


class Browser:
    """Chromium without a window, spoken to through a pipe (its DevTools protocol; no further package)."""

    def __init__(self, program: str):
        self._profile = tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True)
        inward, self._out = os.pipe()
        self._in, outward = os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
        ]
        command = f'exec "$0" "$@" 3<&{inward} 4>&{outward}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *flags, f"--window-size={WIDTH},{HEIGHT}"],
            pass_fds=(inward, outward), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(inward)
        os.close(outward)
        self._n, self._rest = 0, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events in between are skipped."""
        self._n += 1
        message = {"id": self._n, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._n:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise UserError("the browser has ended; run it by hand to see why")
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def shot(self, url: str, until: str, path: Path, height: int | None = HEIGHT) -> None:
        """Open a page, wait until the JavaScript expression is true, keep a picture.

        height: of the window, in pixels; None: the whole page.
        """
        self.call("Page.navigate", url="about:blank")  # else a change after # alone opens nothing
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PAGE_SECONDS
        while not self.value(until):
            if time.monotonic() > deadline:
                print(f"{url}: not as expected after {PAGE_SECONDS} s ({until})", file=sys.stderr)
                break
            time.sleep(0.5)
        time.sleep(SETTLE_SECONDS)
        height = height or self.value("document.documentElement.scrollHeight")
        size = {"width": WIDTH, "height": int(height), "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        time.sleep(SETTLE_SECONDS)
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))
        print(path)

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page; returns its value."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def close(self) -> None:
        """End the browser, wait until it has ended and delete its profile."""
        self._process.terminate()
        self._process.wait()
        self._profile.cleanup()


@contextmanager
def server(uri: str) -> Iterator[str]:
    """The address of an MLflow server on the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    environment = store.ENVIRONMENT | os.environ
    process = subprocess.Popen(
        [*command, "--backend-store-uri", uri], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health")
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def wait_for(url: str) -> None:
    """Return once something answers at this address; raises `UserError` after `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"{url}: no answer within {START_SECONDS} s")


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask MLflow's REST interface; returns its answer."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: {error.read().decode(errors='replace')[:200]}") from None


def take(browser: Browser, url: str, experiment: str, out: Path) -> None:
    """Take pictures of the pages of one experiment."""
    name = urllib.request.quote(experiment)
    number = ask(url, f"experiments/get-by-name?experiment_name={name}")["experiment"]["experiment_id"]
    runs = ask(url, "runs/search", {"experiment_ids": [number], "max_results": 200})["runs"]
    children = [run for run in runs if any(t["key"] == "seed" for t in run["data"]["tags"])]
    run = children[0]["info"]["run_id"]
    base, has = f"{url}/#/experiments/{number}/runs", "document.body.innerText.includes"
    drawn = "document.querySelectorAll('.js-plotly-plot path.js-line').length > 3"
    printed = url + address(number)
    browser.shot(printed, f"{has}('{runs[0]['info']['run_name']}')", out / "runs.png")
    browser.shot(f"{printed}&compareRunsMode=CHART", drawn, out / "compared.png")
    browser.shot(f"{base}/{run}", f"{has}('mean_acc_class_il')", out / "run.png")
    browser.shot(f"{base}/{run}/model-metrics", drawn, out / "charts.png", height=3 * HEIGHT)
    browser.shot(f"{base}/{run}/system-metrics", f"{has}('cpu_utilization')", out / "system.png")
    listed = ask(url, f"artifacts/list?run_id={run}").get("files", [])
    names = [file["path"] for file in listed if file["path"].endswith(".png")]
    for picture in names[:1]:
        path = out / "artifact.png"
        browser.shot(f"{base}/{run}/artifacts/{picture}", f"{has}('{picture}')", path)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Take the pictures that the command line asks for; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--experiment", help="MLflow experiment to show")
    add("--tracking_uri", help="its store (default: mlflow.db in the project folder)")
    add("--url", help="a server that runs already")
    add("--report", type=Path, metavar="FILE", help="also this HTML page, whole")
    add("--out", type=Path, default=Path("runs/screenshots"), help="folder (default: runs/screenshots)")
    args = parser.parse_args(argv)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise UserError(f"no browser; install one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    check_folder(args.out, "--out")
    args.out.mkdir(parents=True, exist_ok=True)
    browser = Browser(program)
    try:
        if args.report:
            page = args.report.absolute().as_uri()
            browser.shot(page, "document.readyState == 'complete'", args.out / "report.png", None)
        if args.experiment and args.url:
            take(browser, args.url.rstrip("/"), args.experiment, args.out)
        elif args.experiment:
            with server(store.resolve_uri(args.tracking_uri)) as url:
                take(browser, url, args.experiment, args.out)
    finally:
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
