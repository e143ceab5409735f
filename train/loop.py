"""The training loop: from a recipe and a run folder to a trained model, or to a checkpoint that goes on exactly."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
import rich.console

from data.document_hash import NoteHash
from data.held_out import fixed_subset, held_out_documents
from data.rows import RowStreams, Source
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote, read_json, write_json
from train.exits import stop_signals_to
from train.hosts import processes
from train.optimizer import from_limbs
from train.recipe import Recipe, flatten, refused_changes, to_json
from train.run.checkpoints import Checkpoints
from train.run.document_hashes import DocumentHashes
from train.run.folder import RunFolder, drop_lines_after, lock
from train.run.goodput import Timekeeper, account
from train.run.logs import NoLog, RunLog, Stopwatch
from train.run.profiles import Profiler, StepRange
from train.setup import Setup, set_up
from train.sharding import batch_sharding, cursor_sharding, local_rows, put_rows
from train.step import TrainState, make_train_step

FINISHED, STOPPED = "finished", "stopped"

Judge = Callable[[Sequence[bytes], Any], dict[str, Any]]
"""(documents, params) -> the figures of held-out text and its `num_bytes`."""
MakeJudge = Callable[[Setup], Judge]


def train(
    recipe: Recipe,
    run_dir: str,
    console: rich.console.Console,
    make_judge: MakeJudge,
    enter: Callable[[str], None] = lambda part: None,
    profile: StepRange | None = None,
) -> str:
    """Trains until the budget is spent; goes on from the newest checkpoint if the folder has one.

    Args:
      recipe: what to train.
      run_dir: the run's folder, which all processes see.
      console: where to say how it goes.
      make_judge: what held-out text is scored by while training, e.g. `train.evaluate.bits_per_byte.make_judge`.
      enter: told which part of the run begins: compile, step, evaluation, save (`train/hosts/watchdog.py`).
      profile: steps to trace.

    Returns:
      FINISHED, or STOPPED if a signal asked for it and the state was saved.

    Raises:
      UserError: something a person can mend. What was committed is whole.
    """
    run, clock = RunFolder(run_dir), Stopwatch()
    with contextlib.ExitStack() as stack:
        stop = StopSignal()
        stack.enter_context(stop_signals_to(stop.note))
        # 1. What is read and trained, and where it lives; refused before anything is written.
        processes.compare("code and config", processes.code_version() | what_hosts_share(recipe))
        processes.compare("devices", {"the number of its devices": jax.local_device_count()})
        setup = set_up(recipe)
        if profile:
            profile.check(setup.num_steps)
        processes.compare("data", {name: value for name, value in setup.identity.items() if name != "config"})
        # 2. Where the run stands.
        if processes.is_first():
            stack.enter_context(lock(run_dir))
            if is_remote(run_dir):
                console.print(
                    f"{run_dir} is in an object store, which has no locks: let no other job train in it", soft_wrap=True
                )
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(run.checkpoints, recipe.checkpoint.keep, recipe.checkpoint.host_gigabytes))
        )
        stack.enter_context(processes.ending_together())  # before the checkpoints are closed, which waits for all hosts
        state = start_or_resume(setup, run, checkpoints, console)
        first_step, first_bytes = int(state.step), from_limbs(state.bytes_seen)
        over = bool(setup.meter(state.step, state.bytes_seen, state.seconds)[1])
        if processes.first_decides("nothing left to do", over and is_summarized(run, first_step)):
            console.print(
                f"{run.path} has spent its budget at step {first_step:,}; raise it to train on, e.g."
                f" {recipe.budget.twice}",
                soft_wrap=True,
            )
            return FINISHED
        times = Timekeeper(run.times if processes.is_first() else None, clock, first_step)
        # 3. The data from there, and the held-out text.
        document_hashes = DocumentHashes(run.documents, processes.this_host())
        next_batch = open_batches(setup, state, document_hashes.note)
        evaluate = make_evaluate(setup, make_judge(setup))
        # 4. The step.
        enter("compile")
        batch = next_batch()
        clock.seconds["start-up"] = clock.total_seconds
        with clock("compile"), console.status("compiling the training step"):
            train_step = (
                make_train_step(
                    setup.program,
                    recipe.objective,
                    recipe.optimizer,
                    setup.mesh,
                    meter=setup.meter,
                    num_microbatches=recipe.data.num_microbatches,
                    kernels=recipe.kernels,
                )
                .lower(state, batch)
                .compile()
            )
        describe(setup, clock.seconds["compile"], console)

        # 5. The loop. One step is in flight while the host looks at the numbers of the one before it.
        log = stack.enter_context(
            RunLog(run, recipe.logging, setup.identity["config"], recipe.objective.figures, console)
            if processes.is_first()
            else NoLog()
        )
        profiler = stack.enter_context(Profiler(profile if processes.is_first() else None, run.profile, console))
        launched, in_flight = first_step, collections.deque()
        any_host, stopped = processes.make_any_host(setup.mesh), False
        on_clock = make_on_clock(setup, state, clock)
        checkpoint_due = lambda: launched % recipe.checkpoint.every_steps == 0
        evaluation_due = lambda: launched % recipe.evaluation.every_steps == 0
        started = time.perf_counter()

        while not (over or stopped):
            enter("step")
            checkpoints.check()
            with clock("profile"):
                profiler.reach(launched, state)
            with clock("step"), jax.profiler.StepTraceAnnotation("train", step_num=launched):
                state, metrics = train_step(on_clock(state), batch)
                in_flight.append((metrics, any_host(stop.received)))
            launched += 1
            with clock("data"):
                batch = next_batch()
            may_fly = 0 if checkpoint_due() or evaluation_due() or launched == setup.num_steps else 1
            while len(in_flight) > may_fly and not over:
                with clock("step"):
                    metrics, asked = jax.device_get(in_flight.popleft())
                stopped |= bool(asked)
                over = look_at(metrics, setup, log, clock)
            times.note(launched - len(in_flight))
            if evaluation_due() and not over:
                enter("evaluation")
                with clock("evaluation"), log.paused():
                    log.evaluation(evaluate(state))
            if checkpoint_due() and not over:
                enter("save")
                with clock("checkpoint"):
                    document_hashes.write()
                    state = on_clock(state)
                    checkpoints.save(launched, state, setup.identity | {"counters": counters(setup, state)})
        with clock("step"):  # a step that was launched behind the end of the budget has changed nothing
            rest = [] if over else jax.device_get(list(in_flight))
        for metrics, _ in rest:
            over = look_at(metrics, setup, log, clock)
        seconds = time.perf_counter() - started

        # 6. The end: what the model is worth, and everything on disk.
        log.write_pending()
        if over:
            enter("evaluation")
            with clock("last evaluation"):
                log.evaluation(evaluate(state))
        enter("save")
        with clock("checkpoint"):
            document_hashes.write()
            state = on_clock(state)
            if checkpoints.latest_step() != int(state.step):
                checkpoints.save(int(state.step), state, setup.identity | {"counters": counters(setup, state)})
            checkpoints.wait()
        outcome = FINISHED if over else STOPPED
        summary = summarize(
            setup,
            state,
            outcome,
            int(state.step) - first_step,
            from_limbs(state.bytes_seen) - first_bytes,
            seconds,
            clock.seconds,
        )
        times.write(int(state.step), finished=over)
        if processes.is_first():
            write_json(
                run.summary,
                summary | {"goodput": account(run.times), "save_memory_growth_bytes": checkpoints.memory_growth_bytes},
            )
        console.print(
            f"{recipe.name} {outcome} at step {summary['steps']:,}: {summary['bytes_seen']:,} bytes seen,"
            f" {summary['flops']:.3g} FLOPs, {seconds:.1f} s ({summary['outside_step_share']:.1%} of it outside the"
            f" step), {summary['skipped_steps']} steps skipped",
            soft_wrap=True,
        )
    return outcome


class StopSignal:
    """Notes the first Ctrl-C or SIGTERM for the loop to act on; a second one interrupts at once."""

    def __init__(self):
        self.received = False

    def note(self, *_: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


def what_hosts_share(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields but for the paths of what it reads, whose content is compared."""
    return {
        name: value
        for name, value in flatten(to_json(recipe)).items()
        if name not in ("representation", "data.corpora", "data.encoded")
    }


