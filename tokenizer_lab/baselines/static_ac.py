"""Arithmetic coding under one fixed byte distribution: "StaticAC", a baseline of Lester+ 2024 (arXiv 2404.03626).

The bytes are counted on the train split, every document is coded with them as a whole, its end included, and the bits
are cut into ids. An id has no meaning of its own, as what it stands for depends on all before it: this is the baseline
that language models are known not to learn.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from tokenizer_lab.baselines import arithmetic_coder
from tokenizer_lab.baselines.arithmetic_coder import END, FREQUENCY_SUM, NUM_SYMBOLS
from tokenizer_lab.errors import UserError
from tokenizer_lab.fixed_width import check_id_bits, code_from_ids, ids_from_code, read_settings, settings_files
from tokenizer_lab.representation import Representation, check_ids


class StaticACRepresentation(Representation):
    """Ids are the `id_bits` next bits of a document's arithmetic code, zeros after its end. No text has no ids."""

    kind = "static_ac"

    def __init__(self, frequencies: np.ndarray, id_bits: int):
        """`frequencies`: i32[257] of the bytes and the end, as `tokenizer_lab.baselines.arithmetic_coder` has them."""
        self._frequencies = frequencies
        self._id_bits = id_bits
        self.eod_id = 1 << id_bits
        self.vocab_size = self.eod_id + 1

    def encode(self, text: bytes) -> np.ndarray:
        if not text:
            return np.zeros(0, dtype=np.int32)
        symbols = np.append(np.frombuffer(text, dtype=np.uint8).astype(np.int32), np.int32(END))
        code, _ = arithmetic_coder.encode(symbols, self._frequencies[None])
        return ids_from_code(code.tobytes(), self._id_bits)

    def decode(self, ids: npt.ArrayLike) -> bytes:
        ids = check_ids(ids, self.vocab_size)
        symbols, _ = self._decode_symbols(ids[ids != self.eod_id])
        return symbols.astype(np.uint8).tobytes()

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        """A byte counts for the id that completes the bits which determine it."""
        ids = check_ids(ids, self.vocab_size)
        [code_positions] = np.nonzero(ids != self.eod_id)
        _, num_bits_needed = self._decode_symbols(ids[code_positions])
        positions = code_positions[(num_bits_needed - 1) // self._id_bits]
        return np.bincount(positions, minlength=len(ids))

    def to_files(self) -> dict[str, bytes]:
        settings = {"id_bits": self._id_bits, "frequencies": self._frequencies.tolist()}
        return settings_files(self.kind, settings)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        settings = read_settings(cls.kind, files, {"id_bits", "frequencies"})
        return cls(_checked_frequencies(settings["frequencies"]), settings["id_bits"])

    def _decode_symbols(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Code-carrying ids -> bytes i32[n], and i64[n], the number of bits that determine each; without END."""
        code = np.frombuffer(code_from_ids(ids, self._id_bits), dtype=np.uint8)
        symbols, num_bits_needed = arithmetic_coder.decode(code, 8 * len(code), self._frequencies[None])
        is_byte = symbols != END
        return symbols[is_byte], num_bits_needed[is_byte]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticACFit:
    """Options of `toklab fit static_ac`."""

    id_bits: int = 8
    """Bits of the code in an id, 8 or 16: the vocabulary has 2^id_bits ids and the end of a document."""

    def __post_init__(self) -> None:
        check_id_bits(self.id_bits)

    def fit(self, documents: Iterable[bytes], corpus_hash: str) -> StaticACRepresentation:
        """The code for the bytes of `documents`, which are read once, one at a time, and may be in any order.

        Raises:
          UserError: there is no byte in the documents.
        """
        counts = np.zeros(NUM_SYMBOLS, dtype=np.int64)
        for document in documents:
            counts[:END] += np.bincount(np.frombuffer(document, dtype=np.uint8), minlength=END)
            counts[END] += bool(document)  # An empty document is no ids: its end is not coded.
        if not counts.any():
            raise UserError("the corpus has 0 bytes, byte frequencies need at least 1; choose a corpus with text")
        return StaticACRepresentation(_frequencies(counts.tolist()), self.id_bits).fitted(corpus_hash)


FIT_OPTIONS = StaticACFit


def _frequencies(counts: list[int]) -> np.ndarray:
    """Counts of the 257 symbols -> i32[257] that sum to 2^16: one each, the rest in proportion.

    By largest remainder, ties to the lower symbol; in integers of any size, so that every machine gets the same.
    """
    total, num_points = sum(counts), FREQUENCY_SUM - NUM_SYMBOLS
    frequencies = [1 + count * num_points // total for count in counts]
    by_remainder = sorted(range(NUM_SYMBOLS), key=lambda symbol: -(counts[symbol] * num_points % total))
    for symbol in by_remainder[: FREQUENCY_SUM - sum(frequencies)]:
        frequencies[symbol] += 1
    return np.array(frequencies, dtype=np.int32)


def _checked_frequencies(frequencies: object) -> np.ndarray:
    """i32[257] from a settings file that may come from a stranger. Raises UserError."""
    if (
        not isinstance(frequencies, list)
        or len(frequencies) != NUM_SYMBOLS
        or any(type(frequency) is not int or frequency < 1 for frequency in frequencies)
        or sum(frequencies) != FREQUENCY_SUM
    ):
        raise UserError(
            f"the frequencies of a static_ac artifact are not {NUM_SYMBOLS} whole numbers from 1 on that sum to "
            f"{FREQUENCY_SUM:,}; fit it again"
        )
    return np.array(frequencies, dtype=np.int32)
