"""From files in many forms to a corpus: byte for byte, all or nothing, in bounded memory."""

import gzip
import json
import lzma
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
import zstandard
from hypothesis import example, given, settings, strategies as st

from data import sources
from data.ingest import IngestOptions, ingest, parse_separator, split_of
from data.store import Corpus
from tokenizer_lab.errors import UserError

ZSTANDARD = zstandard.ZstdCompressor(write_checksum=True)  # as the command line tool does
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": ZSTANDARD.compress, ".xz": lzma.compress}


def ingest_from(folder, *names, test_fraction=0.0, **options):
    """Ingests files of `folder` into its `corpus`, by default with nothing held out."""
    options = IngestOptions(
        sources=tuple(str(folder / name) for name in names),
        out=folder / "corpus",
        test_fraction=test_fraction,
        **options,
    )
    return ingest(options)


def stored(folder, split="train"):
    return list(Corpus.open(folder / "corpus").documents(split))


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def jsonl(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def write_parquet(path, values, kind=pa.string(), **options):
    pq.write_table(pa.table({"id": range(len(values)), "text": pa.array(values, kind)}), path, **options)


# Forms of input


@pytest.mark.parametrize("compression", COMPRESS)
def test_plain_text_is_kept_byte_for_byte(tmp_path, compression):
    content = b"\xef\xbb\xbfline\r\nline\n\x00\xff\xfe \xf0\x9f\x99\x82 "
    write_files(tmp_path, {f"a.txt{compression}": COMPRESS[compression](content)})
    ingest_from(tmp_path, f"a.txt{compression}")
    assert stored(tmp_path) == [content]


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_split_at_a_separator(tmp_path, compression):
    write_files(tmp_path, {f"a{compression}": COMPRESS[compression](b"one\n\ntwo\nlines\n\n\n\nthree\n\n")})
    ingest_from(tmp_path, f"a{compression}", separator=r"\n\n", on_empty="keep")
    assert stored(tmp_path) == [b"one", b"two\nlines", b"", b"three"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=20)), st.binary(min_size=1, max_size=3), st.integers(1, 9))
@example([b"ab", b"ab"], b"ab", 1)
@example([b"a", b""], b"aab", 2)
def test_split_is_that_of_bytes_whatever_the_size_of_reads(parts, separator, read_bytes):
    text = separator.join(parts)
    with tempfile.TemporaryFile() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_READ_BYTES", read_bytes)
        stream.write(text)
        stream.seek(0)
        pieces = list(sources._split(stream, pathlib.Path("x"), separator, 1000))
    expected = text.split(separator)
    if expected[-1] == b"" and len(expected) > 1:
        expected.pop()
    assert pieces == list(enumerate(expected, 1))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.json.gz"]
)
def test_jsonl(tmp_path, name):
    lines = b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"id": 4, "text": "\\u00e9\\ud83d\\ude42\\u0000"}\n{"text": "last"}'
    write_files(tmp_path, {name: COMPRESS[pathlib.Path(name).suffix if name.count(".") == 2 else ""](lines)})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [b"one", "é🙂\0".encode(), b"last"]


def test_json_that_is_not_compressed_is_plain_text(tmp_path):
    write_files(tmp_path, {"package.json": b'{\n  "text": 1\n}\n'})
    ingest_from(tmp_path, "package.json")
    assert stored(tmp_path) == [b'{\n  "text": 1\n}\n']


def test_jsonl_keeps_invalid_utf8_and_lone_surrogates(tmp_path):
    write_files(tmp_path, {"a.jsonl": b'{"body": "\xff\xc3\xa9\x80"}\n{"body": "\\ud800x"}\n{"body": "\\udc80"}\n'})
    ingest_from(tmp_path, "a.jsonl", field="body")
    assert stored(tmp_path) == [b"\xff\xc3\xa9\x80", b"\xed\xa0\x80x", b"\xed\xb2\x80"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(), min_size=1), st.booleans())
