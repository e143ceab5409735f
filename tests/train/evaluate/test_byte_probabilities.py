"""Next-byte probabilities: compared with sums over every document of small models, and with the model's own where an id
is a byte."""

import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.covers import covers_of
from tokenizer_lab.equal_info import EqualInfoRepresentation
from tokenizer_lab.equal_info.window_code import build_tree
from tokenizer_lab.errors import UserError
from tokenizer_lab.subword import SubwordFit
from train.evaluate.bits_per_byte import make_scorer, score_documents
from train.evaluate.byte_probabilities import (
    END,
    ByteModel,
    ByteWalk,
    _shared_rows,
    average,
    make_next_ids,
    score_bytes,
)
from train.evaluate.generation import Draw
from train.evaluate.sampling import sample_bytes
from train.sharding import MeshConfig, make_mesh

ONE = make_mesh(MeshConfig(), jax.devices()[:1])

LETTERS = b"ab"
MAX_IDS = 4  # of a document


@pytest.fixture(scope="module")
def subwords():
    """The bytes and "ab", "aba", "bb", "aa" (in some order)."""
    return SubwordFit(vocab_size=261, pretokenization="whitespace").fit([b"ababab abaab aaa bbb aabb abab aba"] * 3, "")


@pytest.fixture(scope="module")
def covers(subwords):
    return covers_of(subwords)


def random_model(representation, letters=LETTERS, seed=0):
    """`NextIds` that depend on the last id and on how many there are; only ids of these letters, and documents end
    after `MAX_IDS`."""
    covers = covers_of(representation)
    possible_v = np.array([set(bytes_) <= set(letters) for bytes_ in covers.id_bytes])
    logits_tv = {}

    def next_ids(sequences):
        rows = []
        for ids in sequences:
            state = min(len(ids), MAX_IDS), ids[-1] if ids else 0
            if state not in logits_tv:
                logits_v = np.where(
                    possible_v, np.random.default_rng((seed, *state)).normal(size=len(possible_v)), -np.inf
                )
                if len(ids) >= MAX_IDS:
                    logits_v[np.arange(len(logits_v)) != representation.eod_id] = -np.inf
                logits_tv[state] = logits_v - np.logaddexp.reduce(logits_v)
            rows.append(logits_tv[state])
        return np.stack(rows)

    return next_ids


@pytest.fixture(scope="module")
def document_probabilities(subwords):
    """The probability of every document of `random_model`, found without covers: ids that follow in no document get
    none."""
    texts = [bytes(text) for length in range(3 * MAX_IDS + 1) for text in itertools.product(LETTERS, repeat=length)]
    ids_of = {text: (*ids.tolist(), subwords.eod_id) for text, (ids, _) in zip(texts, subwords.encode_many(texts))}
    ids_of = {text: ids for text, ids in ids_of.items() if len(ids) <= MAX_IDS + 1}
    following = {}
    for ids in ids_of.values():
        for place, id_ in enumerate(ids):
            following.setdefault(ids[:place], set()).add(id_)
    next_ids, share = random_model(subwords), {}
    for ids, follow in following.items():
        next_v = np.exp(next_ids([ids])[0])
        share |= {(*ids, id_): next_v[id_] / sum(next_v[other] for other in follow) for id_ in follow}
    found = {text: math.prod(share[ids[: place + 1]] for place in range(len(ids))) for text, ids in ids_of.items()}
    assert sum(found.values()) == pytest.approx(1, abs=1e-12) and len(found) > 200
    return found


def prefixes(documents, length):
    return sorted({document[:count] for document in documents for count in range(min(length, len(document)) + 1)})


def test_next_bytes_are_those_of_all_documents_together(subwords, covers, document_probabilities):
    for prefix in prefixes(document_probabilities, 6):
        total = sum(p for text, p in document_probabilities.items() if text.startswith(prefix))
        walk = ByteWalk(covers, random_model(subwords), prefix)
        expected = np.zeros(257)
        for text, probability in document_probabilities.items():
            if text.startswith(prefix):
                expected[text[len(prefix)] if len(text) > len(prefix) else END] += probability / total
        np.testing.assert_allclose(walk.next_bytes, expected, rtol=0, atol=1e-12)
        assert walk.next_bytes.sum() == pytest.approx(1, abs=1e-12)
        assert walk.log_probability == pytest.approx(math.log(total), abs=1e-11)


