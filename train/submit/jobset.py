"""`toklab submit --to jobset`: TPU slices of a Kubernetes cluster, as a JobSet (https://jobset.sigs.k8s.io, 0.10 or
later).

A slice is a Job, a host one of its pods. Which exit code means what is told to Kubernetes in two steps: the Job's
`podFailurePolicy` fails the Job for exit codes and disruptions that we know, and the JobSet's `failurePolicy` finds in
the Job's message which of them it was.
"""

import dataclasses
import hashlib
import json
from typing import Any

import rich.console
import yaml

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote
from train.console import say
from train.exits import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR
from train.recipe import flatten
from train.submit.cluster import WORKER, Cluster, follow, outcome
from train.submit.job import (
    MAX_NAME_LENGTH,
    Job,
    check_name,
    check_reachable_recipe,
    environment,
    record_from_afar,
    refuse_another_config,
)
from train.submit.pod import OnPod, check_shared_run_dir

_PREFIX = "tokenizer-lab"
SLICE = "slice"  # the name of the replicated job


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSet(OnPod):
    """Create a JobSet in the cluster of the current kubectl context, and follow it."""

    namespace: str = "default"
    service_account: str | None = None
    """The Kubernetes service account whose rights on buckets the hosts have."""
    volumes: tuple[str, ...] = ()
    """SOURCE:/FOLDER of every host, where the source is a PersistentVolumeClaim or a gs://BUCKET (Cloud Storage
    FUSE)."""
    node_selector: tuple[str, ...] = ()
    """LABEL=VALUE of the nodes to run on, besides generation and topology, e.g. cloud.google.com/gke-spot=true."""
    follow: bool = True
    """Show the job's state and the first worker's output until it ends."""

    def render(self, job: Job) -> str:
        return yaml.safe_dump(manifest(job, self), sort_keys=False, width=150)

    def submit(self, job: Job, console: rich.console.Console) -> int:
        wanted = manifest(job, self)
        cluster = Cluster(self.namespace)
        if is_remote(job.run_dir):
            record_from_afar(job, "jobset", console)
        if start(cluster, job, wanted):
            say(console, f"{job.name}: created in namespace {self.namespace}")
        else:
            say(console, f"{job.name}: runs already, as asked for")
        remarks = (
            f"follow it: the same command again, or kubectl logs --namespace {self.namespace} --follow --selector"
            f" {worker_zero(job.name)}\nend it:    kubectl delete jobset {job.name} --namespace {self.namespace}"
        )
        say(console, remarks)
        if self.follow:
            try:
                follow(cluster, job.name, worker_zero(job.name), console)
            except KeyboardInterrupt:
                say(console, f"\n{job.name} goes on; {remarks}")
                return EXIT_INTERRUPTED
        return 0


def start(cluster: Any, job: Job, wanted: dict[str, Any]) -> bool:
    """Creates a JobSet; in place of one of the same run that has ended. Whether it had to be; False where it runs
    already.

    Raises:
      UserError: the name is taken by another run, or by this one with other options.
    """
    existing = cluster.get(job.name)
    if existing is not None:
        notes = existing["metadata"].get("annotations", {})
        if f"{_PREFIX}/config" not in notes:
            raise UserError(f"the cluster has a JobSet {job.name} that toklab has not made; choose another --job-name")
        stored = json.loads(notes[f"{_PREFIX}/config"])
        if notes[f"{_PREFIX}/run-dir"] != job.run_dir:
            raise UserError(
                f"the JobSet {job.name} trains in {notes[f'{_PREFIX}/run-dir']}, not in {job.run_dir}; choose another"
                " --job-name"
            )
        refuse_another_config(f"the JobSet {job.name}", stored, job.config)
        if not outcome(existing):
            refuse_other_options(job, stored, notes, wanted)
            return False
        cluster.delete(job.name)
    cluster.create(wanted)
    return True


def refuse_other_options(job: Job, stored: dict[str, Any], notes: dict[str, str], wanted: dict[str, Any]) -> None:
    """Raises UserError where a JobSet that runs is not quite what is asked for now."""
    if notes[f"{_PREFIX}/fingerprint"] != wanted["metadata"]["annotations"][f"{_PREFIX}/fingerprint"]:
        old, new = flatten(stored), flatten(job.config)
        changed = [
            f"{name}: {old.get(name)!r} -> {value!r}" for name, value in new.items() if old.get(name) != value
        ] or ["the code, image, slices or environment"]
        raise UserError(
            f"the JobSet {job.name} runs with other options ({'; '.join(changed)}); end it first with kubectl delete"
            f" jobset {job.name}, the new one goes on from its newest checkpoint"
        )


