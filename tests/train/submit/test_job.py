"""What jobs are called, how a recipe becomes the options of a command, and what is refused before anything is sent."""

import dataclasses

import pytest

from tokenizer_lab.errors import UserError
from train.commands.options import parse_with_recipe
from train.recipe import load_recipe, recipe_names
from train.submit import target_class
from train.submit.job import default_name, make_job, overrides
from train.submit.queued_resource import QueuedResource

ON_TPUS = QueuedResource(topology="v5e:4x4", image="image:1", project="project", zone="zone")


def test_options_bring_a_recipe_back():
    base = load_recipe("decoder_8b")
    wanted = dataclasses.replace(
        base,
        name="other",
        data=dataclasses.replace(base.data, corpora=("a", "b c"), weights=(0.5, 0.25)),
        seed=7,
        logging=dataclasses.replace(base.logging, tensorboard=False, wandb_project="p"),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-5),
        budget=dataclasses.replace(base.budget, steps=None, flops=1e21),
    )
    assert parse_with_recipe("train", [], "", ["decoder_8b", *overrides(base, wanted)]).recipe == wanted
    assert overrides(base, base) == []


@pytest.mark.parametrize(
    "run_dir, name", [("runs/8b_byte/", "run-8b-byte"), ("gs://b/Runs/Big.1", "big-1"), ("/a/-x-", "x"), (".", "run")]
)
def test_a_job_is_named_after_its_run(run_dir, name):
    assert default_name(run_dir) == name


FOLDERS = [
    "1b",
    "1",
    "-",
    "a_b.C",
    "x-",
    "..",
    "a" * 300,
    "1" * 300,
    "x" + "-" * 30 + "y" * 90,
    "бег",
    "1-größe",
    "日本",
    " ",
]
LARGEST = {
    "local": {},
    "jobset": {"topology": "v5e:16x16", "slices": 1000, "image": "i"},
    "queued-resource": {"topology": "v5e:16x16", "slices": 1000, "image": "i", "project": "p", "zone": "z"},
    "slurm": {},
}


@pytest.mark.parametrize("kind", LARGEST)
def test_a_name_that_we_make_up_is_one_that_every_place_takes(kind, recipe):
    for folder in [*FOLDERS, *recipe_names()]:
        target_class(kind)(**LARGEST[kind]).render(make_job("demo_byte", recipe, recipe, f"gs://b/{folder}"))


def test_names_that_lose_letters_stay_apart():
    folders = [*("a" * 60 + end for end in "12"), "бег", "лес", "größe", "grüße"]
    assert len({default_name(f"runs/{folder}") for folder in folders}) == len(folders)


def test_a_given_name_never_leaves_the_folder(recipe):
    with pytest.raises(UserError, match="job name '../x'"):
        make_job("demo_byte", recipe, recipe, "gs://b/r", "../x")


@pytest.mark.parametrize(
    "kind, options, run_dir, name, complaint",
    [
        ("jobset", {"topology": "v5e:4x4"}, "gs://b/r", None, "no --image is given"),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i"},
            "runs/r",
            None,
            "--run-dir runs/r is a folder of one machine",
        ),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i", "volumes": ("gs://b",)},
            "gs://b/r",
            None,
            "--volumes 'gs://b' is not SOURCE:/FOLDER",
        ),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i", "volumes": ("s3://b:/data",)},
            "/data/r",
            None,
            "only gs://BUCKET can be mounted",
        ),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i", "env": ("A",)},
            "gs://b/r",
            None,
            "--env 'A' is not NAME=VALUE",
        ),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i", "node_selector": ("A",)},
            "gs://b/r",
            None,
            "--node-selector 'A' is not LABEL=VALUE",
        ),
        (
            "jobset",
            {"topology": "v5e:4x4", "image": "i"},
            "gs://b/r",
            "8b",
            "job name '8b': .*begins with a letter.*--job-name",
        ),
        ("jobset", {"topology": "v5e:4x4", "image": "i"}, "gs://b/r", "A_b", "job name 'A_b'.*DNS-1123"),
        ("jobset", {"topology": "v5e:4x4", "image": "i"}, "gs://b/r", "a" * 48, "takes up to 47 small letters"),
        (
            "jobset",
            {"topology": "v5e:4x", "image": "i"},
            "gs://b/r",
            None,
            "no topology 'v5e:4x', did you mean .*there are v5e:2x2.*tpu7x:2x2x1",
        ),
        (
            "jobset",
            {"topology": "v5e:3x5", "image": "i"},
            "gs://b/r",
            None,
            "its 15 chips do not divide over hosts of 4",
        ),
        ("jobset", {"topology": "v5e:4x4", "image": "i", "max_restarts": -1}, "gs://b/r", None, "--max-restarts is -1"),
        (
            "jobset",
            {"topology": "v5e:16x16", "slices": 3, "image": "i"},
            "gs://b/r",
            None,
            "a batch of 1024 rows cannot be split into 768 devices",
        ),
        (
            "queued-resource",
            {"topology": "tpu7x:2x2x1", "image": "i", "project": "p", "zone": "z"},
            "gs://b/r",
            None,
            "the Cloud TPU API has no tpu7x; use --to jobset",
        ),
        (
            "queued-resource",
            {"topology": "v5e:4x4", "project": "p", "zone": "z"},
            "gs://b/r",
            None,
            "no --image is given",
        ),
        (
            "queued-resource",
            {"topology": "v5e:4x4", "image": "i", "project": "p", "zone": "z"},
            "/data/r",
            None,
            "is a folder of one machine",
        ),
        ("slurm", {"nodes": 0}, "r", None, "--nodes is 0"),
        ("slurm", {"nodes": 3}, "r", None, "cannot be split into 3 devices"),
        ("slurm", {"time": "30", "grace_seconds": 1800}, "r", None, "--grace-seconds is 1800 and --time 30: .* 1799,"),
        ("slurm", {"time": "UNLIMITED", "grace_seconds": 65_536}, "r", None, "give at most 65535"),
        ("slurm", {"time": "a day"}, "r", None, "--time 'a day' is no time limit"),
        ("slurm", {"partition": 'a"b'}, "r", None, "--partition .* sbatch takes no quotes"),
        ("local", {"num_processes": 3, "devices_per_process": 1}, "r", None, "cannot be split into 3 devices"),
    ],
)
def test_what_does_not_go_together_is_refused(kind, options, run_dir, name, complaint):
    with pytest.raises(UserError, match=complaint):
        target, base = target_class(kind)(**options), load_recipe("decoder_8b")
        target.render(make_job("decoder_8b", base, target.place(base), run_dir, name))


def test_a_mesh_that_does_not_fit_the_chips_is_refused():
    base = load_recipe("decoder_8b")
    recipe = dataclasses.replace(base, mesh=dataclasses.replace(base.mesh, fsdp=5))
    with pytest.raises(UserError, match="fsdp 5, .* does not cover 16 devices"):
        ON_TPUS.place(recipe)


def test_a_recipe_file_of_this_machine_is_refused_for_others(recipe):
    with pytest.raises(UserError, match="recipe my.py is a file of this machine"):
        ON_TPUS.render(make_job("my.py", recipe, recipe, "gs://b/r"))
    assert "/data/my.py" in ON_TPUS.render(make_job("/data/my.py", recipe, recipe, "gs://b/r"))
