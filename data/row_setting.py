"""What decides the batches of some rows, and where they stand; `data/rows.py` says how."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from data.document_hash import HASH_WORDS, NoteHash
from data.document_order import Order, shuffle_seed
from data.documents import Documents, block_documents
from data.encoded import EncodedDocuments
from tokenizer_lab.representation import Representation

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """One component of a data mixture: its documents and its share of the draws, relative to the other sources'.

    Documents with a place below `trained_from` are held out by another source, and drawn in vain (`data/split.py`).
    """

    documents: Documents
    weight: float = 1.0
    trained_from: float = 0.0


class Layout(Protocol):
    """How rows are filled; an object is some rows that are filled together.

    Attributes:
      arrays: names of what is i32[R, T] in a batch.
      has_chance: whether a batch has `row_seeds`, u32[R].
      end_positions: positions of a document besides its ids.
    """

    arrays: ClassVar[tuple[str, ...]]
    has_chance: ClassVar[bool]
    end_positions: ClassVar[int]

    def __init__(self, setting: "RowSetting"): ...

    def fill(self, out: Batch) -> None:
        """Writes the next T positions of each row, and the cursors behind them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSetting:
    """Some rows; see `data.rows.RowStreams` for what is not said here.

    Attributes:
      cursors: i32[R, S + 3], where the rows stand.
    """

    sources: Sequence[Source]
    representation: Representation
    batch_rows: int
    sequence_length: int
    seed: int
    rows: tuple[int, ...]
    cursors: np.ndarray
    piece_length: int
    layout: type[Layout]
    note_hash: NoteHash

    def of(self, part: slice, cursors: np.ndarray) -> "RowSetting":
        """Some of the rows, from other cursors on, i32[R', S + 3]."""
        return dataclasses.replace(self, rows=self.rows[part], cursors=np.array(cursors, np.int32))

    @functools.cached_property
    def weights(self) -> list[float]:
        return [source.weight for source in self.sources]

    @functools.cached_property
    def orders(self) -> list[Order]:
        """The order of each source."""
        return [
            Order(len(source.documents), shuffle_seed(self.seed, number), block_documents(source.documents))
            for number, source in enumerate(self.sources)
        ]

    @property
    def documents_together(self) -> int:
        """How many documents are best encoded at once, where that is decided by the representation."""
        all_encoded = all(isinstance(source.documents, EncodedDocuments) for source in self.sources)
        return 1 if all_encoded else self.representation.batch_documents

    @property
    def num_words(self) -> int:
        """Numbers of 32 bits in a batch."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def as_batch(self, words_n: np.ndarray) -> Batch:
        """A batch, the arrays of which are those `num_words`, i32[n]."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = zip(self._shapes.items(), np.split(words_n, ends[:-1]))
        batch = {name: part.reshape(shape) for (name, shape), part in parts}
        return batch | ({"row_seeds": batch["row_seeds"].view(np.uint32)} if self.layout.has_chance else {})

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        num_rows = len(self.rows)
        of_positions: dict[str, tuple[int, ...]] = dict.fromkeys(self.layout.arrays, (num_rows, self.sequence_length))
        chance = {"row_seeds": (num_rows,)} if self.layout.has_chance else {}
        return of_positions | chance | {"num_bytes": (num_rows,), "cursors": self.cursors.shape}


def cursor_width(num_sources: int) -> int:
    """Integers in a row's cursor: documents finished of each source, positions done in the current document, and the
    hash."""
    return num_sources + 1 + HASH_WORDS
