"""`toklab fit` says what it does while it takes long, and what a tokenizer cannot say."""

import io
import time

import pytest
import rich.console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data.store import Corpus
from train.commands import command_line
from train.commands.terminal import heartbeat, time_left


def test_what_takes_long_says_so_again_and_again():
    console = rich.console.Console(file=io.StringIO(), width=40)
    with heartbeat(console, "learning [all] of it", every_seconds=0.01) as begin:
        time.sleep(0.05)
        assert console.file.getvalue() == ""
        begin()
        while console.file.getvalue().count("\n") < 2:
            time.sleep(0.01)
    said = console.file.getvalue()
    assert said.startswith("learning [all] of it, 0 s so far\n")
    time.sleep(0.05)
    assert console.file.getvalue() == said


def test_a_heartbeat_that_never_began_says_nothing():
    console = rich.console.Console(file=io.StringIO())
    with heartbeat(console, "learning", every_seconds=0.001):
        pass
    assert console.file.getvalue() == ""


def test_the_share_of_text_that_a_tokenizer_spells_in_bytes_is_told(corpus, tmp_path, capsys):
    tokenizer = Tokenizer(models.BPE({chr(byte): byte for byte in range(128)}, []))
    tokenizer.normalizer = normalizers.Replace("e", "a")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = ["--corpus", str(corpus), "--out", str(tmp_path / "theirs"), "--from-file", str(tmp_path)]
    assert command_line.run(["fit", "subword", *arguments]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "bytes are spelled in bytes:" in told and "as its normalizer changes them (Replace)" in told
    assert "puts a space before a text" not in told


@pytest.mark.parametrize("pre_tokenizer", [pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=True)])
def test_a_space_that_is_left_out_is_told(pre_tokenizer, corpus, tmp_path, capsys):
    tokenizer = Tokenizer(models.BPE({chr(byte): byte for byte in range(128)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = ["--corpus", str(corpus), "--out", str(tmp_path / "theirs"), "--from-file", str(tmp_path)]
    assert command_line.run(["fit", "subword", *arguments]) == 0
    assert "puts a space before a text, which is not done here" in " ".join(capsys.readouterr().out.split())


def test_a_fit_learns_from_a_sample(corpus, tmp_path, capsys):
    """Of a corpus that is larger; and says how much."""
    common = ["fit", "static_ac", "--corpus", str(corpus), "--out"]
    some = ("--sample-bytes", str(Corpus.open(corpus).documents("train").num_bytes // 3))
    for name, options in (("all", ()), ("some", some), ("again", some)):
        assert command_line.run([*common, str(tmp_path / name), *options]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("the documents with the lowest hashes; --sample-bytes says" in said) == bool(options)
    manifests = [(tmp_path / name / "static_ac.json").read_bytes() for name in ("all", "some", "again")]
    assert manifests[0] != manifests[1] == manifests[2]


@pytest.mark.parametrize(
    "kind, value, told",
    [
        ("static_ac", "0", "--sample-bytes is 0; it must be at least 1"),
        ("byte", "5", "Unrecognized options: --sample-bytes"),  # which looks at no document
        ("gzip", "5", "Unrecognized options: --sample-bytes"),
    ],
)
def test_a_sample_that_is_none(corpus, tmp_path, capsys, kind, value, told):
    arguments = ["--corpus", str(corpus), "--out", str(tmp_path / "out"), "--sample-bytes", value]
    assert command_line.run(["fit", kind, *arguments]) == 2
    assert told.lower() in " ".join(capsys.readouterr().err.split()).lower()


def test_how_long_reading_takes_is_told_where_there_is_no_terminal(monkeypatch):
    console = rich.console.Console(file=io.StringIO(), width=100)
    now = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    tell = time_left(console, "fit subword")
    for done in (1, 2, 3, 4):
        tell(done * 10**6, 10 * 10**6)
    assert console.file.getvalue().splitlines() == [
        "fit subword: 2 of 10 MB read, 2.7 minutes left to read",
        "fit subword: 4 of 10 MB read, 2.0 minutes left to read",
    ]
