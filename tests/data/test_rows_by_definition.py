"""Rows against a plain implementation of what `data/rows.py` says of them, one document and one position at a time; and
against what earlier versions gave."""

import dataclasses
import functools
import hashlib
import itertools

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data import row_documents
from data.document_order import Order, shuffle_seed
from data.encoder_rows import EncoderRow, PairRow
from data.rows import CausalRow, RowStreams, Source
from data.split import is_held_out
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.representation import CLS, SEP, Representation

# ---- A plain implementation


def hash_of(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


def chance(*what) -> int:
    return int.from_bytes(hash_of("/".join(map(str, what)).encode()), "little")


def mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@functools.cache
def shuffled(size: int, seed: int, place: int) -> tuple[int, int]:
    """By grain, of which a shuffle of few takes long: the pass over all, and the item."""
    index = int(grain.MapDataset.range(size).shuffle(seed=seed)[place])
    return place // size, index


def document_in(documents: list[bytes], seed: int, block_documents: int, slot: int) -> bytes | None:
    """What is in a slot of the endless order of a source."""
    place, within = divmod(slot, block_documents)
    epoch, block = shuffled(-(-len(documents) // block_documents), seed, place)
    of_block = mixed(mixed(mixed(seed) ^ epoch) ^ block)
    within = sorted(range(block_documents), key=lambda k: mixed(of_block ^ k))[within]
    index = block * block_documents + within
    return documents[index] if index < len(documents) else None


class Blocks(list):
    """Documents that are best read several at a time."""

    def __init__(self, documents: list[bytes], block_documents: int):
        super().__init__(documents)
        self.block_documents = block_documents


@dataclasses.dataclass
class PlainRow:
    """One row of a batch."""

    run: "Run"
    row: int
    finished: list[int]
    hash: bytes = bytes(8)
    position: int = 0
    document: bytes | None = None

    def open(self) -> bytes:
        """The document that the row is in, after those that are passed over."""
        run = self.run
        while self.document is None:
            bounds = list(itertools.accumulate(source.weight for source in run.sources))
            draw = (chance(run.seed, self.row, sum(self.finished)) >> 11) / 2**53 * bounds[-1]
            self.source = 0 if len(bounds) == 1 else next(n for n, bound in enumerate(bounds) if draw < bound)
            source, finished = run.sources[self.source], self.finished[self.source]
            k = source.documents.block_documents
            self.slot = (self.row + run.batch_rows * (finished // k)) * k + finished % k
            text = document_in(source.documents, shuffle_seed(run.seed, self.source), k, self.slot)
            if text is None:
                self.finish(None)
            elif source.trained_from and is_held_out(text, source.trained_from):
                self.finish(text)
            else:
                self.document = text
        return self.document

    def finish(self, text: bytes | None) -> None:
        if text is not None:
            self.hash = hash_of(self.hash, hash_of(f"{self.source}/{self.slot}/".encode(), text))
        self.finished[self.source] += 1
        self.position, self.document = 0, None

    def next_causal(self) -> dict[str, list[int]]:
        run, out = self.run, {name: [] for name in CausalRow.arrays}
        eod, num_bytes, segment = run.representation.eod_id, 0, 0
        begins = True
        while len(out["ids"]) < run.length:
            text = self.open()
            ids = run.representation.encode(text)
            lengths = [*run.representation.byte_lengths(ids).tolist(), 0]
            around = [eod, *ids.tolist(), eod]
            if run.piece_length:
                first_end = 1 + chance(run.seed, self.row, sum(self.finished), "piece") % run.piece_length
                begins |= (self.position - first_end) % run.piece_length == 0
            if begins or self.position == 0:
                begins, segment, piece = False, segment + 1, 0
            out["ids"].append(eod if run.piece_length and piece == 0 else around[self.position])
            out["targets"].append(around[self.position + 1])
            out["segment_ids"].append(segment)
            out["positions"].append(piece)
            num_bytes, piece, self.position = num_bytes + lengths[self.position], piece + 1, self.position + 1
            if self.position == len(around) - 1:
                self.finish(text)
        return out | {"num_bytes": num_bytes, "cursors": self.cursor()}

    def next_encoder(self) -> dict[str, list[int]]:
        run, out = self.run, {name: [] for name in EncoderRow.arrays}
        seed = chance(run.seed, self.row, sum(self.finished), "row", self.position) % 2**32
        num_bytes, segment = 0, 0
        while True:
            ids = run.representation.encode(self.open())
            lengths = run.representation.byte_lengths(ids)
            rest, free = len(ids) - self.position, run.length - len(out["ids"]) - 2
            piece = slice(self.position, self.position + max(0, min(rest, free)))
            short = len(ids[piece]) < min(rest, run.length // 8)
            if free < 0 or (out["ids"] and short):
                break
            segment += 1
            whole = [run.representation.vocab_size + CLS, *ids[piece].tolist(), run.representation.vocab_size + SEP]
            out["ids"] += whole
            out["segment_ids"] += [segment] * len(whole)
            out["positions"] += range(len(whole))
            out["types"] += [0] * len(whole)
            num_bytes, self.position = num_bytes + int(lengths[piece].sum()), piece.stop
            if self.position == len(ids):
                self.finish(self.document)
        padded = {name: values + [0] * (run.length - len(values)) for name, values in out.items()}
        return padded | {"num_bytes": num_bytes, "cursors": self.cursor(), "row_seeds": seed}

    def cursor(self) -> list[int]:
        return [*self.finished, self.position, *np.frombuffer(self.hash, np.int32).tolist()]


@dataclasses.dataclass(frozen=True)
class Run:
    sources: list[Source]
    representation: Representation
    batch_rows: int
    length: int
    seed: int
    layout: type
    piece_length: int

    def open(self, **options) -> RowStreams:
        return RowStreams(
            self.sources,
            self.representation,
            batch_rows=self.batch_rows,
            sequence_length=self.length,
            seed=self.seed,
            layout=self.layout,
            piece_length=self.piece_length,
            **options,
        )

    def by_definition(self, num_batches: int) -> list[dict[str, np.ndarray]]:
        rows = [PlainRow(self, row, [0] * len(self.sources)) for row in range(self.batch_rows)]
        batches = []
        for _ in range(num_batches):
            filled = [row.next_causal() if self.layout is CausalRow else row.next_encoder() for row in rows]
            batches.append({name: np.array([row[name] for row in filled]) for name in filled[0]})
        return batches


# ---- Rows against it


@pytest.fixture(scope="module", autouse=True)
def little_room():
    """So that ids are moved to where there is room for more, again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_documents, "_MIN_POOL", 8)
        yield


texts = st.lists(st.binary(max_size=20), min_size=1, max_size=9)
blocks = st.builds(Blocks, texts, st.sampled_from([1, 1, 2, 4]))
sources = st.builds(Source, blocks, st.sampled_from([0.25, 1.0, 3.0]), st.sampled_from([0, 0, 0, 0.3]))


@st.composite
def runs(draw) -> Run:
    layout = draw(st.sampled_from([CausalRow, EncoderRow]))
    always = Source(Blocks([b"text"], 1))  # so that there is something to train on
    return Run(
        [*draw(st.lists(sources, max_size=2)), always],
        draw(st.from_type(Representation)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9) if layout is CausalRow else st.integers(8, 24)),
        draw(st.integers(0, 2**64)),
        layout,
        draw(st.integers(0, 9)) if layout is CausalRow else 0,
    )


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@settings(deadline=None, max_examples=40)
@given(runs(), st.integers(1, 3), st.lists(st.integers(0, 8), max_size=2), st.data())
def test_rows_are_what_is_said_of_them(run, num_workers, stops, data):
    expected, found, cursors = run.by_definition(8), [], None
    for stop in [*sorted(stops), 8]:  # which goes on from its cursors at any place
        found += itertools.islice(run.open(num_workers=num_workers, cursors=cursors), stop - len(found))
        cursors = found[-1]["cursors"] if found else None
    assert_same(found, expected)
    own = data.draw(st.lists(st.integers(0, run.batch_rows - 1), min_size=1, unique=True))  # of one host of several
    assert_same(
        list(itertools.islice(run.open(rows=own), 8)),
        [{name: batch[name][own] for name in batch} for batch in expected],
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_each_pass_has_every_document_once_and_rows_read_whole_blocks(num_documents, block_documents, seed, batch_rows):
    order = Order(num_documents, seed, block_documents)
    num_slots = order.num_blocks * block_documents
    passes = order.documents(np.arange(3 * num_slots)).reshape(3, num_slots)
    for found in passes:
        assert sorted(found[found >= 0]) == list(range(num_documents))
        for block in found.reshape(-1, block_documents):
            assert len(set(block[block >= 0] // block_documents)) == 1
    numbers = np.arange(4 * block_documents)
    for row in range(batch_rows):
        slots = order.slots(np.full(len(numbers), row), numbers, batch_rows)
        whole = slots.reshape(-1, block_documents)
        assert (whole[:, 0] // block_documents == row + batch_rows * np.arange(4)).all() and (np.diff(whole) == 1).all()


def test_blocks_and_what_is_in_them_are_shuffled_anew_in_each_pass():
    order = Order(4096, 7, 64)
    first, second = order.documents(np.arange(2 * 4096)).reshape(2, 64, 64)
    assert (first[:, 0] // 64 != second[:, 0] // 64).mean() > 0.9
    within = {tuple(block % 64) for block in (*first, *second)}
    assert len(within) == 128, "each block has an order of its own, in each pass another"


# ---- Rows against earlier versions

LINES = [b"\n".join(b"%d line %d" % (n, k) for k in range(n % 9)) for n in range(40)]


@pytest.mark.parametrize(
    "options, golden",
    [
        ({}, "6eea0fe474aad4d5"),
        ({"piece_length": 11}, "7cffa0cad608ffd9"),
        ({"layout": EncoderRow}, "4547387a624b0ee2"),
        ({"layout": PairRow}, "bb3a34bedd6f863b"),
    ],
)
def test_batches_are_those_of_earlier_versions(options, golden):
    mixture = [Source(LINES[::2], 2.0), Source(LINES[1::2], 1.0, trained_from=0.2)]
    streams = RowStreams(mixture, ByteRepresentation(), batch_rows=3, sequence_length=32, seed=17, **options)
    digest = hashlib.sha256()
    for batch in itertools.islice(streams, 60):
        for name in sorted(batch):
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
    assert digest.hexdigest()[:16] == golden
