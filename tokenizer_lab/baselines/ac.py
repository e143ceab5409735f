"""Arithmetic coding under a byte language model, without windows: "AC", a baseline of Lester+ 2024 (arXiv 2404.03626).

A document is coded in pieces of 10,240 bytes, as in the paper, each with an end of its own, and the bits of a piece are
cut into ids. The language model goes through a piece in contexts of its own length. The integers of
`tokenizer_lab/equal_info/byte_lm.py` make the code the same on every machine; a model that trains on it finds nothing
to learn, which is what it is there to show.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from etils import epath

from tokenizer_lab.baselines import arithmetic_coder
from tokenizer_lab.baselines.arithmetic_coder import END, NUM_SYMBOLS
from tokenizer_lab.equal_info import lockstep
from tokenizer_lab.equal_info.byte_lm import ByteLM, positions_by_depth
from tokenizer_lab.errors import check_numbers
from tokenizer_lab.fixed_width import check_id_bits, code_from_ids, ids_from_code, read_settings, settings_files
from tokenizer_lab.metrics import sample_text
from tokenizer_lab.representation import Representation, check_ids

PIECE_BYTES = 10_240


class ACRepresentation(Representation):
    """Ids are the `id_bits` next bits of a piece's arithmetic code, zeros after its end."""

    kind = "ac"
    verifies_encoding = True

    def __init__(self, lm: ByteLM, id_bits: int):
        self._lm, self._id_bits = lm, id_bits
        self.eod_id = 1 << id_bits
        self.vocab_size = self.eod_id + 1

    def encode(self, text: bytes) -> np.ndarray:
        return self.encode_many([text])[0][0]

    def encode_many(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: npt.ArrayLike) -> bytes:
        return bytes(byte for byte, _ in self._decoded(ids))

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        """A byte counts for the id that completes the bits which determine it. The language model decodes to know
        it."""
        return np.bincount([place for _, place in self._decoded(ids)], minlength=len(np.asarray(ids)))

    def to_files(self) -> dict[str, bytes]:
        return settings_files(self.kind, {"id_bits": self._id_bits}) | self._lm.to_files()

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        name = f"{cls.kind}.json"
        settings = read_settings(cls.kind, {name: files[name]} if name in files else {}, {"id_bits"})
        return cls(ByteLM.from_files(files), settings["id_bits"])

    def _encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for start in range(0, len(text), PIECE_BYTES):
            symbols = np.append(np.frombuffer(text[start : start + PIECE_BYTES], np.uint8).astype(np.int32), END)
            frequencies = _frequencies(self._lm.shares_behind_each(symbols[:-1].astype(np.uint8)))
            code, num_bits = arithmetic_coder.encode(symbols, frequencies)
            decoded, num_bits_needed = arithmetic_coder.decode(code, num_bits, frequencies)
            if not np.array_equal(decoded, symbols):
                raise RuntimeError("the code does not decode to its text")
            ids.append(ids_from_code(code.tobytes(), self._id_bits))
            lengths.append(np.bincount((num_bits_needed[:-1] - 1) // self._id_bits, minlength=len(ids[-1])))
        return np.concatenate(ids), np.concatenate(lengths)

    def _decoded(self, ids: npt.ArrayLike) -> list[tuple[int, int]]:
        """The bytes of any ids, each with the place of the id that determines it."""
        ids = check_ids(ids, self.vocab_size)
        [places] = np.nonzero(ids != self.eod_id)
        return lockstep.run(self._lm, [self._decode(ids[places], places)])[0]

    def _decode(self, ids: np.ndarray, places: np.ndarray) -> lockstep.Walk[list[tuple[int, int]]]:
        found, first = [], 0  # the piece's first id
        while first < len(ids):
            code = np.frombuffer(code_from_ids(ids[first:], self._id_bits), np.uint8)
            decoder, depth = arithmetic_coder.Decoder(code, 8 * len(code)), 0
            symbol: int | None = 0
            while symbol is not None and symbol != END:
                shares = yield depth, symbol
                symbol = decoder.next(_frequencies(shares[None])[0])
                depth += 1
                if symbol is not None and symbol != END:
                    found.append((symbol, int(places[first + (decoder.num_bits_needed - 1) // self._id_bits])))
            if symbol is None:
                break
            first += -(-decoder.num_bits_needed // self._id_bits)
        return found


def _frequencies(shares_nb: np.ndarray) -> np.ndarray:
    """i32[n, 256] probabilities of bytes -> i32[n, 257], of which the likeliest byte has given one point to END."""
    frequencies = np.ones((len(shares_nb), NUM_SYMBOLS), np.int32)
    frequencies[:, :END] = shares_nb
    frequencies[np.arange(len(shares_nb)), shares_nb.argmax(axis=1)] -= 1
    return frequencies


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACFit:
    """Options of `toklab fit ac`."""

    id_bits: int = 8
    """Bits of the code in an id, 8 or 16."""
    lm: epath.Path | None = None
    """The run of a byte language model to compress with; by default one is trained into the folder OUT-lm."""
    lm_recipe: str | None = None
    """The recipe it is trained with: a name in configs/, or a Python file. By default compressor_3m where there is an
    accelerator, on at most eight passes over the text, and else demo_compressor, which takes minutes."""
    sample_bytes: int = 1 << 16
    """Text of the train split, from many documents, on which bytes per id and the FLOPs of encoding are measured."""

    def __post_init__(self) -> None:
        check_id_bits(self.id_bits)
        check_numbers(self, "--")

    def fit(
        self, documents: Iterable[bytes], corpus_hash: str, lm: ByteLM, lm_flops: float, on_progress: Any
    ) -> ACRepresentation:
        """The representation that a trained language model, which has cost `lm_flops`, gives.

        Raises UserError if there is no byte in the documents, of which a sample is encoded to measure.
        """
        del on_progress
        representation, sample = ACRepresentation(lm, self.id_bits), sample_text(documents, self.sample_bytes)
        num_ids = sum(len(ids) for ids, _ in representation.encode_many(sample))
        statistics = {"bytes_per_id": sum(map(len, sample)) / num_ids}
        costs = {"fit_flops": lm_flops, "encode_flops_per_id": lm.flops(_encoding_depths(sample)) / num_ids}
        return representation.fitted(corpus_hash, costs, statistics)


def _encoding_depths(texts: Sequence[bytes]) -> np.ndarray:
    """i64[D], how often encoding some texts asks the language model behind 0, 1, ..., D - 1 bytes of a piece: before
    each byte and at its end."""
    sizes = [len(text[start : start + PIECE_BYTES]) for text in texts for start in range(0, len(text), PIECE_BYTES)]
    return positions_by_depth(sizes)


FIT_OPTIONS = ACFit
