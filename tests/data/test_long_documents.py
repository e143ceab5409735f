"""Documents in parts: all of them together are the document, and its bytes alone say where each ends."""

import re
import tracemalloc

import pytest
from hypothesis import example, given, settings, strategies as st

from data.ingest import IngestOptions
from data.long_documents import parts_of
from data.reading import find_units, read_portions
from data.split import document_key
from data.store import Corpus
from tokenizer_lab.errors import UserError

any_text = st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.from_regex(rb"(a+\r?\n?){0,40}"))


@settings(deadline=None, max_examples=100)
@given(any_text, st.integers(16, 40), st.integers(1, 60))
@example("☃🙂".encode() * 20, 17, 3)
@example(b"\x80" * 100, 16, 100)
@example(b"x" * 32, 16, 16)
def test_parts_are_the_document_however_it_is_read(text, max_bytes, read_bytes):
    chunks = [text[start : start + read_bytes] for start in range(0, len(text), read_bytes)]
    parts = list(parts_of(chunks, max_bytes))
    assert b"".join(parts) == text and parts == list(parts_of([text], max_bytes))
    assert all(max_bytes // 2 < len(part) <= max_bytes for part in parts[:-1]) and len(parts[-1]) <= max_bytes
    assert len(parts) == 1 or all(parts)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (b"0123456789 one\n\ntwo\nthree", b"0123456789 one\n\n"),
        (b"0123456789\r\n\r\none\ntwo three", b"0123456789\r\n\r\n"),
        (b"0123456789 one\ntwo three four", b"0123456789 one\n"),
        (b"a\n\n3456789 one two three four", b"a\n\n3456789 one two three four"[:20]),
        ("0123456789012345678☃ and more".encode(), b"0123456789012345678"),
        ("01234567890123456☃ and more".encode(), "01234567890123456☃".encode()),
    ],
)
def test_where_a_part_ends(text, first):
    assert next(parts_of([text], 20)) == first


def test_valid_text_is_not_cut_inside_of_a_character():
    for part in parts_of(["aé☃🙂".encode() * 100], 17):
        part.decode()


def test_parts_are_neighbours_in_one_split(ingest_from, stored, write_files, jsonl, tmp_path):
    book = "".join(f"line {number}\n" for number in range(500))
    write_files(tmp_path, {"a.jsonl": jsonl("short", book, "other"), "b.txt": book[:3000].encode()})
    result = ingest_from(tmp_path, "a.jsonl", "b.txt", test_fraction=0.5, max_part_bytes=300)
    assert result.counts["cut"] == 2 and "2 long documents are cut into" in str(result)
    cut = {}
    corpus = Corpus.open(tmp_path / "corpus")
    for split in corpus.splits:
        documents = corpus.documents(split)
        for number in range(len(documents)):
            cut.setdefault((split, documents.key(number)), []).append((number, documents.part(number)))
    books = [numbers for numbers in cut.values() if len(numbers) > 1]
    assert sorted(map(len, books)) == sorted([len(list(parts_of([t.encode()], 300))) for t in (book, book[:3000])])
    for numbers in books:
        first = numbers[0][0]
        assert numbers == [(first + part, part) for part in range(len(numbers))]
    for text in (book.encode(), book[:3000].encode()):
        [(split, key)] = [place for place in cut if place[1] == document_key(text)]
        documents = corpus.documents(split)
        assert b"".join(documents[number] for number, _ in cut[split, key]) == text


def test_a_file_that_is_one_document_is_the_same_whether_it_is_compressed(
    ingest_from, stored, write_files, compress, tmp_path
):
    text = b"".join(b"%d bottles\n" % number for number in range(3000))
    write_files(tmp_path, {"a.txt": text, "b.txt.gz": compress(".gz", text), "c.txt.zst": compress(".zst", text)})
    for name in ("a.txt", "b.txt.gz", "c.txt.zst"):
        ingest_from(tmp_path, name, max_part_bytes=1000, max_document_bytes=5000)  # which is of records
    assert b"".join(stored(tmp_path)) == text


def test_a_long_file_is_read_in_bounded_memory(compress, tmp_path):
    text = b"some text in a line\n" * (1 << 21)
    (tmp_path / "a.txt.gz").write_bytes(compress(".gz", text))
    options = IngestOptions(sources=(str(tmp_path / "a.txt.gz"),), out=tmp_path / "corpus", max_part_bytes=1 << 16)
    [unit] = find_units(options)
    tracemalloc.start()
    sizes = [len(document.text) for portion in read_portions(options, unit) for document in portion.documents]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) == len(text) == 40 << 20 and peak_bytes < 16 << 20


def test_documents_stay_whole_where_nothing_is_to_be_cut(ingest_from, stored, write_files, tmp_path):
    write_files(tmp_path, {"a.txt": b"x\n" * 5000})
    with pytest.raises(UserError, match="a.txt, record 1, has .* bytes or more, over the limit of 5000"):
        ingest_from(tmp_path, "a.txt", max_part_bytes=0, max_document_bytes=5000)
    ingest_from(tmp_path, "a.txt", max_part_bytes=0)
    assert stored(tmp_path) == [b"x\n" * 5000]
    with pytest.raises(UserError, match=re.escape("--max-part-bytes 3 is too little to cut at a line's end; use at")):
        ingest_from(tmp_path, "a.txt", max_part_bytes=3)
