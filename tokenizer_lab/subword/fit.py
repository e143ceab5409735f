"""`toklab fit subword`: its options, and how each algorithm learns a tokenizer.json from a corpus."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokenizer_lab.errors import Range, UserError, check_numbers
from tokenizer_lab.subword.foreign_files import read_tokenizer_json
from tokenizer_lab.subword.pretokenization import PRETOKENIZATIONS, pre_tokenizer, with_digits
from tokenizer_lab.subword.representation import SubwordRepresentation
from tokenizer_lab.subword.segments import SEGMENT_BYTES, valid_texts
from tokenizer_lab.subword.spelling import MAX_VOCAB_SIZE
from tokenizer_lab.subword.superword import MIN_COUNT, SUPERWORD_SPLIT, TextSample, add_superwords

_NUM_BYTES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubwordFit:
    """Options of `toklab fit subword`."""

    algorithm: Literal["bpe", "unigram", "character"] = "bpe"
    """How the vocabulary is learned: byte-level BPE merges, a Unigram language model, or the most frequent
    characters."""
    vocab_size: int = 4096
    """Number of ids in the end: the 256 bytes, the learned tokens and the end-of-document id."""
    pretokenization: Literal["gpt2", "gpt4", "whitespace"] = "gpt4"
    """Where tokens may not cross: GPT-2's pattern, GPT-4's (at most three digits a token), or whitespace only."""
    digits: Literal["free", "single", "ltr3", "rtl3"] | None = None
    """How a number is cut: not, into digits, or into groups of three from the left or from the right (1|234|567). If
    not given, as the pretokenization was published: gpt2 free, gpt4 ltr3."""
    superword_transition: int | None = None
    """Number of ids from which on BPE may merge across spaces (SuperBPE's t, below --vocab-size); never if not
    given."""
    superword_sample_bytes: int = 64 << 20
    """Text that merges across spaces are learned from, a random part of the corpus; takes 15 times as much memory."""
    from_file: pathlib.Path | None = None
    """Take this tokenizer.json, or the one in this folder, instead of learning one; the other options then mean
    nothing."""

    def __post_init__(self) -> None:
        smallest = _NUM_BYTES + 1
        check_numbers(
            self,
            "--",
            vocab_size=Range(),  # what follows says more
            superword_transition=Range(),
            superword_sample_bytes=Range(least=SEGMENT_BYTES),
        )
        if not smallest <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"--vocab-size is {self.vocab_size:,}; it is at least {smallest} (256 bytes and the end of a document) "
                f"and at most {MAX_VOCAB_SIZE:,}; choose e.g. --vocab-size 4096"
            )
        if self.digits and (self.algorithm == "character" or self.pretokenization == "whitespace"):
            raise UserError(
                f"--digits {self.digits} has no numbers to cut with --algorithm {self.algorithm} --pretokenization "
                f"{self.pretokenization}; leave it out, or choose bpe or unigram with gpt2 or gpt4"
            )
        if self.superword_transition is not None:
            self._check_superwords(smallest, self.superword_transition)

    def _check_superwords(self, smallest: int, transition: int) -> None:
        if self.algorithm != "bpe" or self.pretokenization == "whitespace":
            raise UserError(
                f"--superword-transition goes on with BPE merges of gpt2 or gpt4, not with --algorithm {self.algorithm}"
                f" --pretokenization {self.pretokenization}; choose --algorithm bpe --pretokenization gpt4"
            )
        if not smallest <= transition < self.vocab_size:
            raise UserError(
                f"--superword-transition is {transition:,}; it is at least {smallest} and below "
                f"--vocab-size {self.vocab_size:,}; choose e.g. --superword-transition"
                f" {max(smallest, self.vocab_size * 4 // 5)}"
            )

    def fit(self, documents: Iterable[bytes], corpus_hash: str) -> SubwordRepresentation:
        """The representation learned from the valid UTF-8 of `documents`, which are read once, one at a time.

        Memory grows with the number of different words, not with the corpus; for superwords also with their sample. The
        same documents, in any order, give the same ids.

        Raises:
          UserError: the documents do not support so many ids; `from_file` is not a tokenizer.json.
        """
        if self.from_file is not None:
            return _load_tokenizer_json(self.from_file)
        representation = SubwordRepresentation(self._train(valid_texts(documents)))
        assert representation.vocab_size <= self.vocab_size, f"{representation.vocab_size=} {self.vocab_size=}"
        if representation.vocab_size < self.vocab_size:
            raise UserError(
                f"the corpus supports {representation.vocab_size:,} ids ({self._how}), "
                f"--vocab-size is {self.vocab_size:,}; use --vocab-size {representation.vocab_size}, or a larger corpus"
            )
        return representation.fitted(corpus_hash)

    @property
    def _how(self) -> str:
        if self.algorithm == "character":
            return "character"
        how: list[str] = [self.algorithm, self.pretokenization]
        how += [f"digits {self.digits}"] if self.digits else []
        return ", ".join(how + ["superwords"] if self.superword_transition else how)

    def _train(self, texts: Iterable[str]) -> bytes:
        """The content of a tokenizer.json."""
        if self.algorithm == "character":
            spec = _character_tokenizer(texts, self.vocab_size - 1)
        elif self.superword_transition is None:
            spec = json.loads(self._train_on_words(texts, self.vocab_size - 1).to_str())
        else:
            sample = TextSample(self.superword_sample_bytes)
            tokenizer = self._train_on_words(sample.passing(texts), self.superword_transition - 1)
            self._check_transition(tokenizer.get_vocab_size() + 1, self.superword_transition)
            tokenizer.pre_tokenizer = pre_tokenizer(with_digits(SUPERWORD_SPLIT, self.pretokenization, self.digits))
            spec = add_superwords(tokenizer, sample.texts(), self.vocab_size - 1)
        if self.algorithm == "unigram":
            spec["model"]["vocab"] = _reproducible_unigram(spec["model"]["vocab"], self.vocab_size - 1)
        return json.dumps(spec, ensure_ascii=False).encode()

    def _check_transition(self, num_ids: int, transition: int) -> None:
        if num_ids < transition:
            raise UserError(
                f"the corpus supports {num_ids:,} ids within words ({self.pretokenization}), --superword-transition is "
                f"{transition:,}; use --superword-transition {num_ids}, or a larger corpus"
            )

    def _train_on_words(self, texts: Iterable[str], num_tokens: int) -> tokenizers.Tokenizer:
        options: dict[str, Any] = dict(
            vocab_size=num_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        model: models.Model
        trainer: trainers.Trainer
        if self.algorithm == "bpe":
            model, trainer = models.BPE(), trainers.BpeTrainer(min_frequency=MIN_COUNT, **options)
        else:
            model, trainer = models.Unigram(), trainers.UnigramTrainer(**options)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizer(self.split_pattern)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    @property
    def split_pattern(self) -> str:
        """The regular expression whose matches tokens do not cross."""
        return with_digits(PRETOKENIZATIONS[self.pretokenization], self.pretokenization, self.digits)


FIT_OPTIONS = SubwordFit


def _load_tokenizer_json(path: pathlib.Path) -> SubwordRepresentation:
    content = read_tokenizer_json(path)
    try:
        return SubwordRepresentation(content)
    except UserError as error:
        raise UserError(f"{path} is {error}") from error


def _character_tokenizer(texts: Iterable[str], num_tokens: int) -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes, which write ASCII and rare characters, and the most frequent other characters.

    Characters that occur equally often go by code point.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    often = [character for character, count in counts.items() if count >= MIN_COUNT and not character.isascii()]
    often.sort(key=lambda character: (-counts[character], character))
    tokens = [*(f"<0x{byte:02X}>" for byte in range(_NUM_BYTES)), *often][:num_tokens]
    model = models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=[], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return json.loads(tokenizer.to_str())


def _reproducible_unigram(vocab: list[tuple[str, float | None]], size: int) -> list[tuple[str, float]]:
    """A trained Unigram vocabulary, (piece, log probability), without what differs from one training to the next.

    The library sums in the order of its hash tables, which moves the last bits of a score. So scores are rounded, to
    multiples of 2^-12; their sums are exact in float64, and the best segmentation is the same on every machine. It also
    gives the bytes that the corpus lacks the lowest score plus 0, 1, 2, ... times 0.0001 in that order; here each gets
    the lowest. Where only the bytes fit, it adds longer pieces beyond `size`, or its scores are None; here all bytes
    score the same.
    """
    if size == _NUM_BYTES or all(len(piece) == 1 for piece, _ in vocab):
        return sorted((piece, 0.0) for piece, _ in vocab if len(piece) == 1)
    scores = {piece: score for piece, score in vocab if score is not None}
    assert len(scores) == len(dict(vocab)), "a score is missing"
    lowest = min(scores.values())
    lowest_of_seen_byte = lowest + 0.0001 * _NUM_BYTES
    scores = {p: lowest if len(p) == 1 and score < lowest_of_seen_byte else score for p, score in scores.items()}
    rounded = [(piece, round(score * 2**12) / 2**12) for piece, score in scores.items()]
    return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))