def start_or_resume(
    setup: Setup, run: RunFolder, checkpoints: Checkpoints, console: rich.console.Console
) -> TrainState:
    """The state of the newest whole checkpoint, or a new one; the folder's lines behind it are dropped.

    Raises:
      UserError: the folder belongs to another run, or none of its checkpoints is whole.
    """
    found = checkpoints.newest_whole(lambda line: console.print(line, soft_wrap=True)) if processes.is_first() else None
    step = processes.first_decides("step to go on from", found)
    if step is not None:
        refuse_another_run(run, checkpoints.read_meta(step), setup.identity)
        checkpoints.set_aside_after(step)
        state = checkpoints.restore(step, setup.program.shapes, setup.program.shardings)
        console.print(f"{run.path}: going on from step {step}", soft_wrap=True)
    else:
        if run.config.exists():
            refuse_another_run(run, setup.identity | {"config": read_json(run.config, "run's config")}, setup.identity)
        state = setup.program.init(np.asarray(jax.random.key_data(jax.random.key(setup.recipe.seed))))
        text = setup.corpora[0].documents("train")
        state = dataclasses.replace(
            state, params=setup.recipe.objective.learn_from_text(state.params, setup.representation, text)
        )
    if processes.is_first():
        setup.representation.save(run.representation)
        write_json(run.config, setup.identity["config"])
        for lines in (run.metrics, run.evaluations):
            drop_lines_after(lines, step or 0)
    return state


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


