"""What TensorBoard and Weights & Biases are told, without either of them: of one run in one folder, each step once."""

import contextlib
import inspect
import itertools
import struct
import sys
import types

import pytest
import rich.console
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tokenizer_lab.errors import UserError
from train.run.folder import RunFolder
from train.run.logs import LoggingConfig, RunLog
from train.run.trackers import tensorboard, weights_and_biases

CONFIG = {"name": "byte[/x]", "seed": 1}


def steps_shown(folder) -> dict[str, list[int]]:
    """Tag -> steps, as TensorBoard has them: a session that starts at a step purges what was written from there on."""
    shown: dict[str, list[int]] = {}
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                shown = {tag: [step for step in steps if step < event.step] for tag, steps in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append(event.step)
    return shown


def test_tensorboard_repeats_no_step_after_a_crash(tmp_path, monkeypatch):
    run, seconds = RunFolder(tmp_path / "[run]"), itertools.count(1_000_000_000)
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: next(seconds))  # files are named by it
    for first, last in ((0, 8), (5, 9), (9, 12), (0, 3)):  # the last found no whole checkpoint
        with tensorboard(run, first) as track:
            for step in range(first + 1, last + 1):
                track(step, {"loss": 1.0 / step})
        assert steps_shown(run.tensorboard) == {"loss": list(range(1, last + 1))}


class RecordedRun:
    """A run of W&B as far as it is used here; the signatures are those of wandb 0.31."""

    def __init__(self, options, starting_step):
        self.options, self.logged, self.metrics, self.ended_with = options, [], {}, []
        self.starting_step = self.step = starting_step  # behind the last row that W&B has

    def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None):
        self.metrics[name] = step_metric

    def log(self, data, step=None, commit=None):
        assert step >= self.step, "W&B drops it with a warning"
        self.step = step + 1
        self.logged.append(data)

    def finish(self, exit_code=None):
        self.ended_with.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of wandb; `runs` are those it has started."""
    module = types.ModuleType("wandb")
    module.runs, module.Error = [], type("Error", (Exception,), {})

    def init(
        entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
        allow_val_change=None, group=None, job_type=None, mode=None, resume=None,
    ):  # fmt: skip
        earlier = [run.step for run in module.runs if run.options["id"] == id]
        module.runs.append(RecordedRun(dict(locals()), max(earlier, default=0)))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_of_wandb_belongs_to_its_folder(tmp_path, wandb):
    for name in ("seed-0", "seed-1", "seed-0"):
        with weights_and_biases(RunFolder(tmp_path / name), "project", CONFIG) as track:
            track(7, {"loss": 1.0})
            track(7, {"held_out/loss": 2.0})
    one, other, again = (run.options for run in wandb.runs)
    assert one["id"] == again["id"] != other["id"] and one["resume"] == "allow"
    assert (one["name"], one["group"], one["dir"]) == ("seed-0", "byte[/x]", str(tmp_path / "seed-0"))
    assert {one["project"], other["project"]} == {"project"} and one["config"] == CONFIG
    (tmp_path / "seed-0").rename(tmp_path / "moved")
    with weights_and_biases(RunFolder(tmp_path / "moved"), "project", CONFIG):
        pass
    assert wandb.runs[-1].options["id"] == one["id"]


def test_wandb_hears_of_every_step_once_however_often_it_is_taken(tmp_path, wandb):
    # Killed in the evaluation of step 6, then before it came as far as the first time, then once more from nothing.
    for first, last, evaluated in ((0, 6, [3]), (4, 5, []), (0, 9, [3, 6, 9])):
        with weights_and_biases(RunFolder(tmp_path), "project", CONFIG) as track:
            for step in range(first + 1, last + 1):
                track(step, {"loss": 1.0})
                if step in evaluated:
                    track(step, {"held_out/loss": 2.0})
    told = [line for run in wandb.runs for line in run.logged]
    assert [line["step"] for line in told if "loss" in line] == [*range(1, 10)]
    assert [line["step"] for line in told if "held_out/loss" in line] == [3, 6, 9]
    assert all(run.metrics == {"step": None, "*": "step"} for run in wandb.runs)


def test_wandb_of_a_run_in_a_bucket_writes_to_this_machine(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("train.run.trackers._id_of", lambda _: "id")
    with weights_and_biases(RunFolder("gs://bucket/runs/a"), "project", CONFIG):
        pass
    options = wandb.runs[0].options
    assert (options["dir"], options["name"]) == (str(tmp_path / "tokenizer-lab" / "wandb"), "a")
    assert epath.Path(options["dir"]).is_dir()


def test_wandb_hears_how_a_run_ended_and_a_refusal_is_one_line(tmp_path, wandb):
    with weights_and_biases(RunFolder(tmp_path), "project", CONFIG):
        pass
    with contextlib.suppress(KeyboardInterrupt), weights_and_biases(RunFolder(tmp_path), "project", CONFIG):
        raise KeyboardInterrupt
    assert [run.ended_with for run in wandb.runs] == [[None], [1]]

    def refuse(**_):
        raise wandb.Error("no key\nlog in")

    wandb.init = refuse
    with pytest.raises(UserError, match="^W&B does not start: no key log in; mend that, or leave "):
        weights_and_biases(RunFolder(tmp_path), "project", CONFIG).__enter__()


def test_a_log_whose_tracker_does_not_start_closes_what_it_has_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = LoggingConfig(tensorboard=False, wandb_project="project")
    log = RunLog(RunFolder(tmp_path), options, CONFIG, dict, rich.console.Console(quiet=True), 0)
    with pytest.raises(UserError, match="wandb is not installed"):
        log.__enter__()
    assert all(file._file.closed for file in log._files.values())


def test_the_log_tells_all_trackers(tmp_path, wandb):
    options = LoggingConfig(tensorboard=True, wandb_project="project")
    with RunLog(RunFolder(tmp_path), options, CONFIG, dict, rich.console.Console(quiet=True), 4) as log:
        log.evaluation({"step": 5, "bits_per_byte": 2.0, "num_bytes": 9, "flops": None})
    assert wandb.runs[0].logged == [{"step": 5, "held_out/bits_per_byte": 2.0, "held_out/num_bytes": 9}]
    assert steps_shown(tmp_path / "tensorboard") == {"held_out/bits_per_byte": [5], "held_out/num_bytes": [5]}


def test_the_recorded_wandb_has_the_signatures_of_the_real_one(wandb, monkeypatch):
    monkeypatch.undo()
    real = pytest.importorskip("wandb")
    assert isinstance(real.Run.starting_step, property)
    for ours, theirs in (
        (wandb.init, real.init),
        (RecordedRun.define_metric, real.Run.define_metric),
        (RecordedRun.log, real.Run.log),
        (RecordedRun.finish, real.Run.finish),
    ):
        assert inspect.signature(ours).parameters.keys() <= inspect.signature(theirs).parameters.keys()
