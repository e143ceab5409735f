"""A run in an object store is the one in a folder, and what cannot be done there is one line."""

import dataclasses
import http
import json
import re
import socket
import urllib.parse

import jax
import numpy as np
import pytest
import rich.console
from etils import epath

import tokenizer_lab
from data.corpus_writer import write_corpus
from data.encode_corpus import EncodeOptions, encode_corpus
from data.encoded import bring_ids
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import copy_folder
from train.commands import command_line
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.run.folder import RunFolder, read_lines
from train.setup import load_run

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")
NotFound = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound

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


def test_a_corpus_in_a_bucket_is_copied_here_once(corpus, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy_folder(epath.Path(corpus), epath.Path(f"{bucket}/corpus"))
    local, remote = (Corpus.open(folder).documents("train") for folder in (corpus, f"{bucket}/corpus"))
    assert not (tmp_path / "cache").exists(), "only what is read"
    assert list(remote) == list(local) and remote.content_hash == local.content_hash
    cached = sorted((tmp_path / "cache").rglob("*.array_record"))
    assert cached and all("train" in path.name for path in cached)
    for path in epath.Path(f"{bucket}/corpus").glob("*-train-*"):
        path.write_bytes(b"x" * path.stat().length)  # so that one who reads it again reads something else
    assert list(Corpus.open(f"{bucket}/corpus").documents("train")) == list(local)
    cached[0].write_bytes(cached[0].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cache.* is damaged: .*; remove .*cache.* and start again"):
        list(Corpus.open(f"{bucket}/corpus").documents("train"))


def test_a_corpus_in_a_bucket_takes_few_requests_a_shard_and_none_for_what_is_here(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with write_corpus(tmp_path / "corpus", 0.0, shard_bytes=1) as writer:
        for number in range(12):
            writer.add("text", "train", b"%d" % number)
        writer.commit()
    copy_folder(epath.Path(tmp_path / "corpus"), epath.Path(f"{bucket}/shards"))

    def requests(work):
        Generations.answered.clear()
        work()
        return len(Generations.answered)

    opened = requests(lambda: Corpus.open(f"{bucket}/shards"))
    documents = Corpus.open(f"{bucket}/shards").documents("train")
    fetched = requests(lambda: [documents[number] for number in (*range(12), *range(12))])
    assert 0 < opened <= 4 * 12 + 8 and 0 < fetched <= 3 * 12 + 2, (opened, fetched)  # one may be asked for again
    assert requests(lambda: list(Corpus.open(f"{bucket}/shards").documents("train"))) <= opened + 1


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
    assert "ingest into a folder here and copy it" in refused(capsys, "ingest", "embedded", "--out", f"{bucket}/corpus")
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