def worker_zero(name: str) -> str:
    """The label selector of the first slice's first host."""
    return (
        f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={SLICE},"
        "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    )


def manifest(job: Job, options: JobSet) -> dict[str, Any]:
    """The JobSet that runs a job. Raises UserError."""
    # Kubernetes names the pods NAME-slice-SLICE-HOST-xxxxx, in 63 characters.
    check_name(job.name, MAX_NAME_LENGTH - len(f"-{SLICE}-{options.slices - 1}-{options.hosts_per_slice - 1}-xxxxx"))
    check_reachable_recipe(job)
    mounts = [volume(number, text) for number, text in enumerate(options.volumes)]
    check_shared_run_dir(job, tuple(folder for _, folder in mounts))
    spec = {
        "failurePolicy": {
            "maxRestarts": options.max_restarts,
            "rules": [
                jobset_rule("mistake", "FailJobSet", 0),
                jobset_rule("stopped", "RestartJobSetAndIgnoreMaxRestarts", 1),
                jobset_rule("disrupted", "RestartJobSetAndIgnoreMaxRestarts", 2),
            ],
        },
        "replicatedJobs": [
            {"name": SLICE, "replicas": options.slices, "template": {"spec": slice_job(job, options, mounts)}}
        ],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": options.namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "toklab",
                f"{_PREFIX}/config": job.config_fingerprint[:16],
                f"{_PREFIX}/code": job.code[:16],
            },
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                    "cloud.google.com/gke-nodepool"
                ),  # a slice takes a whole node pool
                f"{_PREFIX}/run-dir": job.run_dir,
                f"{_PREFIX}/config": json.dumps(job.config),
                f"{_PREFIX}/fingerprint": hashlib.sha256(json.dumps([job.code, job.config, spec]).encode()).hexdigest(),
            },
        },
        "spec": spec,
    }


def jobset_rule(name: str, action: str, pod_rule: int) -> dict[str, Any]:
    """What the JobSet does when a Job has failed by a rule of `slice_job`'s `podFailurePolicy`; its number is in the
    Job's message."""
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [f"matching FailJob rule at index {pod_rule}$"],
    }


def slice_job(job: Job, options: JobSet, mounts: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """The spec of the Job of one slice."""
    exit_code = lambda code: {"containerName": WORKER, "operator": "In", "values": [code]}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace_seconds,
        **(
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if options.slices > 1 else {}
        ),  # what goes between slices goes straight
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": options.pod.chip.hosting.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology.partition(":")[2],
            **dict(label.split("=", 1) for label in checked_labels(options.node_selector)),
        },
        "containers": [
            {
                "name": WORKER,
                "image": options.check_image(),
                "command": job.command("toklab"),
                "env": [
                    {"name": name, "value": value}
                    for name, value in ({"PYTHONUNBUFFERED": "1"} | environment(options.env)).items()
                ],
                "ports": [
                    {"containerPort": 8471},
                    {"containerPort": 8080},
                ],  # of libtpu, between chips and between slices
                "resources": {"limits": {"google.com/tpu": options.chips_per_host}},
                "volumeMounts": [{"name": source["name"], "mountPath": folder} for source, folder in mounts],
            }
        ],
        "volumes": [source for source, _ in mounts],
    }
    return {
        "parallelism": options.hosts_per_slice,
        "completions": options.hosts_per_slice,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": exit_code(EXIT_USER_ERROR)},
                {"action": "FailJob", "onExitCodes": exit_code(EXIT_STOPPED)},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {
                "annotations": {"gke-gcsfuse/volumes": "true"} if any("csi" in source for source, _ in mounts) else {}
            },
            "spec": pod,
        },
    }


def volume(number: int, text: str) -> tuple[dict[str, Any], str]:
    """A pod's volume and the folder it is mounted at, of SOURCE:/FOLDER. Raises UserError."""
    source, _, folder = text.rpartition(":")
    if not source or not folder.startswith("/") or source == "gs":
        raise UserError(
            f"--volumes {text!r} is not SOURCE:/FOLDER with a PersistentVolumeClaim or gs://BUCKET before the colon,"
            " e.g. gs://mine:/data"
        )
    name = f"volume-{number}"
    if not is_remote(source):
        return {"name": name, "persistentVolumeClaim": {"claimName": source}}, folder
    bucket, _, inside = source.removeprefix("gs://").partition("/")
    if not source.startswith("gs://") or not bucket:
        raise UserError(f"--volumes {text!r}: only gs://BUCKET can be mounted")
    mount_options = "implicit-dirs" + (f",only-dir={inside.rstrip('/')}" if inside.rstrip("/") else "")
    return {
        "name": name,
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": bucket, "mountOptions": mount_options},
        },
    }, folder


def checked_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if "=" not in label:
            raise UserError(f"--node-selector {label!r} is not LABEL=VALUE")
    return labels
