"""Sources behind URLs: what they stand for, errors that pass, those that do not, and files that change."""

import http.server
import json
import re
import threading

import fsspec
import pytest

from data import reading, records, remote_sources
from data.ingest import IngestOptions, ingest
from data.sources import find_files
from data.store import Corpus
from tokenizer_lab.errors import UserError


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


@pytest.fixture
def website(tmp_path, monkeypatch):
    """website(files): serves them; gives its URL and a list of (path, status) to answer with instead, once each."""
    monkeypatch.setattr(remote_sources, "BACK_OFF_SECONDS", (0, 0, 0))
    folder = tmp_path / "site"
    answers = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def do_GET(self):
            for answer in answers:
                if answer[0] == self.path and self.command == "GET":
                    answers.remove(answer)
                    return self.send_error(answer[1])
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def serve(files):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return f"http://127.0.0.1:{server.server_port}", answers

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def documents(folder):
    return sorted(Corpus.open(folder).documents("train"))


def options(source, out, **others):
    return IngestOptions(sources=(source,), out=out, test_fraction=0.0, **others)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("memory://b/x", ["c/d.jsonl", "e.jsonl"]),
        ("memory://b/x/", ["c/d.jsonl", "e.jsonl"]),
        ("memory://b/x/e.jsonl", ["e.jsonl"]),
        ("memory://b/x/*.jsonl", ["e.jsonl"]),
        ("memory://b/**/d.jsonl", ["x/c/d.jsonl"]),
    ],
)
def test_what_a_url_stands_for(memory, tmp_path, source, names):
    for name in ("x/e.jsonl", "x/c/d.jsonl", "x/.hidden", "x/.git/config"):
        memory.pipe(f"/b/{name}", b"{}")
    assert [file.name for file in find_files(source, leave_out=tmp_path)] == names
    assert all(file.num_bytes == 2 and file.version for file in find_files(source, leave_out=tmp_path))
    assert [file.name for file in find_files("memory://b/x", leave_out="memory:///b/x/c")] == ["e.jsonl"]


def test_a_file_named_twice(memory, tmp_path):
    memory.pipe("/b/a.txt", b"x")
    with pytest.raises(UserError, match="a.txt is named twice, by .*; name every file once"):
        ingest(IngestOptions(sources=("memory://b", "memory://b/*.txt"), out=tmp_path / "corpus"))


