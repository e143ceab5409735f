"""The promises of a run: exact resume wherever it was stopped, and no other run's folder taken over."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import rich.console

from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from train import loop
from train.commands import command_line
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.objectives import Replaced
from train.optimizer import Budget
from train.resume import refuse_another_run
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder, lock, read_lines
from train.run.logs import Stopwatch
from train.setup import set_up
from train.sharding import MeshConfig
from train.summary import FINISHED, STOPPED

CONSOLE = rich.console.Console(quiet=True)


# With dropout: all that is drawn at random must go on too.
PAIR = EncoderConfig(
    form="bert",
    num_layers=2,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    remat="none",
    compute_dtype="float32",
    dropout=0.1,
)


ARMS = {"decoder": {}, "pair": {"model": PAIR, "objective": Replaced(generator_share=0.5)}}


@contextlib.contextmanager
def stopped_after(num_steps: int) -> Iterator[None]:
    """A run inside gets a SIGTERM while the numbers of its `num_steps`-th step are being looked at."""
    looked, look_at = [], loop.look_at

    def counting(*arguments):
        looked.append(None)
        if len(looked) == num_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return look_at(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "look_at", counting)
        yield


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("arm", ["decoder", pytest.param("pair", marks=pytest.mark.slow)])
def test_a_run_stopped_and_resumed_twice_is_bit_identical_to_one_straight_through(
    recipe, tmp_path, arm, final_state, assert_same
):
    recipe = dataclasses.replace(recipe, **ARMS[arm])
    train(recipe, tmp_path / "straight", CONSOLE, make_judge)
    for num_steps in (2, 3):  # a stop takes effect up to three steps later
        with stopped_after(num_steps):
            assert train(recipe, tmp_path / "stopped", CONSOLE, make_judge) == STOPPED
    assert train(recipe, tmp_path / "stopped", CONSOLE, make_judge) == FINISHED
    assert_same(final_state(recipe, tmp_path / "straight"), final_state(recipe, tmp_path / "stopped"))
    timeless = ("step", "bytes_seen", "loss", "bits_per_byte", "grad_norm", "learning_rate", "flops")
    for file in ("metrics.jsonl", "eval.jsonl"):
        straight, stopped = (
            [{name: line.get(name) for name in timeless} for line in read_lines(RunFolder(tmp_path / run).path / file)]
            for run in ("straight", "stopped")
        )
        assert straight == stopped, file


@pytest.mark.usefixtures("one_device")
def test_batches_after_a_resume_are_those_of_the_straight_run_past_the_end_of_an_epoch(recipe, tmp_path, change):
    recipe = change(
        recipe, data={"sequence_length": 128}, budget=Budget(steps=14)
    )  # 14 x 8 x 128 positions are several epochs
    straight = recorded_batches(recipe, tmp_path / "straight")
    with stopped_after(9):
        assert train(recipe, tmp_path / "stopped", CONSOLE, make_judge) == STOPPED
    stopped_at = json.loads(RunFolder(tmp_path / "stopped").summary.read_text())["steps"]
    resumed = recorded_batches(recipe, tmp_path / "stopped")
    assert 0 < stopped_at < 14
    for number, batch in enumerate(resumed[: 14 - stopped_at], stopped_at):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, straight[number][name], err_msg=f"{name} of batch {number}")
    num_documents = len(set_up(recipe).corpora[0].documents("train"))
    assert straight[13]["cursors"][:, 0].sum() > 2 * num_documents, "the run did not reach a third epoch"


class Ticking(Stopwatch):
    """Every batch takes a second, nothing else takes any time."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + (name == "data")


@pytest.mark.usefixtures("one_device")
def test_a_budget_of_seconds_counts_training_and_goes_on_with_its_clock(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Stopwatch", Ticking)
    off = dataclasses.replace(recipe.evaluation, every_steps=0)
    recipe = dataclasses.replace(recipe, budget=Budget(seconds=9.0), evaluation=off)
    with stopped_after(2):
        assert train(recipe, tmp_path / "run", CONSOLE, make_judge) == STOPPED
    assert json.loads(RunFolder(tmp_path / "run").summary.read_text())["steps"] < 9
    assert train(recipe, tmp_path / "run", CONSOLE, make_judge) == FINISHED
    summary, lines = (
        json.loads(RunFolder(tmp_path / "run").summary.read_text()),
        read_lines(RunFolder(tmp_path / "run").metrics),
    )
    assert summary["steps"] == 9 == lines[-1]["step"]
    rates = [line["learning_rate"] for line in lines]
    assert rates[1] > rates[4] > rates[8] > 0, "the schedule follows the clock"
    assert (
        train(recipe, tmp_path / "run", CONSOLE, make_judge) == FINISHED
        and len(read_lines(RunFolder(tmp_path / "run").metrics)) == 9
    ), "nothing is left to do"
    assert read_lines(RunFolder(tmp_path / "run").evaluations) == [], "evaluations are off"


def recorded_batches(recipe, run_dir) -> list[dict[str, np.ndarray]]:
    """Trains to the end; every batch that was read."""
    batches, open_batches = [], loop.open_batches

    @contextlib.contextmanager
    def recording(*arguments):
        def record():
            batch = next_batch()
            batches.append({name: np.asarray(value) for name, value in batch.items()})
            return batch

        with open_batches(*arguments) as next_batch:
            yield record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "open_batches", recording)
        assert train(recipe, run_dir, CONSOLE, make_judge) == FINISHED
    return batches


