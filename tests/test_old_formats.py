"""What commit 9e6ecbd has written still loads and means the same (tests/fixtures/commit_9e6ecbd/README.md)."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import tokenizer_lab

OLD = pathlib.Path(__file__).parent / "fixtures" / "commit_9e6ecbd"
GOLDENS = json.loads((OLD / "goldens.json").read_text())
SAMPLES = [sample.encode("latin-1") for sample in GOLDENS["samples"]]
A_SENTENCE = 2
MODEL_IN_THE_LOOP = ("ac", "equal_info_paper", "equal_info_w32n16")  # which compile a program for each size of text


def run_toklab(*arguments: object, code: int = 0) -> None:
    """Runs the console command in this process, which takes a fraction of starting another."""
    from train.commands import command_line

    assert command_line.run([str(argument) for argument in arguments]) == code, arguments


@pytest.fixture
def copy_of(tmp_path, monkeypatch, one_device):
    """copy_of(name): a copy of a part of the old files, to be written to. The working directory is theirs."""
    monkeypatch.chdir(OLD)

    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(OLD / name, tmp_path / name))

    return copy


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def read_lines(path: pathlib.Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(value, name: str = "") -> dict[str, float]:
    """Every number in nested objects, by its place."""
    if isinstance(value, dict):
        return {
            place: number for key, part in value.items() for place, number in figures(part, f"{name}.{key}").items()
        }
    return {name: value} if isinstance(value, int | float) else {}


def test_every_old_artifact_has_a_golden():
    assert GOLDENS["artifacts"].keys() == {path.name for path in (OLD / "artifacts").iterdir()}
    assert GOLDENS["runs"].keys() == {path.name for path in (OLD / "trained").iterdir()}


@pytest.mark.parametrize("name", sorted(GOLDENS["artifacts"]))
def test_an_old_artifact_gives_the_same_ids(name):
    representation, golden = tokenizer_lab.load(OLD / "artifacts" / name), GOLDENS["artifacts"][name]
    for attribute in ("kind", "vocab_size", "eod_id", "fingerprint", "fit_corpus_hash"):
        assert getattr(representation, attribute) == golden[attribute], attribute
    assert (dict(representation.costs), dict(representation.statistics)) == (golden["costs"], golden["statistics"])
    encoded = representation.encode_many(SAMPLES)
    assert [ids.tolist() for ids, _ in encoded] == golden["ids"]
    if name != "equal_info_paper":  # which loses bytes
        assert [lengths.tolist() for _, lengths in encoded] == golden["byte_lengths"]
    if name != "ac":  # of which decoding is slow
        assert representation.decode(encoded[A_SENTENCE][0]) == golden["decoded"][A_SENTENCE].encode("latin-1")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in MODEL_IN_THE_LOOP else ())
        for name in sorted(GOLDENS["artifacts"])
    ],
)
def test_an_old_artifact_takes_texts_one_by_one(name):
    representation, golden = tokenizer_lab.load(OLD / "artifacts" / name), GOLDENS["artifacts"][name]
    for sample, ids, byte_lengths, decoded in zip(
        SAMPLES, golden["ids"], golden["byte_lengths"], golden["decoded"], strict=True
    ):
        assert representation.encode(sample).tolist() == ids, sample
        assert representation.byte_lengths(np.array(ids, np.int32)).tolist() == byte_lengths, sample
        assert representation.decode(np.array(ids, np.int32)) == decoded.encode("latin-1"), sample
        assert decoded.encode("latin-1") == sample or name == "equal_info_paper", sample  # which loses bytes


def test_an_old_corpus_is_only_read_and_a_new_one_of_it_knows_its_text_again(copy_of, tmp_path, capsys):
    corpus, new = copy_of("corpus"), tmp_path / "new"
    before = (corpus / "manifest.json").read_bytes()
    again = ["text/prose.txt", "--separator", r"\n----\n", "--domain", "prose", "--test-fraction", "0.25", "--out"]
    run_toklab("ingest", *again, corpus, code=2)
    assert f"make a new one of it, toklab ingest {corpus} --out NEW, and add to that" in capsys.readouterr().err
    assert (corpus / "manifest.json").read_bytes() == before
    run_toklab("ingest", corpus, "--test-fraction", "0.25", "--out", new)
    made = (new / "manifest.json").read_bytes()
    run_toklab("ingest", *again, new)
    assert (new / "manifest.json").read_bytes() == made


def test_old_ids_are_whole_and_are_not_made_again(copy_of, capsys):
    ids = copy_of("ids")
    run_toklab("encode", "artifacts/subword_bpe", "--corpus", "corpus", "--out", ids)
    shown, num_shards = capsys.readouterr().out, len(read(ids / "manifest.json")["shards"])
    assert f"{num_shards} shards, {num_shards} of them were there" in shown
    assert (ids / "manifest.json").read_bytes() == (OLD / "ids" / "manifest.json").read_bytes()


@pytest.mark.parametrize("name", sorted(GOLDENS["runs"]))
def test_an_old_run_is_worth_the_same(copy_of, name):
    run = copy_of(f"trained/{name}")
    (run / "eval.json").unlink()
    run_toklab("eval", run, "--corpus", OLD / "corpus")
    found, golden = read(run / "eval.json"), GOLDENS["runs"][name]
    compared = ("encoder",) if name == "replaced" else ("bits_per_byte",)
    rel = 1e-4 if name == "replaced" else 1e-5  # ranks are among an encoder's figures
    assert figures({key: found[key] for key in compared}) == pytest.approx(
        figures({key: golden[key] for key in compared}), rel=rel
    )
    assert (found["step"], found["bytes_seen"]) == (golden["steps"], golden["bytes_seen"])


@pytest.mark.parametrize("name", ["byte", "equal_info"])
def test_an_old_run_still_speaks(copy_of, name):
    run = copy_of(f"trained/{name}")
    before = len(read(run / "samples.json")) if (run / "samples.json").exists() else 0
    run_toklab("sample", run, "--prompt", "The fisherman", "--max-tokens", "8")
    samples = read(run / "samples.json")
    assert len(samples) == before + 1 and samples[-1]["prompt"] == "The fisherman"


@pytest.mark.parametrize("name", ["byte", "subword", "equal_info", "replaced"])
def test_an_old_run_goes_on(copy_of, name):
    """By its recipe's file, as the command was given at that commit."""
    run, golden = copy_of(f"trained/{name}"), GOLDENS["runs"][name]
    before = read_lines(run / "metrics.jsonl")
    run_toklab("train", f"recipes/{name}.py", "--run-dir", run, *golden["more"].split(), "--logging.every-steps", "1")
    expect_resumed(run, before, golden)


