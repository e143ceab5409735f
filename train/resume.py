"""Where a run stands: what hosts must have in common, its newest whole checkpoint, and what another run's folder is
refused for.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import rich.console

from data.held_out import TrainText
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote, read_json, write_json
from tokenizer_lab.representation import check_lossless
from train.console import say
from train.hosts import processes
from train.optimizer import Budget, learning_rate
from train.recipe import Recipe, amended, flatten, from_json, refused_changes, to_json
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder, append_lines, drop_lines_after, lock
from train.run.profiles import StepRange
from train.setup import Setup, set_up
from train.step import TrainState


def set_up_on_all_hosts(recipe: Recipe, profile: StepRange | None) -> Setup:
    """What a recipe stands for. Raises UserError, before anything is written, where it is wrong or hosts differ in
    it."""
    processes.compare("code and config", processes.code_version() | what_hosts_share(recipe))
    processes.compare("devices", {"the number of its devices": jax.local_device_count()})
    setup = set_up(recipe)
    check_lossless(setup.representation)
    if profile:
        profile.check(setup.num_steps)
    processes.compare("data", {name: value for name, value in setup.identity.items() if name != "config"})
    return setup


def what_hosts_share(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields but for the paths of what it reads, whose content is compared."""
    return {
        name: value
        for name, value in flatten(to_json(recipe)).items()
        if name not in ("representation", "data.corpora", "data.encoded")
    }


@contextlib.contextmanager
def open_folder(run: RunFolder, recipe: Recipe, console: rich.console.Console) -> Iterator[Checkpoints]:
    """The checkpoints of a run's folder. Inside no other job trains in it, and all hosts end together.

    Raises:
      UserError: another process has the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            stack.enter_context(lock(run.path))
            if is_remote(run.path):
                say(console, f"{run.path} is in an object store, which has no locks: let no other job train in it")
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(run.checkpoints, recipe.checkpoint.keep, recipe.checkpoint.host_gigabytes))
        )
        stack.enter_context(processes.ending_together())  # before the checkpoints are closed, which waits for all hosts
        yield checkpoints


def start_or_resume(
    setup: Setup, run: RunFolder, checkpoints: Checkpoints, console: rich.console.Console
) -> TrainState:
    """The state of the newest whole checkpoint, or a new one; the folder's lines behind it are dropped.

    Raises:
      UserError: the folder belongs to another run, or none of its checkpoints is whole.
    """
    found = checkpoints.newest_whole(lambda line: say(console, line)) if processes.is_first() else None
    step = processes.first_decides("step to go on from", found)
    if step is not None:
        meta = checkpoints.read_meta(step)
        refuse_another_run(run, meta, setup.identity)
        checkpoints.set_aside_after(step)
        state = checkpoints.restore(step, setup.program.shapes, setup.program.shardings)
        say(console, f"{run.path}: going on from step {step}")
        amend(run, setup, state, meta["config"], console)
    else:
        if run.config.exists():
            refuse_another_run(run, setup.identity | {"config": read_json(run.config, "run's config")}, setup.identity)
        state = setup.program.init(np.asarray(jax.random.key_data(jax.random.key(setup.recipe.seed))))
        text = TrainText(setup.corpora[0].documents("train"), setup.split.trained_from)
        state = dataclasses.replace(
            state, params=setup.recipe.objective.learn_from_text(state.params, setup.representation, text)
        )
    if processes.is_first():
        setup.representation.save(run.representation)
        write_json(run.config, setup.identity["config"])
        for lines in (run.metrics, run.evaluations):
            drop_lines_after(lines, step or 0)
    return state


def amend(
    run: RunFolder, setup: Setup, state: TrainState, stored: dict[str, Any], console: rich.console.Console
) -> None:
    """Notes, and says, what is changed of a run's config from this step on."""
    step, changes = int(state.step), amended(stored, setup.identity["config"])
    for name, (old, new) in changes.items():
        say(console, f"  from step {step} on: {name} {old} -> {new}")
    before = dataclasses.replace(setup.recipe, budget=from_json(Budget, stored["budget"]))
    rates = [float(rate_now(each, state)) for each in (dataclasses.replace(setup, recipe=before), setup)]
    if abs(rates[1] - rates[0]) > 0.01 * rates[0]:
        say(
            console,
            f"  the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g} here: its schedule is now that of the"
            " other budget, and no run that had this budget from the beginning comes to the same",
        )
    if processes.is_first():
        drop_lines_after(run.amendments, step - 1)  # of a start at this very step that came to no checkpoint
        lines = [{"step": step, "field": name, "old": old, "new": new} for name, (old, new) in changes.items()]
        if lines:
            append_lines(run.amendments, lines)


def rate_now(setup: Setup, state: TrainState) -> jax.Array:
    """The learning rate of the next step."""
    return learning_rate(setup.recipe.optimizer, setup.meter(state.step, state.bytes_seen, state.seconds)[0])


def refuse_another_run(run: RunFolder, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError naming what differs between the run in a folder and the one that is asked for."""
    differences = refused_changes(stored["config"], wanted["config"])
    for what in ("representation_fingerprint", "corpus_content_hashes"):
        if stored[what] != wanted[what]:
            differences.append(f"{what}: {_short(stored[what])} -> {_short(wanted[what])}")
    if differences:
        raise UserError(
            f"{run.path} holds another run: {'; '.join(differences)}; choose another --run-dir, or undo the change to"
            " go on with this one"
        )


def _short(fingerprints: str | list[str]) -> str:
    return (
        fingerprints[:12]
        if isinstance(fingerprints, str)
        else "+".join(fingerprint[:12] for fingerprint in fingerprints)
    )
