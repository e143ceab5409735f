"""Which ids the documents that begin with given bytes may begin with: what exact byte probabilities need of a
representation.

A document has one sequence of ids, its canonical one, so what a model of ids says about bytes is a sum over *covers*
(Phan et al. 2024, arXiv 2410.09303): the beginnings of canonical sequences whose bytes begin with the given ones, the
last id starting before their end. All covers of a text are found by walking along it with one question,
`Covers.may_follow`: which ids may stand behind these, in some document?
"""

import abc
import bisect
import codecs
import collections
import functools
import itertools
import re
from collections.abc import Iterator

import numpy as np

from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info.representation import EqualInfoRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation
from tokenizer_lab.subword.representation import SubwordRepresentation

Ids = tuple[int, ...]

# Where every common tokenizer begins anew, whatever stands before. Behind the last one in this many ids, texts are
# encoded to be compared.
_WORD_BORDER = re.compile(rb"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\n)(?=[A-Za-z])")
_MAX_TAIL_IDS = 64
_MAX_REMEMBERED = 4096

_CONTINUATION_BYTES = range(0x80, 0xC0)
# What follows spaces decides how they are divided: by GPT-4's split pattern "  1" is " ", " ", "1", though "  " alone
# may be one id.
_BEHIND_SPACES = [bytes([byte]) for byte in range(0x21, 0x7F)]


class Covers(abc.ABC):
    """Of a representation each id of which stands for bytes of its own, whatever the ids around it.

    Attributes:
      eod_id: the end-of-document id.
      id_bytes: the bytes of each of the V ids; special ids stand for none, and no document has one.
      lengths: i64[V], how many they are.
    """

    def __init__(self, representation: Representation):
        every_id = np.arange(representation.vocab_size)
        self.eod_id, self.lengths = representation.eod_id, representation.byte_lengths(every_id)
        self._ends = np.cumsum(self.lengths)
        text = representation.decode(every_id)
        self.id_bytes = [
            text[end - length : end] for length, end in zip(self.lengths.tolist(), self._ends.tolist(), strict=True)
        ]
        self._text = np.frombuffer(text, np.uint8)
        self._in_order = sorted(range(len(self.id_bytes)), key=self.id_bytes.__getitem__)
        self._ids_of_bytes = collections.defaultdict(list)
        for id_, bytes_ in enumerate(self.id_bytes):
            if bytes_:
                self._ids_of_bytes[bytes_].append(id_)

    @abc.abstractmethod
    def may_follow(self, ids: Ids) -> np.ndarray:
        """bool[V], the ids that stand behind `ids`, a document's first, in some document; at least one does."""

    def bytes_at(self, ids: np.ndarray, place: int) -> np.ndarray:
        """i64[n] ids, all longer than `place` -> their bytes there, u8[n]."""
        return self._text[self._ends[ids] - self.lengths[ids] + place]

    def starting_with(self, beginning: bytes) -> np.ndarray:
        """i64[n], the ids whose bytes begin with these (at least one)."""
        first = bisect.bisect_left(self._in_order, beginning, key=self.id_bytes.__getitem__)
        after = bisect.bisect_right(self._in_order, beginning, key=lambda id_: self.id_bytes[id_][: len(beginning)])
        return np.array(self._in_order[first:after], np.int64)

    def borders(self, text: bytes) -> Iterator[list[Ids]]:
        """For each i from 0 to len(text), the ids of documents that begin with `text` of which the last ends behind
        just i bytes.

        Mostly one sequence or none; several where what follows decides between them, e.g. inside a UTF-8 character.
        """
        longest = int(self.lengths.max())
        found: list[list[Ids]] = [[()], *([] for _ in text)]
        for start, here in enumerate(found):
            yield here
            for ids in here if start < len(text) else ():
                allowed = self.may_follow(ids)
                for end in range(start + 1, min(start + longest, len(text)) + 1):
                    found[end] += [(*ids, id_) for id_ in self._ids_of_bytes.get(text[start:end], ()) if allowed[id_]]


class ByteCovers(Covers):
    """Any byte may stand behind any other."""

    def may_follow(self, ids: Ids) -> np.ndarray:
        return np.ones(len(self.id_bytes), bool)


class WindowCovers(Covers):
    """Of windows of one id each: a window is the longest there is, so the next begins with a byte that it cannot be
    longer by."""

    def __init__(self, representation: EqualInfoRepresentation):
        super().__init__(representation)
        number_of = {bytes_: number for number, bytes_ in enumerate(self.id_bytes)}
        self._has_child = np.zeros((len(self.id_bytes), 256), bool)
        for bytes_ in self.id_bytes:
            if len(bytes_) > 1:
                self._has_child[number_of[bytes_[:-1]], bytes_[-1]] = True
        self._with_bytes = np.flatnonzero(self.lengths)
        self._first_bytes = self.bytes_at(self._with_bytes, 0)

    def may_follow(self, ids: Ids) -> np.ndarray:
        allowed = np.ones(len(self.id_bytes), bool)
        if ids:
            allowed[self._with_bytes] = ~self._has_child[ids[-1], self._first_bytes]
        return allowed


