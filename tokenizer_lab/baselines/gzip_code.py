"""The bytes of a zlib stream as ids: "GZip", a baseline of Lester+ 2024 (arXiv 2404.03626). Nothing is learned."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from tokenizer_lab.fixed_width import check_id_bits, code_from_ids, ids_from_code, read_settings, settings_files
from tokenizer_lab.representation import Representation, check_ids


class GzipRepresentation(Representation):
    """One zlib stream a document, at Python's default level, header and checksum included; ids of `id_bits` each.

    The ids are the same wherever Python has the same zlib. Another version, or a replacement such as zlib-ng, may
    compress the same text to other ids, which are as valid: every zlib decodes them to the text.

    Deflate gives at most 1,032 bytes for each of its own, and so does `decode`.
    """

    kind = "gzip"

    def __init__(self, id_bits: int):
        self._id_bits = id_bits
        self.eod_id = 1 << id_bits
        self.vocab_size = self.eod_id + 1

    def encode(self, text: bytes) -> np.ndarray:
        return ids_from_code(zlib.compress(text), self._id_bits)

    def decode(self, ids: npt.ArrayLike) -> bytes:
        ids = check_ids(ids, self.vocab_size)
        return b"".join(self._inflate(ids[ids != self.eod_id]))

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        """A byte counts for the id with which zlib gives it out."""
        ids = check_ids(ids, self.vocab_size)
        [code_positions] = np.nonzero(ids != self.eod_id)
        pieces = self._inflate(ids[code_positions])
        lengths = np.zeros(len(ids), dtype=np.int64)
        lengths[code_positions[: len(pieces)]] = [len(piece) for piece in pieces]
        return lengths

    def to_files(self) -> dict[str, bytes]:
        return settings_files(self.kind, {"id_bits": self._id_bits})

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        return cls(read_settings(cls.kind, files, {"id_bits"})["id_bits"])

    def _inflate(self, ids: np.ndarray) -> list[bytes]:
        """What each code-carrying id adds to the text, up to the end of the stream or the first id that is damage.

        Ids go in one by one also to decode: zlib keeps back all that one call gave, where it ends in damage.
        """
        code, id_bytes = code_from_ids(ids, self._id_bits), self._id_bits // 8
        stream, pieces = zlib.decompressobj(), []
        for start in range(0, len(code), id_bytes):
            try:
                pieces.append(stream.decompress(code[start : start + id_bytes]))
            except zlib.error:
                break
            if stream.eof:
                break
        return pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class GzipFit:
    """Options of `toklab fit gzip`."""

    learns: ClassVar[bool] = False

    id_bits: int = 8
    """Bits of the stream in an id, 8 or 16: the vocabulary has 2^id_bits ids and the end of a document."""

    def __post_init__(self) -> None:
        check_id_bits(self.id_bits)

    def fit(self, documents: Iterable[bytes], corpus_hash: str) -> GzipRepresentation:
        """The gzip representation; the corpus is not looked at."""
        del documents, corpus_hash
        return GzipRepresentation(self.id_bits)


FIT_OPTIONS = GzipFit
