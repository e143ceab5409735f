"""One rule says what a run holds out, over all of its corpora, and whatever corpus it is judged by."""

import collections
import hashlib
import itertools

import numpy as np
import pytest

from data.encoder_rows import EncoderRow, PairRow
from data.held_out import TrainText, count_seen_by_fit, fixed_subset, held_out_documents, run_sources
from data.rows import CausalRow, RowStreams, Source
from data.split import RunSplit, is_held_out, kept_share, run_split
from data.store import Corpus, Documents
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError

TEXTS = [f"text number {number}." for number in range(1000)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, ingest_from, write_files, jsonl):
    """Share held out -> a corpus of the same thousand texts."""
    found = {}
    for share in (1 / 16, 0.01, 0.5, 1.0):
        folder = tmp_path_factory.mktemp("corpus")
        write_files(folder, {"a.jsonl": jsonl(*TEXTS)})
        ingest_from(folder, "a.jsonl", test_fraction=share)
        found[share] = Corpus.open(folder / "corpus")
    return found


def held_out_of(corpora, share, scored_below=None):
    held_out = held_out_documents([corpora[share]], scored_below)
    return [held_out[number] for number in range(len(held_out))]


def rows_over(corpora, weights, **options):
    split = run_split(corpus.test_fraction for corpus in corpora)
    sources = run_sources(corpora, weights, split.trained_from)
    return RowStreams(sources, ByteRepresentation(), batch_rows=4, sequence_length=500, seed=3, **options)


def documents_of(streams, num_batches):
    """How often each document is read in some batches; without those that they cut."""
    read = collections.Counter()
    for batch in itertools.islice(streams, num_batches):
        for ids in batch["ids"]:
            read.update(bytes(part[part < 256].astype(np.uint8)) for part in np.split(ids, np.flatnonzero(ids >= 256)))
    return {text: read[text] for text in map(str.encode, TEXTS) if read[text]}


