"""`toklab` as a person meets it: what it prints, what it exits with, and one line for everything that can be mended."""

import ctypes
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from data.store import Corpus
from train.commands import command_line
from train.commands.cli import accelerator_vendors
from train.run.folder import RunFolder


@pytest.fixture
def recipe_file(recipe, write_recipe) -> str:
    return write_recipe(recipe)


def refused(capsys, *arguments: str) -> str:
    """The one line that `toklab` refuses the arguments with."""
    assert command_line.run(arguments) == 2, arguments
    complaint = capsys.readouterr().err
    assert complaint.startswith("toklab: ") and complaint.count("\n") == 1, complaint
    return complaint


def test_no_argument_shows_every_command(capsys):
    assert command_line.run([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ingest", "fit", "train", "eval", "sample", "report"))


@pytest.mark.parametrize(
    "vendors, makers", [(["0x8086", "0x1af4"], set()), (["0x8086", "0x1ae0"], {"Google"}), ([], set())]
)
def test_accelerators_are_known_by_their_makers(tmp_path, vendors, makers):
    for number, vendor in enumerate(vendors):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n")
    assert accelerator_vendors(tmp_path) == makers


@pytest.mark.skipif(bool(accelerator_vendors()), reason="this machine may have an accelerator")
def test_libraries_for_absent_accelerators_write_nothing():
    program = "from train.commands.cli import leave_out_absent_tpus; leave_out_absent_tpus(); import jax; jax.devices()"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_a_step_finds_the_memory_of_the_one_before():
    program = """
from train.commands.cli import keep_memory
keep_memory()
import resource, jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(x @ x.T).sum())  # 64 MiB in between
x = jnp.ones((4096, 4))
page_faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(30):
    if number == 20:  # the first settle
        before = page_faults()
    step(x).block_until_ready()
print(page_faults() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0 and int(done.stdout) < 5 * 16_384, done  # of ten times as many pages


def test_the_process_ends_at_once_with_its_code_and_all_it_has_said():
    """Whatever native threads still run, and whether anybody reads what it says."""
    program = """
import atexit, sys, threading, time
from train.commands.cli import leave
atexit.register(print, "tidied up")
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
sys.stdout.write("done, ")
leave(75)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (75, "done, tidied up\n", "")
    reader, writer = os.pipe()
    os.close(reader)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # so that it is noticed at the end
    closed = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, env=buffered)
    assert (closed.returncode, closed.stderr) == (75, b"")


def test_unknown_words_name_the_nearest(capsys, recipe_file):
    assert "no command 'tran', did you mean train?" in refused(capsys, "tran")
    assert "no representation 'bite', did you mean byte?" in refused(capsys, "fit", "bite")
    assert "no recipe 'demo_bytes', did you mean demo_byte?" in refused(capsys, "train", "demo_bytes", "--run-dir", "x")
    assert "no experiment 'comparison', did you mean comparison_small?" in refused(
        capsys, "compare", "comparison", "--out", "x"
    )
    assert "no --submit 'lokal', did you mean local?" in refused(
        capsys, "compare", "comparison_small", "--out", "x", "--submit", "lokal"
    )
    complaint = refused(capsys, "train", recipe_file, "--run-dir", "x", "--model.num-layer", "4")
    assert "Unrecognized options: --model.num-layer" in complaint and "did you mean --model.num-layers" in complaint
    assert "did you mean --vocab-size" in refused(
        capsys, "fit", "subword", "--corpus", "c", "--out", "o", "--vocab-siz", "9"
    )


def test_a_sample_is_written_byte_for_byte(capsysbinary, monkeypatch):
    drawn = b"\tif [x]:\r\n\x0c[bold]\xff\xc3 :cat: " + 40 * b"a long line "
    monkeypatch.setattr("train.evaluate.sampling.sample_run", lambda *_: (drawn, None))
    assert command_line.run(["sample", "run", "--prompt", "[/x]\t\udcff"]) == 0  # as Python has a byte 255 of the shell
    assert capsysbinary.readouterr().out == b"[/x]\t\xff" + drawn + b"\n"


def test_a_prompt_comes_from_a_file_or_standard_input_byte_for_byte(capsysbinary, monkeypatch, tmp_path):
    prompt = b" \t[x]\r\n\xff\xc3 " + b"a prompt that no command line holds\n" * 8000
    monkeypatch.setattr("train.evaluate.sampling.sample_run", lambda *given: (os.fsencode(given[1])[:9], None))
    (tmp_path / "prompt").write_bytes(prompt)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompt)))
    for file in (tmp_path / "prompt", "-"):
        assert command_line.run(["sample", "run", "--prompt-file", str(file)]) == 0
        assert capsysbinary.readouterr().out == prompt + prompt[:9] + b"\n"


