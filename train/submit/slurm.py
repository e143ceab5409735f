"""`toklab submit --to slurm`: the batch script of a job on a SLURM cluster, whose folders all of its nodes see."""

import dataclasses
import math
import os
import pathlib
import re
import sys

import rich.console

from tokenizer_lab.errors import FROM_0, UserError, check_numbers
from tokenizer_lab.files import is_remote
from train.console import say
from train.recipe import Recipe
from train.submit.job import Job, check_name, environment, record, shell_values, write_script

_BODY = pathlib.Path(__file__).with_name("slurm.sh")
_PLAIN = re.compile(r"[\w./:@%+=,-]*")  # sbatch takes this as it is; a space or # would end it outside of quotes
_MAX_SIGNAL_SECONDS = 65_535  # of sbatch's --signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """Write the batch script of a SLURM cluster; sbatch takes it."""

    nodes: int = 1
    gpus_per_node: int = 0
    """Each gets a process of its own, as JAX expects of SLURM; without GPUs a node has one process."""
    cpus_per_task: int | None = None
    """Of a process."""
    time: str = "24:00:00"
    """Limit of one allocation, as sbatch takes it: minutes, [days-]hours:minutes:seconds, ...; the job asks for the
    next one by itself."""
    partition: str | None = None
    account: str | None = None
    max_restarts: int = 3
    """In one allocation, after processes that failed; stops do not count."""
    grace_seconds: int = 120
    """Before the time limit, for saving."""
    env: tuple[str, ...] = ()
    """NAME=VALUE of every process's environment."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", gpus_per_node=FROM_0, max_restarts=FROM_0)

    @property
    def tasks_per_node(self) -> int:
        return self.gpus_per_node or 1

    def place(self, recipe: Recipe) -> Recipe:
        limit_seconds = seconds_of(self.time)
        if self.grace_seconds > (most := min(_MAX_SIGNAL_SECONDS, limit_seconds - 1)):
            raise UserError(
                f"--grace-seconds is {self.grace_seconds} and --time {self.time}: saving begins so long before the"
                f" limit and has to lie in the job; give at most {most:.0f}, or a longer --time"
            )
        recipe.check_devices(self.nodes * self.tasks_per_node)
        return recipe

    def render(self, job: Job) -> str:
        check_name(job.name)
        given = {
            "job-name": job.name,
            "comment": f"toklab config {job.config_fingerprint[:16]} code {job.code[:16]}",
            "chdir": os.getcwd(),
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:TERM@{self.grace_seconds}",
            "output": f"{self.log_folder(job).replace('%', '%%')}/slurm-%j.log",  # %j is the job's number
            "open-mode": "append",
        }
        for name, value in given.items():
            if any(character in str(value) for character in '"\n\\`$'):
                raise UserError(f"--{name} {value!r}: sbatch takes no quotes, backslashes, dollars and line ends there")
        directives = [
            f"#SBATCH --{name}={value}" if _PLAIN.fullmatch(str(value)) else f'#SBATCH --{name}="{value}"'
            for name, value in given.items()
            if value is not None
        ]
        values = shell_values(
            command=[
                "env",
                "PYTHONUNBUFFERED=1",
                *(f"{name}={value}" for name, value in environment(self.env).items()),
                *job.command(sys.executable, "-m", "train.commands.cli"),
            ],
            max_restarts=self.max_restarts,
            grace_seconds=self.grace_seconds,
        )
        return "\n".join(
            ["#!/usr/bin/env bash", *directives, "#SBATCH --requeue", job.note, "", values + _BODY.read_text()]
        )

    def submit(self, job: Job, console: rich.console.Console) -> int:
        script = self.render(job)
        record(job, "slurm", console)
        pathlib.Path(self.log_folder(job)).mkdir(parents=True, exist_ok=True)  # SLURM does not make it
        file = write_script(job, script, ".sbatch")
        say(console, f"{file} is written; start the job with: sbatch {file}")
        return 0

    @staticmethod
    def log_folder(job: Job) -> str:
        return f"toklab-logs/{job.name}" if is_remote(job.run_dir) else f"{job.run_dir.rstrip('/')}/logs"


def seconds_of(limit: str) -> float:
    """Of a time limit as sbatch takes it. Raises UserError."""
    if limit.upper() in ("INFINITE", "UNLIMITED"):
        return math.inf
    days, dash, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not (len(parts) <= 3 and all(part.isdecimal() for part in parts) and (days.isdecimal() or not dash)):
        raise UserError(
            f"--time {limit!r} is no time limit; give minutes, minutes:seconds, hours:minutes:seconds, or days- before"
            " hours, hours:minutes or hours:minutes:seconds"
        )
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)  # of the first part and those behind it
    seconds = 86_400 * int(days or 0) + sum(unit * int(part) for unit, part in zip(units, parts))
    return seconds or math.inf  # 0 is none
