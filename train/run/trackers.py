"""Where a run's numbers go besides its own files: TensorBoard, and Weights & Biases."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cache_folder, is_remote, read_json, remote_errors, write_json
from train.run.folder import RunFolder

HELD_OUT = "held_out/"
"""What the names of an evaluation's figures begin with."""


class Tracker(Protocol):
    """Takes the numbers of a step, by name."""

    def __call__(self, step: int, numbers: dict[str, float]) -> None: ...


@contextlib.contextmanager
def tensorboard(run: RunFolder, first_step: int) -> Iterator[Tracker]:
    """Writes events into the run's folder; those that an earlier process wrote behind `first_step` count no more."""
    from tensorboardX import SummaryWriter  # loads clients of object stores

    with remote_errors(run.tensorboard):
        writer = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    with contextlib.closing(writer):
        yield track


@contextlib.contextmanager
def weights_and_biases(run: RunFolder, project: str, config: dict[str, Any]) -> Iterator[Tracker]:
    """Logs to the W&B run that belongs to the run's folder: other seeds and corpora of a recipe have folders, and W&B
    runs, of their own. Raises UserError where there is no W&B, or it refuses."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "logging.wandb_project is set but wandb is not installed; pip install 'tokenizer-lab[wandb]' or leave"
            " it out"
        ) from error
    folder = cache_folder("wandb") if is_remote(run.path) else run.path  # it writes files of this machine only
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tracked = wandb.init(
            project=project,
            name=run.path.name,
            group=config["name"],
            dir=str(folder),
            config=config,
            allow_val_change=True,  # a run that goes on may have a longer budget
            id=_id_of(run),
            resume="allow",
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"W&B does not start: {reason}; mend that, or leave logging.wandb_project out") from error
    tracked.define_metric("step")
    tracked.define_metric("*", step_metric="step")

    # By the number of a row W&B knows what it has: a step that is taken again after a crash is not shown twice, and the
    # evaluation behind a step has a row of its own, as W&B may have that step alone.
    def track(step: int, numbers: dict[str, float]) -> None:
        row = 2 * step + any(name.startswith(HELD_OUT) for name in numbers)
        if row >= tracked.starting_step:
            tracked.log({"step": step, **numbers}, step=row)

    try:
        yield track
    except BaseException:
        tracked.finish(exit_code=1)
        raise
    tracked.finish()


def _id_of(run: RunFolder) -> str:
    """Made when the folder is first tracked, and kept in it."""
    if run.wandb.exists():
        stored = read_json(run.wandb, "run's W&B id")
        if not isinstance(stored, dict) or not isinstance(stored.get("id"), str):
            raise UserError(f"{run.wandb} holds no W&B id; remove it, and the run goes on as another one of W&B")
        return stored["id"]
    new = uuid.uuid4().hex
    write_json(run.wandb, {"id": new})
    return new
