"""Documents that are the same, or near copies: one stays, and it is the one that is held out."""

import random
import sys

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings, strategies as st

from data import near_duplicates
from data.corpus_writer import Sizes
from data.duplicates import kept, names_of
from data.ingest import IngestOptions, ingest
from data.near_duplicates import BandPart, FindPairs, SketchFile, dropped_keys, pairs_of, shingles, sketch
from data.runs import Columns
from data.split import document_key, key_is_held_out
from data.store import Corpus
from tokenizer_lab.errors import UserError

TINY = Sizes(task=2000, run=700, merge=500, shard=900)


@pytest.fixture
def rensa():
    return pytest.importorskip("rensa", reason="an extra")


def texts_of(count, seed=0, num_words=60):
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(5000)}" for _ in range(num_words)) for _ in range(count)]


def ingested(folder, **options):
    corpus = Corpus.open(folder / "corpus")
    return {split: sorted(corpus.documents(split)) for split in corpus.splits}


def run(folder, *names, sizes=TINY, **options):
    return ingest(
        IngestOptions(sources=tuple(str(folder / name) for name in names), out=folder / "corpus", **options),
        sizes=sizes,
    )


def test_the_same_documents_are_kept_once(write_files, jsonl, tmp_path):
    texts = texts_of(40)
    write_files(tmp_path, {"a.jsonl": jsonl(*texts, *texts[:25]), "b.jsonl": jsonl(*texts[10:], *texts[:5])})
    result = run(tmp_path, "a.jsonl", "b.jsonl", drop_duplicates="exact")
    assert result.counts["exact"] == 25 + 35 and "60 documents left out that are the same as others" in str(result)
    found = ingested(tmp_path)
    assert sorted(found["train"] + found["test"]) == sorted(text.encode() for text in texts)
    assert sum(result.num_documents.values()) == 40 and sum(result.num_bytes.values()) == sum(map(len, texts))
    assert not run(tmp_path, "b.jsonl", "a.jsonl", drop_duplicates="exact").changed  # whatever the order


def test_what_another_domain_has_is_left_out(write_files, jsonl, tmp_path):
    texts = texts_of(30)
    write_files(tmp_path, {"a.jsonl": jsonl(*texts[:20]), "b.jsonl": jsonl(*texts[10:])})
    run(tmp_path, "a.jsonl", domain="a")
    run(tmp_path, "b.jsonl", domain="b", drop_duplicates="exact")
    found = ingested(tmp_path)
    assert sorted(found["train"] + found["test"]) == sorted(text.encode() for text in texts)


def test_parts_of_the_same_document_are_dropped_together(write_files, jsonl, tmp_path):
    book = "".join(f"line {number}\n" for number in range(60))
    write_files(tmp_path, {"a.jsonl": jsonl(book, "x", book, book)})
    run(tmp_path, "a.jsonl", drop_duplicates="exact", max_part_bytes=100, test_fraction=0.0)
    documents = Corpus.open(tmp_path / "corpus").documents("train")
    [first] = [number for number in range(len(documents)) if documents.part(number) == 0]
    count = len(documents) - 1
    assert "".join(documents[first + part].decode() for part in range(count)) == book


def test_near_copies_of_what_is_held_out_are_not_trained_on(rensa, write_files, jsonl, tmp_path):
    texts = texts_of(50)
    edited = [text + " and more" for text in texts[:25]]
    write_files(tmp_path, {"a.jsonl": jsonl(*texts), "b.jsonl": jsonl(*edited)})
    result = run(tmp_path, "a.jsonl", "b.jsonl", drop_duplicates="near", test_fraction=0.3)
    found = ingested(tmp_path)
    assert result.counts["near"] == 25 and len(found["test"]) + len(found["train"]) == 50
    assert "25 documents left out that are near copies of others" in str(result)
    for text, copy in zip(texts, edited):
        both = sorted((text.encode(), copy.encode()), key=document_key)
        split = "test" if key_is_held_out(document_key(both[0]), 0.3) else "train"
        assert both[0] in found[split] and both[1] not in found["test"] + found["train"]
    assert not run(tmp_path, "b.jsonl", "a.jsonl", drop_duplicates="near", test_fraction=0.3).changed


