"""JobSets that are created and followed, on a server that answers as a cluster does."""

import dataclasses
import importlib
import json
import re
import signal
import sys
import threading
import time
from typing import Any

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.submit.job import Job, make_job
from train.submit.jobset import JobSet, manifest


def options(**fields) -> JobSet:
    return JobSet(**{"topology": "v5e:4x4", "image": "image:1"} | fields)


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
    from train.submit import cluster

    monkeypatch.setattr(cluster, "kubernetes", None)  # to be put back
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    importlib.reload(cluster)
    assert "the kubernetes client is not installed; pip install 'tokenizer-lab[kubernetes]'" in refused(job)
