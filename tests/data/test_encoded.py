"""Ids made beforehand: the same rows as encoding on the fly, and only of the corpus and the representation they were
made for."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

import tokenizer_lab
from data.encode_corpus import EncodeOptions, encode_corpus
from data.encoded import EncodedDocuments, EncodedText, bring_ids, pack, unpack
from data.encoder_rows import EncoderRow, held_out_batches
from data.local_engine import LocalEngine
from data.rows import CausalRow, RowStreams, Source
from data.scoring_rows import scoring_batches
from data.store import Corpus
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info import EqualInfoRepresentation, window_stream
from tokenizer_lab.equal_info.quantization import quantize
from tokenizer_lab.errors import UserError
from tokenizer_lab.subword import SubwordFit
from train.recipe import refused_changes, to_json
from train.setup import set_up

SHARD_BYTES = 500  # so that there are several shards


def byte_lm():
    """With random weights."""
    random = np.random.RandomState(0)
    shapes = {
        "embedding": (384, 8),
        "unembedding": (384, 8),
        "final_scale": (8,),
        "attention_scale": (1, 8),
        "mlp_scale": (1, 8),
        "query": (1, 8, 2, 4),
        "key": (1, 8, 1, 4),
        "value": (1, 8, 1, 4),
        "query_scale": (1, 4),
        "key_scale": (1, 4),
        "out": (1, 2, 4, 8),
        "gate": (1, 8, 8),
        "up": (1, 8, 8),
        "down": (1, 8, 8),
    }
    return quantize(
        {name: random.standard_normal(shape) for name, shape in shapes.items()}, rope_theta=10_000.0, context_bytes=8
    )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, corpus) -> pathlib.Path:
    """A folder of artifacts: "byte", "subword", and "in_loop", windows with the language model in the loop."""
    folder = tmp_path_factory.mktemp("artifacts")
    ByteRepresentation().save(folder / "byte")
    SubwordFit(vocab_size=300).fit(Corpus.open(corpus).documents("train"), "").save(folder / "subword")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_stream, "MAX_LANES", 4)  # each number of lanes is compiled anew
        EqualInfoRepresentation.of_lm(byte_lm(), 32, 16).save(folder / "in_loop")
        yield folder


@pytest.fixture(scope="module")
def ids_of(tmp_path_factory, artifacts, corpus):
    """ids_of(kind): the folder of the corpus's ids."""
    folder = tmp_path_factory.mktemp("ids")

    def make(kind: str) -> pathlib.Path:
        encode_into(folder / kind, artifacts / kind, corpus)
        return folder / kind

    return make


def encode_into(out, artifact, corpus, **keywords):
    return encode_corpus(EncodeOptions(artifact=artifact, corpus=corpus, out=out), shard_bytes=SHARD_BYTES, **keywords)


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


arrays = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 300), max_size=9)


@given(arrays, arrays)
def test_records_come_back(ids, lengths):
    count = min(len(ids), len(lengths))
    record = pack((np.array(ids[:count], np.int64), np.array(lengths[:count], np.int64)))
    assert [values.tolist() for values in unpack(record)] == [ids[:count], lengths[:count]]


@given(st.binary(max_size=9))
def test_any_record_is_read_or_refused(record):
    try:
        ids, lengths = unpack(record)
    except ValueError:
        return
    assert len(ids) == len(lengths) < len(record) and min(ids.min(initial=0), lengths.min(initial=0)) == 0


@pytest.mark.parametrize(("kind", "layout"), [("byte", CausalRow), ("subword", EncoderRow), ("in_loop", CausalRow)])
def test_rows_are_those_of_encoding_on_the_fly_and_each_goes_on_where_the_other_stopped(
    corpus, artifacts, ids_of, monkeypatch, kind, layout
):
    representation = tokenizer_lab.load(artifacts / kind)
    plain, [with_ids] = Corpus.open(corpus), bring_ids([Corpus.open(corpus)], [ids_of(kind)], representation)

    def batches(corpus, count, cursors=None):
        streams = RowStreams(
            [Source(corpus.documents("train"))],
            representation,
            batch_rows=4,
            sequence_length=24,
            seed=1,
            cursors=cursors,
            layout=layout,
        )
        return list(itertools.islice(streams, count))

    first = batches(plain, 5)
    middle = first[1]["cursors"]
    on_the_fly = batches(plain, 3, middle)
    monkeypatch.setattr(type(representation), "encode_many", None)  # so that nothing is encoded any more
    for expected, found in [
        (first, batches(with_ids, 5)),
        (first[2:], batches(with_ids, 3, middle)),
        (on_the_fly, batches(with_ids, 5)[2:]),
    ]:
        assert len(expected) == len(found)
        for one, other in zip(expected, found):
            assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["byte", "subword"])