def open_batches(setup: Setup, state: TrainState, note_hash: NoteHash) -> Callable[[], dict[str, jax.Array]]:
    """A function that gives the next global batch, from where the state's cursors stand; rows tell `note_hash` what
    they have read."""
    data, mesh = setup.recipe.data, setup.mesh
    rows = local_rows(mesh, data.batch_rows)
    weights = data.weights or (1.0,) * len(setup.corpora)
    streams = RowStreams(
        [Source(corpus.documents("train"), weight) for corpus, weight in zip(setup.corpora, weights)],
        setup.representation,
        batch_rows=data.batch_rows,
        sequence_length=data.sequence_length,
        seed=setup.recipe.seed,
        rows=rows,
        cursors=_rows_of(state.cursors, rows),
        piece_length=data.piece_length,
        num_workers=data.num_workers,
        layout=setup.recipe.layout,
        note_hash=note_hash,
    )
    batches = iter(grain.experimental.ThreadPrefetchIterDataset(streams, prefetch_buffer_size=data.prefetch_batches))

    def place(name: str, value: np.ndarray) -> jax.Array:
        sharding = cursor_sharding(mesh) if name == "cursors" else batch_sharding(mesh, value.ndim)
        return put_rows(value, rows, data.batch_rows, sharding)

    return lambda: {name: place(name, value) for name, value in next(batches).items()}


def _rows_of(cursors: jax.Array, rows: list[int]) -> np.ndarray:
    """This process's rows of the global cursors i32[B, S + 3]."""
    own = {}
    for shard in cursors.addressable_shards:
        own |= zip(range(*shard.index[0].indices(cursors.shape[0])), np.asarray(shard.data))
    return np.stack([own[row] for row in rows])


def make_on_clock(setup: Setup, state: TrainState, clock: Stopwatch) -> Callable[[TrainState], TrainState]:
    """A function that tells a state how long has been trained, where the budget is in seconds; `state` is the one that
    is gone on from."""
    if setup.budget.seconds is None:
        return lambda state: state
    before, shared = float(state.seconds), processes.make_first_number(setup.mesh)
    trained = lambda: before + clock.seconds.get("step", 0.0) + clock.seconds.get("data", 0.0)
    return lambda state: dataclasses.replace(state, seconds=shared(trained()))


def make_evaluate(setup: Setup, judge: Judge) -> Callable[[TrainState], dict[str, Any]]:
    """A function that scores a fixed part of the held-out text; its result is a line of eval.jsonl."""
    held_out = fixed_subset(held_out_documents(setup.corpora), setup.recipe.evaluation.max_bytes)
    return lambda state: counters(setup, state) | judge(held_out, state.params)


def counters(setup: Setup, state: TrainState) -> dict[str, Any]:
    """How far a state has come."""
    step = int(state.step)
    return {"step": step, "bytes_seen": from_limbs(state.bytes_seen), "flops": setup.flops(step)}