def test_every_container_is_known_by_its_first_bytes(memory, write_parquet, jsonl, compress, tmp_path):
    write_parquet(tmp_path / "p", ["one", "two"])
    memory.pipe("/b/parquet", (tmp_path / "p").read_bytes())
    memory.pipe("/b/lines.jsonl.zst", compress(".zst", jsonl("three")))
    memory.pipe("/b/text", b"long text\n" * 9)
    ingest(options("memory://b", tmp_path / "corpus", max_part_bytes=40))
    stored = documents(tmp_path / "corpus")
    assert stored[-3:] == [b"one", b"three", b"two"] and b"".join(stored[:-3]) == b"long text\n" * 9


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://b/none.txt", "memory://b/none.txt is not there; name what is, or a glob"),
        ("memory://b/*.txt", "stands for no files"),
        ("nope://b/a", "nothing here reads nope://; copy it to this machine or to a bucket first"),
        ("zip://a::memory://b", "is a file inside of another; unpack it first"),
    ],
)
def test_urls_that_stand_for_nothing(memory, tmp_path, source, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        ingest(options(source, tmp_path / "corpus"))
    assert "\n" not in str(caught.value) and not (tmp_path / "corpus").exists()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for url, remedy in (("s3://b/a", "pip install 'tokenizer-lab[s3]'"), ("sftp://b/a", "Install s3fs to access S3")):
        with pytest.raises(UserError, match=re.escape(remedy)):
            find_files(url, leave_out=tmp_path)


def test_a_server_that_fails_for_a_moment(website, jsonl, tmp_path):
    lines = jsonl(*(f"text {number}" for number in range(100)))
    url, answers = website({"d/a.jsonl": lines, "d/b.jsonl": jsonl("last")})
    answers += [("/d/", 503), ("/d/a.jsonl", 503), ("/d/a.jsonl", 429), ("/d/b.jsonl", 500)]
    ingest(options(f"{url}/d/", tmp_path / "corpus"))
    assert not answers and len(documents(tmp_path / "corpus")) == 101


def test_a_server_that_keeps_failing(website, jsonl, tmp_path):
    url, answers = website({"a.jsonl": jsonl("text")})
    answers += [("/a.jsonl", 503)] * 9
    with pytest.raises(
        UserError, match=f"cannot read {url}/a.jsonl, 4 times: .*503.*; look whether it is there"
    ) as caught:
        ingest(options(f"{url}/a.jsonl", tmp_path / "corpus"))
    assert "\n" not in str(caught.value) and len(answers) == 5
    answers[:] = [("/a.jsonl", 403)] * 9
    with pytest.raises(UserError, match=f"cannot read {url}/a.jsonl: "):
        ingest(options(f"{url}/a.jsonl", tmp_path / "corpus"))
    assert len(answers) == 8  # not tried again
    answers.clear()
    with pytest.raises(UserError, match="none.jsonl is not there"):
        ingest(options(f"{url}/none.jsonl", tmp_path / "corpus"))


def test_a_read_that_breaks_off_goes_on_where_it_stood(memory, monkeypatch):
    monkeypatch.setattr(remote_sources, "BACK_OFF_SECONDS", (0, 0))
    content = bytes(range(256)) * 40
    memory.pipe("/b/a", content)
    broken = iter([False, True, False, True, True] + [False] * 99)
    read = fsspec.implementations.memory.MemoryFile.read

    def unreliable(self, *arguments):
        if next(broken):
            raise ConnectionResetError("reset by peer")
        return read(self, *arguments)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", unreliable, raising=False)
    with remote_sources.open_file("memory://b/a") as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == content
        file.seek(-7, 2)
        assert file.read(99) == content[-7:]


@pytest.mark.parametrize("where", ["memory", "here"])
def test_a_source_that_changes_while_it_is_read(memory, jsonl, tmp_path, monkeypatch, where):
    lines = jsonl(*(f"text {number}" for number in range(10)))

    def write(content):
        memory.pipe("/b/a.jsonl", content) if where == "memory" else (tmp_path / "a.jsonl").write_bytes(content)

    write(lines)
    read_jsonl = records.read_jsonl

    def changing(*arguments):
        yield from read_jsonl(*arguments)
        write(lines + jsonl("more"))

    monkeypatch.setattr(records, "read_jsonl", changing)
    source = "memory://b/a.jsonl" if where == "memory" else str(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl has changed while it was being read; wait until it is whole"):
        ingest(options(source, tmp_path / "corpus"))
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    monkeypatch.setattr(records, "read_jsonl", read_jsonl)
    ingest(options(source, tmp_path / "corpus"))
    assert len(documents(tmp_path / "corpus")) == 11


@pytest.mark.parametrize("stretch_bytes", [40, 64, 101, 1000])
def test_a_large_file_of_lines_is_read_in_stretches(memory, tmp_path, monkeypatch, stretch_bytes):
    monkeypatch.setattr(reading, "STRETCH_BYTES", stretch_bytes)
    texts = [f"text {number} " + "x" * (number * 7 % 90) for number in range(60)]
    lines = "\n\n".join(json.dumps({"text": text}) for text in texts)
    for source in ("memory://b/a.jsonl", str(tmp_path / "a.jsonl")):
        with fsspec.open(source, "w") as file:
            file.write(lines)
        told = options(source, tmp_path / "corpus")
        units = reading.find_units(told)
        assert len(units) == -(-len(lines) // stretch_bytes) and len({unit.name for unit in units}) == len(units)
        portions = [portion for unit in units for portion in reading.read_portions(told, unit)]
        assert [document.text.decode() for portion in portions for document in portion.documents] == texts
        assert sum(portion.num_bytes_read for portion in portions) == len(lines)


def test_a_bad_line_of_a_stretch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "STRETCH_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' * 9 + b"{\n")
    with pytest.raises(UserError, match="a.jsonl from byte 100 on, record 4, is not JSON"):
        ingest(options(str(tmp_path / "a.jsonl"), tmp_path / "corpus"))
