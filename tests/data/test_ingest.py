"""From files to a corpus: what is held out, again into a corpus that is there, and the options."""

import gzip
import shutil

import pytest
import tyro

from data.ingest import ingest
from data.ingest_options import IngestOptions, parse_separator
from data.split import is_held_out
from data.store import Corpus
from tokenizer_lab.errors import UserError


def test_holdout_golden():
    """The held-out documents of everyone's corpora hang on this rule: it must never change."""
    documents = [b"file%d.txt" % i for i in range(60)]
    assert [document for document in documents if is_held_out(document, 1 / 16)] == [
        b"file2.txt",
        b"file5.txt",
        b"file15.txt",
        b"file40.txt",
    ]
    assert {is_held_out(document, 0.0) for document in documents} == {False}
    assert {is_held_out(document, 1.0) for document in documents} == {True}


def test_copies_of_a_document_are_on_one_side(ingest_from, stored, write_files, jsonl, write_parquet, tmp_path):
    texts = [str(i) for i in range(1, 200)]
    write_files(tmp_path, {"d/a.jsonl": jsonl(*texts), "d/t.txt": "|".join(texts).encode()})
    write_parquet(tmp_path / "d/a.parquet", texts)
    result = ingest_from(tmp_path, "d", separator="|", test_fraction=1 / 16)
    expected = [
        text.encode() for _ in ("a.jsonl", "a.parquet", "t.txt") for text in texts if is_held_out(text.encode(), 1 / 16)
    ]
    assert stored(tmp_path, "test") == expected
    assert not set(stored(tmp_path, "train")) & set(expected)
    assert result.num_documents == {("text", "train"): 597 - len(expected), ("text", "test"): len(expected)}
    assert result.num_bytes["text", "test"] == sum(map(len, expected))


@pytest.mark.parametrize(
    ("text", "separator"),
    [(r"\n\n", b"\n\n"), (r"\x00", b"\0"), ("<|end|>", b"<|end|>"), (r"é🙂\t", "é🙂\t".encode()), (r"\\n", rb"\n")],
)
def test_separators(text, separator):
    assert parse_separator(text) == separator


def test_embedded(tmp_path):
    options = IngestOptions(sources=("embedded",), out=tmp_path / "corpus")
    result = ingest(options)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.domains == ("code", "docs")
    assert result.changed and not ingest(options).changed
    assert str(ingest(options)).startswith(
        f"{tmp_path / 'corpus'}: already has all of this; nothing changed\n  code, test: "
    )
    test = corpus.documents("test")
    assert {test.domain(i) for i in range(len(test))} == {"code", "docs"}
    assert sum(result.num_bytes.values()) == corpus.num_bytes


def test_same_input_same_corpus(ingest_from, everything, write_files, jsonl, tmp_path):
    write_files(tmp_path, {"in/a.jsonl": jsonl(*map(str, range(100))), "in/b.txt": b"b"})
    ingest_from(tmp_path, "in", test_fraction=0.5)
    before = everything(tmp_path / "corpus")
    assert not ingest_from(tmp_path, "in", test_fraction=0.5).changed
    assert everything(tmp_path / "corpus") == before
    shutil.rmtree(tmp_path / "corpus")
    assert ingest_from(tmp_path, "in", test_fraction=0.5).changed
    assert everything(tmp_path / "corpus") == before


def test_a_further_domain_and_another_content(ingest_from, stored, everything, write_files, tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    ingest_from(tmp_path, "a.txt", domain="first")
    assert ingest_from(tmp_path, "b.txt", domain="second").changed
    assert stored(tmp_path) == [b"a", b"b"]
    before = everything(tmp_path / "corpus")
    with pytest.raises(UserError, match="other documents under domain 'first'"):
        ingest_from(tmp_path, "b.txt", domain="first")
    assert everything(tmp_path / "corpus") == before


def test_progress_counts_input_bytes(write_files, jsonl, write_parquet, tmp_path):
    write_files(
        tmp_path, {"in/a.jsonl.gz": gzip.compress(jsonl("x" * 100_000)), "in/b.jsonl": jsonl(*["b" * 999] * 5000)}
    )
    write_parquet(tmp_path / "in/c.parquet", ["text"] * 100)
    total = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    calls = []
    ingest(IngestOptions(sources=(str(tmp_path / "in"),), out=tmp_path / "corpus"), lambda *call: calls.append(call))
    assert {num_bytes_total for _, num_bytes_total in calls} == {total}
    assert calls[-1] == (total, total)
    assert calls == sorted(calls) and len(calls) > 6


def test_command_line(tmp_path):
    options = tyro.cli(
        IngestOptions, args=["a", "b*", "--out", str(tmp_path), "--separator", r"\n", "--on-empty", "skip"]
    )
    assert options == IngestOptions(sources=("a", "b*"), out=tmp_path, separator=r"\n", on_empty="skip")
    assert options.test_fraction == 1 / 16


def test_on_empty(ingest_from, stored, write_files, jsonl, tmp_path):
    write_files(tmp_path, {"a.jsonl": jsonl("one", "", "two", ""), "b.jsonl": b"", "c.txt": b""})
    result = ingest_from(tmp_path, "a.jsonl", "b.jsonl", "c.txt", on_empty="skip")
    assert stored(tmp_path) == [b"one", b"two"] and result.num_skipped == 3
    lines = [f"{tmp_path / 'corpus'}: added", "  text, train: 2 documents, 6 bytes", "  3 empty documents left out"]
    assert str(result).splitlines() == lines
    result = ingest_from(tmp_path, "a.jsonl", "b.jsonl", "c.txt", on_empty="keep", domain="kept")
    assert sorted(stored(tmp_path)[:5]) == [b"", b"", b"", b"one", b"two"] and result.num_skipped == 0
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(UserError, match=r"no documents in .*c.txt \(1 empty ones left out\)"):
        ingest_from(tmp_path, "c.txt", on_empty="skip")


def test_one_big_text_file_is_warned_of(ingest_from, write_files, tmp_path):
    """A document is in one split as a whole; what the warning advises gives both."""
    write_files(tmp_path, {"all.txt": b"".join(b"paragraph %d\n\n" % number for number in range(300))})
    said = str(ingest_from(tmp_path, "all.txt", test_fraction=1 / 16))
    assert "warning: text has no test documents" in said and r"'\r\n\r\n' where" in said
    shutil.rmtree(tmp_path / "corpus")
    assert "warning: text has no train documents" in str(ingest_from(tmp_path, "all.txt", test_fraction=0.999))
    shutil.rmtree(tmp_path / "corpus")
    assert "warning" not in str(ingest_from(tmp_path, "all.txt", test_fraction=1 / 16, separator=r"\n\n"))
    shutil.rmtree(tmp_path / "corpus")
    for share in (0.0, 1.0):  # where that is what was asked for
        assert "warning" not in str(ingest_from(tmp_path, "all.txt", test_fraction=share, domain=f"d{share:g}"))
        shutil.rmtree(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(domain="a/b"), "domain 'a/b' is not a plain name"),
        (dict(test_fraction=1.5), "--test-fraction is 1.5; it must be at most 1"),
        (dict(test_fraction=float("nan")), "--test-fraction is nan; it must be a finite number"),
        (dict(max_document_bytes=0), "--max-document-bytes is 0; it must be at least 1"),
        (dict(max_window_bytes=1 << 32), "--max-window-bytes is 4294967296; it must be at most 2147483648"),
        (dict(separator=""), "--separator is empty"),
        (dict(separator="\\"), "--separator .* is not understood"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        IngestOptions(sources=("x",), out=tmp_path, **options)