def test_walking_comes_to_the_same_as_beginning_there(subwords, covers, document_probabilities):
    for text in max(document_probabilities, key=document_probabilities.get), b"abaabb", b"bbab":
        walk = ByteWalk(covers, random_model(subwords))
        for place, byte in enumerate(text):
            walk.step(byte)
            there = ByteWalk(covers, random_model(subwords), text[: place + 1])
            np.testing.assert_allclose(walk.next_bytes, there.next_bytes, rtol=0, atol=1e-12)
            assert walk.log_probability == pytest.approx(there.log_probability, abs=1e-11)
        walk.step(END)
        assert walk.log_probability == pytest.approx(math.log(document_probabilities[text]), abs=1e-11)


def test_a_prompt_inside_an_id_differs_from_its_ids_as_they_stand(subwords, covers):
    """What the lemma is for: what comes behind "a" is mostly the rest of "ab" or "aa", which the ids of "a" know
    nothing of."""
    next_ids = random_model(subwords)
    ids = subwords.encode(b"a").tolist()
    naive = np.zeros(257)
    for id_, probability in enumerate(np.exp(next_ids([tuple(ids)])[0])):
        naive[covers.id_bytes[id_][0] if covers.id_bytes[id_] else END] += probability
    exact = ByteWalk(covers, next_ids, b"a").next_bytes
    assert abs(exact - naive).max() > 0.01


def test_bytes_are_the_models_own_softmax():
    representation = ByteRepresentation()
    next_ids = random_model(representation, letters=bytes(range(256)))
    model = ByteModel(covers_of(representation), next_ids)
    for place, next_bytes in enumerate(model.along(b"\0ab")):
        np.testing.assert_allclose(next_bytes, np.exp(next_ids([tuple(b"\0ab"[:place])])[0]), rtol=0, atol=1e-15)


def test_characters_cut_anywhere():
    """Ids that end inside a character: two sequences of ids for the same bytes, of which the next byte decides."""
    text = "語誂".encode()
    representation = SubwordFit(vocab_size=258, pretokenization="whitespace").fit(["語誀誁誂誃".encode() * 3], "")
    assert representation.decode([256]) == text[:2]
    model = ByteModel(covers_of(representation), random_model(representation, letters=text))
    assert max(len(sequences) for sequences in model.covers.borders(text)) > 1
    for count in range(1, len(text)):
        walk = model.walk(text[:count])
        assert walk.next_bytes.sum() == pytest.approx(1, abs=1e-12)
        stepped = model.walk(text[: count - 1])
        stepped.step(text[count - 1])
        np.testing.assert_allclose(walk.next_bytes, stepped.next_bytes, rtol=0, atol=1e-12)


def test_windows_by_the_range_of_their_numbers():
    """P(prefix) as the window code has it: all windows but the last are certain, and that is one of a range
    (`open_prompt`)."""

    def shares(contexts):
        shares_nb = np.ones((len(contexts), 256), np.int32)
        shares_nb[:, 97] = 2**15
        shares_nb[:, 98] = 2**16 - shares_nb[:, :97].sum(axis=1) - 2**15 - 157
        return shares_nb

    representation = EqualInfoRepresentation.of_tree(build_tree(shares, 16), 16)
    model = ByteModel(covers_of(representation), random_model(representation))
    strings, next_ids = model.covers.id_bytes, random_model(representation)
    known = set(strings)

    def share(ids):
        """f64[V], the probabilities behind the ids, of windows that may stand there."""
        next_v = np.exp(next_ids([ids])[0])
        if ids:
            next_v *= [not bytes_ or strings[ids[-1]] + bytes_[:1] not in known for bytes_ in strings]
        return next_v / next_v.sum()

    def probability(text):
        certain, [low], [high] = representation.open_prompt(text)
        ids = tuple(certain.tolist())
        return math.prod(share(ids[:place])[id_] for place, id_ in enumerate(ids)) * share(ids)[low : high + 1].sum()

    text = b"abbabaaabbb"
    for count in range(1, len(text)):
        walk, total = model.walk(text[:count]), probability(text[:count])
        assert walk.log_probability == pytest.approx(math.log(total), abs=1e-11)
        for letter in LETTERS:
            assert walk.next_bytes[letter] == pytest.approx(
                probability(text[:count] + bytes([letter])) / total, abs=1e-12
            )
        assert walk.next_bytes.sum() == pytest.approx(1, abs=1e-12)


