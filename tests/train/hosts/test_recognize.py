"""Clusters are known by environment variables; a process without them is alone."""

import pytest

from tokenizer_lab.errors import UserError
from train.hosts.processes import recognize

ALONE = {"TPU_SKIP_MDS_QUERY": "1"}  # JAX sets it where there is no TPU


OURS = {"TOKLAB_COORDINATOR": "host-0:1234", "TOKLAB_NUM_PROCESSES": "4", "TOKLAB_PROCESS_ID": "3"}


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "environment, named_by",
    [
        ({}, None),
        (OURS, "TOKLAB_COORDINATOR"),
        (OURS | SLURM, "TOKLAB_COORDINATOR"),
        (SLURM | {"TOKLAB_NUM_PROCESSES": "1"}, None),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # the shell of salloc: SLURM_NTASKS is the allocation's
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM"),
        (
            {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},
            None,
        ),  # in an allocation, but not started by srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPUs of GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPUs of GKE"),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/etc/addresses"}, "TPUs of GKE"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "a Kubernetes Job"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_clusters_are_known_by_their_variables(environment, named_by):
    cluster = recognize(ALONE | environment)
    assert (cluster and cluster.named_by) == named_by


def test_a_process_says_whom_it_waits_for_and_how_to_go_alone():
    cluster = recognize(ALONE | SLURM | {"SLURM_NTASKS": "32", "SLURM_STEP_NUM_TASKS": "4"})
    assert cluster.join_options["num_processes"] == 4
    assert "named by SLURM: waiting up to 900 s for the 3 others" in (line := cluster.waits_for(900.0))
    assert "--deadlines.start-seconds" in line and line.endswith(
        "set TOKLAB_NUM_PROCESSES=1 to train on this host alone"
    )
    assert "for the 3 others" in recognize(ALONE | OURS).waits_for(1)
    assert not recognize(ALONE | OURS).is_first and recognize(ALONE | OURS | {"TOKLAB_PROCESS_ID": "0"}).is_first
    assert not recognize(ALONE | SLURM).is_first and recognize(ALONE | SLURM | {"SLURM_PROCID": "0"}).is_first
    assert "for the 1 others" in recognize(ALONE | {"OMPI_COMM_WORLD_SIZE": "2"}).waits_for(1)
    assert "for the others" in recognize({"TPU_WORKER_HOSTNAMES": "a,b"}).waits_for(1)
    assert recognize(ALONE | SLURM | {"TOKLAB_NUM_PROCESSES": "1"}) is None


def test_a_machine_with_tpus_is_asked_for_its_neighbours_unless_it_is_told_to_compute_elsewhere():
    assert recognize({}).named_by == recognize({"JAX_PLATFORMS": "tpu,cpu"}).named_by == "Cloud TPU VM"
    assert recognize({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"TOKLAB_COORDINATOR": "host"},
        {"TOKLAB_COORDINATOR": "host:0"},
        {"TOKLAB_COORDINATOR": ":80"},
        {"TOKLAB_COORDINATOR": "host:99999"},
        {"TOKLAB_NUM_PROCESSES": "two"},
        {"TOKLAB_NUM_PROCESSES": "0"},
        {"TOKLAB_PROCESS_ID": "4"},
        {"TOKLAB_PROCESS_ID": "-1"},
        {"TOKLAB_PROCESS_ID": ""},
    ],
)
def test_variables_that_name_no_process_are_one_line(change):
    with pytest.raises(UserError, match="name no process of several; set") as error:
        recognize(ALONE | OURS | change)
    [(name, value)] = change.items()
    assert f"{name}={value!r}" in str(error.value) and "\n" not in str(error.value)
