"""Pages as a browser meets them (Chromium where it is installed, and a parser), and states of runs to compare."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import pathlib
import re
import shutil
import socket
import subprocess

import jax
import numpy as np
import pytest

from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder
from train.setup import set_up

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEY_CODES = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --remote-debugging-pipe""".split()


class Browser:
    """Chromium over its DevTools: `browser(method, **params)` sends a command and returns the result.

    `events` is what Chromium said meanwhile.
    """

    def __init__(self, profile: pathlib.Path):
        assert _CHROMIUM
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(60)
        # Chromium reads commands from file descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{theirs.fileno()} 4>&{theirs.fileno()}'
        command = ["bash", "-c", script, "bash", _CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **silent)
        theirs.close()
        self._received, self._session, self._num_sent = bytearray(), {}, 0
        self.events: list[dict] = []

    def attach(self) -> None:
        """To the page that it opens with."""
        page = next(target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session["sessionId"] = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def _next_message(self) -> dict:
        while b"\0" not in self._received:
            assert (more := self._socket.recv(1 << 16)), "Chromium has gone"
            self._received.extend(more)
        message, _, rest = bytes(self._received).partition(b"\0")
        self._received[:] = rest
        return json.loads(message)

    def __call__(self, method: str, **params):
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": params} | self._session
        self._socket.sendall(json.dumps(message).encode() + b"\0")
        while (message := self._next_message()).get("id") != self._num_sent:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path: pathlib.Path, width: int, dark: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next_message())
        self.events[:] = [event for event in self.events if event["method"] != "Page.loadEventFired"]

    def javascript(self, expression: str):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        typed = {"rawKeyDown": "", "char": "\r", "keyUp": ""} if key == "Enter" else {"rawKeyDown": "", "keyUp": ""}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": _KEY_CODES[key]}
        for kind, text in typed.items():
            self("Input.dispatchKeyEvent", type=kind, text=text, **named)

    def assert_quiet(self) -> None:
        """Nothing went to the console, nothing but the page itself was asked for."""
        loud = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
        assert [event for event in self.events if event["method"] in loud] == []
        requests = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = {params["request"]["url"] for params in requests}
        assert len(urls) == 1 and urls.pop().startswith("file://")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._socket.close()


@pytest.fixture
def browser(tmp_path):
    """A `Browser` with an empty page."""
    if not _CHROMIUM:
        pytest.skip("Chromium is not installed, so the page was not looked at in a browser")
    browser = Browser(tmp_path / "profile")
    try:
        browser.attach()
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="session")
def assert_harmless():
    """assert_harmless(page): tags balance, ids are unique, it loads nothing and runs no script but its own."""
    return _assert_harmless


def _parsed(page: str) -> list[tuple[str, dict]]:
    """Every tag of the page with its attributes; fails where tags do not balance."""
    void, found, still_open = {"meta", "input", "br", "link", "img"}, [], []
    parser = html.parser.HTMLParser()

    def start(tag, attributes):
        found.append((tag, dict(attributes)))
        if tag not in void:
            still_open.append(tag)

    def end(tag):
        assert still_open and still_open.pop() == tag, f"</{tag}> at {parser.getpos()}"

    parser.handle_starttag, parser.handle_endtag = start, end
    parser.handle_startendtag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    parser.close()
    assert not still_open
    return found


def _assert_harmless(page: str) -> None:
    """Balanced, ids unique, loads nothing and runs no script but its own."""
    tags = _parsed(page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert sum(tag == "script" for tag, _ in tags) == 1
    loading = {"img", "link", "iframe", "object", "embed", "base", "form", "a", "image", "use", "foreignobject"}
    assert not {tag for tag, _ in tags} & loading
    for tag, attributes in tags:
        assert not attributes.keys() & {"src", "href", "xlink:href", "style", "srcdoc"}, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"url\(|@import", re.search(r"(?s)<style>(.*?)</style>", page)[1])
    script = re.search(r"(?s)<script>(.*?)</script>", page)[1]
    assert not re.search(r"https?:|import\b|fetch|XMLHttp|innerHTML|eval\(", script)
    policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and policy.endswith(f"script-src 'sha256-{digest}'")


@pytest.fixture(scope="session")
def change():
    """change(recipe, data={"batch_rows": 4}, seed=1): the recipe with fields of sections changed."""

    def changed(recipe, **sections):
        parts = {
            name: dataclasses.replace(getattr(recipe, name), **value) if isinstance(value, dict) else value
            for name, value in sections.items()
        }
        return dataclasses.replace(recipe, **parts)

    return changed


@pytest.fixture(scope="session")
def final_state():
    """final_state(recipe, run_dir): every array of the newest checkpoint, by its path."""

    def restore(recipe, run_dir) -> dict[str, np.ndarray]:
        setup, checkpoints = set_up(recipe), Checkpoints(RunFolder(run_dir).checkpoints)
        state = checkpoints.restore(checkpoints.latest_step(), setup.program.shapes, setup.program.shardings)
        checkpoints.close()
        return {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        }

    return restore


@pytest.fixture(scope="session")
def assert_same():
    """assert_same(a, b): two of `final_state` are bit-identical."""

    def compare(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
        assert a.keys() == b.keys()
        differing = [name for name in a if not np.array_equal(a[name], b[name])]
        assert not differing, f"not bit-identical: {differing}"

    return compare
