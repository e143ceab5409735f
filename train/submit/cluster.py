"""A Kubernetes cluster, as far as a JobSet needs one. The only file that uses the `kubernetes` client."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import rich.console

from tokenizer_lab.errors import UserError
from train.console import say

try:
    import kubernetes
    import urllib3
except ImportError:  # an extra, which only a cluster that is asked for needs
    kubernetes = None  # type: ignore[assignment]  # `Cluster` looks

WORKER = "worker"  # the name of a host's container
_KIND: dict[str, Any] = {"group": "jobset.x-k8s.io", "version": "v1alpha2", "plural": "jobsets"}
_CONNECT_SECONDS, _SILENCE_SECONDS = 10, 60
POLL_SECONDS = 3.0


class Cluster:
    """A namespace of the cluster that kubectl's current context names. Every method raises UserError where the cluster
    refuses."""

    def __init__(self, namespace: str):
        if kubernetes is None:
            raise UserError(
                "the kubernetes client is not installed; pip install 'tokenizer-lab[kubernetes]', or let --dry-run"
                " print what kubectl takes"
            )
        try:
            kubernetes.config.load_kube_config()
        except (kubernetes.config.ConfigException, OSError) as error:
            raise UserError(
                f"no cluster is configured: {' '.join(str(error).split())}; e.g. gcloud container clusters"
                " get-credentials NAME"
            ) from error
        configuration = kubernetes.client.Configuration.get_default_copy()
        configuration.retries = False  # who cannot be reached is told of at once
        self._namespace, client = namespace, kubernetes.client.ApiClient(configuration)
        self._jobsets, self._pods = kubernetes.client.CustomObjectsApi(client), kubernetes.client.CoreV1Api(client)
        self._where = client.configuration.host

    def get(self, name: str) -> dict[str, Any] | None:
        """A JobSet, None if there is none of that name."""
        with self._answering(f"asked for JobSet {name}"):
            try:
                found: Any = self._jobsets.get_namespaced_custom_object(
                    **_KIND, namespace=self._namespace, name=name, _request_timeout=_CONNECT_SECONDS
                )
                return found
            except kubernetes.client.ApiException as error:
                if error.status == 404:
                    return None
                raise

    def create(self, manifest: dict[str, Any]) -> None:
        with self._answering(f"creating JobSet {manifest['metadata']['name']}"):
            self._jobsets.create_namespaced_custom_object(
                **_KIND, namespace=self._namespace, body=manifest, _request_timeout=_CONNECT_SECONDS
            )

    def delete(self, name: str) -> None:
        """Deletes a JobSet and waits until it and its pods are gone."""
        with self._answering(f"deleting JobSet {name}"):
            self._jobsets.delete_namespaced_custom_object(
                **_KIND,
                namespace=self._namespace,
                name=name,
                propagation_policy="Foreground",
                _request_timeout=_CONNECT_SECONDS,
            )
        while self.get(name) is not None:
            time.sleep(POLL_SECONDS)

    def newest_pod(self, selector: str) -> Any:
        """The pod that was made last, of those with some labels and a container that has begun; None if there is
        none."""
        with self._answering("asking for pods"):
            pods: list[Any] = self._pods.list_namespaced_pod(
                self._namespace, label_selector=selector, _request_timeout=_CONNECT_SECONDS
            ).items
        begun = [pod for pod in pods if pod.status.phase in ("Running", "Succeeded", "Failed")]
        return max(begun, key=lambda pod: pod.metadata.creation_timestamp, default=None)

    def log_lines(self, pod: str, since_seconds: int | None) -> Iterator[tuple[str, str]]:
        """(time, line) of a pod's output as it comes, until it ends, or is silent for a while."""
        since: dict[str, Any] = {"since_seconds": since_seconds} if since_seconds else {}
        silent = (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError)
        with self._answering(f"reading the output of {pod}"), _ignoring_gone_pods(), contextlib.suppress(*silent):
            response: Any = self._pods.read_namespaced_pod_log(
                pod,
                self._namespace,
                container=WORKER,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(_CONNECT_SECONDS, _SILENCE_SECONDS),
                **since,
            )
            with contextlib.closing(response):
                rest = b""
                for chunk in response.stream():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        when, _, text = line.decode(errors="replace").partition(" ")
                        yield when, text

    @contextlib.contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """What goes wrong between us and the cluster, as one line."""
        try:
            yield
        except kubernetes.client.ApiException as error:
            raise UserError(
                f"the cluster {self._where} refused ({error.status} {error.reason}) {what}: {_message(error)};"
                f" {_remedy(error)}"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise UserError(
                f"the cluster {self._where} does not answer, {what}: {' '.join(str(error).split())[:300]}; is it up,"
                " and kubectl's current context the right one?"
            ) from error


def follow(cluster: Cluster, name: str, worker: str, console: rich.console.Console) -> None:
    """Shows what becomes of a JobSet, and what the pod with the labels `worker` writes, until it ends. Raises UserError
    where it fails."""
    shown, output = "", Output(cluster)
    while True:
        jobset = cluster.get(name)
        if jobset is None:
            raise UserError(
                f"JobSet {name} was deleted; the same command creates it again and goes on from its newest checkpoint"
            )
        if (now := state(jobset)) != shown:
            say(console, f"{name}: {now}")
            shown = now
        more = output.show(cluster.newest_pod(worker))
        if (ended := outcome(jobset)) == "Failed":
            message = next(
                condition["message"] for condition in jobset["status"]["conditions"] if condition["type"] == "Failed"
            )
            raise UserError(
                f"JobSet {name} has failed: {message}; mend what its output says, the same command then goes on from"
                " its newest checkpoint"
            )
        if ended:
            return
        if not more:
            time.sleep(POLL_SECONDS)


class Output:
    """Writes what pods write to our own output, every line once."""

    def __init__(self, cluster: Cluster):
        self._cluster, self._pod, self._last, self._read_at, self._over = cluster, "", "", 0.0, False

    def show(self, pod: Any) -> bool:
        """What a pod has written since the last time, and writes until it ends or is silent; whether there was
        anything."""
        if pod is None or (pod.metadata.uid == self._pod and self._over):
            return False
        if pod.metadata.uid != self._pod:
            self._pod, self._last = pod.metadata.uid, ""
        since = int(time.monotonic() - self._read_at) + 2 * _SILENCE_SECONDS if self._last else None
        self._over, self._read_at, before = pod.status.phase != "Running", time.monotonic(), self._last
        for when, line in self._cluster.log_lines(pod.metadata.name, since):
            if when > self._last:  # the times of a pod's lines have one length and only grow
                self._last = when
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
        return self._last != before


def state(jobset: dict[str, Any]) -> str:
    """A JobSet's state in a few words."""
    status = jobset.get("status", {})
    slices = jobset["spec"]["replicatedJobs"][0]["replicas"]
    ready = sum(job.get("ready", 0) for job in status.get("replicatedJobsStatus", []))
    word = outcome(jobset).lower() or (
        "suspended" if jobset["spec"].get("suspend") else "running" if ready == slices else "waiting for hosts"
    )
    restarts = f", restarted {status['restarts']} times" if status.get("restarts") else ""
    return f"{word}, {ready} of {slices} slices ready{restarts}"


@contextlib.contextmanager
def _ignoring_gone_pods() -> Iterator[None]:
    """A pod may be deleted, or its container not made yet, between our asking for it and for its output."""
    try:
        yield
    except kubernetes.client.ApiException as error:
        if error.status not in (400, 404):
            raise


def _message(error: Any) -> str:
    """What the API server says, which is JSON if it is its own answer."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return " ".join(str(error.body).split())[:300]


def _remedy(error: Any) -> str:
    if error.status in (401, 403):
        return (
            "ask for the right to get, create and delete jobsets and to read pods and their logs, or choose another"
            " --namespace"
        )
    if error.status == 404:
        return "install JobSet in the cluster (https://jobset.sigs.k8s.io), or make the namespace"
    if error.status == 409:
        return "somebody has submitted the same name just now; run the same command again"
    return "mend that and run the same command again"


def outcome(jobset: dict[str, Any]) -> str:
    """ "Completed", "Failed", or nothing while it runs."""
    conditions = jobset.get("status", {}).get("conditions", [])
    return next(
        (
            condition["type"]
            for condition in conditions
            if condition["type"] in ("Completed", "Failed") and condition["status"] == "True"
        ),
        "",
    )