def test_near_copies_by_published_splits(rensa, write_files, jsonl, tmp_path):
    texts = texts_of(20)
    write_files(tmp_path, {"a.jsonl": jsonl(*texts, *texts, *(text + " more" for text in texts))})
    result = run(tmp_path, "a.jsonl", split="train", drop_duplicates="near")
    assert (result.counts["exact"] > 0, result.num_documents) == (True, {("text", "train"): 20})


def test_other_documents_are_no_near_copies(rensa):
    bands = near_duplicates.band_hashes([text.encode() for text in texts_of(60)])
    assert bands.shape == (60, near_duplicates.BANDS)
    assert all(not len(pairs_of(column, np.arange(60))) for column in bands.T)


def test_the_hashes_are_the_same_on_every_machine(rensa):
    [first, *_] = near_duplicates.band_hashes([b"the quick brown fox jumps over the lazy dog"])[0].tolist()
    assert first == 877993953502943405


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"One  two\nTHREE four five six", [b"one two three four five", b"two three four five six"]),
        (b"short", [b"short"]),
        (b"", [b""]),
        ("漢字仮名交じり文章です".encode(), [" ".join("漢字仮名交じり文章です"[n : n + 5]).encode() for n in range(7)]),
        (b"\xff" * 40, [b"\xff \xff \xff \xff \xff"] * 36),
    ],
)
def test_shingles(text, expected):
    assert shingles(text) == expected


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(1, 3), st.data()
)
def test_one_of_each_group_of_near_copies_stays(tmp_path_factory, bands, num_files, data):
    """Groups are what is connected by equal hashes, in two bands; held against a search."""
    count = len(bands)
    splits = data.draw(st.lists(st.sampled_from(["train", "valid", "test"]), min_size=count, max_size=count))
    keys = [document_key(b"%d" % (number % 20)) for number in range(count)]  # of which some are the same
    columns = np.zeros((count, near_duplicates.BANDS), np.uint64)
    columns[:, :2] = bands
    columns[:, 2:] = np.arange(count)[:, None] + 100
    folder, files = epath.Path(tmp_path_factory.mktemp("near")), []
    for number in range(num_files):
        chosen = range(number * count // num_files, (number + 1) * count // num_files)
        content = (
            sketch([keys[i] for i in chosen], [splits[i] for i in chosen], columns[chosen]) if chosen else np.zeros(0)
        )
        (folder / f"{number}").write_bytes(content.astype("<u8").tobytes())
        files.append(SketchFile(folder / f"{number}", len(chosen)))
    pairs = [
        found
        for band in range(near_duplicates.BANDS)
        for part in range(2)
        for found in FindPairs(tuple(files))(BandPart(band, part, 2))
    ]
    dropped = {name.ljust(16, b"\0") for name in dropped_keys(files, pairs).tolist()}

    group = list(range(count))
    for _ in range(count):
        for i in range(count):
            for j in range(count):
                if any(a == b for a, b in zip(bands[i], bands[j])):
                    group[i] = group[j] = min(group[i], group[j])
    expected = set()
    for number in set(group):
        members = [i for i in range(count) if group[i] == number]
        rank = {"test": 0, "valid": 1, "train": 2}
        first = min(members, key=lambda i: (rank[splits[i]], keys[i]))
        expected |= {keys[i] for i in members} - {keys[first]}
    assert dropped == expected


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 1)), max_size=25),
    st.sets(st.integers(0, 5)),
    st.integers(1, 9),
)
def test_what_is_kept_in_the_merge(places, gone, size):
    places.sort()
    high = np.array([place for place, _ in places], np.uint64)
    columns = Columns(
        high,
        high + np.uint64(7),
        np.array([part for _, part in places], np.int64),
        [b"%d %d" % place for place in places],
    )
    numbers = np.array(sorted(gone), np.uint64)
    batches = [columns.cut(start, min(len(places), start + size)) for start in range(0, len(places), size)]
    left = [
        document
        for each in kept(batches, np.sort(names_of(numbers, numbers + np.uint64(7))))
        for document in each.documents
    ]
    assert left == [b"%d %d" % place for place in sorted(set(places)) if place[0] not in gone]


def test_the_extra_is_named(write_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    write_files(tmp_path, {"a.txt": b"x"})
    with pytest.raises(UserError, match=r"--drop-duplicates near needs .*: pip install 'tokenizer-lab\[dedup\]'"):
        run(tmp_path, "a.txt", drop_duplicates="near")
