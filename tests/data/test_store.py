"""The corpus store: what goes in comes out, in any order, from any thread; and it is whole or it is not there."""

import errno
import hashlib
import json
import pathlib
import pickle
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor

import grain
import pytest
from hypothesis import example, given, settings, strategies as st

import data.store
from data import layout, shards, storage
from data.corpus_writer import write_corpus
from data.split import document_key
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import sha256_of_parts


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def in_order(documents):
    return sorted(documents, key=document_key)


def hash_of(documents, split="train", domain="text"):
    """A corpus's content hash, of documents of which no two are in one bucket."""
    buckets = [
        document_key(document)[:2]
        + hashlib.sha256(
            document_key(document) + (-1).to_bytes(8, "little", signed=True) + len(document).to_bytes(8, "little")
        ).digest()
        for document in in_order(documents)
    ]
    of_text = hashlib.sha256(b"".join(buckets)).hexdigest()
    return sha256_of_parts([domain.encode(), split.encode(), of_text.encode()])


some_documents = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "valid", "test"]), st.binary(max_size=200)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=25)
@given(some_documents, st.integers(0, 300), st.integers(1, 4), st.randoms())
@example([("a", "train", b"")], 0, 1, random.Random(0))
def test_round_trip(documents, shard_bytes, min_blocks, random_):
    """In the order of their hashes, whatever the order they came in, the sizes of shards, units and blocks."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MIN_BLOCKS", min_blocks)
        for name, size in (("one", shard_bytes), ("other", 1 << 20)):
            with write_corpus(pathlib.Path(folder, name), 0.5, size) as writer:
                for document in random_.sample(documents, len(documents)):
                    writer.add(*document)
                assert writer.commit()
        corpus, other = Corpus.open(f"{folder}/one"), Corpus.open(f"{folder}/other")
        assert corpus.content_hash == other.content_hash
        assert corpus.num_documents == len(documents)
        assert corpus.num_bytes == sum(len(content) for _, _, content in documents)
        assert corpus.domains == tuple(sorted({domain for domain, _, _ in documents}))
        for split in {split for _, split, _ in documents}:
            expected = [
                (domain, content)
                for domain in corpus.domains
                for content in in_order(c for d, s, c in documents if (d, s) == (domain, split))
            ]
            stored = corpus.documents(split)
            assert [(stored.domain(i), stored[i]) for i in range(len(stored))] == expected
            assert stored.read_many(range(len(stored))) == [content for _, content in expected]
            blocks = [stored.read_block(number) for number in range(-(-len(stored) // stored.block_documents))]
            assert sum(blocks, []) == [content for _, content in expected]
            assert {len(block) for block in blocks[:-1]} <= {stored.block_documents}
            assert stored.num_bytes == sum(len(content) for _, content in expected)
            assert [stored.key(i) for i in range(len(stored))] == [document_key(content) for _, content in expected]


def test_content_hash_is_over_documents_and_not_over_shards(write, four_documents, tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "many", shard_bytes=1)
    one, many = Corpus.open(tmp_path / "one"), Corpus.open(tmp_path / "many")
    assert (len(one.shards), len(many.shards)) == (1, 4)
    assert one.content_hash == many.content_hash == one.documents("train").content_hash == hash_of(four_documents)
    write(tmp_path / "border", documents=[b"on", b"e", *four_documents[1:]])
    assert Corpus.open(tmp_path / "border").content_hash != one.content_hash


def test_golden_store(write, four_documents, tmp_path):
    """Runs name a corpus by its hash, and their rows' order hangs on that of its documents."""
    write(tmp_path)
    documents = Corpus.open(tmp_path).documents("train")
    assert list(documents) == [four_documents[number] for number in (3, 2, 0, 1)]
    assert documents.content_hash == "f01cf8d740996fdffdf33ec809f37909dfd536088a5996890e099f65ded9c2bc"


def test_a_shard_ends_before_it_gets_too_large(write, tmp_path):
    documents = [b"%d" % number * 5 for number in range(10)]
    write(tmp_path, documents=documents, shard_bytes=12)
    sizes = [(shard.num_documents, shard.num_bytes) for shard in Corpus.open(tmp_path).shards]
    assert sizes == [(2, 10)] * 5
    assert list(Corpus.open(tmp_path).documents("train")) == in_order(documents)


