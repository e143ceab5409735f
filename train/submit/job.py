"""A job: one `toklab train` that something else starts, restarts and follows; and what makes two submissions the same
one."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, Protocol

import rich.console

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote, read_json, write_bytes, write_json
from train.console import say
from train.hosts.processes import code_fingerprint
from train.recipe import Recipe, flatten, recipe_names, refused_changes, to_json
from train.run.folder import RunFolder

MAX_NAME_LENGTH = 63  # of a DNS-1123 label
_DEFAULT_NAME_LENGTH = 40  # leaves room for what a place appends, of thousands of slices and hosts


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to run."""

    name: str
    recipe_name: str
    """As `toklab train` takes it: a name in `configs/`, or a file."""
    overrides: tuple[str, ...]
    """Options that make the named recipe this one."""
    recipe: Recipe
    run_dir: str
    code: str
    """Fingerprint of the code that submitted it."""

    @property
    def config(self) -> dict[str, Any]:
        return to_json(self.recipe)

    @property
    def config_fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @property
    def note(self) -> str:
        """A line of its script that says which run it is of."""
        folder = self.run_dir.rstrip("/") if is_remote(self.run_dir) else os.path.abspath(self.run_dir)
        return f"# toklab run {json.dumps(folder)}"

    def command(self, *toklab: str) -> list[str]:
        """What every host runs, where `toklab` is called so."""
        return [*toklab, "train", self.recipe_name, "--run-dir", self.run_dir, *self.overrides]


class Target(Protocol):
    """A place where jobs run: options of a person, and what is done with them."""

    def place(self, recipe: Recipe) -> Recipe:
        """The recipe as this place runs it. Raises UserError where the two do not go together."""

    def render(self, job: Job) -> str:
        """All that `submit` would do or send, as text. Contacts nothing and reads no credentials. Raises UserError."""

    def submit(self, job: Job, console: rich.console.Console) -> int:
        """Does it; returns the exit code of `toklab`. Raises UserError."""


def make_job(recipe_name: str, base: Recipe, recipe: Recipe, run_dir: str, name: str | None = None) -> Job:
    """A job that trains `recipe`, which is `base`, the one of that name, with some fields changed. Raises UserError."""
    if name:
        check_name(name)
    options = tuple(overrides(base, recipe))
    return Job(name or default_name(run_dir), recipe_name, options, recipe, run_dir, code_fingerprint())


