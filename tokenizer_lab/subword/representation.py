"""Subword tokens through Hugging Face `tokenizers`: BPE, superword BPE, Unigram and characters, fitted here or loaded
from any tokenizer.json.

How a library for text keeps the contract of `tokenizer_lab.representation`, which is about bytes:

1. When a tokenizer is loaded, every id gets the bytes it stands for. `decode` and `byte_lengths` look them up.
2. `encode` hands the valid UTF-8 in a document to the library, or to compiled code that gives the same ids
   (`exact_encoder.py`). It compares the bytes of the library's ids with the text. Where they differ (an unknown
   character, whitespace that was dropped, a normalizer that changed the text), and for what is not UTF-8, it writes
   byte ids.
3. A tokenizer that lacks an id for one of the 256 bytes gets 256 byte ids after its vocabulary. Last comes the
   end-of-document id, which is never one of the tokenizer's own.

What puts into the ids something that is not in the text is off: templates such as `[CLS] $A [SEP]`, padding, the space
put before the first word, the spaces that an added token takes in, and special tokens, whose literal text in a document
is text. So are truncation and random segmentations.
"""

import collections
import functools
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import tokenizers

from tokenizer_lab.compiled import concatenate
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import EncodedBatch, Representation, check_ids, together
from tokenizer_lab.subword.borders import Borders
from tokenizer_lab.subword.changes import NO_TOKEN, SPECIAL_NAME, Changes
from tokenizer_lab.subword.every_kind import texts_of_every_kind
from tokenizer_lab.subword.exact_encoder import ExactEncoder, NotCompiled
from tokenizer_lab.subword.segments import is_invalid, runs_of
from tokenizer_lab.subword.spaces import puts_space_before_text
from tokenizer_lab.subword.spelling import byte_tokens, token_bytes, unknown_id
from tokenizer_lab.subword.tokenizer_json import (
    READING,
    faithful_tokenizer,
    parse,
    raise_unless_from_library,
    reading_matters,
)

TOKENIZER_FILE = "tokenizer.json"
READING_FILE = "reading.json"
_LEADING_SPACE = (
    "its tokenizer puts a space before a text, which is not done here: the first ids of a text differ from the"
    " tokenizer's own"
)
_EVERY_BYTE = {bytes([byte]) for byte in range(256)}


