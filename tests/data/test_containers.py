"""What a file is, is read from its first bytes, whatever its name says; or it is refused by the name of its format."""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import zstandard
from hypothesis import given, settings, strategies as st

from data import containers, text_records
from data.json_array import array_elements
from tokenizer_lab.errors import UserError

TEXTS = ["one", 'a "quoted", [bracketed] {text}\\', "two\nlines\r\n", "naïve ☃", "the last"]

COMPRESS = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "xz": lzma.compress,
    "lzma": functools.partial(lzma.compress, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


def json_lines(texts):
    return "\n".join(json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)).encode()


def json_array(texts, **options):
    return json.dumps([{"id": [n, {}], "text": text} for n, text in enumerate(texts)], **options).encode()


def csv_rows(texts, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows([["id", "text"], *enumerate(texts)])
    return file.getvalue().encode()


def table(texts):
    return pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})


def parquet(texts):
    file = io.BytesIO()
    pq.write_table(table(texts), file)
    return file.getvalue()


def arrow(texts, new=pa.ipc.new_stream):
    file = io.BytesIO()
    with new(file, table(texts).schema) as writer:
        writer.write_table(table(texts), max_chunksize=2)
    return file.getvalue()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonlines", "a.json", "part.jsonl.00001", "wiki_00"])
def test_json_lines_under_any_name(ingest_from, stored, write_files, tmp_path, name, compression):
    write_files(tmp_path, {name: COMPRESS[compression](json_lines(TEXTS))})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [text.encode() for text in TEXTS]


@pytest.mark.parametrize(
    ("suffix", "compression"),
    [
        (".gz", "gzip"),
        (".gzip", "gzip"),
        (".zst", "zstd"),
        (".zstd", "zstd"),
        (".xz", "xz"),
        (".lzma", "lzma"),
        (".bz2", "bzip2"),
        (".gz", "zstd"),
        (".zst", "bzip2"),
    ],
)
@pytest.mark.parametrize("name", ["c4-train.00000-of-00512.json", "a.ndjson", "a"])
def test_compressions_under_their_names_and_others(
    ingest_from, stored, write_files, tmp_path, name, suffix, compression
):
    write_files(tmp_path, {name + suffix: COMPRESS[compression](json_lines(TEXTS))})
    ingest_from(tmp_path, name + suffix)
    assert stored(tmp_path) == [text.encode() for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json_array(TEXTS)),
        ("a.json", json_array(TEXTS, indent=2)),
        ("a.jsonl", json_array(TEXTS, ensure_ascii=False)),
        ("a.txt", b"\n [\n" + json_array(TEXTS)[1:] + b"\n\n"),
        ("a.json.gz", gzip.compress(json_array(TEXTS))),
        ("a.csv", csv_rows(TEXTS)),
        ("a.CSV", csv_rows(TEXTS, delimiter=";")),
        ("a.csv", csv_rows(TEXTS, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)),
        ("a.csv.bz2", bz2.compress(csv_rows(TEXTS))),
        ("a.parquet", parquet(TEXTS)),
        ("0000", parquet(TEXTS)),
        ("a.jsonl", parquet(TEXTS)),
        ("data-00000-of-00001.arrow", arrow(TEXTS)),
        ("a.feather", arrow(TEXTS, pa.ipc.new_file)),
    ],
)
def test_arrays_and_tables(ingest_from, stored, write_files, tmp_path, name, content):
    write_files(tmp_path, {name: content})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [text.encode() for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.json", b'{\n  "name": "x",\n  "text": 1\n}\n'),
        ("tsconfig.json", b'{"extends": "./base"}\n'),
        ("a.md", b"[a link](to) and [another]\n"),
        ("a.txt", b"{this} is no JSON\n{nor} this\n"),
        ("a.txt", b'{"a": 1}\nis how an object is written\n'),
        ("a.html", b"<html><p>text</p></html>"),
        ("a.tex", b"PK is a name, BZh9 another, ORC a third\n"),
        ("latin1.txt", b"caf\xe9\n"),
        ("a.py", b"\xef\xbb\xbfx = [{}]\n"),
        ("a.txt", b"a text about the byte \0, and caf\xe9 in latin-1\n"),
        ("names", b"first.txt\0second.txt\0"),
    ],
)
def test_plain_text_stays_plain_text(ingest_from, stored, write_files, tmp_path, name, text):
    write_files(tmp_path, {name: text})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [text]