def test_what_no_document_begins_with_is_refused(subwords, covers):
    with pytest.raises(UserError, match="no probability to the beginning"):
        ByteWalk(covers, random_model(subwords), b"abc")
    with pytest.raises(UserError, match="no probability to the next byte"):
        ByteWalk(covers, random_model(subwords)).step(ord("c"))


def test_an_ensemble_is_the_mean_of_next_bytes(subwords, covers):
    models = [ByteModel(covers, random_model(subwords, seed=seed)) for seed in range(2)] + [
        ByteModel(covers_of(ByteRepresentation()), random_model(ByteRepresentation()))
    ]
    documents, progress = [b"abb", b"", b"ba"], []
    nats = score_bytes(documents, models, progress.append)
    expected = np.zeros(4)
    for document in documents:
        for count, byte in enumerate([*document, END]):
            shares = [model.walk(document[:count]).next_bytes[byte] for model in models]
            expected -= np.log([*shares, sum(shares) / 3])
    np.testing.assert_allclose(nats, expected, rtol=1e-12)
    np.testing.assert_allclose(average([np.array([0.0, 1.0]), np.array([0.5, 0.5])]), [0.25, 0.75])
    assert progress[-1] == 5


def test_sequences_that_others_begin_with_share_their_rows():
    sequences = [(1, 2), (1,), (3,), (1, 2, 4), (1, 3), (1, 2)]
    rows, places = _shared_rows(sequences)
    assert sorted(rows) == [(1, 2, 4), (1, 3), (3,)]
    assert [rows[row][: position + 1] for row, position in places] == sequences


CONFIG = DecoderConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    compute_dtype="float32",
    remat="none",
)


def decoder(representation):
    model_def, state = nnx.split(CONFIG.build(representation.vocab_size, nnx.Rngs(0)), nnx.Param)
    return model_def, nnx.to_pure_dict(state)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("piece_length", [0, 8])
def test_a_documents_bytes_cost_what_its_ids_do_where_these_are_bytes(piece_length):
    """A decoder sees of a long document just what it sees in evaluation."""
    representation, mesh = ByteRepresentation(), make_mesh(MeshConfig())
    model_def, params = decoder(representation)
    documents = [b"a document of some rows, and a piece of one", b"short", b""]
    by_ids = score_documents(
        documents,
        representation,
        make_scorer(model_def, mesh),
        params,
        mesh,
        batch_rows=2,
        sequence_length=16,
        piece_length=piece_length,
    )
    model = ByteModel(
        covers_of(representation), make_next_ids(model_def, params, ONE, representation.eod_id, 16, piece_length)
    )
    assert score_bytes(documents, [model])[0] == pytest.approx(by_ids.nats.sum(), rel=1e-5)


@pytest.mark.usefixtures("one_device")
def test_drawn_bytes_are_those_of_the_walk(subwords, covers):
    model = ByteModel(covers, make_next_ids(*decoder(subwords), ONE, subwords.eod_id, 16))
    likeliest = sample_bytes(model, b"aba", 6, Draw(temperature=0.0))
    walk = model.walk(b"aba")
    for byte in likeliest:
        assert walk.next_bytes.argmax() == byte
        walk.step(byte)
    assert len(likeliest) == 6 or walk.next_bytes.argmax() == END
    drawn = [sample_bytes(model, b"aba", 6, Draw(seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    ending = ByteModel(covers, random_model(subwords))
    assert all(set(sample_bytes(ending, b"ab", 40, Draw(seed=seed))) <= set(LETTERS) for seed in range(4))
    assert len(sample_bytes(ending, b"ab", 40, Draw())) <= 3 * MAX_IDS
