"""JobSets, against the API's schema."""

import json
import pathlib
import re
from typing import Any

import jsonschema
import pytest

from train.recipe import to_json
from train.submit.cluster import outcome
from train.submit.jobset import JobSet, manifest

CRD = pathlib.Path(__file__).resolve().parents[2] / "fixtures/jobset_crd/jobset.x-k8s.io_jobsets.json"


def options(**fields) -> JobSet:
    return JobSet(**{"topology": "v5e:4x4", "image": "image:1"} | fields)


@pytest.fixture(scope="module")
def schema() -> Any:
    """The OpenAPI schema of a JobSet, in which unknown fields are mistakes; the API server drops them silently."""
    (version,) = json.loads(CRD.read_text())["spec"]["versions"]
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