@pytest.mark.parametrize("layout", [CausalRow, EncoderRow, PairRow], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shares", [(1 / 16, 0.01), (0.01, 1 / 16), (0.01, 0.5, 1 / 16)])
def test_a_mixture_trains_on_nothing_that_one_of_its_corpora_holds_out(corpora, shares, layout):
    held_out = {document for share in shares for document in held_out_of(corpora, share)}
    read = documents_of(rows_over([corpora[share] for share in shares], [1.0] * len(shares), layout=layout), 20)
    assert not held_out & read.keys()
    assert len(read) > 50


def test_a_corpus_that_draws_in_vain_still_has_its_weight(corpora):
    """Half of the texts of one are held out by the other; yet both are read equally often."""
    [few, many] = corpora[0.5], corpora[0.01]
    sources = run_sources([few, many], [1.0, 1.0], 0.5)
    marked = [Source([b"few " + text for text in map(few.documents("train").__getitem__, range(300))])]
    streams = RowStreams(
        [Source(marked[0].documents, sources[0].weight), sources[1]],
        ByteRepresentation(),
        batch_rows=4,
        sequence_length=500,
        seed=0,
    )
    text = b"".join(bytes(batch["ids"][batch["ids"] < 256].astype(np.uint8)) for batch in itertools.islice(streams, 30))
    assert text.count(b"few ") / text.count(b"text number") == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("documents_together", [1, 8])
def test_rows_go_on_where_they_stood_among_documents_that_are_passed_over(corpora, documents_together):
    def rows(**options):
        streams = rows_over([corpora[0.5], corpora[0.01]], [1.0, 1.0], **options)
        streams.documents_together = documents_together
        return iter(streams)

    batches = list(itertools.islice(rows(), 6))
    again = list(itertools.islice(rows(cursors=batches[2]["cursors"]), 3))
    for name in batches[0]:
        np.testing.assert_array_equal(batches[5][name], again[2][name])


def test_corpora_with_one_share_are_read_as_before(corpora):
    """Without looking at any document's hash: nothing that was trained before changes."""
    split = run_split([0.5, 0.5])
    sources = run_sources([corpora[0.5]] * 2, [2.0, 1.0], split.trained_from)
    assert [(source.weight, source.trained_from) for source in sources] == [(2.0, 0.0), (1.0, 0.0)]


def test_a_mixture_of_which_nothing_is_left_is_refused():
    held_out = [text.encode() for text in TEXTS if is_held_out(text.encode(), 0.5)][:20]
    streams = RowStreams(
        [Source(held_out, trained_from=0.5)], ByteRepresentation(), batch_rows=2, sequence_length=8, seed=0
    )
    with pytest.raises(UserError, match="of the 20 documents of the mixture, row 0 has met none.*--test-fraction"):
        next(iter(streams))


def test_text_that_an_objective_learns_from_is_trained_text(corpora):
    documents = corpora[0.01].documents("train")
    text = TrainText(documents, 0.5)
    assert len(text) == len(documents)
    for number in range(len(text)):
        assert text[number] == (b"" if is_held_out(documents[number], 0.5) else documents[number])


@pytest.mark.parametrize("share", [0.01, 1 / 16, 0.5, 1.0])
def test_another_corpus_is_scored_where_the_run_holds_it_out(corpora, share):
    """A run over corpora of 1/16: what it trained on is in the test split of a corpus that holds out more."""
    below = run_split([1 / 16, 0.01]).scored_below
    held_out = held_out_documents([corpora[share]], below)
    scored = [held_out[number] for number in range(len(held_out))]
    expected = [text.encode() for text in TEXTS if is_held_out(text.encode(), min(share, 1 / 16))]
    assert sorted(scored) == sorted(expected)
    assert held_out.parts[0].num_bytes == sum(map(len, scored)) and held_out.domain(0) == "text"


def test_a_corpus_of_which_the_run_holds_nothing_out_is_refused(corpora):
    with pytest.raises(UserError, match="none of the .* test documents .* is surely new to the run.*--whole-corpus"):
        held_out_documents([corpora[0.5]], 1e-9)


def test_what_a_fit_has_seen_is_found_without_reading_the_rest(corpora, monkeypatch):
    """Of the thousand texts those between the shares: trained on by one corpus, held out by the other."""
    read = []
    for name in ("key", "__getitem__"):
        of_documents = getattr(Documents, name)
        noted = lambda self, number, of_documents=of_documents: read.append(number) or of_documents(self, number)
        monkeypatch.setattr(Documents, name, noted)
    between = sum(is_held_out(text.encode(), 1 / 16) and not is_held_out(text.encode(), 0.01) for text in TEXTS)
    seen = count_seen_by_fit(corpora[0.01], [corpora[0.01], corpora[1 / 16]], 1 / 16)
    assert seen == between > 20
    assert len(read) <= 3 * between + len(corpora[1 / 16].documents("test")) + 1 < len(TEXTS) / 3


@pytest.mark.parametrize("text", TEXTS[:5])
def test_a_document_is_held_out_where_its_place_is_below_the_share(text):
    place = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64
    assert not is_held_out(text.encode(), place - 1e-12) and is_held_out(text.encode(), place + 1e-12)
    assert is_held_out(text.encode(), 1.0) and not is_held_out(text.encode(), 0.0)


def test_a_run_that_begins_from_another_keeps_to_the_split_of_both():
    assert run_split([1 / 16, 0.01]) == RunSplit(1 / 16, 1 / 16)
    assert run_split([1 / 16], start_scored_below=0.01) == RunSplit(trained_from=1 / 16, scored_below=0.01)
    assert run_split([0.01], start_scored_below=1 / 16) == RunSplit(trained_from=1 / 16, scored_below=1 / 16)
    grandchild = run_split([0.5], start_scored_below=run_split([0.2], start_scored_below=0.1).scored_below)
    assert grandchild == RunSplit(trained_from=0.5, scored_below=0.1)
    for fractions, start in (([0.3], 0.1), ([0.1], 0.3), ([0.2, 0.4], 0.3)):
        split = run_split(fractions, start)
        assert split.scored_below <= split.trained_from and split.scored_below <= start


def test_the_share_that_is_left_of_a_train_split():
    assert kept_share(0.5, 1 / 16) == 1.0 and kept_share(0.0, 0.25) == 0.75
    assert kept_share(0.5, 0.75) == pytest.approx(0.5) and kept_share(1.0, 1.0) == 1.0


# ---- Fixed parts of it


class Counted:
    """Many documents, of which it is known which were read."""

    def __init__(self, count, make=lambda number: b"%012d" % number):
        self._count, self._make, self.read = count, make, []

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        self.read.append(number)
        return self._make(number)


@pytest.mark.parametrize("count", [1, 50, 4_000_000_000])
@pytest.mark.parametrize("max_bytes", [1, 12, 100, 1205])
def test_a_subset_reads_what_it_takes_and_nothing_else(count, max_bytes):
    documents = Counted(count)
    subset = fixed_subset(documents, max_bytes)
    assert sum(map(len, subset)) == min(max_bytes, 12 * count)
    assert len(documents.read) == len(subset) == len(set(documents.read))
    assert all(found == b"%012d" % number for found, number in zip(subset[:-1], documents.read))
    assert fixed_subset(Counted(count), max_bytes) == subset


def test_other_seeds_take_other_documents_from_all_over():
    documents = [Counted(100_000) for _ in range(2)]
    subsets = [set(fixed_subset(part, 12_000, seed)) for seed, part in enumerate(documents)]
    assert len(subsets[0] & subsets[1]) < 50
    tenths = collections.Counter(number // 10_000 for number in documents[0].read)
    assert len(tenths) == 10 and max(tenths.values()) < 200


def test_long_documents_are_as_likely_as_short_ones():
    """Those that would no longer fit were left out once, so that the last ones were all short."""
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 20_000).astype(int) + 1
    subset = fixed_subset(Counted(len(lengths), lambda number: b"x" * lengths[number]), 500_000)
    assert np.mean([len(document) for document in subset]) == pytest.approx(lengths.mean(), rel=0.2)


def test_a_document_is_cut_behind_a_character():
    text = "\N{SNOWMAN}".encode() * 5
    assert [len(fixed_subset([text], max_bytes)[0]) for max_bytes in range(1, 10)] == [1, 2, 3, 3, 3, 6, 6, 6, 9]
    assert fixed_subset([b"\x80" * 9], 5) == [b"\x80" * 5], "bytes that are no text"
    assert fixed_subset([b"", text], 3)[-1] == text[:3]