def look_at(metrics: dict[str, np.ndarray], setup: Setup, log: RunLog, clock: Stopwatch) -> bool:
    """Logs one step's numbers; returns whether the budget is spent. Raises UserError where the run has gone wrong."""
    if metrics["over"]:
        return True
    numbers = jax.tree.map(np.ndarray.tolist, metrics)
    numbers["bytes_seen"] = from_limbs(numbers["bytes_seen"])
    numbers["tokens_seen"] = numbers["step"] * setup.tokens_per_step
    numbers |= {"flops": setup.flops(numbers["step"]), "model_flops": setup.model_flops_per_step}
    with clock("log"):
        log.step(numbers, clock.seconds.get("data", 0.0))
    if numbers["skipped_in_a_row"] >= setup.recipe.optimizer.max_skipped_in_a_row:
        raise UserError(
            f"the last {numbers['skipped_in_a_row']} steps, up to step {numbers['step']}, were skipped because their"
            f" gradients were not finite or spiked (last norm {numbers['grad_norm']:.3g}); lower"
            " --optimizer.learning-rate or raise --optimizer.skip-above"
        )
    budget = setup.recipe.budget
    if budget.seconds is not None:
        return False  # the clock says so before a step, which then changes nothing
    return numbers["bytes_seen"] >= budget.bytes if budget.bytes is not None else numbers["step"] >= setup.num_steps


def describe(setup: Setup, compile_seconds: float, console: rich.console.Console) -> None:
    """Says what is about to be trained."""
    parameters = setup.recipe.objective.count_parameters(setup.recipe.model, setup.representation.vocab_size)["total"]
    budget = setup.budget
    length = (
        f"{setup.num_steps:,} steps"
        if setup.num_steps is not None
        else f"{budget.seconds:,g} seconds"
        if budget.seconds
        else f"{budget.bytes:,} bytes of text"
    )
    console.print(
        f"{setup.representation.kind}, {setup.representation.vocab_size:,} ids; {parameters:,} parameters;"
        f" {setup.flops_per_step:.3g} FLOPs a step of {setup.tokens_per_step:,} positions; {length}; {setup.mesh.size}"
        f" x {jax.devices()[0].device_kind}; compiled in {compile_seconds:.1f} s",
        soft_wrap=True,
    )


def is_summarized(run: RunFolder, step: int) -> bool:
    """Whether summary.json says that the run finished at this step; a crash can come between a run's last checkpoint
    and that."""
    if not run.summary.exists():
        return False
    summary = read_json(run.summary, "run's summary")
    return (summary.get("state"), summary.get("steps")) == (FINISHED, step)


def summarize(
    setup: Setup,
    state: TrainState,
    outcome: str,
    steps_here: int,
    bytes_here: int,
    loop_seconds: float,
    seconds_by_part: dict[str, float],
) -> dict[str, Any]:
    """What goes into summary.json: what the run was, what it has seen and spent, and where the time of its last part
    went."""
    recipe, step, bytes_seen = setup.recipe, int(state.step), from_limbs(state.bytes_seen)
    stepping = max(1e-9, loop_seconds - seconds_by_part.get("evaluation", 0.0))
    tokens_seen = step * setup.tokens_per_step
    bytes_per_token = bytes_seen / max(1, tokens_seen)
    vocab_size = setup.representation.vocab_size
    packages = ("jax", "jaxlib", "flax", "tokenizer-lab")
    return {
        "name": recipe.name,
        "state": outcome,
        "representation": {
            "kind": setup.representation.kind,
            "vocab_size": vocab_size,
            "fingerprint": setup.representation.fingerprint,
            "bytes_per_token": bytes_per_token,
            "costs": dict(setup.representation.costs),
            "statistics": dict(setup.representation.statistics),
        },
        "parameters": recipe.objective.count_parameters(recipe.model, vocab_size),
        "flops_per_token": setup.flops_per_token,
        "flops_per_byte": setup.flops_per_token["total"] / bytes_per_token if bytes_per_token else None,
        "steps": step,
        "bytes_seen": bytes_seen,
        "tokens_seen": tokens_seen,
        "flops": setup.flops(step),
        "seconds": loop_seconds,
        "seconds_by_part": seconds_by_part,
        "bytes_per_second": bytes_here / stepping,
        "tokens_per_second": steps_here * setup.tokens_per_step / stepping,
        "outside_step_share": max(0.0, 1 - seconds_by_part.get("step", 0.0) / stepping),
        "skipped_steps": int(state.skipped_steps),
        "corpora": [
            {"path": path, "content_hash": corpus.content_hash}
            for path, corpus in zip(recipe.data.corpora, setup.corpora)
        ],
        "device": f"{setup.mesh.size} x {jax.devices()[0].device_kind}",
        "versions": (
            {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
        ),
    }
