"""A job to submit, and a server that answers as a Kubernetes cluster does."""

import copy
import http.server
import json
import threading
import time
import urllib.parse
from typing import Any

import pytest
import yaml

from train.submit.job import Job, make_job
from train.submit.jobset import worker_zero


@pytest.fixture
def job(recipe) -> Job:
    return make_job("demo_byte", recipe, recipe, "gs://bucket/runs/mine")


class FakeCluster(http.server.ThreadingHTTPServer):
    """A Kubernetes API server with one namespace, whose JobSets do what `script` says each time they are asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FakeRequest)
        self.jobsets: dict[str, Any] = {}
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict] = []
        self.script = iter(())
        self.pods: list[dict] = []
        self.logs: dict[str, list[str]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.hold_logs = False


class FakeRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refused(self, method: str) -> bool:
        url = urllib.parse.urlparse(self.path)
        self.server.requests.append((method, url.path))
        if method not in self.server.refusals:
            return False
        code, message = self.server.refusals[method]
        self.answer({"kind": "Status", "message": message, "code": code}, code)
        return True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.refused("POST"):
            self.server.jobsets[body["metadata"]["name"]] = body
            self.server.created.append(copy.deepcopy(body))
            self.answer(body, 201)

    def do_DELETE(self):
        if length := int(self.headers.get("Content-Length", 0)):
            self.rfile.read(length)
        if not self.refused("DELETE"):
            assert "propagationPolicy=Foreground" in self.path
            del self.server.jobsets[self.path.partition("?")[0].rpartition("/")[2]]
            self.answer({"kind": "Status", "status": "Success"})

    def do_GET(self):
        if self.refused("GET"):
            return
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = url.path.rpartition("/")[2]
        if "/jobsets/" in url.path:
            if name not in self.server.jobsets:
                self.answer({"kind": "Status", "message": f'jobsets "{name}" not found'}, 404)
                return
            if (status := next(self.server.script, None)) is not None:
                self.server.jobsets[name]["status"] = status
            self.answer(self.server.jobsets[name])
        elif name == "pods":
            assert query["labelSelector"] == worker_zero("mine")
            self.answer({"kind": "PodList", "apiVersion": "v1", "items": self.server.pods})
        elif name == "log":
            assert (query["container"], query["follow"], query["timestamps"]) == ("worker", "true", "true")
            self.stream(self.server.logs[url.path.split("/")[-2]])

    def stream(self, lines: list[str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(lines):
            content = f"2026-11-22T10:00:{number:02}.000000000Z {line}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()
        while self.server.hold_logs:
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A fake cluster that the kubernetes client is pointed at."""
    kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes client is not installed")
    from train.submit import cluster as ours

    server = FakeCluster()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "users": [{"name": "me", "user": {}}],
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(ours, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("train.submit.jobset.record_from_afar", lambda *_: None)
    yield server
    server.hold_logs = False
    server.shutdown()
    server.server_close()
