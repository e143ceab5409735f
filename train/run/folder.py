"""What lies in a run's folder, and who writes it.

config.json      the resolved recipe                                          train
representation/  a copy of the artifact, so that the folder stands alone      train
checkpoints/     one folder a step: weights, optimizer, counters, cursors     train
metrics.jsonl    a line every few steps                                       train
eval.jsonl       a line an evaluation while training, on a part of the text   train
amendments.jsonl a line for each field that was changed when it went on       train
documents/       a file a process: running hashes of what its rows have read  train
times/           a file a process: its time, what on, which steps             train
summary.json     what the run was and what it cost, once it ends or stops     train
tensorboard/     the same metrics for TensorBoard                             train
wandb.json       the id of its run at Weights & Biases, if it has one there   train
profile/         traces of steps, where `--profile` asked for them            train
eval.json        bits per byte over all held-out text                         eval
eval_documents.json  the same, document by document                           eval
eval_stride.json bits per byte of the same text by a sliding window           eval --stride
noise.json       the same of some text with noise, and pairs told apart       eval --noise
exact_bytes.json bits per byte of some held-out text, byte by byte            eval
tasks.json       results of the lm-evaluation-harness                         eval --tasks
samples.json     texts drawn from the model                                   sample
finetune/        one file a task: what the run came to when fine-tuned on it  finetune
blimp.json       how often the better sentence of a pair had the better score blimp
job.json         what was submitted, with fingerprints of code and config     submit
logs/            what each process wrote, where submit started them           submit
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, is_remote, write_bytes, write_json


class RunFolder:
    """Paths of a run's files."""

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self.config = self.path / "config.json"
        self.representation = self.path / "representation"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "eval.jsonl"
        self.amendments = self.path / "amendments.jsonl"
        self.documents = self.path / "documents"
        self.times = self.path / "times"
        self.profile = self.path / "profile"
        self.summary = self.path / "summary.json"
        self.tensorboard = self.path / "tensorboard"
        self.wandb = self.path / "wandb.json"
        self.evaluation = self.path / "eval.json"
        self.evaluated_documents = self.path / "eval_documents.json"
        self.evaluation_by_window = self.path / "eval_stride.json"
        self.noise = self.path / "noise.json"
        self.exact_bytes = self.path / "exact_bytes.json"
        self.tasks = self.path / "tasks.json"
        self.samples = self.path / "samples.json"
        self.finetuned = self.path / "finetune"
        self.minimal_pairs = self.path / "blimp.json"
        self.job = self.path / "job.json"
        self.logs = self.path / "logs"


def lock(folder: epath.PathLike) -> contextlib.AbstractContextManager[Any]:
    """Takes the folder for this process inside the returned context. Raises UserError if another has it, or none can be
    written.

    An object store has no locks: there it is only tried whether the folder can be written.
    """
    if is_remote(folder):
        write_json(
            epath.Path(folder) / ".last_start.json",
            {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()},
        )
        return contextlib.nullcontext()
    path = pathlib.Path(os.fspath(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "a")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another process is training in {path}; wait for it, or choose another --run-dir") from error
    return file


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """The values of a .jsonl file, none if there is no file. A last line that was cut off by a crash is left out.
    Raises UserError."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}; delete the line") from error
    return values


def append_lines(path: epath.Path, values: Iterable[dict[str, Any]]) -> None:
    """Adds lines to a .jsonl file, which is written anew."""
    write_bytes(path, "".join(json.dumps(value) + "\n" for value in [*read_lines(path), *values]).encode())


def drop_lines_after(path: epath.Path, step: int) -> None:
    """Takes out what a run that was cut off wrote after the checkpoint it goes on from."""
    kept = [line for line in read_lines(path) if line["step"] <= step]
    if path.exists():
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
