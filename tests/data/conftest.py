"""Helpers: for ingest, files in many forms; for rows, representations, and documents read back from batches."""

import gzip
import json
import lzma
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import strategies as st

from data.corpus_writer import write_corpus
from data.ingest import IngestOptions, ingest
from data.rows import RowStreams
from data.store import Corpus
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

# ---- Ingest

_ZSTANDARD = zstandard.ZstdCompressor(write_checksum=True)  # as the command line tool does
_COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": _ZSTANDARD.compress, ".xz": lzma.compress}


def _ingest_from(folder, *names, test_fraction=0.0, **options):
    options = IngestOptions(
        sources=tuple(str(folder / name) for name in names),
        out=folder / "corpus",
        test_fraction=test_fraction,
        **options,
    )
    return ingest(options)


@pytest.fixture(scope="session")
def ingest_from():
    """ingest_from(folder, *names, **options): ingests files of a folder into its `corpus`, by default nothing held
    out."""
    return _ingest_from


class _InAnyOrder(list):
    """Documents, which a corpus has in the order of their hashes: equal to the same ones in another order."""

    def __eq__(self, other):
        return sorted(self) == sorted(other)


def _stored(folder, split="train"):
    return _InAnyOrder(Corpus.open(folder / "corpus").documents(split))


@pytest.fixture(scope="session")
def stored():
    """stored(folder, split): the documents of the folder's corpus, to be compared in any order."""
    return _stored


def _everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def everything():
    """everything(folder): relative path -> content of all its files."""
    return _everything


_FOUR_DOCUMENTS = [b"one", b"", b"\xff\x00 not UTF-8", b"three " * 1000]


@pytest.fixture(scope="session")
def four_documents():
    """Documents of all sizes."""
    return _FOUR_DOCUMENTS


def _write(folder, documents=_FOUR_DOCUMENTS, domain="text", split="train", test_fraction=0.5, **options):
    with write_corpus(pathlib.Path(folder), test_fraction, **options) as writer:
        for document in documents:
            writer.add(domain, split, document)
        return writer.commit()


@pytest.fixture(scope="session")
def write():
    """write(folder, documents, domain, split, test_fraction, **options): adds documents to a corpus, by default
    `four_documents`; whether that changed it."""
    return _write


def _write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(scope="session")
def write_files():
    """write_files(folder, files): name -> content."""
    return _write_files


def _jsonl(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture(scope="session")
def jsonl():
    """jsonl(*texts): one JSON object a line."""
    return _jsonl


def _write_parquet(path, values, kind=pa.string(), **options):
    pq.write_table(pa.table({"id": range(len(values)), "text": pa.array(values, kind)}), path, **options)


@pytest.fixture(scope="session")
def write_parquet():
    """write_parquet(path, values, kind, **options): a file with a column `text`."""
    return _write_parquet


@pytest.fixture(scope="session")
def compress():
    """compress(suffix, content): as a file with this suffix holds it."""
    return lambda suffix, content: _COMPRESS[suffix](content)


# ---- Rows


class WindowRepresentation(Representation):
    """Up to 3 bytes a window, 2 ids a window, the second of which carries the window's bytes."""

    kind = "window"
    vocab_size = (1 << 13) + 1
    eod_id = 1 << 13

    def encode(self, text: bytes) -> np.ndarray:
        windows = [int.from_bytes(b"\1" + text[start : start + 3]) for start in range(0, len(text), 3)]
        return np.array([id_ for window in windows for id_ in divmod(window, 1 << 13)], np.int32)

    def decode(self, ids) -> bytes:
        windows = [high << 13 | low for high, low in zip(map(int, ids[::2]), map(int, ids[1::2]), strict=True)]
        return b"".join(window.to_bytes(4).lstrip(b"\0")[1:] for window in windows)

    def byte_lengths(self, ids) -> np.ndarray:
        return np.array(
            [n for high, low in zip(ids[::2], ids[1::2]) for n in (0, len(self.decode([high, low])))], np.int64
        )

    def to_files(self):
        return {}

    @classmethod
    def from_files(cls, files):
        return cls()


# What `st.from_type(Representation)` draws.
st.register_type_strategy(Representation, st.sampled_from([ByteRepresentation(), WindowRepresentation()]))


@pytest.fixture(scope="session")
def window_representation() -> Representation:
    """Ids that stand for several bytes, and for none."""
    return WindowRepresentation()


class _DamagedDocuments:
    """Ten documents, the last of which cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 9:
            raise UserError("shard 3, record 9, is damaged")
        return b"fine"


@pytest.fixture(scope="session")
def damaged_documents() -> _DamagedDocuments:
    return _DamagedDocuments()


def _finished_documents(representation: Representation, targets: list[int]) -> list[bytes]:
    """The documents that a stream of targets holds whole."""
    ends = [at for at, id_ in enumerate(targets) if id_ == representation.eod_id]
    starts = [0, *(end + 1 for end in ends)]
    return [representation.decode(np.array(targets[start:end], np.int32)) for start, end in zip(starts, ends)]


@pytest.fixture(scope="session")
def finished_documents() -> Callable[[Representation, list[int]], list[bytes]]:
    """finished_documents(representation, targets): the documents that a stream of targets holds whole."""
    return _finished_documents


def _read_until(streams: RowStreams, num_documents: int) -> list[list[bytes]]:
    """The first `num_documents` documents of each row."""
    batches, num_finished = [], 0
    for batch in streams:
        batches.append(batch)
        num_finished += (batch["targets"] == streams.setting.representation.eod_id).sum(axis=1)
        if min(num_finished) >= num_documents:
            break
    return [
        _finished_documents(
            streams.setting.representation, np.concatenate([batch["targets"][row] for batch in batches]).tolist()
        )[:num_documents]
        for row in range(len(streams.setting.rows))
    ]


@pytest.fixture(scope="session")
def read_until() -> Callable[[RowStreams, int], list[list[bytes]]]:
    """read_until(streams, num_documents): the first documents of each row."""
    return _read_until