def test_a_prompt_is_given_in_one_way(capsys, tmp_path):
    for given in ([], ["--prompt", "x", "--prompt-file", "y"]):
        assert "as --prompt TEXT or --prompt-file FILE, one of the two" in refused(capsys, "sample", "run", *given)
    assert "does not exist" in refused(capsys, "sample", "run", "--prompt-file", str(tmp_path / "nothing"))


def test_no_advice_is_given_that_only_a_programmer_can_follow(capsys, tmp_path):
    digits = "1" * 5000
    (tmp_path / "manifest.json").write_text(f'{{"format": {digits}}}')
    (tmp_path / "pairs.jsonl").write_text(f'{{"sentence_good": {digits}}}\n')
    for command in (
        ["sample", "run", "--prompt", "x", "--seed", digits],
        ["fit", "byte", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")],
        ["inspect", str(tmp_path), "--corpus", "c", "--out", str(tmp_path / "out")],
        ["blimp", "run", "--pairs", str(tmp_path / "pairs.jsonl")],
    ):
        complaint = refused(capsys, *command)
        assert "a number has thousands of digits" in complaint and "set_int_max" not in complaint, complaint


def test_wrong_values_are_one_line(capsys, recipe_file, tmp_path):
    assert "--model.num-layers" in refused(capsys, "train", recipe_file, "--run-dir", "x", "--model.num-layers", "four")
    assert "model.num_layers is 0" in refused(capsys, "train", recipe_file, "--run-dir", "x", "--model.num-layers", "0")
    assert "exactly one of steps, bytes, flops and seconds" in refused(
        capsys, "train", recipe_file, "--run-dir", "x", "--budget.bytes", "10"
    )
    assert "--run-dir" in refused(capsys, "train", recipe_file)
    assert "the recipe comes first" in refused(capsys, "train", "--run-dir", "x")
    assert "is not a corpus" in refused(
        capsys, "fit", "byte", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")
    )
    assert "is not a run" in refused(capsys, "eval", str(tmp_path))
    assert "is not a run" in refused(capsys, "sample", str(tmp_path), "--prompt", "x")
    assert "--max-tokens is 0" in refused(capsys, "sample", str(tmp_path), "--prompt", "x", "--max-tokens", "0")


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "foo://bar"),
        ("train", "demo_byte", "--run-dir", "foo://bar"),
        ("ingest", "embedded", "--out", "://bar"),
        ("fit", "byte", "--corpus", "a://b", "--out", "c"),
    ],
)
def test_an_object_store_that_nobody_knows_is_one_line(capsys, words):
    assert "is no object store; give gs://BUCKET/FOLDER or a path of this machine" in refused(capsys, *words)


@pytest.mark.parametrize("value", ["1" + 400 * "0", "-7", "nan", "inf"])
@pytest.mark.parametrize(
    "command, option",
    [
        ("sample run --prompt x", "seed"),
        ("sample run --prompt x", "max-tokens"),
        ("sample run --prompt x", "temperature"),
        ("sample run --prompt x", "top-k"),
        ("eval run", "max-bytes"),
        ("blimp run --pairs p", "max-pairs"),
        ("finetune run --task t", "num-seeds"),
        ("finetune run --task t", "weight-decay"),
        ("inspect a --corpus c --out o", "max-bytes"),
        ("ingest s --out o", "test-fraction"),
        ("ingest s --out o", "max-document-bytes"),
        ("fit subword --corpus c --out o", "vocab-size"),
        ("train demo_byte --run-dir x", "seed"),
        ("train demo_byte --run-dir x", "optimizer.learning-rate"),
        ("plan demo_byte --topology v5e:2x2", "slices"),
        ("submit demo_byte --to slurm --run-dir x", "nodes"),
        ("submit demo_byte --to local --run-dir x", "grace-seconds"),
    ],
)
def test_numbers_that_no_option_takes_are_one_line(capsys, tmp_path, monkeypatch, command, option, value):
    monkeypatch.chdir(tmp_path)
    complaint = refused(capsys, *command.split(), f"--{option}={value}")
    assert option in complaint.replace("_", "-"), complaint


def test_a_vocab_larger_than_the_corpus_supports_is_refused(capsys, corpus, tmp_path):
    complaint = refused(
        capsys, "fit", "subword", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--vocab-size", "50000"
    )
    assert "50,000" in complaint or "50000" in complaint
    assert not (tmp_path / "out").exists()


def test_help_is_shown_and_nothing_run(capsys, recipe_file):
    for arguments in (
        ["train", recipe_file, "--help"],
        ["ingest", "--help"],
        ["fit", "subword", "--help"],
        ["report", "--help"],
    ):
        with pytest.raises(SystemExit) as exit_:
            command_line.run(arguments)
        assert exit_.value.code == 0
    assert "--model.num-layers" in capsys.readouterr().out
    assert command_line.run(["train", "--help"]) == 0 and command_line.run(["fit", "--help"]) == 0


