"""`toklab submit` as a person meets it: dry runs that touch nothing, names that are taken, and one whole run on this
machine."""

import builtins
import dataclasses
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.commands import command_line
from train.recipe import to_json
from train.run.folder import RunFolder
from train.submit.job import make_job, record, record_from_afar

ON_PODS = ["--run-dir", "gs://bucket/runs/mine", "--topology", "v5e:4x4", "--image", "image:1"]
DRY = {
    "local": ["--run-dir", "run", "--num-processes", "2"],
    "jobset": ON_PODS,
    "queued-resource": [*ON_PODS, "--project", "project", "--zone", "zone"],
    "slurm": ["--run-dir", "run", "--nodes", "2"],
}


def refused(capsys, *arguments: str) -> str:
    """The one line that `toklab submit` refuses the arguments with."""
    assert command_line.run(["submit", *arguments]) == 2, arguments
    complaint = capsys.readouterr().err
    assert complaint.startswith("toklab: ") and complaint.count("\n") == 1, complaint
    return complaint


@pytest.fixture
def sealed(monkeypatch, tmp_path):
    """A home with credentials that nobody may open, secrets in the environment, no network and no other programs."""
    home = tmp_path / "home"
    for name in (".kube/config", ".config/gcloud/application_default_credentials.json", ".netrc"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("hunter2")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KUBECONFIG", str(home / ".kube" / "config"))
    monkeypatch.setenv(
        "GOOGLE_APPLICATION_CREDENTIALS", str(home / ".config/gcloud/application_default_credentials.json")
    )
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.chdir(home)

    def guarded(opens):
        def open_(path, *arguments, **keywords):
            assert not str(path).startswith(str(home)), f"{path} was opened"
            return opens(path, *arguments, **keywords)

        return open_

    def contact(*_, **__):
        raise AssertionError("something was contacted or started")

    monkeypatch.setattr(builtins, "open", guarded(builtins.open))
    monkeypatch.setattr(io, "open", guarded(io.open))
    monkeypatch.setattr(os, "open", guarded(os.open))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, contact)
    monkeypatch.setattr(socket, "getaddrinfo", contact)
    monkeypatch.setattr(subprocess.Popen, "__init__", contact)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    return home