class SubwordCovers(Covers):
    """Of a tokenizer, by encoding again: an id may stand where the text up to its end is encoded so that it does.

    Exact where the ids of a text's beginning depend on what follows it in no other way than these: an id that ends
    inside a UTF-8 character, or with a space, may stand where the text is encoded so with some end of the character, or
    some character behind the space. Of the text before, only what is behind the last border between words, or 64 ids,
    is looked at.
    """

    def __init__(self, representation: SubwordRepresentation):
        super().__init__(representation)
        self._encode_batch = representation.encode_batch
        self._with_bytes = np.flatnonzero(self.lengths).tolist()
        self._may_follow_tail = functools.lru_cache(_MAX_REMEMBERED)(self._compare)
        self._ends_that_fit = functools.lru_cache(_MAX_REMEMBERED)(self._find_ends)

    def may_follow(self, ids: Ids) -> np.ndarray:
        return self._may_follow_tail(self._tail(ids))

    def _tail(self, ids: Ids) -> Ids:
        """The last of the ids, from a place on where the tokenizer begins anew."""
        ids = ids[-_MAX_TAIL_IDS:]
        text, starts = self._join(ids), np.cumsum([0, *(self.lengths[id_] for id_ in ids[:-1])]).tolist()
        number_at = {start: number for number, start in enumerate(starts)}
        borders = [number_at[match.start()] for match in _WORD_BORDER.finditer(text) if match.start() in number_at]
        characters = [
            number
            for number, start in enumerate(starts)
            if start < len(text) and text[start] not in _CONTINUATION_BYTES
        ]
        return ids[borders[-1] if borders else characters[0] if characters else 0 :]

    def _encode(self, texts: list[bytes]) -> list[list[int]]:
        if not texts:
            return []
        batch = self._encode_batch(texts)
        return [part.tolist() for part in np.split(batch.ids, batch.ends[:-1])]

    def _compare(self, tail: Ids) -> np.ndarray:
        """bool[V], the ids that may stand behind `tail`."""
        text, allowed = self._join(tail), np.zeros(len(self.id_bytes), bool)
        encoded = self._encode([text, *(text + self.id_bytes[id_] for id_ in self._with_bytes)])
        allowed[self.eod_id] = tuple(encoded[0]) == tail
        for id_, again in zip(self._with_bytes, encoded[1:], strict=True):
            allowed[id_] = tuple(again) == (*tail, id_)
        unfinished = [
            (*tail, id_)
            for id_ in self._with_bytes
            if not allowed[id_] and (self.id_bytes[id_][-1] >= 0x80 or self.id_bytes[id_][-1:].isspace())
        ]
        allowed[[ids[-1] for ids in self._standing_with_an_end(unfinished)]] = True
        return allowed

    def _standing_with_an_end(self, sequences: list[Ids]) -> list[Ids]:
        """Those that are what their text is encoded to when some end of it follows."""
        pairs = [(ids, end) for ids in sequences for end in self._ends_that_fit(self._from_character(ids))]
        encoded = self._encode([self._join(ids) + end for ids, end in pairs])
        return [ids for (ids, _), again in zip(pairs, encoded, strict=True) if tuple(again[: len(ids)]) == ids]

    def _from_character(self, ids: Ids) -> Ids:
        """The ids from that on which holds the first byte of the character that the last one ends inside of; where it
        ends in none, the last."""
        num_begun = len(_begun_character(self._join(ids)))
        if num_begun:
            held = itertools.accumulate(int(self.lengths[id_]) for id_ in reversed(ids))
            return ids[-1 - next(number for number, num_bytes in enumerate(held) if num_bytes >= num_begun) :]
        return ids[-1:]

    def _find_ends(self, ids: Ids) -> list[bytes]:
        """Ends of the text of `ids`, alone, with which these are its ids: one by a letter, a digit and another
        character, as far as there are any.

        One of a kind is enough: whether ids may stand behind others is settled where they meet, and where the tokenizer
        cuts a text into words.
        """
        text = self._join(ids)
        found: dict[tuple[bool, bool], bytes] = {}
        for ends in _ends_of_character(_begun_character(text)) if _begun_character(text) else [_BEHIND_SPACES]:
            for end, again in zip(ends, self._encode([text + end for end in ends]), strict=True):
                if tuple(again[: len(ids)]) == ids:
                    last = (text + end).decode("utf-8", "replace")[-1]
                    found.setdefault((last.isalpha(), last.isdigit()), end)
            if found:
                break
        return list(found.values())

    def _join(self, ids: Ids) -> bytes:
        return b"".join(map(self.id_bytes.__getitem__, ids))


def _begun_character(text: bytes) -> bytes:
    """The bytes of the UTF-8 character that `text` ends inside of; none where it ends behind one, or behind what is not
    UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder.decode(text)
    return decoder.getstate()[0]


def _ends_of_character(begun: bytes) -> Iterator[list[bytes]]:
    """What completes a UTF-8 character: a part of it, then more; in the end all there is where one or two bytes are
    missing."""
    num_missing = 2 + (begun[0] >= 0xE0) + (begun[0] >= 0xF0) - len(begun)
    for num_varied in range(1, min(num_missing, 2) + 1):
        ends = (
            bytes(varied) + b"\x80" * (num_missing - num_varied)
            for varied in itertools.product(_CONTINUATION_BYTES, repeat=num_varied)
        )
        yield [end for end in ends if _is_utf8(begun + end)]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def covers_of(representation: Representation) -> Covers:
    """The covers of a representation. Raises UserError where ids do not stand for bytes of their own."""
    match representation:
        case ByteRepresentation():
            return ByteCovers(representation)
        case SubwordRepresentation():
            covers = SubwordCovers(representation)
            if across := next((bytes_ for bytes_ in covers.id_bytes if _WORD_BORDER.search(bytes_)), None):
                raise UserError(
                    f"exact byte probabilities are there for subwords that end where words do, and {across!r} is one"
                    " id; use others than superwords"
                )
            return covers
        case EqualInfoRepresentation() if (
            representation.rule == "exact" and representation.window_bits == representation.id_bits
        ):
            return WindowCovers(representation)
    raise UserError(
        f"of {representation.kind} ids, as they are here, not each stands for bytes of its own, which exact byte"
        " probabilities need; they are there for byte, subword, and equal_info with --window-bits 16 --id-bits 16"
    )