@pytest.mark.parametrize(
    "arm, other_mesh",
    [
        ("decoder", dict(replica=2, fsdp=2, tensor=2)),
        pytest.param("pair", dict(replica=2, fsdp=2, sequence=2), marks=pytest.mark.slow),
    ],
)  # the generator's one head cannot be split
def test_a_resume_onto_another_mesh_goes_on_with_the_same_losses(recipe, tmp_path, arm, other_mesh, change):
    recipe = dataclasses.replace(recipe, **ARMS[arm])
    train(change(recipe, mesh=MeshConfig(fsdp=8)), tmp_path / "straight", CONSOLE, make_judge)
    with stopped_after(4):
        assert train(change(recipe, mesh=MeshConfig(fsdp=8)), tmp_path / "moved", CONSOLE, make_judge) == STOPPED
    assert train(change(recipe, mesh=MeshConfig(**other_mesh)), tmp_path / "moved", CONSOLE, make_judge) == FINISHED
    straight, moved = (read_lines(RunFolder(tmp_path / run).metrics) for run in ("straight", "moved"))
    assert [line["bytes_seen"] for line in straight] == [line["bytes_seen"] for line in moved]
    np.testing.assert_allclose([line["loss"] for line in moved], [line["loss"] for line in straight], rtol=2e-5)


@pytest.mark.usefixtures("one_device")
def test_a_run_folder_of_another_recipe_corpus_or_representation_is_refused_with_what_differs(
    recipe, tmp_path, make_corpus, change, final_state, assert_same
):
    train(change(recipe, budget=Budget(steps=2)), tmp_path / "run", CONSOLE, make_judge)
    before = final_state(recipe, tmp_path / "run")
    another_corpus = make_corpus(tmp_path / "another", seed=1)
    refused = {
        "model.num_layers: 2 -> 3": change(recipe, model={"num_layers": 3}),
        "data.sequence_length: 32 -> 64": change(recipe, data={"sequence_length": 64}),
        "seed: 0 -> 7": change(recipe, seed=7),
        "optimizer.learning_rate: 0.01 -> 0.1": change(recipe, optimizer={"learning_rate": 0.1}),
        "corpus_content_hashes: ": change(recipe, data={"corpora": (str(another_corpus),)}),
    }
    for difference, other in refused.items():
        with pytest.raises(UserError, match="holds another run") as error:
            train(other, tmp_path / "run", CONSOLE, make_judge)
        assert difference in str(error.value) and "\n" not in str(error.value)
    stored = set_up(recipe).identity | {"representation_fingerprint": "f" * 64}
    with pytest.raises(UserError, match="holds another run: representation_fingerprint: ffffffffffff -> "):
        refuse_another_run(RunFolder(tmp_path / "run"), stored, set_up(recipe).identity)
    assert_same(before, final_state(recipe, tmp_path / "run"))


@pytest.mark.usefixtures("one_device")
def test_budgets_end_where_they_say_and_a_longer_one_goes_on(recipe, tmp_path, change):
    flops_per_step = set_up(recipe).flops_per_step
    train(change(recipe, budget=Budget(flops=3.5 * flops_per_step)), tmp_path / "run", CONSOLE, make_judge)
    assert read_lines(RunFolder(tmp_path / "run").metrics)[-1]["step"] == 4
    train(change(recipe, budget=Budget(bytes=2000)), tmp_path / "run", CONSOLE, make_judge)
    lines = read_lines(RunFolder(tmp_path / "run").metrics)
    assert lines[-2]["bytes_seen"] < 2000 <= lines[-1]["bytes_seen"]
    summary = json.loads(RunFolder(tmp_path / "run").summary.read_text())
    assert (summary["state"], summary["steps"], summary["bytes_seen"]) == (
        "finished",
        lines[-1]["step"],
        lines[-1]["bytes_seen"],
    )
    assert train(change(recipe, budget=Budget(bytes=2000)), tmp_path / "run", CONSOLE, make_judge) == FINISHED
    assert read_lines(RunFolder(tmp_path / "run").metrics) == lines


