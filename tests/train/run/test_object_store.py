"""A run in an object store is the one in a folder, and what cannot be done there is one line."""

import dataclasses
import http
import json
import pathlib
import re
import socket
import urllib.parse

import jax
import numpy as np
import pytest
import rich.console
from etils import epath

import tokenizer_lab
from data.corpus_writer import Sizes, claimed, write_corpus
from data.encode_corpus import EncodeOptions, encode_corpus
from data.encoded import bring_ids
from data.ingest import ingest
from data.ingest_options import IngestOptions
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import copy_folder, files_in
from train.commands import command_line
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.run.folder import RunFolder, read_lines
from train.setup import load_run

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")
NotFound = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound

OLD_CORPUS = pathlib.Path(__file__).parents[2] / "fixtures" / "commit_9e6ecbd" / "corpus"
CONSOLE = rich.console.Console(quiet=True)
TIMELESS = ("step", "bytes_seen", "loss", "bits_per_byte", "grad_norm")


class Generations(emulator.Router):
    """What the emulator lacks and tensorstore relies on: a read tells an object's generation, a read or write may
    depend on it."""

    answered: list[str] = []
    """Method and path of each request."""

    def handle(self, method):
        request = self._request_handler
        url = urllib.parse.urlsplit(request.path)
        self.answered.append(f"{method} {url.path}")
        query = dict(urllib.parse.parse_qsl(url.query))
        match = re.fullmatch(r".*/b/([^/]+)/o(?:/(.+))?", url.path)
        name = query.get("name") or (match and urllib.parse.unquote(match[2] or ""))
        if not name:
            return super().handle(method)
        if "/moveTo/" in url.path:
            return self.answer(
                405
            )  # gcsfs copies instead; the emulator's own answer is one that it tries again for a minute
        try:
            generation = request.storage.get_file_obj(match[1], name)["generation"]
        except NotFound:
            generation = "0"
        if query.get("ifGenerationMatch", generation) != generation:
            return self.answer(412)
        if query.get("ifGenerationNotMatch") == generation:
            return self.answer(304)
        if method == "GET" and generation != "0":
            end_headers = request.end_headers
            request.end_headers = lambda: (request.send_header("x-goog-generation", generation), end_headers())
        return super().handle(method)

    def answer(self, status):
        response = emulator.Response(self._request_handler)
        response.status = http.HTTPStatus(status)
        response.close()


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """gs://bucket on loopback, for gcsfs and tensorstore."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator, "Router", Generations)
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv(
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
        )  # it would ask the emulator's bucket for its kind, with credentials
        yield "gs://bucket"
    server.stop()


def refused(capsys, *arguments: str) -> str:
    assert command_line.run(arguments) == 2, arguments
    complaint = capsys.readouterr().err
    assert complaint.startswith("toklab: ") and complaint.count("\n") == 1, complaint
    return complaint


def saved(run_dir) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(load_run(run_dir).params)[0]
    }


@pytest.mark.usefixtures("one_device")
def test_a_run_in_a_bucket_is_the_one_in_a_folder_over_a_damaged_checkpoint_and_a_resume(
    recipe, write_recipe, tmp_path, bucket, capsys
):
    recipe = dataclasses.replace(recipe, budget=Budget(steps=7))  # saved at steps 5 and 7
    train(recipe, str(tmp_path / "run"), CONSOLE, make_judge)
    expected, remote = saved(str(tmp_path / "run")), RunFolder(f"{bucket}/runs/a")
    train(recipe, str(remote.path), CONSOLE, make_judge)
    assert {path.name for path in remote.checkpoints.iterdir()} == {"5", "7"}
    (remote.checkpoints / "7" / "params" / "manifest.ocdbt").write_bytes(b"x")
    capsys.readouterr()
    assert command_line.run(["train", write_recipe(recipe), "--run-dir", str(remote.path)]) == 0
    shown = capsys.readouterr().out
    assert (
        "gs://bucket/runs/a/checkpoints/7 is damaged: params/manifest.ocdbt is not what was saved" in shown
        and "has no locks" in shown
    )
    assert {path.name for path in remote.checkpoints.iterdir()} == {"5", "7", "7.damaged"}
    found = saved(str(remote.path))
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    for lines in ("metrics.jsonl", "eval.jsonl"):
        local, stored = (
            [{name: line.get(name) for name in TIMELESS} for line in read_lines(epath.Path(folder) / lines)]
            for folder in (tmp_path / "run", remote.path)
        )
        assert local == stored, lines
    assert json.loads(remote.summary.read_text())["goodput"]["starts"] == 2
    assert command_line.run(["eval", str(remote.path)]) == 0
    assert json.loads(remote.evaluation.read_text())["step"] == 7
    assert command_line.run(["report", str(remote.path), "--out", f"{bucket}/report"]) == 0
    assert "tiny" in (epath.Path(bucket) / "report" / "index.html").read_text()


def test_an_artifact_in_a_bucket_is_the_one_in_a_folder(byte_artifact, bucket):
    representation = tokenizer_lab.load(byte_artifact)
    for _ in range(2):  # the same again changes nothing
        representation.save(f"{bucket}/artifacts/byte")
    assert tokenizer_lab.load(f"{bucket}/artifacts/byte").fingerprint == representation.fingerprint


def test_a_corpus_of_an_earlier_format_in_a_bucket_is_copied_here_once(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy_folder(epath.Path(OLD_CORPUS), epath.Path(f"{bucket}/old"))
    local, remote = (Corpus.open(folder).documents("train") for folder in (OLD_CORPUS, f"{bucket}/old"))
    assert not (tmp_path / "cache").exists(), "only what is read"
    assert list(remote) == list(local) and remote.content_hash == local.content_hash
    cached = sorted((tmp_path / "cache").rglob("*.array_record"))
    assert cached and all("train" in path.name for path in cached)
    for path in epath.Path(f"{bucket}/old").glob("*-train-*"):
        path.write_bytes(b"x" * path.stat().length)  # so that one who reads it again reads something else
    assert list(Corpus.open(f"{bucket}/old").documents("train")) == list(local)


def requests(work) -> int:
    Generations.answered.clear()
    work()
    return len(Generations.answered)


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory):
    """Twelve shards of 25 units each."""
    folder = tmp_path_factory.mktemp("large") / "corpus"
    with write_corpus(folder, 0.0, shard_bytes=400_000) as writer:
        for number in range(300):
            writer.add("text", "train", b"%d" % number + bytes(16_000))
        writer.commit()
    return folder


def test_a_corpus_in_a_bucket_is_opened_by_one_listing_and_read_by_ranges(large_corpus, bucket):
    copy_folder(epath.Path(large_corpus), epath.Path(f"{bucket}/shards"))
    assert requests(lambda: Corpus.open(f"{bucket}/shards")) <= 8
    local, remote = (Corpus.open(folder).documents("train") for folder in (large_corpus, f"{bucket}/shards"))
    assert len(Corpus.open(large_corpus).shards) >= 12
    assert requests(lambda: remote[7]) == 2, "of a shard's footer and of a unit"
    assert requests(lambda: remote[7]) == 0
    assert requests(lambda: remote[8]) == 1
    assert list(remote) == list(local) and remote.content_hash == local.content_hash
    fresh = Corpus.open(f"{bucket}/shards").documents("train")
    assert requests(lambda: fresh.read_many(range(300))) == 300 + len(Corpus.open(large_corpus).shards)


def test_a_corpus_and_ids_are_written_to_a_bucket_as_to_a_folder(tmp_path, bucket, byte_artifact, capsys):
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"{number}.txt").write_text(f"text number {number} " * 50)
    for out in (str(tmp_path / "corpus"), f"{bucket}/made/corpus"):
        assert command_line.run(["ingest", str(tmp_path / "in"), "--out", out]) == 0
        assert command_line.run(["encode", str(byte_artifact), "--corpus", out, "--out", f"{out}-ids"]) == 0
    for name in ("corpus", "corpus-ids"):
        here, there = (files_in(epath.Path(folder)) for folder in (tmp_path / name, f"{bucket}/made/{name}"))
        assert list(here) == list(there) and len(here) == 3
        assert all(here[file].read_bytes() == there[file].read_bytes() for file in here)
    assert command_line.run(["ingest", str(tmp_path / "in"), "--out", f"{bucket}/made/corpus"]) == 0
    assert "already has all of this" in capsys.readouterr().out


def test_an_ingest_into_a_bucket_goes_on_after_a_kill(interrupted, tmp_path, bucket, everything_in):
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(f"{number} line {line}" for line in range(50)))
    sizes = Sizes(task=1, run=1000, merge=1000, shard=1000)
    options = IngestOptions(sources=(str(tmp_path / "in"),), out=epath.Path(f"{bucket}/killed"), separator="\n")
    ingest(dataclasses.replace(options, out=epath.Path(tmp_path / "whole")), sizes=sizes)
    for num_results in (3, 8, 13, 15):
        with pytest.raises(KeyboardInterrupt):
            ingest(options, engine=interrupted(num_results), sizes=sizes)
    assert any(".partial" in name for name in everything_in(f"{bucket}/killed"))
    writes = requests(lambda: ingest(options, sizes=sizes))
    assert everything_in(f"{bucket}/killed") == everything_in(tmp_path / "whole")
    assert writes < requests(
        lambda: ingest(dataclasses.replace(options, out=epath.Path(f"{bucket}/again")), sizes=sizes)
    )


@pytest.fixture
def everything_in():
    """everything_in(folder): name -> content of its files, here or in a bucket."""
    return lambda folder: {name: path.read_bytes() for name, path in files_in(epath.Path(folder)).items()}


def test_two_ingests_into_one_corpus_of_a_bucket(tmp_path, bucket):
    """Who commits while another does is refused; who is not named by the manifest has lost nothing of others."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    folder = epath.Path(f"{bucket}/two")
    one, other = (
        IngestOptions(sources=(str(tmp_path / f"{name}.txt"),), out=folder, domain=name, test_fraction=0.0)
        for name in "ab"
    )
    with claimed(folder):
        with pytest.raises(UserError, match="another writer commits to gs://bucket/two at this moment; start again"):
            ingest(one)
    ingest(one)

    def ingest_other(num_bytes, total):
        if not (folder / "b").exists():
            ingest(other)

    ingest(dataclasses.replace(one, domain="c"), ingest_other)  # which began before the other one committed
    assert Corpus.open(folder).domains == ("a", "b", "c")


