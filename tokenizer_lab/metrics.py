"""What ids are like before any model is trained on them: the metrics of `toklab inspect`.

A metric is a number for a representation and documents. `encode` runs the representation once, and what is counted is
counted on its result. Special ids stand for no text and count for nothing. `docs/metrics.md` says what each metric
tells, and what not.
"""

import collections
import dataclasses
import functools
import statistics
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

RENYI_ALPHA = 2.5
SAMPLE_DOCUMENTS = 64

Progress = Callable[[int], None]  # told how many bytes have been gone through since the last time


@dataclasses.dataclass(frozen=True)
class EncodedText:
    """Documents, and the ids that a representation has for them."""

    representation: Representation
    documents: Sequence[bytes]
    ids: Sequence[np.ndarray]
    """For each document, i32[n]."""
    lengths: Sequence[np.ndarray]
    """For each document, i64[n], the source bytes of each id."""

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.documents))

    @property
    def num_tokens(self) -> int:
        return int(self.id_counts.sum())

    @functools.cached_property
    def id_counts(self) -> np.ndarray:
        """i64[V - 1], how often each id occurs, in the order of ids; the end of a document, which is no text, is left
        out."""
        counts = np.zeros(self.representation.vocab_size, np.int64)
        for ids in self.ids:
            counts += np.bincount(ids, minlength=len(counts))
        return np.delete(counts, self.representation.eod_id)

    @functools.cached_property
    def units(self) -> dict[int, bytes] | None:
        """What each id that occurs stands for; None where ids are no units of the text.

        They are where every id carries the same bytes, one at least, wherever it occurs, and decodes to them whatever
        is around it: bytes, subwords, windows of one id. The ids of an arithmetic code, or the parts of a window, stand
        for nothing alone.
        """
        pieces: dict[int, bytes] = {}
        for document, ids, lengths in zip(self.documents, self.ids, self.lengths, strict=True):
            for id_, piece in zip(ids.tolist(), cut(document, lengths), strict=True):
                if not piece or pieces.setdefault(id_, piece) != piece:
                    return None
        alone = self.representation.decode(np.array(sorted(pieces), np.int32))
        return pieces if alone == b"".join(pieces[id_] for id_ in sorted(pieces)) else None


def encode(
    representation: Representation, documents: Sequence[bytes], on_progress: Progress = lambda num_bytes: None
) -> EncodedText:
    """Encodes each document by itself."""
    encoded = []
    for batch in _batches(documents, representation.batch_documents):
        encoded += representation.encode_many(batch)
        on_progress(sum(map(len, batch)))
    return EncodedText(representation, documents, [ids for ids, _ in encoded], [lengths for _, lengths in encoded])