def test_an_old_run_goes_on_by_its_config_and_with_a_moved_corpus(copy_of, monkeypatch, tmp_path):
    run, golden, corpus = copy_of("trained/byte"), GOLDENS["runs"]["byte"], copy_of("corpus")
    before = read_lines(run / "metrics.jsonl")
    monkeypatch.chdir(tmp_path)  # where no relative path of the config leads anywhere
    run_toklab(
        "train",
        str(run / "config.json"),
        "--run-dir",
        run,
        "--representation",
        run / "representation",
        "--data.corpora",
        corpus,
        *golden["more"].split(),
        "--logging.every-steps",
        "1",
    )
    expect_resumed(run, before, golden)


def expect_resumed(run: pathlib.Path, before: list, golden: dict) -> None:
    """The run has trained on from its last step, to the losses that the old code came to."""
    lines, summary, resumed = read_lines(run / "metrics.jsonl"), read(run / "summary.json"), golden["resumed"]
    assert lines[: len(before)] == before and before[-1]["step"] == golden["steps"]
    assert [line["step"] for line in lines[len(before) :]] == list(range(golden["steps"] + 1, resumed["steps"] + 1))
    assert [line["loss"] for line in lines[len(before) :]] == pytest.approx(resumed["losses"], rel=1e-4)
    assert {name: summary[name] for name in ("state", "steps", "bytes_seen")} == {
        "state": "finished",
        "steps": resumed["steps"],
        "bytes_seen": resumed["bytes_seen"],
    }


def test_a_report_of_old_runs(copy_of, tmp_path):
    runs = sorted((OLD / "trained").iterdir())
    run_toklab("report", *runs, "--out", tmp_path / "report")
    arms = {arm["arm"]: arm for arm in read(tmp_path / "report" / "report.json")["arms"]}
    page = (tmp_path / "report" / "index.html").read_text()
    assert arms.keys() == {f"old_{run.name}" for run in runs} and all(name in page for name in arms)
    for run in runs:
        assert arms[f"old_{run.name}"]["bits_per_byte"] == read(run / "eval.json").get("bits_per_byte")
    assert [task["task"] for task in arms["old_replaced"]["finetuned"]] == ["evenings"] and "evenings" in page


def test_the_compressor_of_old_artifacts_gives_them_again(copy_of, tmp_path):
    run_toklab(
        "fit",
        "ac",
        "--id-bits",
        "8",
        "--lm",
        copy_of("trained/compressor"),
        "--corpus",
        "corpus",
        "--out",
        tmp_path / "ac",
    )
    assert tokenizer_lab.load(tmp_path / "ac").fingerprint == GOLDENS["artifacts"]["ac"]["fingerprint"]


def test_an_old_comparison_is_done(copy_of):
    """Its runs are found by the same names, so that none is trained again, and reported."""
    folder = copy_of("comparison")
    before = {name: (folder / name / "summary.json").read_bytes() for name in GOLDENS["comparison"]}
    run_toklab("compare", "experiment.py", "--corpus", "corpus", "--out", folder)
    assert {run["folder"]: run["state"] for run in read(folder / "plan.json")["runs"]} == dict.fromkeys(
        GOLDENS["comparison"], "done"
    )
    assert {name: (folder / name / "summary.json").read_bytes() for name in GOLDENS["comparison"]} == before
    arms = read(folder / "report" / "report.json")["arms"]
    assert sorted(arm["bits_per_byte"] for arm in arms) == sorted(GOLDENS["comparison"].values())