@pytest.mark.usefixtures("one_device")
def test_a_run_whose_gradients_are_never_finite_stops_and_keeps_its_checkpoint(recipe, tmp_path, change):
    bad = change(
        recipe, optimizer={"max_skipped_in_a_row": 3}, objective={"z_loss": 1e38}, checkpoint={"every_steps": 2}
    )
    with pytest.raises(
        UserError, match="the last 3 steps, up to step 3, were skipped because their gradients were not finite"
    ):
        train(bad, tmp_path / "bad", CONSOLE, make_judge)
    checkpoints, program = Checkpoints(RunFolder(tmp_path / "bad").checkpoints, read_only=True), set_up(bad).program
    with contextlib.closing(checkpoints):
        assert checkpoints.newest_whole(pytest.fail) == 2
        kept = checkpoints.restore(2, program.shapes, program.shardings)
    assert kept.skipped_steps == 2
    fresh = program.init(jax.random.key_data(jax.random.key(bad.seed)))
    jax.tree.map(np.testing.assert_array_equal, kept.params, fresh.params)


@pytest.mark.usefixtures("one_device")
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_bit_identical(
    recipe, write_recipe, tmp_path, capsys, final_state, assert_same
):
    damaged_file = pathlib.Path("rest", "manifest.ocdbt")
    train(recipe, tmp_path / "run", CONSOLE, make_judge)  # saves steps 5, 10 and 12
    before = final_state(recipe, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "12" / damaged_file).write_bytes(b"")
    arguments = [write_recipe(recipe), "--run-dir", str(tmp_path / "run")]
    assert command_line.run(["eval", str(tmp_path / "run")]) == 0
    assert (
        capsys.readouterr().err.count(
            "checkpoints/12 is damaged: rest/manifest.ocdbt is not what was saved; the one before, of step 10, is"
            " used\n"
        )
        == 1
    )
    assert json.loads(RunFolder(tmp_path / "run").evaluation.read_text())["step"] == 10
    assert command_line.run(["train", *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.count("checkpoints/12 is damaged: ") == 1 and "going on from step 10" in shown
    assert_same(before, final_state(recipe, tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "12", "12.damaged"]
    for step in ("10", "12"):
        (tmp_path / "run" / "checkpoints" / step / damaged_file).unlink()
    for words in (
        ["train", *arguments],
        ["eval", str(tmp_path / "run")],
        ["sample", str(tmp_path / "run"), "--prompt", "a"],
    ):
        assert command_line.run(words) == 2
        complaint = capsys.readouterr().err
        assert "no checkpoint in " in complaint and complaint.count("\n") == 1, complaint


def test_a_save_that_failed_in_the_background_stops_the_run_at_the_next_step(recipe, tmp_path, monkeypatch):
    def failed(_):
        raise UserError("saving a checkpoint failed")

    monkeypatch.setattr(Checkpoints, "check", failed)
    with pytest.raises(UserError, match="saving a checkpoint failed"):
        train(recipe, tmp_path / "run", CONSOLE, make_judge)
    assert read_lines(RunFolder(tmp_path / "run").metrics) == []


@pytest.mark.usefixtures("one_device")
def test_every_part_of_a_run_is_under_its_own_deadline(recipe, tmp_path, monkeypatch):
    """The watchdog hears of a part before it begins: an evaluation does not have a step's time."""
    happened = []

    def noting(name, function):
        return lambda *arguments: (happened.append(name), function(*arguments))[1]

    monkeypatch.setattr(loop, "save", noting("saves", loop.save))
    monkeypatch.setattr(loop, "look_at", noting("looks", loop.look_at))
    judge = lambda setup: noting("judges", lambda documents, params: {"num_bytes": 1})
    train(recipe, tmp_path / "run", CONSOLE, judge, happened.append)
    under = {"saves": set(), "looks": set(), "judges": set()}
    part = "start"
    for name in happened:
        part = part if name in under else name
        under.get(name, set()).add(part)
    assert under == {"saves": {"save"}, "looks": {"step"}, "judges": {"evaluation"}}
    assert [happened.count(name) for name in ("saves", "looks", "judges")] == [3, 12, 2]


def test_bad_input_is_refused_before_anything_is_written(recipe, tmp_path, change):
    for message, bad in {
        "a batch of 12 rows cannot be split": change(recipe, data={"batch_rows": 12}),
        "does not cover 8 devices": change(recipe, mesh=MeshConfig(fsdp=3)),
        "does not exist": change(recipe, representation=str(tmp_path / "nowhere")),
        "nothing": change(recipe, data={"corpora": (str(tmp_path / "nothing"),)}),
    }.items():
        with pytest.raises(UserError, match=message) as error:
            train(bad, tmp_path / "run", CONSOLE, make_judge)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_process_trains_in_or_that_cannot_be_written_is_refused(recipe, tmp_path):
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is training in"):
            train(recipe, tmp_path / "run", CONSOLE, make_judge)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        train(recipe, tmp_path / "file" / "run", CONSOLE, make_judge)