@pytest.mark.parametrize("kind", DRY)
def test_a_dry_run_prints_everything_and_touches_nothing(sealed, capsys, kind):
    before = sorted(sealed.rglob("*"))
    assert command_line.run(["submit", "decoder_8b", "--to", kind, *DRY[kind], "--seed", "7", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown and str(sealed / ".kube") not in shown
    assert sorted(sealed.rglob("*")) == before
    if kind == "jobset":
        assert "- decoder_8b\n" in shown and "- --seed\n" in shown
    else:
        assert f"train decoder_8b --run-dir {DRY[kind][1]} --seed 7" in shown


def test_every_process_of_a_local_job_is_shown(sealed, capsys):
    assert (
        command_line.run(
            [
                "submit",
                "demo_byte",
                "--to=local",
                "--run-dir",
                "run",
                "--num-processes",
                "2",
                "--devices-per-process",
                "4",
                "--dry-run",
            ]
        )
        == 0
    )
    first, second, _ = capsys.readouterr().out.splitlines()
    assert (
        first == "TOKLAB_COORDINATOR=127.0.0.1:PORT TOKLAB_NUM_PROCESSES=2 TOKLAB_PROCESS_ID=0 JAX_PLATFORMS=cpu"
        " JAX_NUM_CPU_DEVICES=4 toklab train demo_byte --run-dir run"
    )
    assert second == first.replace("PROCESS_ID=0", "PROCESS_ID=1")


def test_what_is_not_understood_is_one_line(capsys):
    assert "--to is missing: toklab submit RECIPE --to local|jobset|queued-resource|slurm" in refused(
        capsys, "demo_byte", "--run-dir", "x"
    )
    assert "no --to 'jobsets', did you mean jobset?" in refused(
        capsys, "demo_byte", "--to", "jobsets", "--run-dir", "x"
    )
    assert "--to is given without a value" in refused(capsys, "demo_byte", "--to")
    assert "the recipe comes first: toklab submit RECIPE --to local|" in refused(
        capsys, "--to", "local", "--run-dir", "x"
    )
    assert "no recipe 'demo_bite', did you mean demo_byte?" in refused(
        capsys, "demo_bite", "--to", "local", "--run-dir", "x"
    )
    assert "--topology" in refused(capsys, "demo_byte", "--to", "jobset", "--run-dir", "gs://b/r")
    assert "--num-proceses" in refused(capsys, "demo_byte", "--to", "local", "--run-dir", "x", "--num-proceses", "2")
    assert "no topology 'v5e:5x' " in refused(
        capsys, "demo_byte", "--to", "jobset", "--run-dir", "gs://b/r", "--topology", "v5e:5x"
    ).replace(",", " ")


def test_help_shows_the_options_of_a_place(capsys):
    assert command_line.run(["submit", "--help"]) == 0 and command_line.run(["submit", "demo_byte", "--help"]) == 0
    with pytest.raises(SystemExit):
        command_line.run(["submit", "demo_byte", "--to", "jobset", "--help"])
    shown = capsys.readouterr().out
    assert "--topology" in shown and "--model.num-layers" in shown and "--num-processes" not in shown


def test_a_job_is_recorded_with_what_it_is_made_of(recipe, tmp_path, capsys):
    job = make_job("demo_byte", recipe, dataclasses.replace(recipe, seed=3), str(tmp_path / "run"))
    record(job, "slurm", rich.console.Console())
    stored = json.loads(RunFolder(tmp_path / "run").job.read_text())
    assert stored["config"] == to_json(job.recipe) and stored["code"] == job.code and len(job.code) == 64
    assert (stored["name"], stored["to"], stored["command"]) == (
        "run",
        "slurm",
        ["toklab", "train", "demo_byte", "--run-dir", job.run_dir, "--seed", "3"],
    )
    # The same again, longer and by other code, goes on.
    longer = dataclasses.replace(
        job, recipe=dataclasses.replace(job.recipe, budget=dataclasses.replace(recipe.budget, steps=99)), code="f" * 64
    )
    record(longer, "slurm", rich.console.Console(width=300))
    assert (
        f"the code is another than at the submission before, {job.code[:12]} -> ffffffffffff" in capsys.readouterr().out
    )
    # Another one does not.
    with pytest.raises(
        UserError,
        match="holds another run: data.batch_rows: 8 -> 16; seed: 3 -> 0; choose another --run-dir, or undo the change",
    ):
        record(
            make_job(
                "demo_byte",
                recipe,
                dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, batch_rows=16)),
                job.run_dir,
            ),
            "slurm",
            rich.console.Console(),
        )
    assert json.loads(RunFolder(tmp_path / "run").job.read_text())["config"]["seed"] == 3


def test_a_run_that_was_never_submitted_is_not_taken_either(recipe, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(dataclasses.replace(recipe, seed=5))))
    with pytest.raises(UserError, match="seed: 5 -> 0"):
        record(make_job("demo_byte", recipe, recipe, str(tmp_path)), "local", rich.console.Console())
    assert not (tmp_path / "job.json").exists()
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(UserError, match="is not a job's"):
        record(make_job("demo_byte", recipe, recipe, str(tmp_path)), "local", rich.console.Console())


def test_a_bucket_that_only_the_hosts_see_is_left_to_them(recipe, capsys, monkeypatch):
    def nobody_gets_in(*_):
        raise PermissionError("no credentials")

    monkeypatch.setattr("train.submit.job.RunFolder", nobody_gets_in)
    record_from_afar(
        make_job("demo_byte", recipe, recipe, "gs://bucket/run"), "jobset", rich.console.Console(width=300)
    )
    assert (
        "gs://bucket/run cannot be read from here (PermissionError); the hosts compare the configs"
        in capsys.readouterr().out
    )


