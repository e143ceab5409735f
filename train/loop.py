"""The training loop: from a recipe and a run folder to a trained model, or to a checkpoint that goes on exactly."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from data.held_out import fixed_subset, tuning_documents
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train.batches import open_batches
from train.console import say
from train.exits import stop_signals_to
from train.hosts import processes
from train.optimizer import from_limbs, learning_rate
from train.recipe import Recipe
from train.resume import open_folder, set_up_on_all_hosts, start_or_resume
from train.run.checkpoints import Checkpoints
from train.run.document_hashes import DocumentHashes
from train.run.folder import RunFolder
from train.run.goodput import Timekeeper, account
from train.run.logs import NoLog, RunLog, Stopwatch
from train.run.profiles import Profiler, StepRange
from train.setup import Setup
from train.step import TrainState, make_train_step
from train.summary import FINISHED, STOPPED, counters, describe, is_summarized, summarize

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
        setup = set_up_on_all_hosts(recipe, profile)
        # 2. Where the run stands.
        checkpoints = stack.enter_context(open_folder(run, recipe, console))
        state = start_or_resume(setup, run, checkpoints, console)
        before = counters(setup, state)
        over = bool(setup.meter(state.step, state.bytes_seen, state.seconds)[1])
        if processes.first_decides("nothing left to do", over and is_summarized(run, before["step"])):
            say_nothing_is_left(setup, run, before["step"], console)
            return FINISHED
        times = Timekeeper(run.times if processes.is_first() else None, clock, before["step"])
        # 3. The data from there, and the held-out text.
        document_hashes = DocumentHashes(run.documents, processes.this_host())
        next_batch = stack.enter_context(open_batches(setup, state, document_hashes.note))
        evaluate = make_evaluate(setup, make_judge(setup), console) if recipe.evaluation.every_steps else None
        # 4. The step.
        enter("compile")
        batch = next_batch()
        clock.seconds["start-up"] = clock.total_seconds
        train_step = compile_train_step(setup, state, batch, clock, console)
        # 5. The loop.
        log = open_log(setup, run, console, before["step"])
        stack.enter_context(log)
        profiler = stack.enter_context(Profiler(profile if processes.is_first() else None, run.profile, console))
        on_clock = make_on_clock(setup, state, clock)
        work = Work(
            setup, run, console, clock, enter, times, checkpoints, document_hashes, log, profiler, evaluate, on_clock
        )
        state, over, seconds = take_steps(work, train_step, state, batch, next_batch, stop, over)
        # 6. The end: what the model is worth, and everything on disk.
        return finish(work, before, state, over, seconds)


@dataclasses.dataclass(frozen=True)
class Work:
    """What the steps of a run and its end work with."""

    setup: Setup
    run: RunFolder
    console: rich.console.Console
    clock: Stopwatch
    enter: Callable[[str], None]
    times: Timekeeper
    checkpoints: Checkpoints
    document_hashes: DocumentHashes
    log: RunLog | NoLog
    profiler: Profiler
    evaluate: Callable[[TrainState], dict[str, Any]] | None
    """None where evaluations are off."""
    on_clock: Callable[[TrainState], TrainState]


def take_steps(
    work: Work,
    train_step: Callable[..., Any],
    state: TrainState,
    batch: dict[str, jax.Array],
    next_batch: Callable[[], dict[str, jax.Array]],
    stop: "StopSignal",
    over: bool,
) -> tuple[TrainState, bool, float]:
    """Trains until the budget is spent or a host was asked to stop.

    One step is in flight while the host looks at the numbers of the one before it.

    Returns:
      The state, whether the budget is spent, and the seconds that it took.
    """
    setup, clock, enter, log = work.setup, work.clock, work.enter, work.log
    launched = int(state.step)
    in_flight: collections.deque[tuple[dict[str, jax.Array], jax.Array]] = collections.deque()
    any_host, stopped = processes.make_any_host(setup.mesh), False
    checkpoint_due = lambda: launched % setup.recipe.checkpoint.every_steps == 0
    evaluation_due = lambda: work.evaluate is not None and launched % setup.recipe.evaluation.every_steps == 0
    started = time.perf_counter()
    while not (over or stopped):
        enter("step")
        work.checkpoints.check()
        with clock("profile"):
            work.profiler.reach(launched, state)
        with clock("step"), jax.profiler.StepTraceAnnotation("train", step_num=launched):
            state, metrics = train_step(work.on_clock(state), batch)
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
        work.times.note(launched - len(in_flight))
        if work.evaluate and evaluation_due() and not over:
            enter("evaluation")
            with clock("evaluation"), log.paused():
                log.evaluation(work.evaluate(state))
        if checkpoint_due() and not over:
            enter("save")
            with clock("checkpoint"):
                work.document_hashes.write()
                state = work.on_clock(state)
                save(work, launched, state)
    with clock("step"):  # a step that was launched behind the end of the budget has changed nothing
        rest = [] if over else jax.device_get(list(in_flight))
    for metrics, _ in rest:
        over = look_at(metrics, setup, log, clock)
    return state, over, time.perf_counter() - started


def finish(work: Work, before: dict[str, Any], state: TrainState, over: bool, seconds: float) -> str:
    """Evaluates, saves and summarizes a run whose steps are taken, or whose process was asked to stop.

    Args:
      work: the run's.
      before: `counters` from which this process went on.
      state: the last.
      over: whether the budget is spent.
      seconds: that the steps took.

    Returns:
      FINISHED or STOPPED.
    """
    run, clock, outcome = work.run, work.clock, FINISHED if over else STOPPED
    work.log.write_pending()
    if over and work.evaluate:
        work.enter("evaluation")
        with clock("last evaluation"):
            work.log.evaluation(work.evaluate(state))
    elif over:
        say(work.console, f"held-out text is not scored (evaluation.every_steps is 0); do so: toklab eval {run.path}")
    work.enter("save")
    with clock("checkpoint"):
        work.document_hashes.write()
        state = work.on_clock(state)
        if work.checkpoints.latest_step() != int(state.step):
            save(work, int(state.step), state)
        work.checkpoints.wait()
    summary = summarize(
        work.setup,
        state,
        outcome,
        int(state.step) - before["step"],
        from_limbs(state.bytes_seen) - before["bytes_seen"],
        seconds,
        clock.seconds,
    )
    work.times.write(int(state.step), finished=over)
    if processes.is_first():
        memory_growth = work.checkpoints.memory_growth_bytes
        write_json(run.summary, summary | {"goodput": account(run.times), "save_memory_growth_bytes": memory_growth})
    say(
        work.console,
        f"{summary['name']} {outcome} at step {summary['steps']:,}: {summary['bytes_seen']:,} bytes seen,"
        f" {summary['flops']:.3g} FLOPs, {seconds:.1f} s ({summary['outside_step_share']:.1%} of it outside the"
        f" step), {summary['skipped_steps']} steps skipped",
    )
    for corpus in summary["corpora"]:
        if (read := corpus["documents_read"])["more"]:
            say(
                work.console,
                f"{corpus['path']}: {read['more']:.1%} of its documents read more than once, {read['never']:.1%} never",
            )
    return outcome


def save(work: Work, step: int, state: TrainState) -> None:
    """Starts saving a state, of so many steps."""
    meta = work.setup.identity | {"counters": counters(work.setup, state)}
    work.checkpoints.save(step, state, meta)


class StopSignal:
    """Notes the first Ctrl-C or SIGTERM for the loop to act on; a second one interrupts at once."""

    def __init__(self):
        self.received = False

    def note(self, *_: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


def compile_train_step(
    setup: Setup, state: TrainState, batch: dict[str, jax.Array], clock: Stopwatch, console: rich.console.Console
) -> Callable[..., Any]:
    """The compiled step of a run; says what is about to be trained."""
    recipe = setup.recipe
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
    return train_step


def open_log(setup: Setup, run: RunFolder, console: rich.console.Console, first_step: int) -> RunLog | NoLog:
    """The log of this process, which goes on from `first_step`: only the first one of a run writes."""
    if not processes.is_first():
        return NoLog()
    recipe = setup.recipe
    return RunLog(run, recipe.logging, setup.identity["config"], recipe.objective.figures, console, first_step)


def say_nothing_is_left(setup: Setup, run: RunFolder, step: int, console: rich.console.Console) -> None:
    now, then = (float(learning_rate(setup.recipe.optimizer, jnp.float32(share))) for share in (1.0, 0.5))
    restarts = f", which takes the learning rate from {now:.3g} to {then:.3g}" if then > 1.01 * now else ""
    say(
        console,
        f"{run.path} has spent its budget at step {step:,}; raise it to train on, e.g. {setup.recipe.budget.twice}"
        f"{restarts}",
    )


def make_on_clock(setup: Setup, state: TrainState, clock: Stopwatch) -> Callable[[TrainState], TrainState]:
    """A function that tells a state how long has been trained, where the budget is in seconds; `state` is the one that
    is gone on from."""
    if setup.budget.seconds is None:
        return lambda state: state
    before, shared = float(state.seconds), processes.make_first_number(setup.mesh)
    trained = lambda: before + clock.seconds.get("step", 0.0) + clock.seconds.get("data", 0.0)
    return lambda state: dataclasses.replace(state, seconds=shared(trained()))


def make_evaluate(
    setup: Setup, judge: Judge, console: rich.console.Console
) -> Callable[[TrainState], dict[str, Any]] | None:
    """A function that scores a fixed part of the held-out text; its result is a line of eval.jsonl. None, and says so,
    where nothing is held out."""
    documents = tuning_documents(setup.corpora, setup.split.scored_below)
    if documents is None:
        say(
            console,
            "no corpus holds anything out, so that nothing is scored while training; score another text"
            " afterwards: toklab eval RUN --corpus OTHER --whole-corpus",
        )
        return None
    held_out = fixed_subset(documents, setup.recipe.evaluation.max_bytes)
    return lambda state: counters(setup, state) | judge(held_out, state.params)


def look_at(metrics: dict[str, np.ndarray], setup: Setup, log: RunLog | NoLog, clock: Stopwatch) -> bool:
    """Logs one step's numbers; returns whether the budget is spent. Raises UserError where the run has gone wrong."""
    if metrics["over"]:
        return True
    numbers = jax.tree.map(np.ndarray.tolist, metrics)
    numbers |= {name: from_limbs(numbers[name]) for name in ("bytes_seen", "num_bytes")}
    numbers["tokens_seen"] = numbers["step"] * setup.tokens_per_step
    numbers |= {"flops": setup.flops(numbers["step"]), "model_flops": setup.model_flops_per_step}
    with clock("log"):
        log.step(numbers, clock.seconds.get("data", 0.0))
    if numbers["skipped_in_a_row"] >= setup.recipe.optimizer.max_skipped_in_a_row:
        is_finite = math.isfinite(numbers["grad_norm"])
        go_on = "to take such steps nevertheless, run the same command with --optimizer.skip-above 1e9; or "
        raise UserError(
            f"the last {numbers['skipped_in_a_row']} steps, up to step {numbers['step']}, were skipped because their"
            f" gradients {'spiked' if is_finite else 'were not finite'} (last norm {numbers['grad_norm']:.3g});"
            f" {go_on if is_finite else ''}train anew with a lower --optimizer.learning-rate, in another --run-dir"
        )
    budget = setup.recipe.budget
    if budget.seconds is not None:
        return False  # the clock says so before a step, which then changes nothing
    return numbers["bytes_seen"] >= budget.bytes if budget.bytes is not None else numbers["step"] >= setup.num_steps
