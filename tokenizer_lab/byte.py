"""Raw bytes: ids 0 to 255 are the bytes, 256 ends a document. Nothing is learned and nothing can be lost."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import EncodedBatch, Representation, check_ids


class ByteRepresentation(Representation):
    """One id a byte."""

    kind = "byte"
    vocab_size = 257
    eod_id = 256

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedBatch:
        ids = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32)
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        return EncodedBatch(ids, np.ones(len(ids), np.int32), ends)

    def decode(self, ids: npt.ArrayLike) -> bytes:
        ids = check_ids(ids, self.vocab_size)
        return ids[ids != self.eod_id].astype(np.uint8).tobytes()

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        return (check_ids(ids, self.vocab_size) != self.eod_id).astype(np.int64)

    def to_files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        if files:
            raise UserError(
                f"a byte artifact has no files but its manifest, not {', '.join(files)}; fit the representation again"
            )
        return cls()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteFit:
    """Options of `toklab fit byte`: there are none."""

    learns: ClassVar[bool] = False

    def fit(self, documents: Iterable[bytes], corpus_hash: str) -> ByteRepresentation:
        """The byte representation; the corpus is not looked at."""
        del documents, corpus_hash
        return ByteRepresentation()


FIT_OPTIONS = ByteFit