def test_fingerprints_follow_code_and_config(recipe, monkeypatch, tmp_path):
    job = make_job("demo_byte", recipe, recipe, "r")
    assert (
        job.config_fingerprint
        != dataclasses.replace(job, recipe=dataclasses.replace(recipe, seed=1)).config_fingerprint
    )
    (tmp_path / "train").mkdir()
    monkeypatch.setattr("train.hosts.processes.__file__", str(tmp_path / "train" / "hosts" / "processes.py"))
    found = set()
    for content in ("a", "b", "a"):
        (tmp_path / "train" / "x.py").write_text(content)
        found.add(make_job("demo_byte", recipe, recipe, "r").code)
    assert len(found) == 2


def test_scripts_are_written_and_the_way_to_start_them_is_said(recipe, write_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_file = write_recipe(recipe)
    assert command_line.run(["submit", recipe_file, "--to", "slurm", "--run-dir", "runs/mine"]) == 0
    assert (tmp_path / "mine.sbatch").read_text().startswith("#!/usr/bin/env bash\n#SBATCH --job-name=mine\n")
    assert "start the job with: sbatch mine.sbatch" in capsys.readouterr().out
    assert RunFolder("runs/mine").job.exists() and pathlib.Path("runs/mine/logs").is_dir()
    assert "holds another run: seed: 0 -> 1" in refused(
        capsys, recipe_file, "--to", "slurm", "--run-dir", "runs/mine", "--seed", "1"
    )
    monkeypatch.setattr("train.submit.queued_resource.record_from_afar", lambda *_: None)
    pod = ["--run-dir", "gs://b/runs/mine", "--topology", "v5e:2x4", "--image", "i", "--project", "p", "--zone", "z"]
    assert command_line.run(["submit", recipe_file, "--to", "queued-resource", *pod]) == 0
    assert "docker run --name mine" in (tmp_path / "mine.sh").read_text()
    assert command_line.run(["submit", recipe_file, "--to", "queued-resource", *pod]) == 0
    # Another run folder of that name, which has a job of its own.
    before = (tmp_path / "mine.sbatch").read_bytes(), (tmp_path / "mine.sh").read_bytes()
    pod[1] = "gs://b/others/mine"
    for options in (["slurm", "--run-dir", "others/mine"], ["queued-resource", *pod]):
        assert "is here and not of the run" in refused(capsys, recipe_file, "--to", *options)
        assert command_line.run(["submit", recipe_file, "--to", *options, "--job-name", "other"]) == 0
    assert before == ((tmp_path / "mine.sbatch").read_bytes(), (tmp_path / "mine.sh").read_bytes())
    assert command_line.run(["submit", recipe_file, "--to", "slurm", "--run-dir", str(tmp_path / "runs/mine/")]) == 0


@pytest.mark.slow
def test_a_run_on_this_machine_ends_and_goes_on(recipe, write_recipe, tmp_path):
    """In a process of its own, as a person would call it, on two devices that it makes."""
    command = [
        sys.executable,
        "-m",
        "train.commands.cli",
        "submit",
        write_recipe(recipe),
        "--to",
        "local",
        "--run-dir",
        str(tmp_path / "run"),
        "--devices-per-process",
        "2",
        "--evaluation.every-steps",
        "100",
    ]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    for steps in (2, 4):
        done = subprocess.run([*command, "--budget.steps", str(steps)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            f"finished at step {steps}" in done.stdout
            and done.stdout in (tmp_path / "run" / "logs" / "worker-0.log").read_text()
        )
    run = RunFolder(tmp_path / "run")
    assert "going on from step 2" in " ".join(done.stdout.split()) and json.loads(run.summary.read_text())[
        "device"
    ].startswith("2 x ")
    assert json.loads(run.job.read_text())["to"] == "local"