def default_name(run_dir: str) -> str:
    """The run folder's name, as far as a job's name may be like it; one that `check_name` takes, whatever the folder's.

    Folders whose names lose letters or are cut get different names all the same.
    """
    folder = run_dir.rstrip("/").rpartition("/")[2]
    name = "-".join(re.findall(r"[a-z0-9]+", folder.lower()))
    if not name[:1].isalpha():
        name = f"run-{name}".rstrip("-")
    if not folder.isascii() or len(name) > _DEFAULT_NAME_LENGTH:
        tail = hashlib.sha256(run_dir.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{name[: _DEFAULT_NAME_LENGTH - 9].rstrip('-')}-{tail}"
    return name


def check_name(name: str, max_length: int = MAX_NAME_LENGTH) -> None:
    """Raises UserError where Kubernetes and Cloud TPU would not take a job's name: a DNS-1123 label that begins with a
    letter."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > max_length:
        raise UserError(
            f"job name {name!r}: it takes up to {max_length} small letters, digits and '-', begins with a letter and"
            " does not end with '-' (DNS-1123); give another with --job-name"
        )


def overrides(base: Recipe, wanted: Recipe) -> list[str]:
    """Options of `toklab train` that turn one recipe into another of the same kinds."""
    old, new = flatten(to_json(base)), flatten(to_json(wanted))
    return [word for name, value in new.items() if value != old[name] for word in option_words(name, value)]


def option_words(name: str, value: Any) -> list[str]:
    """A field of a config as an option on the command line."""
    section, _, field = name.replace("_", "-").rpartition(".")
    prefix = f"--{section}." if section else "--"
    if isinstance(value, bool):
        return [f"{prefix}{field}" if value else f"{prefix}no-{field}"]
    return [f"{prefix}{field}", *(str(part) for part in (value if isinstance(value, list) else [value]))]


def check_reachable_recipe(job: Job) -> None:
    """Raises UserError for a recipe's file that other machines cannot be expected to have."""
    if (
        job.recipe_name not in recipe_names()
        and not is_remote(job.recipe_name)
        and not pathlib.PurePosixPath(job.recipe_name).is_absolute()
    ):
        raise UserError(
            f"recipe {job.recipe_name} is a file of this machine; put it into configs/ of the image and give its name,"
            " or give the absolute path that it has here and there"
        )


def refuse_another_config(where: str, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError naming what differs between a config that was submitted and the one that is now."""
    if differences := refused_changes(stored, wanted):
        raise UserError(
            f"{where} holds another run: {'; '.join(differences)}; choose another --run-dir, or undo the change to go"
            " on with this one"
        )


def record(job: Job, target: str, console: rich.console.Console) -> None:
    """Writes RUN/job.json. Raises UserError where the folder holds another run, or cannot be written."""
    run, before = RunFolder(job.run_dir), None
    if run.job.exists():
        before = read_json(run.job, "job")
        if not isinstance(before, dict) or not isinstance(before.get("config"), dict):
            raise UserError(f"{run.job} is not a job's; remove it")
        refuse_another_config(str(run.path), before["config"], job.config)
    if run.config.exists():
        refuse_another_config(str(run.path), read_json(run.config, "run's config"), job.config)
    if before and before.get("code") != job.code:
        say(
            console,
            f"{run.path}: the code is another than at the submission before, {str(before.get('code'))[:12]} ->"
            f" {job.code[:12]}",
        )
    write_json(
        run.job,
        {
            "name": job.name,
            "to": target,
            "command": job.command("toklab"),
            "config": job.config,
            "config_fingerprint": job.config_fingerprint,
            "code": job.code,
        },
    )


def write_script(job: Job, script: str, suffix: str) -> pathlib.Path:
    """Writes a job's script, which has its note, into this folder. Raises UserError where another run's is there."""
    file = pathlib.Path(f"{job.name}{suffix}")
    if file.exists() and job.note not in file.read_text(errors="replace").splitlines():
        raise UserError(
            f"{file} is here and not of the run {job.run_dir}; choose another --job-name, submit from another folder,"
            " or remove the file"
        )
    write_bytes(file, script.encode())
    return file


def record_from_afar(job: Job, target: str, console: rich.console.Console) -> None:
    """`record` for a run folder that the hosts can write and this machine perhaps cannot: then the hosts find out what
    is wrong."""
    try:
        RunFolder(job.run_dir).job.exists()
    except (
        Exception
    ) as error:  # whatever the library behind the store raises where it is not installed or lets nobody in
        say(console, f"{job.run_dir} cannot be read from here ({type(error).__name__}); the hosts compare the configs")
    else:
        record(job, target, console)


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """{"A": "1"} of "A=1". Raises UserError."""
    for pair in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", pair, re.DOTALL):
            raise UserError(f"--env {pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def shell_values(**values: str | int | Sequence[str]) -> str:
    """Assignments for the head of a bash script; sequences become arrays."""
    quoted = {
        name: _quoted(str(value)) if isinstance(value, str | int) else f"({' '.join(map(_quoted, value))})"
        for name, value in values.items()
    }
    return "# shellcheck disable=SC2016 # nothing in the values is to be expanded\n" + "".join(
        f"{name}={value}\n" for name, value in quoted.items()
    )


def _quoted(word: str) -> str:
    return (
        f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)
    )  # a bare comma in an array looks like a mistake