def test_held_out_batches_are_those_of_encoding_on_the_fly(corpus, artifacts, ids_of, monkeypatch, kind):
    representation = tokenizer_lab.load(artifacts / kind)
    corpora = [Corpus.open(corpus), *bring_ids([Corpus.open(corpus)], [ids_of(kind)], representation)]

    def held_out(corpus):
        documents = corpus.documents("test")
        yield from scoring_batches(enumerate(documents), representation, batch_rows=4, sequence_length=24)
        for batch, _ in held_out_batches(documents, representation, batch_rows=4, sequence_length=24):
            yield batch

    on_the_fly = list(held_out(corpora[0]))
    monkeypatch.setattr(type(representation), "encode_many", None)
    for one, other in zip(on_the_fly, held_out(corpora[1]), strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_documents_are_still_their_bytes(corpus, artifacts, ids_of):
    plain = Corpus.open(corpus)
    [with_ids] = bring_ids([plain], [ids_of("byte")], ByteRepresentation())
    for split in ("train", "test"):
        texts, documents = list(plain.documents(split)), with_ids.documents(split)
        assert isinstance(documents, EncodedDocuments) and list(documents) == texts
        assert documents.content_hash == plain.documents(split).content_hash
    assert isinstance(documents[0], EncodedText) and not isinstance(documents[0][:3], EncodedText)


def test_a_mixture_may_have_ids_of_some_corpora(tmp_path, make_corpus, corpus, artifacts, ids_of):
    other = make_corpus(tmp_path / "other", num_documents=9, seed=2)
    representation = tokenizer_lab.load(artifacts / "in_loop")
    plain = [Corpus.open(corpus), Corpus.open(other)]

    def batches(corpora):
        sources = [Source(corpus.documents("train")) for corpus in corpora]
        return list(itertools.islice(RowStreams(sources, representation, batch_rows=2, sequence_length=24, seed=1), 4))

    for one, found in zip(batches(plain), batches(bring_ids(plain, [ids_of("in_loop")], representation)), strict=True):
        assert all(np.array_equal(one[name], found[name]) for name in one)


def test_what_ids_are_of_is_checked(tmp_path, make_corpus, corpus, artifacts, ids_of):
    corpora = [Corpus.open(corpus)]
    subword = tokenizer_lab.load(artifacts / "subword")
    for folders, wanted, of, message in [
        (
            [ids_of("byte")],
            subword,
            corpora,
            (
                "byte holds ids of another representation: its fingerprint is [0-9a-f]{12}, that of the run's is "
                f"{subword.fingerprint[:12]}; encode it again with the run's, or leave it out"
            ),
        ),
        (
            [ids_of("byte")],
            ByteRepresentation(),
            [Corpus.open(make_corpus(tmp_path / "other", num_documents=9, seed=2))],
            (
                f"byte holds ids of another corpus: of the one with content hash {corpora[0].content_hash[:12]}, and"
                " .*/other has"
            ),
        ),
        ([corpus], subword, corpora, "manifest.json is damaged, was changed by hand or is of another version"),
        ([tmp_path], subword, corpora, "holds no ids of a corpus: it has no manifest.json; run toklab encode ARTIFACT"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            bring_ids(of, folders, wanted)
        assert "\n" not in str(caught.value)


def test_recipes_take_folders_of_ids(recipe, corpus, artifacts, ids_of):
    data = dataclasses.replace(recipe.data, encoded=(str(ids_of("byte")),))
    with_ids = dataclasses.replace(recipe, data=data)
    assert isinstance(set_up(with_ids).corpora[0].documents("train"), EncodedDocuments)
    assert refused_changes(to_json(recipe), to_json(with_ids)) == []
    with pytest.raises(UserError, match="another representation"):
        set_up(dataclasses.replace(with_ids, representation=str(artifacts / "subword")))
    with pytest.raises(UserError, match="data.segment_pairs encodes lines; leave one of the two out"):
        dataclasses.replace(data, segment_pairs=True)


def test_damage_is_named(tmp_path, corpus, artifacts):
    folder = tmp_path / "ids"
    encode_into(folder, artifacts / "byte", corpus)
    whole = everything(folder)
    manifest = json.loads(whole["manifest.json"])
    file = max(whole)  # of the train split

    def read():
        [with_ids] = bring_ids([Corpus.open(corpus)], [folder], ByteRepresentation())
        return list(with_ids.documents("train"))

    read()
    (folder / file).write_bytes(whole[file][:-1])
    with pytest.raises(UserError, match=f"{file} has .* bytes, the manifest says .*; remove .* and encode it again"):
        read()
    middle = len(whole[file]) // 2
    (folder / file).write_bytes(bytes(middle) + whole[file][middle:])
    with pytest.raises(UserError, match=f"{file}.* is damaged.*; remove .* and encode it again"):
        read()
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing; remove .* and encode it again"):
        read()
    (folder / file).write_bytes(whole[file])
    (folder / "manifest.json").write_text(json.dumps(manifest | {"texts": manifest["texts"][1:]}))
    with pytest.raises(UserError, match="ids has not as many documents as .*; remove it and encode it again"):
        read()
    manifest["origin"]["fingerprint"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="manifest.json is damaged, was changed by hand or is of another version"):
        read()


def test_ids_of_other_documents_are_refused(tmp_path, corpus, artifacts, monkeypatch):
    monkeypatch.setattr("data.encode_corpus.pack", lambda _: pack((np.array([255, 256]), np.array([1, 2]))))
    encode_into(tmp_path / "ids", artifacts / "byte", corpus)
    [with_ids] = bring_ids([Corpus.open(corpus)], [tmp_path / "ids"], ByteRepresentation())
    with pytest.raises(
        UserError,
        match=(
            "train-00000-.*, document 0, holds ids up to 256 for 3 bytes, for a document of .* bytes and 257 ids there"
            " are; remove"
        ),
    ):
        list(with_ids.documents("train"))


class CutOff(LocalEngine):
    """Ends after some portions, as a process that is interrupted does."""

    def __init__(self, num_shards: int):
        self.num_shards, self.items = num_shards, []

    def stream(self, function, items, devices=None):
        self.items = items
        for item in items[: self.num_shards]:
            yield from function(item)
        yield next(iter(function(items[self.num_shards])))  # in the middle of a shard
        raise KeyboardInterrupt


def test_what_is_whole_is_kept_and_the_rest_is_encoded_by_the_same_command(
    tmp_path, make_corpus, artifacts, monkeypatch
):
    monkeypatch.setattr("data.layout._UNIT_BYTES", 500)  # shards of ids are whole units
    corpus = make_corpus(tmp_path / "corpus", num_documents=100)
    whole = encode_into(tmp_path / "whole", artifacts / "byte", corpus)
    assert whole.num_shards > 4 and whole.num_kept == 0
    with pytest.raises(KeyboardInterrupt):
        encode_into(tmp_path / "ids", artifacts / "byte", corpus, engine=CutOff(0))
    assert not (tmp_path / "ids").exists()
    with pytest.raises(KeyboardInterrupt):
        encode_into(tmp_path / "ids", artifacts / "byte", corpus, engine=CutOff(2))
    left = everything(tmp_path / "ids")
    assert len([name for name in left if name.endswith(".zst")]) == 2
    with pytest.raises(UserError, match="it is not finished"):
        bring_ids([Corpus.open(corpus)], [tmp_path / "ids"], ByteRepresentation())
    with pytest.raises(UserError, match="holds ids of another representation; choose another --out"):
        encode_into(tmp_path / "ids", artifacts / "subword", corpus)
    # What is not as long as its note says is made again.
    damaged = next(name for name in left if name.endswith(".zst"))
    (tmp_path / "ids" / damaged).write_bytes(left[damaged][:-5])
    calls, engine = [], CutOff(0)
    with pytest.raises(KeyboardInterrupt):
        encode_into(tmp_path / "ids", artifacts / "byte", corpus, engine=engine)
    assert len(engine.items) == whole.num_shards - 1
    result = encode_into(tmp_path / "ids", artifacts / "byte", corpus, report=lambda *call: calls.append(call))
    assert result.num_kept == 1 and calls == sorted(calls) and calls[-1][0] == calls[-1][1] < result.num_bytes
    assert everything(tmp_path / "ids") == everything(tmp_path / "whole")
    again = encode_into(tmp_path / "ids", artifacts / "byte", corpus, engine=CutOff(0))
    assert again.num_kept == whole.num_shards and "of them were there" in str(again)


def test_a_folder_with_other_things(tmp_path, corpus, artifacts):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no ids; choose another --out"):
        encode_into(tmp_path, artifacts / "byte", corpus)
    assert list(everything(tmp_path)) == ["notes.txt"]