def archive(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zip_of(name, content):
    def write(file):
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr(name, content)

    return archive(write)


def tar_of(content):
    def write(file):
        with tarfile.open(fileobj=file, mode="w") as packed:
            member = tarfile.TarInfo("a.jsonl")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))

    return archive(write)


def database():
    connection = sqlite3.connect(":memory:")
    connection.execute("create table texts (text)")
    return connection.serialize()


SECRET = "Ελληνικά, кириллица and Latin\n"
REFUSED = {
    "a zip archive": zip_of("a.jsonl", json_lines(TEXTS)),
    "a tar archive": tar_of(json_lines(TEXTS)),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(20),
    "a RAR archive": b"Rar!\x1a\x07\x01\0",
    "an LZ4 file": b"\x04\x22\x4d\x18\x64\x40",
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "a PostScript file": b"%!PS-Adobe-3.0\n",
    "an ar archive": b"!<arch>\ndebian-binary   ",
    "a font": b"wOF2\0\1\0\0",
    "an RTF document": rb"{\rtf1\ansi text}",
    "an old Office document": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(9),
    "an SQLite database": database(),
    "a NumPy array": archive(lambda file: np.save(file, np.arange(4))),
    "a pickle": pickle.dumps({"text": ["a", "b"]}, protocol=0),
    "no plain text and of no format known here: its byte 14 is 1": b"\x82\xa4text\xa3abc\xa2id\x01" * 10,
    "a safetensors file": safetensors.numpy.save({"a": np.zeros(3)}),
    "a Feather file of version 1": b"FEA1\0\0\0\0",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n\0",
    "an Avro file": b"Obj\x01\x04\x14avro.codec",
    "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "text in UTF-16": "\ufefftext".encode("utf-16-le"),
    "text in UTF-16 without a byte order mark": SECRET.encode("utf-16-be"),
    "text in UTF-32": "\ufefftext".encode("utf-32-le"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "gzip inside of bzip2": bz2.compress(gzip.compress(b"text")),
    "parquet inside of gzip": gzip.compress(parquet(TEXTS)),
    "no plain text and of no format known here: its byte 5 is 0": b"text\0text\0\1\2",
    "no plain text and of no format known here: its byte 2 is 0": np.arange(500, dtype="<u2").tobytes()[2:],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_documents_is_refused_by_its_name(ingest_from, stored, write_files, tmp_path, what):
    name = "a.jsonl" if "a PDF" in what else "a.txt" if "text" in what else "a"
    write_files(tmp_path, {name: REFUSED[what]})
    with pytest.raises(UserError, match=f"{name} is {what}.*--read-as text") as caught:
        ingest_from(tmp_path, name)
    assert "\n" not in str(caught.value) and not (tmp_path / "corpus").exists()
    ingest_from(tmp_path, name, read_as="text")
    [document] = stored(tmp_path)
    assert document == (bz2.decompress if "bzip2" in what else gzip.decompress if "gzip" in what else bytes)(
        REFUSED[what]
    )


def test_formats_that_only_a_name_tells(ingest_from, write_files, tmp_path):
    write_files(
        tmp_path, {"a.tsv": b"id\ttext\n0\tone\n", "a.jsonl.gz": json_lines(TEXTS), "b.json": b'["one", "two"]'}
    )
    for name, message in (
        ("a.tsv", "a.tsv is tab-separated values.*convert it to JSON lines"),
        ("a.jsonl.gz", "is named .gz and is not compressed with gzip, by its first bytes"),
        ("b.json", "b.json, record 1, is no JSON object but of type str"),
    ):
        with pytest.raises(UserError, match=message):
            ingest_from(tmp_path, name)


def test_a_byte_0_behind_much_text(ingest_from, stored, write_files, tmp_path, monkeypatch):
    monkeypatch.setattr(text_records, "READ_BYTES", 100)
    write_files(tmp_path, {"a.txt": b"ten bytes " * 20 + b"\0"})
    ingest_from(tmp_path, "a.txt")
    assert stored(tmp_path) == [b"ten bytes " * 20 + b"\0"]


def test_text_that_is_split_at_a_byte_0(ingest_from, stored, write_files, tmp_path):
    write_files(tmp_path, {"a.txt": b"one\0two\nlines\0"})
    ingest_from(tmp_path, "a.txt", separator=r"\x00")
    assert stored(tmp_path) == [b"one", b"two\nlines"]


def test_json_lines_that_are_longer_than_what_is_looked_at(ingest_from, stored, write_files, tmp_path):
    long = "x" * (2 * containers._HEAD_BYTES)
    write_files(tmp_path, {"long": json_lines([long, "two"]), "array": json_array([long, "two"])})
    ingest_from(tmp_path, "long", "array")
    assert stored(tmp_path) == [long.encode(), b"two"] * 2


# ---- Compression


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name != "none"])
def test_what_is_cut_off_or_goes_on_with_something_else(ingest_from, stored, write_files, tmp_path, compression):
    """Wherever the second of two frames is cut off or damaged; and padding at its end is none of that."""
    frame = COMPRESS[compression](json_lines(TEXTS) + b"\n")
    write_files(tmp_path, {"whole": frame * 2 + bytes(8)})
    ingest_from(tmp_path, "whole")
    assert len(stored(tmp_path)) == 2 * len(TEXTS)
    for number, rest in enumerate([frame[:-1], frame[: len(frame) // 2], frame[:5], b"garbage" * 3]):
        write_files(tmp_path, {"cut": frame + rest})
        with pytest.raises(UserError, match=r"cut( cannot be read on after record \d+: .*; mend the file|, record)"):
            ingest_from(tmp_path, "cut", domain=f"d{number}")


def with_window(content: bytes, log: int) -> bytes:
    """A zstd frame that asks for a window of 2^log bytes, as `zstd --long` writes it."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=12, write_content_size=False)
    ).compressobj()
    frame = bytearray(compressor.compress(content) + compressor.flush())
    assert not frame[4] & 0x20, "a frame of one segment has no window"
    frame[5] = (log - 10) << 3
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 1 << log
    return bytes(frame)


@pytest.mark.parametrize("log", [27, 28, 30, 31])
def test_zstd_with_long_windows_is_read_up_to_a_limit(ingest_from, stored, write_files, tmp_path, log):
    write_files(tmp_path, {"a.jsonl.zst": with_window(json_lines(TEXTS), log)})
    with pytest.raises(UserError, match="asks for more memory than 67,108,864 bytes.*raise --max-window-bytes"):
        ingest_from(tmp_path, "a.jsonl.zst", max_window_bytes=1 << 26)
    ingest_from(tmp_path, "a.jsonl.zst")
    assert stored(tmp_path) == [text.encode() for text in TEXTS]


def test_frames_of_zstd_that_are_to_be_skipped(ingest_from, stored, write_files, tmp_path):
    skipped = b"\x5a\x2a\x4d\x18\x04\0\0\0skip"
    write_files(tmp_path, {"a": skipped + COMPRESS["zstd"](b"one ") + skipped + COMPRESS["zstd"](b"two") + skipped})
    ingest_from(tmp_path, "a")
    assert stored(tmp_path) == [b"one two"]


# ---- Nulls, byte order marks


WITH_NULLS = {
    "a.jsonl": b'{"text": null}\n{"text": "one"}\n{"text": null}\n{"text": ""}\n',
    "a.json": b'[{"text": null}, {"text": "one"}, {"text": null}, {"text": ""}]',
    "a.csv": b'id,text\n0,\n1,one\n2,""\n3,\n',
    "a.parquet": parquet([None, "one", None, ""]),
    "a.arrow": arrow([None, "one", None, ""]),
}


@pytest.mark.parametrize("name", WITH_NULLS)
def test_a_null_is_empty(ingest_from, stored, write_files, tmp_path, name):
    write_files(tmp_path, {name: WITH_NULLS[name]})
    with pytest.raises(UserError, match=f"{name}, record 1, is empty; choose --on-empty skip or keep"):
        ingest_from(tmp_path, name)
    assert ingest_from(tmp_path, name, on_empty="skip").num_skipped == 3
    assert stored(tmp_path) == [b"one"]
    ingest_from(tmp_path, name, on_empty="keep", domain="kept")
    assert sorted(stored(tmp_path)[:4]) == [b"", b"", b"", b"one"]


def test_a_column_of_nothing_but_nulls(ingest_from, write_files, tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no documents in .*a.parquet \(3 empty ones left out\)"):
        ingest_from(tmp_path, "a.parquet", on_empty="skip")


@pytest.mark.parametrize("name, content", [("a.jsonl", json_lines), ("a.json", json_array), ("a.csv", csv_rows)])
def test_byte_order_marks_are_no_part_of_records(ingest_from, stored, write_files, tmp_path, name, content):
    mark = b"\xef\xbb\xbf"
    write_files(tmp_path, {name: mark + content(TEXTS), "b.csv": mark + b'"text",id\n"one",1\n'})
    ingest_from(tmp_path, name, "b.csv")
    assert stored(tmp_path) == [text.encode() for text in [*TEXTS, "one"]]


def test_files_with_marks_that_were_put_together(ingest_from, stored, write_files, jsonl, tmp_path):
    write_files(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + jsonl("one") + b"\xef\xbb\xbf" + jsonl("two")})
    ingest_from(tmp_path, "a.jsonl")
    assert stored(tmp_path) == [b"one", b"two"]


# ---- Arrays and tables that are damaged


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "one"}, {"text": "two"', "a.json is no JSON array behind record 1: it ends inside"),
        ("a.json", b'[{"text": "one"}', "a.json is no JSON array behind record 0: it ends inside"),
        ("a.json", b'[{"text": "one"}] more', "a.json is no JSON array behind record 1: something stands behind the"),
        ("a.json", b'[{"text": "one"},]', "a.json, record 2, is not JSON"),
        ("a.json", b'[{"text": "one"}, 5]', "a.json, record 2, is no JSON object but of type int"),
        ("a.json", b"[]", "a.json has no records"),
        ("a.csv", b'id,text\n0,one\n1,"two', "a.csv cannot be read on as CSV after record 1: unexpected end of data"),
        ("a.csv", b"id,text\n0,one\n1,two,three\n", "a.csv, record 2, has 3 values for 2 names"),
        (
            "a.csv",
            b"id,text\r0,one\r",
            r"as CSV after record 0: a line ends in .r alone; let lines end in .n, e.g. with tr",
        ),
        ("a.csv", b"id,body\n0,one\n", "a.csv has no single column 'text'; choose --field from 'id', 'body'"),
        ("a.csv", b"text,text\n0,one\n", "a.csv has no single column 'text'; there are no other fields"),
        ("a.csv", b"text\n\0\1\2\3\n", "a.csv is no plain text"),
        ("a.arrow", arrow(TEXTS)[:-50], "a.arrow cannot be read on after record"),
    ],
)
def test_damaged_arrays_and_tables(ingest_from, write_files, tmp_path, name, content, message):
    write_files(tmp_path, {name: content})
    with pytest.raises(UserError, match=message) as caught:
        ingest_from(tmp_path, name)
    assert "\n" not in str(caught.value)


marks = st.text('"\\[]{},:a☃', max_size=4)
values = st.recursive(
    marks, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(marks, inner, max_size=2), max_leaves=4
)


@settings(deadline=None, max_examples=50)
@given(st.lists(values, max_size=4), st.integers(1, 9), st.booleans())
def test_elements_of_an_array_whatever_the_size_of_reads(array, read_bytes, ascii_only):
    stream = io.BytesIO(json.dumps(array, ensure_ascii=ascii_only).encode())
    elements = array_elements(lambda: stream.read(read_bytes), 1 << 20)
    assert [json.loads(element) for element in elements] == array


def test_an_element_that_is_too_large_is_not_read():
    reads = iter([b'[{"text": "'] + [b"x" * 100] * 100)
    with pytest.raises(ValueError, match="an element has .* bytes or more, over the limit of 500"):
        list(array_elements(lambda: next(reads), 500))
    assert len(list(reads)) > 90
