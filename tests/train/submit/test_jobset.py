"""JobSets: against the API's schema, and against a server that answers as a cluster does."""

import copy
import dataclasses
import http.server
import json
import pathlib
import re
import signal
import sys
import threading
import time
import urllib.parse
from typing import Any

import pytest
import rich.console
import yaml

from tokenizer_lab.errors import UserError
from train.recipe import to_json
from train.submit.job import Job, make_job
from train.submit.jobset import JobSet, manifest, outcome, worker_zero

CRD = pathlib.Path(__file__).resolve().parents[4] / "shared" / "jobset_crd.yaml"


@pytest.fixture
def job(recipe) -> Job:
    return make_job("demo_byte", recipe, recipe, "gs://bucket/runs/mine")


def options(**fields) -> JobSet:
    return JobSet(**{"topology": "v5e:4x4", "image": "image:1"} | fields)


@pytest.fixture(scope="module")
def schema() -> Any:
    """The OpenAPI schema of a JobSet, in which unknown fields are mistakes; the API server drops them silently."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    if not CRD.exists():
        pytest.skip(f"{CRD} is not here: JobSets are not compared with the API's schema")
    (version,) = yaml.load(CRD.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    assert version["name"] == "v1alpha2"
    return jsonschema.Draft7Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(part: Any) -> Any:
    if isinstance(part, list):
        return [strict(value) for value in part]
    if not isinstance(part, dict):
        return part
    closed = isinstance(part.get("properties"), dict) and "additionalProperties" not in part
    return {name: strict(value) for name, value in part.items()} | ({"additionalProperties": False} if closed else {})


VARIANTS = [
    {},
    {"topology": "v5p:8x8x16"},
    {"topology": "v6e:16x16", "slices": 4},
    {"topology": "tpu7x:2x2x1"},
    {"max_restarts": 0},
    {
        "volumes": ("gs://corpora/text:/data", "claim:/more"),
        "service_account": "trainer",
        "env": ("A=1",),
        "node_selector": ("pool=mine",),
        "namespace": "research",
    },
]


@pytest.mark.parametrize("fields", VARIANTS)
def test_jobsets_are_what_the_api_takes(schema, job, fields):
    schema.validate(manifest(job, options(**fields)))


def test_the_schema_finds_mistakes(schema, job):
    for path, value in (
        (("spec", "replicatedJobs", 0, "template", "spec", "parallelisms"), 1),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 0, "value"), 1),
    ):
        wrong = part = manifest(job, options())
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        assert schema.is_valid(manifest(job, options())) and not schema.is_valid(wrong)


@pytest.mark.parametrize(
    "topology, slices, hosts, chips, label",
    [
        ("v5e:16x16", 2, 64, 4, "tpu-v5-lite-podslice"),
        ("v5e:2x4", 1, 1, 8, "tpu-v5-lite-podslice"),
        ("v5p:8x8x16", 1, 256, 4, "tpu-v5p-slice"),
        ("v6e:4x4", 1, 4, 4, "tpu-v6e-slice"),
        ("tpu7x:2x2x2", 1, 2, 4, "tpu7x"),
    ],
)
def test_a_slice_has_the_hosts_and_chips_of_its_generation(job, topology, slices, hosts, chips, label):
    (replicated,) = manifest(job, options(topology=topology, slices=slices))["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }


@pytest.mark.parametrize(
    "message, action",
    [
        (
            (
                "Container worker for pod default/mine-slice-0-0-x failed with exit code 2 matching FailJob rule at"
                " index 0"
            ),
            "FailJobSet",
        ),
        (
            (
                "Container worker for pod default/mine-slice-0-0-x failed with exit code 75 matching FailJob rule at"
                " index 1"
            ),
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "Pod default/mine-slice-0-0-x has condition DisruptionTarget matching FailJob rule at index 2",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        ("Job has reached the specified backoff limit", None),
    ],
)
def test_exit_codes_become_actions(job, message, action):
    """The messages of Kubernetes' job controller, and the rules as JobSet applies them: the first whose pattern is
    found."""
    spec = manifest(job, options())["spec"]
    found = [
        rule["action"]
        for rule in spec["failurePolicy"]["rules"]
        if any(re.search(p, message) for p in rule["onJobFailureMessagePatterns"])
    ]
    assert found[:1] == ([action] if action else [])
    if code := re.search(r"exit code (\d+) .* index (\d)", message):
        rule = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][int(code[2])]
        assert rule["onExitCodes"]["values"] == [int(code[1])]


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


def status(*, ready: int = 0, restarts: int = 0, ended: str = "", message: str = "") -> dict[str, Any]:
    conditions = (
        [
            {
                "type": ended,
                "status": "True",
                "reason": "r",
                "message": message,
                "lastTransitionTime": "2026-11-22T10:00:00Z",
            }
        ]
        if ended
        else []
    )
    return {
        "restarts": restarts,
        "conditions": conditions,
        "replicatedJobsStatus": [
            {"name": "slice", "ready": ready, "active": 1, "failed": 0, "succeeded": 0, "suspended": 0}
        ],
    }


def pod(uid: str, phase: str = "Running", second: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"name": f"pod-{uid}", "uid": uid, "creationTimestamp": f"2026-11-22T10:00:{second:02}Z"},
        "status": {"phase": phase},
    }


def submit(job: Job, **fields) -> int:
    return options(**fields).submit(job, rich.console.Console(width=300))


def refused(job: Job, **fields) -> str:
    with pytest.raises(UserError) as error:
        submit(job, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_job_is_created_and_followed_to_its_end(cluster, job, capsys):
    cluster.script = iter(
        [status(), status(ready=1), status(ready=1, restarts=1), status(ready=1, restarts=1, ended="Completed")]
    )
    cluster.pods = [pod("a", "Succeeded")]
    cluster.logs = {"pod-a": ["step 1", "step 2"]}
    assert submit(job) == 0
    shown = capsys.readouterr().out
    assert (
        shown.index("waiting for hosts, 0 of 1 slices ready")
        < shown.index("running, 1 of 1")
        < shown.index("restarted 1 times")
        < shown.index("completed")
    )
    assert (shown.count("step 1\n"), shown.count("step 2\n")) == (1, 1)
    (created,) = cluster.created
    assert created == manifest(job, options())
    assert cluster.requests[1] == ("POST", "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets")


def test_output_goes_on_where_it_broke_off_and_with_the_next_pod(cluster, job, capsys):
    """The stream ends while the pod still runs; then the JobSet restarts with another one."""

    def states():
        yield status(ready=1)
        cluster.logs["pod-a"] = ["a1", "a2", "a3"]
        yield status(ready=1)
        cluster.pods = [pod("a", "Failed"), pod("b", "Succeeded", second=30)]
        yield status(ready=1, restarts=1)
        yield status(restarts=1, ended="Completed")

    cluster.pods, cluster.logs, cluster.script = [pod("a")], {"pod-a": ["a1"], "pod-b": ["b1"]}, states()
    assert submit(job) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^[ab]\d$", shown, re.MULTILINE) == ["a1", "a2", "a3", "b1"]


def test_a_job_that_fails_says_why(cluster, job):
    cluster.script = iter([status(ended="Failed", message="exit code 2 matching FailJob rule")])
    assert "JobSet mine has failed: exit code 2 matching FailJob rule; mend" in refused(job)


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(cluster, job, capsys, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    cluster.script, cluster.pods, cluster.logs, cluster.hold_logs = (
        iter([status(ready=1)]),
        [pod("a")],
        {"pod-a": ["step 1"]},
        True,
    )

    def interrupt():
        while ("GET", "/api/v1/namespaces/default/pods/pod-a/log") not in cluster.requests:
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert submit(job) == 130
    shown = capsys.readouterr().out
    assert (
        "mine goes on; follow it: the same command again" in shown
        and "kubectl delete jobset mine --namespace default" in shown
    )
    assert (
        "mine" in cluster.jobsets
        and ("DELETE", "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets/mine") not in cluster.requests
    )


def test_a_second_submission_follows_what_runs(cluster, job, capsys):
    cluster.script = iter([])
    assert submit(job, follow=False) == 0
    cluster.script = iter([status(ready=1), status(ended="Completed")])
    assert submit(job) == 0
    assert len(cluster.created) == 1 and "runs already" in capsys.readouterr().out


def test_a_second_submission_goes_on_where_the_first_has_ended(cluster, job, recipe):
    """In another JobSet of the same name; what may change when a run goes on may change."""
    submit(job, follow=False)
    cluster.jobsets["mine"]["status"] = status(ended="Failed")
    longer = dataclasses.replace(recipe, budget=dataclasses.replace(recipe.budget, steps=24))
    assert submit(make_job("demo_byte", recipe, longer, job.run_dir), follow=False) == 0
    assert [request for request, _ in cluster.requests if request != "GET"] == ["POST", "DELETE", "POST"]
    assert "--budget.steps" in json.dumps(cluster.created[1])


def test_another_config_under_the_same_name_is_refused(cluster, job, recipe):
    submit(job, follow=False)
    wider = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, mlp_dim=64))
    complaint = refused(make_job("demo_byte", recipe, wider, job.run_dir))
    assert "the JobSet mine holds another run: model.mlp_dim: 48 -> 64; choose another --run-dir" in complaint
    cluster.jobsets["mine"]["status"] = status(ended="Completed")
    assert "model.mlp_dim: 48 -> 64" in refused(make_job("demo_byte", recipe, wider, job.run_dir))
    assert len(cluster.created) == 1 and "mine" in cluster.jobsets


def test_what_runs_is_not_replaced_by_the_same_run_with_other_options(cluster, job, recipe):
    submit(job, follow=False)
    longer = make_job(
        "demo_byte",
        recipe,
        dataclasses.replace(recipe, budget=dataclasses.replace(recipe.budget, steps=24)),
        job.run_dir,
    )
    assert "runs with other options (budget.steps: 12 -> 24); end it first with kubectl delete jobset mine" in refused(
        longer
    )
    assert "runs with other options (the code, image, slices or environment)" in refused(job, image="image:2")
    assert "trains in gs://bucket/runs/mine, not in gs://other/mine; choose another --job-name" in refused(
        dataclasses.replace(job, run_dir="gs://other/mine")
    )
    cluster.jobsets["mine"]["metadata"]["annotations"] = {}
    assert "has a JobSet mine that toklab has not made" in refused(job)


@pytest.mark.parametrize(
    "method, code, message, expected",
    [
        (
            "GET",
            403,
            "jobsets is forbidden: User me",
            r"refused \(403 .*\) asked for JobSet mine: jobsets is forbidden: User me; ask for the right",
        ),
        (
            "POST",
            404,
            "the server could not find the requested resource",
            r"refused \(404 .*\) creating JobSet mine: .*; install JobSet in the cluster",
        ),
        (
            "POST",
            409,
            'jobsets "mine" already exists',
            r"refused \(409 .*; somebody has submitted the same name just now",
        ),
        ("POST", 422, "spec is invalid", r"refused \(422 .*spec is invalid; mend that"),
        ("POST", 500, "broken", r"refused \(500 .*broken; mend that"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(cluster, job, method, code, message, expected):
    cluster.refusals[method] = (code, message)
    assert re.search(expected, refused(job))


def test_a_cluster_that_does_not_answer_is_one_line(cluster, job):
    cluster.shutdown()
    cluster.server_close()
    assert re.search(r"the cluster http://127.0.0.1:\d+ does not answer, asked for JobSet mine", refused(job))


def test_no_cluster_is_one_line(cluster, job, monkeypatch, tmp_path):
    import kubernetes

    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "nothing"))
    assert re.search("no cluster is configured: .*; e.g. gcloud container clusters get-credentials NAME", refused(job))


def test_without_the_client_the_remedy_is_told(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.delitem(sys.modules, "train.submit.cluster", raising=False)
    assert "the kubernetes client is not installed; pip install 'tokenizer-lab[kubernetes]'" in refused(job)


def test_a_jobset_that_runs_has_no_outcome():
    assert (
        outcome(
            {
                "status": {
                    "conditions": [{"type": "Completed", "status": "False"}, {"type": "Failed", "status": "False"}]
                }
            }
        )
        == ""
    )
    assert outcome({}) == ""


def test_the_annotation_is_the_whole_config(job):
    notes = manifest(job, options())["metadata"]["annotations"]
    assert json.loads(notes["tokenizer-lab/config"]) == to_json(job.recipe)