def test_what_is_read_is_kept_within_bounds_and_each_unit_is_read_once_a_call(write, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_UNIT_BYTES", 8_000)
    documents = in_order(b"%04d" % number * 100 for number in range(300))  # of 400 bytes, 16 in a unit
    write(tmp_path, documents=documents, shard_bytes=30_000)
    asked, read = [], storage.read_ranges
    monkeypatch.setattr(data.store, "read_ranges", lambda ranges: asked.extend(ranges) or read(ranges))
    monkeypatch.setattr(data.store, "_UNITS_BYTES", 20_000)
    stored = Corpus.open(tmp_path).documents("train")
    assert stored.read_many([*range(40), *range(40)]) == documents[:40] * 2
    assert len(asked) == 1 + 3  # the footer, and units
    assert stored[39] == documents[39] and len(asked) == 4
    assert list(stored) == documents
    assert 0 < stored._units.num_bytes <= 20_000 and 1 < len(stored._units._values) < 5


def test_documents_are_a_pickled_grain_source_for_many_threads(write, tmp_path):
    contents = [random.Random(i).randbytes(i) for i in range(300)]
    write(tmp_path, documents=contents, shard_bytes=3000)
    documents = pickle.loads(pickle.dumps(Corpus.open(tmp_path).documents("train")))
    contents = in_order(contents)
    order = random.Random(0).choices(range(300), k=3000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(documents.__getitem__, order)) == [contents[i] for i in order]
    assert list(grain.MapDataset.source(documents).shuffle(seed=0)) != contents
    assert sorted(grain.MapDataset.source(documents).shuffle(seed=0)) == sorted(contents)


@pytest.mark.parametrize("index", [-1, 4])
def test_index_out_of_range(write, tmp_path, index):
    write(tmp_path)
    with pytest.raises(IndexError, match=f"document {index} of 4"):
        Corpus.open(tmp_path).documents("train")[index]


def test_domains_can_be_added_in_any_order(write, everything, tmp_path):
    for name, domains in (("ab", "ab"), ("ba", "ba")):
        for domain in domains:
            assert write(tmp_path / name, documents=[domain.encode()], domain=domain)
    assert everything(tmp_path / "ab") == everything(tmp_path / "ba")
    assert list(Corpus.open(tmp_path / "ab").documents("train")) == [b"a", b"b"]


def test_the_same_domain_again(write, everything, four_documents, tmp_path):
    write(tmp_path, shard_bytes=1)
    before = everything(tmp_path)
    assert not write(tmp_path)
    assert everything(tmp_path) == before
    with pytest.raises(
        UserError, match=r"other documents under domain 'text': 4 documents of 6015 bytes there, 3 documents .* given"
    ):
        write(tmp_path, documents=four_documents[:3])
    with pytest.raises(UserError, match="other documents"):
        write(tmp_path, split="test")
    assert everything(tmp_path) == before


def test_one_holdout_for_a_corpus(write, tmp_path):
    write(tmp_path, test_fraction=0.25)
    with pytest.raises(UserError, match="holds out 0.25 of its documents, not 0.5; use --test-fraction 0.25"):
        write(tmp_path, domain="more", test_fraction=0.5)


def test_a_split_without_documents(write, tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="no test documents; ingest more"):
        Corpus.open(tmp_path).documents("test")


def test_a_folder_that_is_no_corpus(write, everything, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a corpus: it has no manifest.json; make one with `toklab ingest"):
            Corpus.open(folder)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not a corpus and not empty"):
        write(tmp_path)
    assert everything(tmp_path) == {pathlib.Path("letter.txt"): b"mine"}


def test_a_missing_shard(write, tmp_path):
    write(tmp_path)
    [path] = (tmp_path / "text").iterdir()
    path.unlink()
    with pytest.raises(UserError, match=f"text/{path.name} is missing; remove .* and ingest it again"):
        Corpus.open(tmp_path)


def test_a_truncated_shard(write, tmp_path):
    write(tmp_path)
    [path] = (tmp_path / "text").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"has {len(content) - 1} bytes, the manifest says {len(content)}"):
        Corpus.open(tmp_path)
    path.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=f"text/{path.name} is damaged: its footer is not one; remove"):
        Corpus.open(tmp_path).documents("train")[0]


def test_a_flipped_byte_is_found(write, tmp_path):
    contents = in_order(random.Random(i).randbytes(3000) for i in range(50))
    write(tmp_path, documents=contents)
    [path] = (tmp_path / "text").iterdir()
    whole, reported = path.read_bytes(), 0
    for offset in random.Random(0).sample(range(len(whole)), 60):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        documents = Corpus.open(tmp_path).documents("train")
        for number, content in enumerate(contents):
            try:
                assert documents[number] == content
            except UserError as error:
                reported += 1
                assert f"text/{path.name}" in str(error) and "is damaged" in str(error)
                assert f"document {number // 4 * 4}, " in str(error) or "footer" in str(error)
    assert (
        reported >= 2 * 60
    )  # the documents of a unit, which are four or, at the end, two, or all where it is the footer


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 3), st.booleans())
def test_any_unit_and_footer_is_read_or_refused(content, num_documents, compressed):
    frame = shards.compressor()(content) if compressed else content
    for read in (
        lambda: shards.decode_unit(frame, num_documents, 1000),
        lambda: shards.decode_footer(content, num_documents, 100),
    ):
        try:
            read()
        except shards.Damaged:
            pass


def test_a_unit_that_would_take_all_memory_is_refused():
    frame = shards.compressor()(bytes(1 << 20))
    with pytest.raises(shards.Damaged, match="a unit of 1,048,576 bytes, in a file of at most"):
        shards.decode_unit(frame, 1, 1000)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(data.store.epath.Path(tmp_path)), "exists", fail)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Permission denied; check its permissions"):
        Corpus.open(tmp_path)


def test_too_many_open_files(write, tmp_path, monkeypatch):
    write(tmp_path)
    documents = Corpus.open(tmp_path).documents("train")

    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files", "shard")

    monkeypatch.setattr(storage, "_read_here", fail)
    with pytest.raises(UserError, match="Too many open files; allow more open files with `ulimit -n`"):
        documents[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format="tokenizer-lab corpus 1"),
            "format 'tokenizer-lab corpus 1', this version reads 'tokenizer-lab corpus 3'",
        ),
        (lambda m: m.update(num_bytes=5), "contradict each other"),
        (lambda m: m.update(content_hash="0" * 64), "contradict each other"),
        (lambda m: m.update(texts=[]), "contradict each other"),
        (lambda m: m.update(texts=None), "damaged or was changed"),
        (lambda m: m.update(texts=m["texts"] * 2), "contradict each other"),
        (lambda m: m.pop("holdout"), "damaged or was changed"),
        (lambda m: m["holdout"].update(test_fraction=float("nan")), "contradict each other"),
        (lambda m: m["holdout"].update(test_fraction=10**400), "damaged or was changed"),
        (lambda m: m["block_documents"].update(train=3), "blocks of {'train': 3} documents"),
        (lambda m: m["block_documents"].update(train=0), "blocks of {'train': 0} documents"),
        (lambda m: m["block_documents"].update(test=1), "contradict each other"),
        (lambda m: m["texts"][0].update(domain="../x"), "not a plain name"),
        (lambda m: m["texts"][0].update(name="../x"), "not a plain name"),
        (lambda m: m["texts"][0].update(split="dev"), "text is of split 'dev' by 'hash'"),
        (lambda m: m["texts"][0].update(rule="dice"), "text is of split 'train' by 'dice'"),
        (lambda m: m["texts"][0].update(content_hash=3), "text has no hash"),
        (lambda m: m["texts"][0].update(unit_documents=0), "units of 0 documents"),
        (lambda m: m["texts"][0].update(num_parts=-1), "-1 of which are parts"),
        (lambda m: m["texts"][0].update(extra=1), "not described by"),
        (lambda m: m["texts"].append(3), "not described by"),
        (lambda m: m["texts"][0].update(shards=[]), "text has no shards"),
        (lambda m: m["texts"][0]["shards"].append([1, 2, 3]), "damaged or was changed"),
        (lambda m: m["texts"][0]["shards"][0].__setitem__(0, 10**12), "not 1000000000000 documents"),
        (lambda m: m["texts"][0]["shards"][0].__setitem__(0, -1), "not described by three counts"),
        (lambda m: m["texts"][0]["shards"][0].__setitem__(0, True), "not described by three counts"),
        (lambda m: m["texts"][0]["shards"][0].__setitem__(1, 2**70), "not described by three counts"),
        (lambda m: m["texts"][0]["shards"][0].__setitem__(3, None), "not described by three counts"),
    ],
)
def test_a_manifest_of_a_stranger(write, tmp_path, change, message):
    write(tmp_path)
    edit_manifest(tmp_path, change)
    with pytest.raises(UserError, match=message):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', "null", "[" * 100_000])
def test_a_manifest_that_is_garbage(write, tmp_path, content):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"):
        Corpus.open(tmp_path)
