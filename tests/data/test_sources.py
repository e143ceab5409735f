"""Files in many forms, and which files a source stands for: every document byte for byte."""

import json
import os
import pathlib
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings, strategies as st

from data import sources, text_records
from tokenizer_lab.errors import UserError

COMPRESSIONS = "", ".gz", ".zst", ".xz"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_text_is_kept_byte_for_byte(ingest_from, stored, write_files, compress, tmp_path, compression):
    content = b"\xef\xbb\xbfline\r\nline\n\x00\xff\xfe \xf0\x9f\x99\x82 "
    write_files(tmp_path, {f"a.txt{compression}": compress(compression, content)})
    ingest_from(tmp_path, f"a.txt{compression}")
    assert stored(tmp_path) == [content]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_split_at_a_separator(ingest_from, stored, write_files, compress, tmp_path, compression):
    write_files(tmp_path, {f"a{compression}": compress(compression, b"one\n\ntwo\nlines\n\n\n\nthree\n\n")})
    ingest_from(tmp_path, f"a{compression}", separator=r"\n\n", on_empty="keep")
    assert stored(tmp_path) == [b"one", b"two\nlines", b"", b"three"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=20)), st.binary(min_size=1, max_size=3), st.integers(1, 9))
@example([b"ab", b"ab"], b"ab", 1)
@example([b"a", b""], b"aab", 2)
def test_split_is_that_of_bytes_whatever_the_size_of_reads(parts, separator, read_bytes):
    text = separator.join(parts)
    with tempfile.TemporaryFile() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_records, "READ_BYTES", read_bytes)
        stream.write(text)
        stream.seek(0)
        pieces = list(text_records.split_text(stream, "x", separator, 1000))
    expected = text.split(separator)
    if expected[-1] == b"" and len(expected) > 1:
        expected.pop()
    assert pieces == list(enumerate(expected, 1))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.json.gz"]
)
def test_jsonl(ingest_from, stored, write_files, compress, tmp_path, name):
    lines = b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"id": 4, "text": "\\u00e9\\ud83d\\ude42\\u0000"}\n{"text": "last"}'
    write_files(tmp_path, {name: compress(pathlib.Path(name).suffix if name.count(".") == 2 else "", lines)})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [b"one", "é🙂\0".encode(), b"last"]


def test_json_that_is_not_compressed_is_plain_text(ingest_from, stored, write_files, tmp_path):
    write_files(tmp_path, {"package.json": b'{\n  "text": 1\n}\n'})
    ingest_from(tmp_path, "package.json")
    assert stored(tmp_path) == [b'{\n  "text": 1\n}\n']


def test_jsonl_keeps_invalid_utf8_and_lone_surrogates(ingest_from, stored, write_files, tmp_path):
    write_files(tmp_path, {"a.jsonl": b'{"body": "\xff\xc3\xa9\x80"}\n{"body": "\\ud800x"}\n{"body": "\\udc80"}\n'})
    ingest_from(tmp_path, "a.jsonl", field="body")
    assert stored(tmp_path) == [b"\xff\xc3\xa9\x80", b"\xed\xa0\x80x", b"\xed\xb2\x80"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(), min_size=1), st.booleans())
def test_any_text_goes_through_jsonl_and_parquet(ingest_from, stored, write_parquet, texts, ascii_only):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "a.jsonl").write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts), newline=""
        )
        write_parquet(folder / "a.parquet", texts)
        ingest_from(folder, "a.jsonl", "a.parquet", on_empty="keep")
        assert stored(folder) == [text.encode() for text in texts] * 2


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_parquet(ingest_from, stored, write_parquet, tmp_path, kind):
    values = [f"text {i % 70}" for i in range(5000)]
    write_parquet(tmp_path / "a.parquet", values, kind=kind, row_group_size=700)
    ingest_from(tmp_path, "a.parquet")
    assert stored(tmp_path) == [value.encode() for value in values]


def test_parquet_keeps_invalid_utf8(ingest_from, stored, tmp_path):
    values = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\x80", b"ok"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    ingest_from(tmp_path, "a.parquet")
    assert stored(tmp_path) == [b"\xff\x80", b"ok"]