def whole_path(text: pathlib.Path, recipe_file: str) -> list[list[str]]:
    """Commands from text to report, one after the other."""
    return [
        ["ingest", str(text), "--out", "corpus", "--domain", "same", "--test-fraction", "0.2"],
        ["fit", "subword", "--corpus", "corpus", "--out", "subword", "--vocab-size", "275"],
        [
            "train",
            recipe_file,
            "--run-dir",
            "run",
            "--representation",
            "subword",
            "--data.corpora",
            "corpus",
            "--name",
            "mine",
            "--model.num-layers",
            "1",
        ],
        ["eval", "run"],
        ["sample", "run", "--prompt", "document", "--max-tokens", "8"],
        ["eval", "run", "--exact-bytes", "--max-bytes", "40", "--ensemble", "run"],
        ["sample", "run", "--prompt", "docum", "--max-tokens", "3", "--exact-bytes"],
        ["report", "run", "--out", "report"],
    ]


@pytest.mark.usefixtures("one_device")
def test_the_whole_path_from_text_to_report(capsysbinary, monkeypatch, recipe_file, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(
            f"document {number} says " + "the same thing again and again " * (number % 7)
        )
    steps = whole_path(text, recipe_file)
    monkeypatch.chdir(tmp_path)
    for arguments in steps:
        assert command_line.run(arguments) == 0, capsysbinary.readouterr().err
    shown = capsysbinary.readouterr().out.decode(errors="replace")  # a model that has learned little gives any bytes
    assert "num_layers=1" in shown and "bits/byte" in shown and "report/index.html" in shown
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["model"]["num_layers"], stored["name"], stored["data"]["corpora"]) == (1, "mine", ["corpus"])
    run = RunFolder(tmp_path / "run")
    evaluation, summary = json.loads(run.evaluation.read_text()), json.loads(run.summary.read_text())
    assert evaluation["num_bytes"] == Corpus.open(tmp_path / "corpus").documents("test").num_bytes
    assert evaluation["by_domain"].keys() == {"same"} and summary["state"] == "finished" and summary["steps"] == 12
    assert json.loads(run.samples.read_text())[0]["prompt"] == "document"
    exact = json.loads(run.exact_bytes.read_text())
    for of_run in exact["runs"]:
        assert 0 < of_run["bits_per_byte"] <= of_run["bits_per_byte_of_ids"] + 1e-3
        assert of_run["bits_per_byte"] == pytest.approx(exact["ensemble_bits_per_byte"])
    assert "by exact bytes" in shown and "ensemble of 2" in shown and exact["num_bytes"] <= 40
    assert (tmp_path / "report" / "index.html").exists() and json.loads(
        (tmp_path / "report" / "report.json").read_text()
    )
    # A second time changes nothing that was made.
    before = (tmp_path / "corpus" / "manifest.json").read_bytes(), run.metrics.read_bytes(), run.summary.read_bytes()
    for arguments in steps[:3]:
        assert command_line.run(arguments) == 0
    assert before == (
        (tmp_path / "corpus" / "manifest.json").read_bytes(),
        run.metrics.read_bytes(),
        run.summary.read_bytes(),
    )


def toklab(*arguments: str, **keywords) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "train.commands.cli", *arguments],
        # As in conftest.py.
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **keywords,
    )


@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_ctrl_c_at_any_moment_is_a_clean_stop(recipe_file, tmp_path, seconds):
    process = toklab("train", recipe_file, "--run-dir", str(tmp_path / "run"), "--budget.steps", "100000")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode in (75, 130, -signal.SIGINT), complaint
    assert "Traceback" not in complaint or process.returncode == -signal.SIGINT, complaint
    if process.returncode == 75:
        assert complaint.strip().endswith(
            "stopped by a signal; the state is saved, the same command goes on from there"
        )
        assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_read_only_folder_is_one_line(recipe_file, tmp_path):
    if os.geteuid() == 0:
        folder = pathlib.Path("/proc/nothing-can-be-made-here")  # root may write wherever the file system lets it
    else:
        folder = tmp_path / "locked" / "run"
        folder.parent.mkdir(mode=0o500)
    process = toklab("train", recipe_file, "--run-dir", str(folder))
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 2 and complaint.strip().splitlines()[-1].startswith(
        f"toklab: cannot write {folder}"
    ), complaint
    assert "Traceback" not in complaint


def test_metrics_are_in_plain_lines_where_there_is_no_terminal_and_bars_where_there_is(recipe_file, tmp_path):
    process = toklab("train", recipe_file, "--run-dir", str(tmp_path / "run"), "--budget.steps", "3")
    shown, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
    assert "\x1b[" not in shown, "no colours and no cursor movements in a file"
    assert "100.0%" in shown
    assert shown.count("s/step") == 3