class SubwordRepresentation(Representation):
    """A `tokenizers` tokenizer, made lossless on bytes."""

    kind = "subword"

    def __init__(self, tokenizer_json: bytes, reading: int = READING):
        """`tokenizer_json`: the content of a tokenizer.json, to be read as `reading` says. Raises UserError if it is
        not one."""
        self._tokenizer_json, self._reading = tokenizer_json, reading
        spec = parse(tokenizer_json)
        self._tokenizer = faithful_tokenizer(spec, reading)
        self._token_bytes = token_bytes(spec, self._tokenizer, reading)
        self._changes = Changes(spec, self._tokenizer)
        self._byte_tokens = byte_tokens(spec, self._tokenizer)
        self._unknown = unknown_id(spec, self._tokenizer)
        if any(puts_space_before_text(spec.get(step)) for step in ("normalizer", "pre_tokenizer")):
            self.left_out = _LEADING_SPACE
        self._borders = Borders(self._tokenizer, self._token_bytes)
        self.spells_every_byte = _EVERY_BYTE <= set(self._token_bytes)
        """Whether the tokenizer has an id for each byte, so that ids of the artifact's own are not needed."""
        if not self.spells_every_byte:
            self._token_bytes += sorted(_EVERY_BYTE)
        self._byte_ids = {token[0]: id_ for id_, token in enumerate(self._token_bytes) if len(token) == 1}
        self.eod_id = len(self._token_bytes)
        self._token_bytes.append(b"")
        self._token_lengths = np.array([len(token) for token in self._token_bytes], dtype=np.int64)
        self.vocab_size = len(self._token_bytes)

    def encode(self, text: bytes) -> np.ndarray:
        return self._encode([text])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedBatch:
        ids, ends = self._encode(texts)
        return EncodedBatch(ids, self._token_lengths[ids].astype(np.int32), ends)

    def _encode(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """In machine code where that gives the library's ids; else, and what it gives up, by the library."""
        encoder, _ = self._exact_encoder
        if encoder is None:
            return together([self.encode_by_library(document) for document in documents])
        ids, ends, is_given_up = encoder.encode(documents)
        if not is_given_up.any():
            return ids, ends
        parts = np.split(ids, ends[:-1])
        for number in np.flatnonzero(is_given_up).tolist():
            parts[number] = self.encode_by_library(documents[number])
        return together(parts)

    def encode_many(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        if not texts:
            return []
        ids, ends = self._encode(texts)
        lengths = self._token_lengths[ids]
        return list(zip(np.split(ids, ends[:-1]), np.split(lengths, ends[:-1]), strict=True))

    def encode_by_library(self, text: bytes) -> np.ndarray:
        """i32[n], the ids of a document as `tokenizers` has them."""
        ids = [np.zeros(0, np.int32)]
        for run in runs_of(text):
            for piece in [run] if is_invalid(run) else self._borders.pieces(run):
                of_piece = self._spell(piece) if is_invalid(piece) else self._encode_text(piece)
                ids.append(np.array(of_piece, dtype=np.int32))
        return np.concatenate(ids)

    @property
    def encoded_by(self) -> str:
        return self._exact_encoder[1]

    @functools.cached_property
    def _exact_encoder(self) -> tuple[ExactEncoder | None, str]:
        """The compiled encoder, if the tokenizer can have one, and what is said of it."""
        try:
            encoder = ExactEncoder(self._tokenizer, self._token_bytes, self._byte_ids)
        except NotCompiled as why:
            return None, f"the library encodes, as there is no compiled code for {why}"
        for text in texts_of_every_kind(self._token_bytes):
            ids, _, [is_given_up] = encoder.encode([text])
            if not is_given_up and not np.array_equal(ids, self.encode_by_library(text)):
                why_not = f"the library encodes, as compiled code has other ids of {text[:40]!r}"
                warnings.warn(f"{self.kind} {self.fingerprint[:12]}: {why_not}; please report this", stacklevel=2)
                return None, why_not
        return encoder, "compiled code encodes, with the library's ids"

    def decode(self, ids: npt.ArrayLike) -> bytes:
        ids = check_ids(ids, self.vocab_size)
        return concatenate(*self._all_tokens, ids, int(self._token_lengths[ids].sum())).tobytes()

    @functools.cached_property
    def _all_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of all ids, u8[n], and where those of each begin, i64[V + 1]."""
        starts = np.append(0, np.cumsum(self._token_lengths))
        return np.frombuffer(b"".join(self._token_bytes), np.uint8), starts

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        return self._token_lengths[check_ids(ids, self.vocab_size)]

    def spelled_bytes(self, documents: Iterable[bytes]) -> dict[str, int]:
        """Why text of `documents` is spelled in bytes, by this class or by byte tokens of the tokenizer's own -> how
        many bytes are."""
        counts: collections.Counter[str] = collections.Counter()
        for run in itertools.chain.from_iterable(map(runs_of, documents)):
            if is_invalid(run):
                counts["they are not UTF-8"] += len(run)
                continue
            for piece in self._borders.pieces(run):
                for reason, spelled in self._spelled_parts(piece):
                    counts[reason] += len(spelled.encode())
        return dict(counts.most_common())

    def _spelled_parts(self, text: str) -> Iterator[tuple[str, str]]:
        """(why, part) for each part of a text that is spelled in bytes."""
        try:
            groups, done = list(self._aligned(text)), 0
        except BaseException as error:
            raise_unless_from_library(error)
            yield "the library fails on the text around them", text
            return
        for group, start, end in [*groups, ([], len(text), len(text))]:
            if start > done:
                yield self._changes.why_dropped(text, done, start), text[done:start]
            part, done = text[start:end], max(done, end)
            if self._join(group) != part.encode():
                yield self._why_other(group, text, start, end), part
            elif self._byte_tokens.issuperset(group) and group:
                yield NO_TOKEN, part

    def _why_other(self, group: list[int], text: str, start: int, end: int) -> str:
        """Why `text[start:end]` has ids that stand for something else."""
        special = {id_ for id_ in group if not self._token_lengths[id_]}
        if (
            self._unknown is not None
            and special == {self._unknown}
            and text[start:end] != self._tokenizer.id_to_token(self._unknown)
        ):
            return NO_TOKEN
        return SPECIAL_NAME if special else self._changes.why_changed(text, start, end)

    @property
    def used_tokenizer(self) -> tokenizers.Tokenizer:
        """A copy of the library's tokenizer as it is used here, without what the module docstring says is off."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy

    def to_files(self) -> dict[str, bytes]:
        files = {TOKENIZER_FILE: self._tokenizer_json}
        return files | ({READING_FILE: json.dumps(READING).encode()} if self._says_reading else {})

    @functools.cached_property
    def _says_reading(self) -> bool:
        return self._reading == READING and reading_matters(parse(self._tokenizer_json))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        if files.keys() - {READING_FILE} != {TOKENIZER_FILE}:
            raise UserError(
                f"a subword artifact has the file {TOKENIZER_FILE}, not {', '.join(files) or 'none'}; fit it again"
            )
        reading = files.get(READING_FILE, b"1")
        if reading not in (b"1", json.dumps(READING).encode()):
            raise UserError(f"{READING_FILE} is not one that this version knows, {READING}; fit it again")
        return cls(files[TOKENIZER_FILE], int(reading))

    def _encode_text(self, text: str) -> list[int]:
        """`_batch` frees the GIL, for other threads; `_fast` leaves out the offsets."""
        try:
            [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            raise_unless_from_library(error)
            return self._spell(text)
        return encoding.ids if self._join(encoding.ids) == text.encode() else self._encode_aligned(text)

    def _encode_aligned(self, text: str) -> list[int]:
        """The library's ids where their bytes are the very text at their offsets, byte ids everywhere else."""
        ids, done = [], 0
        for group, start, end in self._aligned(text):
            if self._join(group) == text[start:end].encode():
                ids += self._spell(text[done:start]) + group
                done = end
        return ids + self._spell(text[done:])

    def _aligned(self, text: str) -> Iterator[tuple[list[int], int, int]]:
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return _overlapping(encoding.ids, encoding.offsets)

    def _spell(self, text: str) -> list[int]:
        return [self._byte_ids[byte] for byte in text.encode("utf-8", "surrogateescape")]

    def _join(self, ids: list[int]) -> bytes:
        return b"".join(map(self._token_bytes.__getitem__, ids))


def _overlapping(ids: list[int], offsets: list[tuple[int, int]]) -> Iterator[tuple[list[int], int, int]]:
    """Ids grouped so that the characters of two groups do not overlap, e.g. the ids of one emoji: (ids, start, end)."""
    group: list[int] = []
    start, end = 0, 0
    for id_, (token_start, token_end) in zip(ids, offsets, strict=True):
        if group and token_start >= end:
            yield group, start, end
            group = []
        if not group:
            start, end = token_start, token_end
        group.append(id_)
        end = max(end, token_end)
    if group:
        yield group, start, end