def test_an_object_store_that_fails_for_good_is_one_line_and_the_same_command_goes_on(tmp_path, bucket, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    options = IngestOptions(sources=(str(tmp_path / "a.txt"),), out=epath.Path(f"{bucket}/fails"), test_fraction=0.0)

    def unavailable(self, method):
        return self.answer(400) if "zst" in self._request_handler.path else handle(self, method)

    handle = Generations.handle
    monkeypatch.setattr(Generations, "handle", unavailable)
    with pytest.raises(UserError, match="cannot use gs://bucket/fails/text/train-00000-.*.zst") as caught:
        ingest(options)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(Generations, "handle", handle)
    assert ingest(options).changed and list(Corpus.open(options.out).documents("train")) == [b"a"]


def test_ids_in_a_bucket_are_those_in_a_folder(corpus, byte_artifact, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encode_corpus(
        EncodeOptions(artifact=epath.Path(byte_artifact), corpus=epath.Path(corpus), out=epath.Path(tmp_path / "ids"))
    )
    for name, folder in (("ids-corpus", corpus), ("ids", tmp_path / "ids")):
        copy_folder(epath.Path(folder), epath.Path(f"{bucket}/{name}"))
    representation = tokenizer_lab.load(byte_artifact)
    [remote] = bring_ids([Corpus.open(f"{bucket}/ids-corpus")], [f"{bucket}/ids"], representation)
    for found, text in zip(remote.documents("test"), Corpus.open(corpus).documents("test"), strict=True):
        assert found == text and np.array_equal(found.encoded[0], representation.encode(text))


def test_what_is_not_there_or_cannot_be_done_there_is_one_line(recipe, write_recipe, tmp_path, bucket, capsys, corpus):
    recipe_file = write_recipe(recipe)
    assert "cannot use gs://no-such-bucket/run/.last_start.json: " in refused(
        capsys, "train", recipe_file, "--run-dir", "gs://no-such-bucket/run"
    )
    for command in (
        ["eval", "gs://no-such-bucket/run"],
        ["report", "gs://no-such-bucket/run"],
        ["eval", f"{bucket}/nothing"],
    ):
        assert "gs://" in refused(capsys, *command)
    complaint = refused(
        capsys, "train", recipe_file, "--run-dir", str(tmp_path / "run"), "--data.corpora", f"{bucket}/no-corpus"
    )
    assert "gs://bucket/no-corpus is not a corpus: it has no manifest.json" in complaint
    assert "gs://no-such-bucket" in refused(capsys, "ingest", "embedded", "--out", "gs://no-such-bucket/corpus")
    assert "cannot use gs://no-such-bucket/a" in refused(
        capsys, "fit", "byte", "--corpus", str(corpus), "--out", "gs://no-such-bucket/a"
    )
    assert not list(tmp_path.glob("gs:*"))


def test_a_bucket_without_permission_is_one_line(recipe, tmp_path, monkeypatch, capsys, write_recipe):
    def forbidden(*_, **__):
        raise PermissionError(
            "Forbidden: https://storage.googleapis.com/upload/storage/v1/b/other/o\nthe account has no"
            " storage.objects.create access"
        )

    monkeypatch.setattr("etils.epath.backend._FileSystemSpecBackend.open", forbidden)
    assert "cannot use gs://other/run/.last_start.json: PermissionError: Forbidden" in refused(
        capsys, "train", write_recipe(recipe), "--run-dir", "gs://other/run"
    )


def test_text_is_ingested_from_a_bucket(bucket, tmp_path):
    folder = epath.Path(bucket) / "text"
    for name, texts in {"a.jsonl": ["one", "two"], "b/c.jsonl": ["three"], ".hidden": ["no"]}.items():
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for number, source in enumerate((folder, folder / "**/*.jsonl")):
        out = tmp_path / f"corpus{number}"
        ingest(IngestOptions(sources=(str(source),), out=out, test_fraction=0.0))
        assert sorted(Corpus.open(out).documents("train")) == [b"one", b"three", b"two"]
    with pytest.raises(UserError, match="gs://bucket/text/none.jsonl is not there"):
        ingest(IngestOptions(sources=(f"{folder}/none.jsonl",), out=tmp_path / "none"))