def test_any_text_goes_through_jsonl_and_parquet(texts, ascii_only):
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
def test_parquet(tmp_path, kind):
    values = [f"text {i % 70}" for i in range(5000)]
    write_parquet(tmp_path / "a.parquet", values, kind=kind, row_group_size=700)
    ingest_from(tmp_path, "a.parquet")
    assert stored(tmp_path) == [value.encode() for value in values]


def test_parquet_keeps_invalid_utf8(tmp_path):
    values = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\x80", b"ok"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    ingest_from(tmp_path, "a.parquet")
    assert stored(tmp_path) == [b"\xff\x80", b"ok"]


# What sources stand for, and names


def test_a_directory_is_read_sorted_without_hidden_files_and_links(tmp_path):
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


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.txt", [b"1", b"2"]),
        ("in/**/*.txt", [b"1", b"2", b"3"]),
        ("in/*", [b"1", b"2", b"3", b"4"]),
        ("in/**", [b"1", b"2", b"3", b"4"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    write_files(tmp_path / "in", {"a.txt": b"1", "b.txt": b"2", "c/a.txt": b"3", "d.md": b"4"})
    ingest_from(tmp_path, pattern)
    assert stored(tmp_path) == expected


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    write_files(tmp_path, {"a[1].txt": b"brackets", "a1.txt": b"no"})
    ingest_from(tmp_path, "a[1].txt")
    assert stored(tmp_path) == [b"brackets"]


def test_names_are_relative_to_the_source(tmp_path, monkeypatch):
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


def test_the_corpus_itself_is_not_ingested(tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    for pattern in (".", ".", "*", "**"):
        assert ingest_from(tmp_path, pattern).num_documents == {("text", "train"): 2}


def test_holdout_golden():
    """The held-out documents of everyone's corpora hang on this rule: it must never change."""
    documents = [b"file%d.txt" % i for i in range(60)]
    assert [document for document in documents if split_of(document, 1 / 16) == "test"] == [
        b"file2.txt",
        b"file5.txt",
        b"file15.txt",
        b"file40.txt",
    ]
    assert {split_of(document, 0.0) for document in documents} == {"train"}
    assert {split_of(document, 1.0) for document in documents} == {"test"}


def test_copies_of_a_document_are_on_one_side(tmp_path):
    texts = [str(i) for i in range(1, 200)]
    write_files(tmp_path, {"d/a.jsonl": jsonl(*texts), "d/t.txt": "|".join(texts).encode()})
    write_parquet(tmp_path / "d/a.parquet", texts)
    result = ingest_from(tmp_path, "d", separator="|", test_fraction=1 / 16)
    expected = [
        text.encode()
        for _ in ("a.jsonl", "a.parquet", "t.txt")
        for text in texts
        if split_of(text.encode(), 1 / 16) == "test"
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


# Again, and into a corpus that is there


def test_same_input_same_corpus(tmp_path):
    write_files(tmp_path, {"in/a.jsonl": jsonl(*map(str, range(100))), "in/b.txt": b"b"})
    ingest_from(tmp_path, "in", test_fraction=0.5)
    before = everything(tmp_path / "corpus")
    assert not ingest_from(tmp_path, "in", test_fraction=0.5).changed
    assert everything(tmp_path / "corpus") == before
    shutil.rmtree(tmp_path / "corpus")
    assert ingest_from(tmp_path, "in", test_fraction=0.5).changed
    assert everything(tmp_path / "corpus") == before


def test_a_further_domain_and_another_content(tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    ingest_from(tmp_path, "a.txt", domain="first")
    assert ingest_from(tmp_path, "b.txt", domain="second").changed
    assert stored(tmp_path) == [b"a", b"b"]
    before = everything(tmp_path / "corpus")
    with pytest.raises(UserError, match="other documents under domain 'first'"):
        ingest_from(tmp_path, "b.txt", domain="first")
    assert everything(tmp_path / "corpus") == before


def test_progress_counts_input_bytes(tmp_path):
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


# What is wrong with it


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "a.jsonl, record 3, is not JSON: .*; mend or remove the line"),
        (b"[" * 100_000, "a.jsonl, record 3, is not JSON"),
        (b'"text"', "a.jsonl, record 3, is no JSON object but of type str"),
        (b'{"body": "x", "id": 1}', "a.jsonl, record 3: field 'text' is missing; choose --field from 'body', 'id'"),
        (b"{}", "a.jsonl, record 3: field 'text' is missing; choose --field from nothing: there are no fields"),
        (b'{"text": 5}', "a.jsonl, record 3: field 'text' is of type int, not text; choose --field from 'text'"),
        (b'{"text": null}', "record 3: field 'text' is of type NoneType"),
        (b'{"text": ""}', "a.jsonl, record 3, is empty; choose --on-empty skip or keep"),
        (b'{"text": "\xff\\ud800"}', "a.jsonl, record 3, has invalid UTF-8 and a lone surrogate escape"),
        (b'{"text": "' + b"x" * 3000 + b'"}', "a.jsonl, record 3, has .* bytes or more, over the limit of 1000"),
    ],
)
def test_bad_jsonl_lines(tmp_path, line, message):
    write_files(tmp_path, {"a.jsonl": b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n'})
    with pytest.raises(UserError, match=message) as caught:
        ingest_from(tmp_path, "a.jsonl", max_document_bytes=1000 if b"xxx" in line else 1 << 20)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("compression", [".gz", ".zst", ".xz"])
@pytest.mark.parametrize("damage", ["end", "half", "middle"])
def test_damaged_compression(tmp_path, compression, damage):
    lines = jsonl(*(os.urandom(50).hex() for _ in range(5000)))
    whole = COMPRESS[compression](lines)
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


@pytest.mark.parametrize("compression", [".gz", ".zst", ".xz"])
def test_several_compressed_frames_are_one_file(tmp_path, compression):
    compress = COMPRESS[compression]
    write_files(tmp_path, {f"a.jsonl{compression}": compress(jsonl("one")) + compress(jsonl("two"))})
    ingest_from(tmp_path, f"a.jsonl{compression}")
    assert stored(tmp_path) == [b"one", b"two"]


def test_damaged_parquet(tmp_path):
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


def test_parquet_with_another_schema(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), path)
    with pytest.raises(UserError, match="a.parquet has no single column 'text'; choose --field from 'id', 'body'"):
        ingest_from(tmp_path, "a.parquet")
    with pytest.raises(UserError, match="column 'id' is of type int64, not text; choose --field from 'id', 'body'"):
        ingest_from(tmp_path, "a.parquet", field="id")
    write_parquet(path, [])
    with pytest.raises(UserError, match="a.parquet has no records"):
        ingest_from(tmp_path, "a.parquet")
    write_parquet(path, ["x", None])
    with pytest.raises(UserError, match="a.parquet, record 2: column 'text' is null"):
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
def test_empty_input(tmp_path, files, source, message):
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=message):
        ingest_from(tmp_path, source)
    assert not (tmp_path / "corpus").exists()


def test_no_sources(tmp_path):
    with pytest.raises(UserError, match="no sources are given"):
        ingest_from(tmp_path)
    with pytest.raises(UserError, match="'' is neither a file nor a directory"):
        ingest(IngestOptions(sources=("",), out=tmp_path / "corpus"))


def test_on_empty(tmp_path):
    write_files(tmp_path, {"a.jsonl": jsonl("one", "", "two", ""), "b.jsonl": b"", "c.txt": b""})
    result = ingest_from(tmp_path, "a.jsonl", "b.jsonl", "c.txt", on_empty="skip")
    assert stored(tmp_path) == [b"one", b"two"] and result.num_skipped == 3
    lines = [f"{tmp_path / 'corpus'}: added", "  text, train: 2 documents, 6 bytes", "  3 empty documents left out"]
    assert str(result).splitlines() == lines
    result = ingest_from(tmp_path, "a.jsonl", "b.jsonl", "c.txt", on_empty="keep", domain="kept")
    assert stored(tmp_path)[:5] == [b"one", b"", b"two", b"", b""] and result.num_skipped == 0
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(UserError, match=r"no documents in .*c.txt \(1 empty ones left out\)"):
        ingest_from(tmp_path, "c.txt", on_empty="skip")


def test_a_file_named_twice(tmp_path):
    write_files(tmp_path, {"d/a.txt": b"x"})
    for names in (("d", "d/a.txt"), ("d", "d"), ("d/a.txt", "d/*.txt")):
        with pytest.raises(UserError, match="a.txt is named twice, by .*; name every file once"):
            ingest_from(tmp_path, *names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(domain="a/b"), "domain 'a/b' is not a plain name"),
        (dict(test_fraction=1.5), "--test-fraction 1.5 is not a share"),
        (dict(test_fraction=float("nan")), "--test-fraction nan is not a share"),
        (dict(max_document_bytes=0), "--max-document-bytes 0"),
        (dict(separator=""), "--separator is empty"),
        (dict(separator="\\"), "--separator .* is not understood"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        IngestOptions(sources=("x",), out=tmp_path, **options)


# Memory, disk and sudden ends; each in a process of its own


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


INGEST_IN_LITTLE_MEMORY = """
import pathlib, sys
from data.ingest import IngestOptions, UserError, ingest
def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
folder = pathlib.Path(sys.argv[1])
(folder / "small.txt").write_bytes(b"x")
ingest(IngestOptions(sources=(str(folder / "small.txt"),), out=folder / "small"))
before = peak_bytes()
try:
    options = dict(separator=sys.argv[3]) if len(sys.argv) > 3 else {}
    options |= dict(domain=pathlib.Path(sys.argv[2]).name, max_document_bytes=8 << 20)
    ingest(IngestOptions(sources=(sys.argv[2],), out=folder / "corpus", **options))
except UserError as error:
    print(error)
print(peak_bytes() - before)
"""


def growth_of_memory(folder, name, *separator):
    """Peak memory of the ingest of a file above that of a tiny one, in MiB, and what it printed."""
    ran = run_python(INGEST_IN_LITTLE_MEMORY, folder, folder / name, *separator)
    assert ran.returncode == 0, ran.stderr
    *printed, growth_bytes = ran.stdout.splitlines()
    return int(growth_bytes) / 2**20, printed


only_with_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak memory from /proc")


@only_with_proc
def test_memory_is_flat(tmp_path):
    texts = ["text " * 1000] * 10_000
    write_files(tmp_path, {"a.jsonl": jsonl(*texts), "a.txt": "|".join(texts).encode()})
    # Arrow takes some 65 MiB for such pages, however many there are.
    write_parquet(tmp_path / "a.parquet", texts * 2, row_group_size=1 << 20, use_dictionary=False, compression="none")
    for name, separator, limit in (("a.jsonl", [], 40), ("a.txt", ["|"], 40), ("a.parquet", [], 90)):
        growth, printed = growth_of_memory(tmp_path, name, *separator)
        assert growth < limit < (tmp_path / name).stat().st_size / 2**20 and not printed


@only_with_proc
@pytest.mark.parametrize("name", ["line.jsonl", "one.txt", "bomb.txt.zst", "bomb.jsonl.gz", "bomb.txt.xz"])
def test_a_document_that_is_too_large_is_not_read(tmp_path, name):
    write_files(tmp_path, {name: COMPRESS[pathlib.Path(name).suffix if "bomb" in name else ""](bytes(80 << 20))})
    growth, printed = growth_of_memory(tmp_path, name)
    assert growth < 40
    assert f"{name}, record 1, has " in printed[0]
    assert "over the limit of 8388608; split it (text: --separator) or raise --max-document-bytes" in printed[0]


INGEST_WITH_SMALL_FILES_ONLY = """
import pathlib, resource, sys
from data.ingest import IngestOptions, UserError, ingest
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    ingest(IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="large"))
except UserError as error:
    print(error)
"""


def test_a_shard_that_cannot_be_written(tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "large.jsonl": jsonl(*(os.urandom(1000).hex() for _ in range(2000)))})
    ingest_from(tmp_path, "a.txt", test_fraction=1 / 16)
    before = everything(tmp_path)
    ran = run_python(INGEST_WITH_SMALL_FILES_ONLY, tmp_path / "large.jsonl", tmp_path / "corpus")
    assert ran.stdout == f"cannot write {tmp_path / 'corpus'}: File too large; choose another folder\n", ran.stderr
    assert everything(tmp_path) == before


INGEST_AS_NOBODY = """
import os, pathlib, sys
from data.ingest import IngestOptions, UserError, ingest
options = IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="more")
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    ingest(options)
except UserError as error:
    print(error)
"""


def test_a_folder_that_is_read_only():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(folder, {"a.txt": b"a"})
        ingest_from(folder, "a.txt", test_fraction=1 / 16)
        before = everything(folder)
        folder.chmod(0o555)
        (folder / "corpus").chmod(0o555)
        for out in ("corpus", "new"):
            ran = run_python(INGEST_AS_NOBODY, folder / "a.txt", folder / out)
            assert ran.stdout.startswith(f"cannot write {folder / out}: Permission denied; no permission;"), ran.stderr
        assert everything(folder) == before
        folder.chmod(0o755)
        (folder / "corpus").chmod(0o755)


def test_a_source_that_cannot_be_read():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(folder, {"in/a.txt": b"a", "in/closed/b.txt": b"b"})
        folder.chmod(0o777)
        for closed, message in (
            ("in/closed", "cannot read"),
            ("in/a.txt", "a.txt cannot be read on after record 0: Permission denied"),
        ):
            (folder / closed).chmod(0)
            ran = run_python(INGEST_AS_NOBODY, folder / "in", folder / "corpus")
            assert message in ran.stdout, ran.stderr
            assert not (folder / "corpus").exists()
            (folder / closed).chmod(0o755)


INGEST_SLOWLY = """
import pathlib, sys, time
import data.ingest
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it
from data.ingest import IngestOptions, ingest
def report(num_bytes, total):
    if num_bytes > total // 2:
        print("half", flush=True)
        time.sleep(60)
ingest(IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="cut"), report)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("old", [True, False])
def test_stopped_in_the_middle(tmp_path, number, old):
    write_files(tmp_path, {"a.txt": b"a", "large.jsonl": jsonl(*(f"{i} " * 200 for i in range(4000)))})
    if old:
        ingest_from(tmp_path, "a.txt", test_fraction=1 / 16)
    before = everything(tmp_path)
    command = [sys.executable, "-c", INGEST_SLOWLY, str(tmp_path / "large.jsonl"), str(tmp_path / "corpus")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(number)
    if number == signal.SIGINT:
        assert everything(tmp_path) == before
    else:
        assert len(everything(tmp_path)) > len(before)  # so it was killed while it wrote
    if old:
        assert stored(tmp_path) == [b"a"]
    else:
        with pytest.raises(UserError, match="is not a corpus"):
            Corpus.open(tmp_path / "corpus")
    ingest_from(tmp_path, "large.jsonl", domain="next", test_fraction=1 / 16)
    assert Corpus.open(tmp_path / "corpus").num_documents == 4000 + old
    assert not [path for path in (tmp_path / "corpus").iterdir() if path.name.startswith(".")]
