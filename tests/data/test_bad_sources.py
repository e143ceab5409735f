"""Files that are damaged, empty or not what they should be are named, with the record, and leave no corpus."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.ingest import IngestOptions, ingest
from tokenizer_lab.errors import UserError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "a.jsonl, record 3, is not JSON: .*; mend or remove the line"),
        (b"[" * 100_000, "a.jsonl, record 3, is not JSON"),
        (b'"text"', "a.jsonl, record 3, is no JSON object but of type str"),
        (b'{"body": "x", "id": 1}', "a.jsonl, record 3: field 'text' is missing; choose --field from 'body', 'id'"),
        (b"{}", "a.jsonl, record 3: field 'text' is missing; there are no other fields: mend the file"),
        (b'{"text": 5}', "a.jsonl, record 3: field 'text' is of type int, not text; there are no other fields"),
        (b'{"text": null}', "a.jsonl, record 3, is empty; choose --on-empty skip or keep"),
        (b'{"text": ""}', "a.jsonl, record 3, is empty; choose --on-empty skip or keep"),
        (b'{"text": "\xff\\ud800"}', "a.jsonl, record 3, has invalid UTF-8 and a lone surrogate escape"),
        (b'{"text": "' + b"x" * 3000 + b'"}', "a.jsonl, record 3, has .* bytes or more, over the limit of 1000"),
    ],
)
def test_bad_jsonl_lines(ingest_from, write_files, tmp_path, line, message):
    write_files(tmp_path, {"a.jsonl": b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n'})
    with pytest.raises(UserError, match=message) as caught:
        ingest_from(tmp_path, "a.jsonl", max_document_bytes=1000 if b"xxx" in line else 1 << 20)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("compression", [".gz", ".zst", ".xz"])
@pytest.mark.parametrize("damage", ["end", "half", "middle"])
def test_damaged_compression(ingest_from, write_files, jsonl, compress, tmp_path, compression, damage):
    lines = jsonl(*(os.urandom(50).hex() for _ in range(5000)))
    whole = compress(compression, lines)
    middle = len(whole) // 2
    damaged = {"end": whole[:-1], "half": whole[:middle], "middle": whole[:middle] + b"\xff" * 9 + whole[middle + 9 :]}[
        damage
    ]
    write_files(tmp_path, {f"a.jsonl{compression}": damaged})
    # gzip has no check before its end: of damage in the middle, the garbage that it makes is seen first.
    message = rf"a.jsonl{compression}( cannot be read on after record \d+: .*; mend the file|, record \d+, is not JSON)"
    with pytest.raises(UserError, match=message) as caught:
        ingest_from(tmp_path, f"a.jsonl{compression}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()


def test_damaged_parquet(ingest_from, write_parquet, tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [os.urandom(500).hex() for _ in range(20_000)], row_group_size=5000)
    whole = path.read_bytes()
    middle = len(whole) * 5 // 8
    for damaged, reached in [
        (whole[:-100], "after record 0"),
        (b"", "after record 0"),
        (whole[:middle] + b"\xff" * 5000 + whole[middle + 5000 :], r"after record 1\d\d\d\d"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"a.parquet cannot be read on {reached}: .*; mend"):
            ingest_from(tmp_path, "a.parquet")
    assert not (tmp_path / "corpus").exists()


def test_parquet_with_another_schema(ingest_from, write_parquet, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), path)
    with pytest.raises(UserError, match="a.parquet has no single column 'text'; choose --field from 'id', 'body'"):
        ingest_from(tmp_path, "a.parquet")
    with pytest.raises(UserError, match="column 'id' is of type int64, not text; choose --field from 'body'"):
        ingest_from(tmp_path, "a.parquet", field="id")
    write_parquet(path, [])
    with pytest.raises(UserError, match="a.parquet has no records"):
        ingest_from(tmp_path, "a.parquet")
    write_parquet(path, ["x", None])
    with pytest.raises(UserError, match="a.parquet, record 2, is empty; choose --on-empty skip or keep"):
        ingest_from(tmp_path, "a.parquet")
    write_parquet(path, ["x", "y" * 2000])
    with pytest.raises(UserError, match="a.parquet, record 2, has 2000 bytes or more, over the limit of 1000"):
        ingest_from(tmp_path, "a.parquet", max_document_bytes=1000)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "none.txt", "none.txt' is neither a file nor a directory"),
        ({}, "*.txt", r"\*.txt stands for no files"),
        ({".hidden/a.txt": b"x"}, ".", "stands for no files"),
        ({"a.txt": b""}, "a.txt", "a.txt is empty; choose --on-empty skip or keep"),
        ({"a.jsonl": b""}, "a.jsonl", "a.jsonl has no records"),
        ({"a.jsonl": b"\n\n"}, "a.jsonl", "a.jsonl has no records"),
        ({"a.jsonl.gz": b""}, "a.jsonl.gz", "a.jsonl.gz has no records"),
    ],
)
def test_empty_input(ingest_from, write_files, tmp_path, files, source, message):
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=message):
        ingest_from(tmp_path, source)
    assert not (tmp_path / "corpus").exists()


def test_no_sources(ingest_from, tmp_path):
    with pytest.raises(UserError, match="no sources are given"):
        ingest_from(tmp_path)
    with pytest.raises(UserError, match="'' is neither a file nor a directory"):
        ingest(IngestOptions(sources=("",), out=tmp_path / "corpus"))


def test_a_file_named_twice(ingest_from, write_files, tmp_path):
    write_files(tmp_path, {"d/a.txt": b"x"})
    for names in (("d", "d/a.txt"), ("d", "d"), ("d/a.txt", "d/*.txt")):
        with pytest.raises(UserError, match="a.txt is named twice, by .*; name every file once"):
            ingest_from(tmp_path, *names)
