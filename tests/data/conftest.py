"""Representations that rows are tested with, and helpers that read documents back from batches."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import strategies as st

from data.rows import RowStreams
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation


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
        num_finished += (batch["targets"] == streams.representation.eod_id).sum(axis=1)
        if min(num_finished) >= num_documents:
            break
    return [
        _finished_documents(
            streams.representation, np.concatenate([batch["targets"][row] for batch in batches]).tolist()
        )[:num_documents]
        for row in range(len(streams.rows))
    ]


@pytest.fixture(scope="session")
def read_until() -> Callable[[RowStreams, int], list[list[bytes]]]:
    """read_until(streams, num_documents): the first documents of each row."""
    return _read_until