def test_a_directory_is_read_sorted_without_hidden_files_and_links(ingest_from, stored, write_files, jsonl, tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "in"
    write_files(outside, {"secret.txt": b"secret"})
    write_files(
        folder,
        {
            "b.txt": b"b",
            "a/z.md": b"z",
            "a.txt": b"a",
            "B.py": b"B",
            ".hidden": b"h",
            ".git/config": b"g",
            "c.jsonl": jsonl("c"),
        },
    )
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    ingest_from(tmp_path, "in")
    assert stored(tmp_path) == [b"B", b"a", b"z", b"b", b"c"]


def test_a_hub_cache_is_read_where_its_links_lead(ingest_from, stored, write_files, write_parquet, tmp_path):
    """As Hugging Face hub lays it out: files by their hash, and links to them under their names."""
    cache = tmp_path / "datasets--them--texts"
    write_files(cache, {"blobs/5f1c": b"one", "refs/main": b"e3a9"})
    write_parquet(cache / "blobs" / "77ab", ["two", "three"])
    snapshot = cache / "snapshots" / "e3a9"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "README.md").symlink_to("../../blobs/5f1c")
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to("../../../blobs/77ab")
    write_files(tmp_path, {"secret": b"secret"})
    (snapshot / "not_a_blob.txt").symlink_to(tmp_path / "secret")
    for name, domain in (("snapshots/e3a9", "a"), ("snapshots", "b")):
        ingest_from(tmp_path, f"{cache.name}/{name}", domain=domain)
    assert stored(tmp_path) == [b"one", b"two", b"three"] * 2
    ingest_from(tmp_path, f"{cache.name}/snapshots/*/data/*", domain="c")
    assert stored(tmp_path)[6:] == [b"two", b"three"]
    for name in (cache.name, "."):
        with pytest.raises(
            UserError, match="is a Hugging Face hub cache.*; name a revision in it, a folder of .*shots"
        ):
            ingest_from(tmp_path, name, domain="d")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.txt", [b"1", b"2"]),
        ("in/**/*.txt", [b"1", b"2", b"3"]),
        ("in/*", [b"1", b"2", b"3", b"4"]),
        ("in/**", [b"1", b"2", b"3", b"4"]),
    ],
)
def test_globs(ingest_from, stored, write_files, tmp_path, pattern, expected):
    write_files(tmp_path / "in", {"a.txt": b"1", "b.txt": b"2", "c/a.txt": b"3", "d.md": b"4"})
    ingest_from(tmp_path, pattern)
    assert stored(tmp_path) == expected


def test_a_file_whose_name_looks_like_a_glob(ingest_from, stored, write_files, tmp_path):
    write_files(tmp_path, {"a[1].txt": b"brackets", "a1.txt": b"no"})
    ingest_from(tmp_path, "a[1].txt")
    assert stored(tmp_path) == [b"brackets"]


def test_names_are_relative_to_the_source(write_files, tmp_path, monkeypatch):
    write_files(tmp_path, {"d/e/a.txt": b"x"})
    monkeypatch.chdir(tmp_path)
    for source, name in [
        ("d/e/a.txt", "a.txt"),
        ("d", "e/a.txt"),
        ("./d/", "e/a.txt"),
        (str(tmp_path / "d"), "e/a.txt"),
        ("d/*/a.txt", "e/a.txt"),
        ("./d/**/*.txt", "e/a.txt"),
        ("*/e/*", "d/e/a.txt"),
    ]:
        assert [file.name for file in sources.find_files(source, leave_out=tmp_path / "out")] == [name]


def test_the_corpus_itself_is_not_ingested(ingest_from, write_files, tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    for pattern in (".", ".", "*", "**"):
        assert ingest_from(tmp_path, pattern).num_documents == {("text", "train"): 2}


@pytest.mark.parametrize("compression", [".gz", ".zst", ".xz"])
def test_several_compressed_frames_are_one_file(
    ingest_from, stored, write_files, jsonl, compress, tmp_path, compression
):
    write_files(
        tmp_path, {f"a.jsonl{compression}": compress(compression, jsonl("one")) + compress(compression, jsonl("two"))}
    )
    ingest_from(tmp_path, f"a.jsonl{compression}")
    assert stored(tmp_path) == [b"one", b"two"]
