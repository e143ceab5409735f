import dataclasses
import hashlib
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import rich.console
from hypothesis import given, settings, strategies as st

from data.corpus_writer import write_corpus
from data.ingest import IngestOptions, ingest
from data.split import RunSplit, is_held_out
from data.store import Corpus
from models.encoder import EncoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation
from train.evaluate import bits_per_byte as evaluation
from train.evaluate.bits_per_byte import (
    Scores,
    bits_per_byte,
    bootstrap_interval,
    make_judge,
    make_scorer,
    score_documents,
    summarize,
    text_statistics,
)
from train.loop import train
from train.objectives import Masked
from train.run.folder import RunFolder
from train.setup import LoadedRun, set_up

QUIET = rich.console.Console(quiet=True)


def statistics_of(scores: Scores, eod_id: int) -> dict[str, float]:
    return text_statistics(scores.id_counts, int(scores.num_bytes.sum()), eod_id)


@pytest.fixture(scope="module")
def score(make_recipe):
    """score(documents, ...) with an untrained byte model, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        setup = set_up(make_recipe())
    params = setup.program.init(jax.random.key_data(jax.random.key(0))).params
    scorer = make_scorer(setup.program.model_def, setup.mesh)

    def run(
        documents, *, params=params, batch_rows=4, sequence_length=16, representation=ByteRepresentation(), stride=0
    ):
        return score_documents(
            documents,
            representation,
            scorer,
            params,
            setup.mesh,
            batch_rows=batch_rows,
            sequence_length=sequence_length,
            stride=stride,
        )

    run.params = params
    return run


DOCUMENTS = [b"a short one", b"", b"x" * 40, bytes(range(256)), b"\xff\xfe not text", b"y"]


def test_every_byte_is_scored_once_and_ends_of_documents_count(score):
    scores = score(DOCUMENTS)
    assert scores.num_bytes.tolist() == [len(document) for document in DOCUMENTS]
    assert scores.num_tokens.tolist() == [len(document) + 1 for document in DOCUMENTS]
    assert (scores.nats > 0).all(), "the end of the empty document costs something too"


def test_every_target_is_counted(score):
    scores = score(DOCUMENTS)
    targets = [*b"".join(DOCUMENTS), *[256] * len(DOCUMENTS)]
    assert scores.id_counts.tolist() == np.bincount(targets, minlength=257).tolist()
    assert scores.id_counts.sum() == scores.num_tokens.sum()


def test_text_statistics_of_bytes(score):
    statistics = statistics_of(score([b"aabb", b"", b"cccc"]), eod_id=256)
    assert statistics == {"bytes_per_id": 1.0, "uniform_bits_per_byte": 8.0, "unigram_bits_per_byte": 1.5}


def counted(counts: list[int], num_bytes: int) -> Scores:
    """Two documents of which the ids were counted."""
    return Scores(np.ones(2), np.array([num_bytes, 0]), np.array([sum(counts) - 1, 1]), np.array(counts))


def test_text_statistics_leave_the_end_of_document_out_wherever_its_id_is():
    expected = {"bytes_per_id": 2.5, "uniform_bits_per_byte": 2 / 2.5, "unigram_bits_per_byte": 1.75 / 2.5}
    assert statistics_of(counted([4, 2, 1, 1, 99], 20), eod_id=4) == pytest.approx(expected)
    assert statistics_of(counted([4, 99, 2, 1, 1], 20), eod_id=1) == pytest.approx(expected)


def test_windows_of_16_bits_that_know_no_context_cost_16_bits_over_their_bytes():
    counts = np.zeros((1 << 16) + 1, int)
    counts[:1000], counts[-1] = 3, 2
    statistics = statistics_of(counted(counts.tolist(), 3000 * 5), eod_id=1 << 16)
    assert statistics["uniform_bits_per_byte"] == pytest.approx(16 / 5) and statistics["bytes_per_id"] == 5
    assert statistics["unigram_bits_per_byte"] == pytest.approx(math.log2(1000) / 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(1, 1000))
def test_as_often_as_in_the_text_is_never_worse_than_equally_likely(counts, num_bytes):
    counts = [*counts, 7]
    statistics = statistics_of(counted(counts, num_bytes), eod_id=len(counts) - 1)
    assert 0 <= statistics["unigram_bits_per_byte"] <= statistics["uniform_bits_per_byte"] + 1e-9


def test_a_model_that_knows_nothing_costs_the_logarithm_of_the_vocabulary(score):
    uniform = jax.tree.map(np.zeros_like, score.params)
    scores = score(DOCUMENTS, params=uniform)
    num_bytes = sum(map(len, DOCUMENTS))
    assert scores.bits_per_byte == pytest.approx(math.log2(257) * (num_bytes + len(DOCUMENTS)) / num_bytes, rel=1e-6)


def test_a_document_costs_the_same_whatever_stands_beside_it(score):
    together = score(DOCUMENTS, batch_rows=2).nats
    alone = [score([document], batch_rows=1).nats[0] for document in DOCUMENTS]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_sliding_window_gives_bytes_more_context_and_counts_each_once(score):
    text = np.random.default_rng(0).integers(97, 123, 60).astype(np.uint8).tobytes()
    pieces, whole = score([text]), score([text], sequence_length=64)
    for stride in (1, 5, 15):
        by_window = score([text], stride=stride)
        assert by_window.num_bytes.tolist() == [60] and by_window.num_tokens.tolist() == [61]
        assert by_window.nats[0] != pytest.approx(pieces.nats[0], rel=1e-6)
    assert score([text], stride=16).nats[0] == pytest.approx(pieces.nats[0], rel=1e-6)
    assert score([text], sequence_length=64, stride=5).nats[0] == pytest.approx(whole.nats[0], rel=1e-6)


def test_the_whole_is_weighted_by_bytes_and_not_an_average_of_averages(score):
    scores = score(DOCUMENTS)
    mean_of_documents = np.mean(
        [nats / math.log(2) / size for nats, size in zip(scores.nats, scores.num_bytes) if size]
    )
    assert scores.bits_per_byte == pytest.approx(scores.nats.sum() / math.log(2) / scores.num_bytes.sum())
    assert abs(scores.bits_per_byte - mean_of_documents) > 0.01, "this text cannot tell the two apart"


def test_a_representation_that_loses_a_byte_is_caught(score):
    class Lossy(ByteRepresentation):
        encode_batch = Representation.encode_batch

        def byte_lengths(self, ids):
            return np.zeros(len(ids), np.int64)

    with pytest.raises(AssertionError, match="byte: 0 bytes of a text of 11"):
        score(DOCUMENTS, representation=Lossy())


def test_nothing_to_score_is_said():
    with pytest.raises(UserError, match="0 bytes were scored"):
        bits_per_byte(1.0, 0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 50)), min_size=2, max_size=30).filter(
        lambda items: sum(n for _, n in items) > 0
    )
)
def test_the_interval_lies_around_the_score_and_is_the_same_each_time(items):
    nats, sizes = (np.array(column) for column in zip(*items))
    scores = Scores(nats, sizes.astype(np.int64), sizes.astype(np.int64), np.zeros(1, np.int64))
    low, high = bootstrap_interval(scores)
    assert low - 1e-9 <= scores.bits_per_byte <= high + 1e-9 and (low, high) == bootstrap_interval(scores)


def test_the_interval_has_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    nats = rng.normal(1000, 100, 400)
    low, high = bootstrap_interval(Scores(nats, np.full(400, 1000), np.full(400, 1000), np.zeros(1, np.int64)))
    expected = 2 * 1.96 * nats.std() / math.sqrt(400) / 1000 / math.log(2)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_domains_add_up_to_the_whole(score):
    domains = ["a", "a", "b", "b", "c", "c"]
    result = summarize(score(DOCUMENTS), domains)
    json.dumps(result, allow_nan=False)
    for name in ("num_bytes", "num_documents", "num_tokens"):
        assert sum(part[name] for part in result["by_domain"].values()) == result[name]
    assert sum(part["total_nats"] for part in result["by_domain"].values()) == pytest.approx(result["total_nats"])


# Traps that comparisons of tokenizers fall into.


def test_a_mean_weighted_by_tokens_would_be_another_number(score):
    """Bits a token times tokens a byte, each averaged over documents by itself, is what many reports give."""
    scores = score(DOCUMENTS)
    bits_per_token = scores.nats.sum() / math.log(2) / scores.num_tokens.sum()
    some = scores.num_bytes > 0
    by_tokens = bits_per_token * np.mean(scores.num_tokens[some] / scores.num_bytes[some])
    assert abs(scores.bits_per_byte - bits_per_token) > 0.05 and abs(scores.bits_per_byte - by_tokens) > 0.05, (
        "this text cannot tell them apart"
    )
    result = summarize(scores, ["a"] * len(DOCUMENTS))
    assert result["bits_per_byte"] == result["total_nats"] / math.log(2) / sum(map(len, DOCUMENTS))


def test_ends_of_documents_bring_no_bytes_but_their_nats(score):
    whole, cut = score([b"one text and another"]), score([b"one text ", b"and another"])
    assert whole.num_bytes.sum() == cut.num_bytes.sum() and cut.num_tokens.sum() == whole.num_tokens.sum() + 1
    uniform = jax.tree.map(np.zeros_like, score.params)
    extra = (
        score([b"one text ", b"and another"], params=uniform).nats.sum()
        - score([b"one text and another"], params=uniform).nats.sum()
    )
    assert extra == pytest.approx(math.log(257), rel=1e-5)


class Normalizing(ByteRepresentation):
    """Loses what the case of letters says, in as many bytes."""

    encode_batch = Representation.encode_batch

    def encode(self, text):
        return super().encode(text.lower())


class Dropping(ByteRepresentation):
    """Leaves out what it does not know, and gives the byte before it the length of both."""

    encode_batch = Representation.encode_batch

    def encode(self, text):
        return super().encode(text.replace(b"?", b""))

    def encode_many(self, texts):
        encoded = [self.encode(text) for text in texts]
        return [
            (ids, np.append(np.ones(len(ids) - 1, np.int64), len(text) - len(ids) + 1))
            for ids, text in zip(encoded, texts)
        ]


@pytest.mark.parametrize(
    "representation, text, said",
    [
        (Normalizing(), b"see Tokyo", "from byte 4 on, b'tokyo' where the text has b'Tokyo'"),
        (Dropping(), b"what is ?x", r"from byte 8 on, b'x' where the text has b'\?x'"),
    ],
)
def test_a_tokenizer_that_drops_or_normalizes_is_caught(score, representation, text, said):
    with pytest.raises(UserError, match="does not give a document back.*" + said):
        score([text], representation=representation)


class SelfVerifying(ByteRepresentation):
    """Takes long to decode, and has seen to it that ids are those of the text."""

    verifies_encoding = True

    def decode(self, ids):
        raise AssertionError("decoded what the encoder has compared")


def test_what_the_encoder_has_compared_is_not_decoded(score):
    assert score([b"a text"], representation=SelfVerifying()).num_bytes.tolist() == [6]


class Losing(ByteRepresentation):
    """Says that texts do not come back."""

    is_lossless = False


def test_bits_per_byte_of_what_loses_text_are_refused(score):
    with pytest.raises(UserError, match="the byte representation .* does not give every text back"):
        score([b"a text"], representation=Losing())


def test_a_run_over_what_loses_text_is_refused_before_anything_is_written(recipe, one_device, tmp_path, monkeypatch):
    monkeypatch.setattr(ByteRepresentation, "is_lossless", False)
    with pytest.raises(UserError, match="does not give every text back"):
        train(recipe, str(tmp_path / "run"), QUIET, make_judge)
    assert not (tmp_path / "run").exists()


def test_evaluating_a_run_over_what_loses_text_is_refused(recipe, one_device, monkeypatch):
    """Of any objective: an encoder's evaluation has bits per byte of the text's ids."""
    loaded = LoadedRun(SimpleNamespace(recipe=recipe, representation=Losing()), None, {})
    monkeypatch.setattr(evaluation, "load_run", lambda *_: loaded)
    with pytest.raises(UserError, match="does not give every text back"):
        evaluation.evaluate_run("run", None, lambda *_: None)


def test_evaluation_reads_no_document_that_was_trained_on(make_recipe, one_device, tmp_path, monkeypatch):
    """By their hashes; where a corpus has one in both splits, which `toklab ingest` never makes, that is counted."""
    train(make_recipe(), str(tmp_path / "run"), QUIET, make_judge)
    read = []
    monkeypatch.setattr(
        evaluation,
        "score_documents",
        lambda documents, *args, **kw: (
            read.extend(documents[i] for i in range(len(documents))) or score_documents(documents, *args, **kw)
        ),
    )
    told = []
    result = evaluation.evaluate_run(str(tmp_path / "run"), None, lambda *progress: told.append(progress))
    assert told == sorted(told) and told[-1] == (result["num_bytes"], result["num_bytes"])
    [corpus] = make_recipe().data.corpora
    training = Corpus.open(corpus).documents("train")
    trained_on = {hashlib.sha256(training[number]).digest() for number in range(len(training))}
    assert read and not trained_on & {hashlib.sha256(document).digest() for document in read}
    assert result["num_documents_in_training"] == 0

    in_training = lambda scored_below=None: evaluation.count_in_training(
        [training[0], b"new", training[1]], RunFolder(tmp_path / "run"), scored_below
    )
    assert in_training() == 2 and in_training(scored_below=1.0) == 0, "what is held out is not trained on"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "MAX_COMPARED_BYTES", training.num_bytes)
        assert in_training() == 2
        patch.setattr(evaluation, "MAX_COMPARED_BYTES", training.num_bytes - 1)
        assert in_training() is None, "too much text to be read"

    new = next(text for number in range(99) if is_held_out(text := b"never seen %d" % number, 0.2))
    with write_corpus(tmp_path / "leaky", 0.5) as writer:
        for split, document in (("train", training[0]), ("test", training[0]), ("test", new)):
            writer.add("text", split, document)
        writer.commit()
    evaluate = lambda **options: evaluation.evaluate_run(
        str(tmp_path / "run"), str(tmp_path / "leaky"), lambda *_: None, **options
    )
    by_rule, whole = evaluate(), evaluate(whole_corpus=True)
    numbers = "num_documents", "num_documents_left_out", "num_documents_in_training"
    assert [by_rule[name] for name in numbers] == [1, 1, 0] and [whole[name] for name in numbers] == [2, 0, 1]
    assert by_rule["num_bytes"] == len(new)
    assert by_rule["corpus_content_hash"] != whole["corpus_content_hash"], "for pages these are different texts"


def test_what_a_byte_costs_is_what_its_ids_cost(recipe, one_device):
    setup = set_up(recipe)
    one, two = evaluation.costs(setup, 1.0), evaluation.costs(setup, 2.0)
    assert one["train_flops_per_byte"] == setup.flops_per_token["total"] == 2 * two["train_flops_per_byte"]
    model = recipe.model
    assert (
        one["kv_cache_bytes_per_byte"]
        == 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
        == 2 * two["kv_cache_bytes_per_byte"]
    )
    assert one["generate_flops_per_byte"] == pytest.approx(
        (one["train_flops_per_byte"] - setup.flops_per_token["embedding"]) / 3
    )


def test_what_encodes_and_what_generates_is_in_the_costs(make_recipe):
    """At two bytes an id. Windows are walked again when they are read; an encoder generates nothing."""
    flops = {"total": 110.0, "encode": 10.0, "generator": 30.0}
    costs_of = lambda recipe, **changes: evaluation.costs(
        SimpleNamespace(recipe=recipe, representation=ByteRepresentation(), flops_per_token=flops | changes), 2.0
    )
    costs, encoding_free = costs_of(make_recipe()), costs_of(make_recipe(), encode=0.0)
    names = "train_flops_per_byte", "encode_flops_per_byte", "generator_flops_per_byte"
    assert [costs[name] for name in names] == [55, 5, 15]
    assert costs["generate_flops_per_byte"] - encoding_free["generate_flops_per_byte"] == pytest.approx(5)
    encoder = costs_of(make_recipe(model=EncoderConfig(), objective=Masked()))
    assert [encoder[name] for name in names] == [55, 5, 15]
    assert encoder["generate_flops_per_byte"] is encoder["kv_cache_bytes_per_byte"] is None


def test_a_run_remembers_what_is_surely_new_to_it(make_recipe, corpus, one_device, tmp_path):
    """Also where its corpora are gone; a run of before that was kept goes by the smallest share of its corpora."""
    source = corpus.parent / "corpus-source"
    other = tmp_path / "other"
    ingest(IngestOptions(sources=(str(source),), out=other, test_fraction=0.05))
    data = dataclasses.replace(make_recipe().data, corpora=(str(corpus), str(other)))
    setup = set_up(make_recipe(data=data))
    assert setup.split == RunSplit(0.2, 0.2) and setup.identity["scored_below"] == 0.2
    assert LoadedRun(setup, None, {}).scored_below == 0.05
    gone = dataclasses.replace(setup, recipe=make_recipe(data=dataclasses.replace(data, corpora=("gone",))))
    assert LoadedRun(gone, None, {}, 0.2).scored_below == 0.2 and LoadedRun(gone, None, {}).scored_below is None
