"""A Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A context manager; `folder` takes the profile and what is downloaded."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._numbers = itertools.count(1)
        self._open = ExitStack()

    def __enter__(self) -> Browser:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-port=0", f"--user-data-dir={self.folder / 'profile'}", "--window-size=1040,1000",
                   "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen([str(CHROMIUM), *options], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ws://(\S+?)/devtools/browser/\S+", line):
                break
        else:
            raise RuntimeError("Chromium does not start")
        self._socket = self._open.enter_context(connect(found[0], max_size=None, open_timeout=60))
        target = self._call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in target if each["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM"):
            self.page(f"{domain}.enable")
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._process.kill()
        self._process.communicate()

    def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        session = {"sessionId": params.pop("_session")} if "_session" in params else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self._socket.recv(timeout=600))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def page(self, method: str, **params: Any) -> Any:
        """A call of the DevTools protocol about the page."""
        return self._call(method, _session=self._session, **params)

    def run(self, code: str) -> Any:
        """The value of JavaScript, a promise's once it is there."""
        done = self.page("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"]["description"])
        return done["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait for a condition in JavaScript, and return its value."""
        waiting = f"""new Promise((resolve, reject) => {{
            const begun = performance.now();
            (function look() {{
                const value = {condition};
                if (value) resolve(value);
                else if (performance.now() - begun > 300000)
                    reject(new Error('never true; the page says: ' + document.getElementById('status').textContent));
                else setTimeout(look, 50);
            }})();
        }})"""
        return self.run(waiting)

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        x, y = self.run(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at a place of the window, move it, and let it go."""
        for kind, (x, y) in (
            ("mouseMoved", start),
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.page("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a file input."""
        root = self.page("DOM.getDocument")["root"]["nodeId"]
        node = self.page("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.page("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.page("Page.captureScreenshot")["data"]))