def sample_text(documents: Iterable[bytes], num_bytes: int) -> list[bytes]:
    """Beginnings of the first documents, `num_bytes` together where there are so many: of 64 documents at least, shared
    among them as evenly as their lengths allow. Raises UserError where there is no byte."""
    texts: list[bytes] = []
    total = 0
    for document in documents:
        texts.append(document[:num_bytes])
        total += len(texts[-1])
        if len(texts) >= SAMPLE_DOCUMENTS and total >= num_bytes:
            break
    sample, left = [], num_bytes
    for number, text in enumerate(sorted(texts, key=len)):
        sample.append(text[: left // (len(texts) - number)])
        left -= len(sample[-1])
    if not any(sample):
        raise UserError(
            f"{len(texts):,} documents have 0 bytes, of which nothing can be measured; choose a corpus with text"
        )
    return sample


def script(text: bytes) -> str:
    """The script of most letters of a text by their Unicode names, e.g. "Latin", "Cyrillic", "CJK" or "Hiragana";
    "none" without letters."""
    letters = collections.Counter(
        unicodedata.name(letter, "none").split()[0] for letter in text.decode(errors="ignore") if letter.isalpha()
    )
    [(name, _)] = letters.most_common(1) or [("none", 0)]
    return name if name in ("CJK", "none") else name.capitalize()


def cut(document: bytes, lengths: np.ndarray) -> list[bytes]:
    """The consecutive pieces of a document that have these lengths, i64[n]."""
    ends = np.cumsum(lengths).tolist()
    return [document[start:end] for start, end in zip([0, *ends], ends)]


# ---- How short ids are ---------------------------------------------------------------------------


def bytes_per_token(num_bytes: int, num_tokens: int) -> float:
    """bytes / tokens: source bytes an id carries on average ("compression ratio" in Lester+ 2024, arXiv 2404.03626)."""
    return num_bytes / max(1, num_tokens)


def fertility(text: EncodedText) -> float | None:
    """tokens / words: tokens a word takes on average (Rust+ 2021, arXiv 2012.15613). None for a text without words.

    A word is a piece between whitespace, by Unicode, with what punctuation is on it. The tokens are those of the text
    as it is, so that whitespace counts too.
    """
    num_words = sum(len(document.decode("utf-8", "surrogateescape").split()) for document in text.documents)
    return text.num_tokens / num_words if num_words else None


def premium(num_tokens: int, num_pivot_tokens: int) -> float | None:
    """tokens / tokens of the same sentences in the pivot language: the "tokenization premium" of Petrov+ 2023 (arXiv
    2305.15425).

    1 is parity. Both are totals over all lines, each encoded by itself.
    """
    return num_tokens / num_pivot_tokens if num_pivot_tokens else None


# ---- How ids are distributed ---------------------------------------------------------------------


def renyi_efficiency(id_counts: np.ndarray, alpha: float = RENYI_ALPHA) -> float | None:
    """H_alpha(p) / log2(ids seen), with H_alpha = log2(sum p^alpha) / (1 - alpha): 1 where all ids seen are equally
    frequent.

    Zouhar+ 2023 (arXiv 2306.16842), whose scorer takes the ids that occur for the vocabulary; alpha 1 is Shannon's
    entropy. None where fewer than two ids occur.
    """
    share = _shares(id_counts)
    if len(share) < 2:
        return None
    bits = _entropy_bits(share) if alpha == 1 else float(np.log2((share**alpha).sum()) / (1 - alpha))
    return bits / float(np.log2(len(share)))


def uniform_bits_per_byte(id_counts: np.ndarray, num_bytes: int) -> float:
    """tokens * log2(V) / bytes: the code length of a model to which all V ids are equally likely (Lester+ 2024, arXiv
    2404.03626)."""
    return float(np.log2(len(id_counts))) * int(id_counts.sum()) / num_bytes


def unigram_bits_per_byte(id_counts: np.ndarray, num_bytes: int) -> float:
    """tokens * H(p) / bytes: the same of a model that knows how often each id is in this very text, and no context."""
    return _entropy_bits(_shares(id_counts)) * int(id_counts.sum()) / num_bytes


class VocabularyUse(NamedTuple):
    """How many ids may stand for text, special ids left out, and how many of them occur; the others are "dead" in this
    text."""

    size: int
    used: int


def vocabulary_use(text: EncodedText) -> VocabularyUse:
    """Counts the ids that occur.

    Where ids are units, special ids are those of no bytes; else the end of a document is the only one.
    """
    representation = text.representation
    size = len(text.id_counts)
    if text.units is not None:
        size = int(np.count_nonzero(representation.byte_lengths(np.arange(representation.vocab_size))))
    return VocabularyUse(size, int(np.count_nonzero(text.id_counts)))


def _shares(id_counts: np.ndarray) -> np.ndarray:
    return id_counts[id_counts > 0] / max(1, id_counts.sum())


def _entropy_bits(share: np.ndarray) -> float:
    return float(-(share * np.log2(share)).sum())


# ---- Where ids cut a text, and whether it comes back ---------------------------------------------


class Spelled(NamedTuple):
    """How much of some text is spelled in bytes, and why: reason -> bytes."""

    num_bytes: int
    reasons: Mapping[str, int]

    @property
    def share(self) -> float:
        return sum(self.reasons.values()) / self.num_bytes if self.num_bytes else 0.0

    def __str__(self) -> str:
        why = ", ".join(f"{100 * count / self.num_bytes:.1f} % as {why}" for why, count in self.reasons.items())
        share = f"{100 * self.share:.1f} % of {self.num_bytes:,} bytes are spelled in bytes"
        return f"{share}: {why}" if why else share


def spelled(representation: Representation, documents: Sequence[bytes]) -> Spelled | None:
    """None where a representation has no ids but those of bytes, or none that stand for bytes."""
    reasons = representation.spelled_bytes(documents)
    return None if reasons is None else Spelled(sum(map(len, documents)), reasons)


class MorphItem(NamedTuple):
    """A word, and how many of its bytes are before the morpheme boundary."""

    word: bytes
    boundary_bytes: int


class MorphScore(NamedTuple):
    """`share`: of `num_scored` words with a boundary of tokens, those that have one at the morpheme boundary. None
    where there are none."""

    share: float | None
    num_scored: int


def morph_score(
    representation: Representation, items: Sequence[MorphItem], on_progress: Progress = lambda num_bytes: None
) -> MorphScore:
    """The share of words with a token boundary at the boundary of morphemes, whatever others there are: MorphScore.

    Arnett & Bergen 2024 (arXiv 2411.14198). A word is encoded by itself, and one that is a single token does not count.
    Boundaries are places in bytes; the published script compares decoded tokens, and so misses one where another token
    holds part of a character.
    """
    text = encode(representation, [item.word for item in items], on_progress)
    hits = [
        item.boundary_bytes in np.cumsum(lengths)[:-1]
        for item, lengths in zip(items, text.lengths, strict=True)
        if len(lengths) > 1
    ]
    return MorphScore(float(np.mean(hits)) if hits else None, len(hits))


def round_trip_share(text: EncodedText, on_progress: Progress = lambda num_bytes: None) -> float:
    """Documents for which `decode(encode(document)) == document` / documents."""
    num_same = 0
    for document, ids in zip(text.documents, text.ids, strict=True):
        num_same += text.representation.decode(ids) == document
        on_progress(len(document))
    return num_same / len(text.documents)


# ---- How long it takes ---------------------------------------------------------------------------


class Speed(NamedTuple):
    """10^6 source bytes a second from one calling thread: the median of several passes."""

    encode_megabytes_per_second: float
    decode_megabytes_per_second: float


def speed(representation: Representation, documents: Sequence[bytes]) -> Speed:
    """Times encoding and decoding of some documents, after a pass that does not count; a library underneath may use
    more threads."""
    ids = encode(representation, documents).ids
    num_bytes = sum(map(len, documents))
    batches = list(_batches(documents, representation.batch_documents))
    # A document alone is encoded without counting the bytes of each id, which is no part of encoding.
    encode_batch = lambda batch: representation.encode(*batch) if len(batch) == 1 else representation.encode_many(batch)
    encode_seconds = _median_seconds(lambda: [encode_batch(batch) for batch in batches])
    decode_seconds = _median_seconds(lambda: [representation.decode(each) for each in ids])
    return Speed(num_bytes / 1e6 / encode_seconds, num_bytes / 1e6 / decode_seconds)


def _median_seconds(work: Callable[[], object], max_passes: int = 7, max_seconds: float = 5.0) -> float:
    """Of `max_passes`, or of as many as begin within `max_seconds`."""
    work()
    passes: list[float] = []
    while len(passes) < max_passes and sum(passes) < max_seconds:
        start_seconds = time.perf_counter()
        work()
        passes.append(time.perf_counter() - start_seconds)
    return statistics.median(passes)


def _batches(documents: Sequence[bytes], size: int) -> Iterable[Sequence[bytes]]:
    return (documents[start : start + size] for start in range(0, len(documents), size))
