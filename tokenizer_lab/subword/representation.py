"""Subword tokens through Hugging Face `tokenizers`: BPE, superword BPE, Unigram and characters, fitted here or loaded
from any tokenizer.json.

How a library for text keeps the contract of `tokenizer_lab.representation`, which is about bytes:

1. When a tokenizer is loaded, every id gets the bytes it stands for. `decode` and `byte_lengths` look them up.
2. `encode` hands the valid UTF-8 in a document to the library and compares the bytes of the ids with the text. Where
   they differ (an unknown character, whitespace that was dropped, a normalizer that changed the text), and for what is
   not UTF-8, it writes byte ids.
3. A tokenizer that lacks an id for one of the 256 bytes gets 256 byte ids after its vocabulary. Last comes the
   end-of-document id, which is never one of the tokenizer's own.

What puts into the ids something that is not in the text is off: templates such as `[CLS] $A [SEP]`, padding, the space
put before the first word, and special tokens, whose literal text in a document is text. So are truncation and random
segmentations.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import read_bytes
from tokenizer_lab.representation import Representation, check_ids
from tokenizer_lab.subword.superword import MIN_COUNT, SUPERWORD_SPLIT, TextSample, add_superwords

TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 1 << 30
MAX_VOCAB_SIZE = 1 << 24

# The split patterns under their usual names, DIGITS for one of those below. Each keeps every character; what it yields
# is then spelled in bytes.
PRETOKENIZATIONS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "whitespace": r" ?\S+|\s+(?!\S)|\s+",
}

# How a run of digits is cut. From the right only its first group has to look for the end: behind it all groups are
# full.
DIGITS = {
    "free": r" ?\p{N}+",
    "single": r"\p{N}",
    "ltr3": r"\p{N}{1,3}",
    "rtl3": r"(?<=\p{N})\p{N}{3}|\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
}
_PUBLISHED_DIGITS = {"gpt2": "free", "gpt4": "ltr3"}

# The library takes about 110 bytes of memory for each byte of a text, and its split patterns fail on ten megabytes of
# spaces ("retry-limit-in-match"). So it gets segments, cut where every common tokenizer cuts too: between two words.
# (A superword that lies across the cut becomes two tokens, once in 32 KiB.)
SEGMENT_BYTES = 1 << 15
_WORD_BORDER = re.compile(rb"(?<=[A-Za-z]) (?=[A-Za-z])")
_WORD_BORDER_SEARCH_BYTES = 1 << 10

_EVERY_BYTE = {bytes([byte]) for byte in range(256)}
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# How byte-level tokenizers write bytes in JSON: visible ones as themselves, the others as characters from 256 on.
_VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN_BYTES = sorted(set(range(256)) - set(_VISIBLE_BYTES))
_BYTE_OF_CHARACTER = {chr(byte): byte for byte in _VISIBLE_BYTES} | {
    chr(256 + order): byte for order, byte in enumerate(_HIDDEN_BYTES)
}
CHARACTER_OF_BYTE = sorted(_BYTE_OF_CHARACTER, key=_BYTE_OF_CHARACTER.__getitem__)

# Decoded with "surrogateescape", a byte that is not UTF-8 is one of these characters, which no valid text has.
_VALID_OR_INVALID_RUN = re.compile("[^\udc80-\udcff]+|[\udc80-\udcff]+")


class SubwordRepresentation(Representation):
    """A `tokenizers` tokenizer, made lossless on bytes."""

    kind = "subword"

    def __init__(self, tokenizer_json: bytes):
        """`tokenizer_json`: the content of a tokenizer.json. Raises UserError if it is not one."""
        self._tokenizer_json = tokenizer_json
        spec = _parse(tokenizer_json)
        self._tokenizer = _faithful_tokenizer(spec)
        self._token_bytes = _token_bytes(spec, self._tokenizer)
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
        return np.concatenate(
            [np.array(self.encode_segments([segment])[0], dtype=np.int32) for segment in _segments(text)]
        )

    def encode_segments(self, segments: Sequence[bytes]) -> list[list[int]]:
        """The ids of texts of at most `SEGMENT_BYTES` each, in one call of the library: for many short texts far faster
        than `encode`."""
        runs_of_segments = [_runs(segment) for segment in segments]
        of_valid_run = iter(
            self._encode_texts([run for runs in runs_of_segments for run in runs if not _is_invalid(run)])
        )
        return [
            [id_ for run in runs for id_ in (self._spell(run) if _is_invalid(run) else next(of_valid_run))]
            for runs in runs_of_segments
        ]

    def decode(self, ids: npt.ArrayLike) -> bytes:
        return self._join(check_ids(ids, self.vocab_size).tolist())

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        return self._token_lengths[check_ids(ids, self.vocab_size)]

    @property
    def used_tokenizer(self) -> tokenizers.Tokenizer:
        """A copy of the library's tokenizer as it is used here, without what the module docstring says is off."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy

    def to_files(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self._tokenizer_json}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        if files.keys() != {TOKENIZER_FILE}:
            raise UserError(
                f"a subword artifact has the file {TOKENIZER_FILE}, not {', '.join(files) or 'none'}; fit it again"
            )
        return cls(files[TOKENIZER_FILE])

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text. `_batch` frees the GIL, for other threads; `_fast` leaves out the offsets."""
        try:
            ids_of_texts = [
                encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ]
        except BaseException as error:
            _raise_unless_from_library(error)
            return [self._spell(text) for text in texts]
        return [
            ids if self._join(ids) == text.encode() else self._encode_aligned(text)
            for text, ids in zip(texts, ids_of_texts, strict=True)
        ]

    def _encode_aligned(self, text: str) -> list[int]:
        """The library's ids where their bytes are the very text at their offsets, byte ids everywhere else."""
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=False)
        ids, done = [], 0
        for group, start, end in _overlapping(encoding.ids, encoding.offsets):
            if self._join(group) == text[start:end].encode():
                ids += self._spell(text[done:start]) + group
                done = end
        return ids + self._spell(text[done:])

    def _spell(self, text: str) -> list[int]:
        return [self._byte_ids[byte] for byte in text.encode("utf-8", "surrogateescape")]

    def _join(self, ids: list[int]) -> bytes:
        return b"".join(map(self._token_bytes.__getitem__, ids))


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
    """How a number is cut: not, into digits, or into groups of three from the left or from the right (1|234|567); as
    the
    pretokenization was published if not given: gpt2 free, gpt4 ltr3."""
    superword_transition: int | None = None
    """Number of ids from which on BPE may merge across spaces (SuperBPE's t, below --vocab-size); never if not
    given."""
    superword_sample_bytes: int = 64 << 20
    """Text that merges across spaces are learned from, a random part of the corpus; takes 15 times as much memory."""
    from_file: pathlib.Path | None = None
    """Take this tokenizer.json instead of learning one; the other options then mean nothing."""

    def __post_init__(self):
        smallest = 256 + 1
        if not smallest <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"--vocab-size is {self.vocab_size:,}; it is at least {smallest} (256 bytes and the end of a document) "
                f"and at most {MAX_VOCAB_SIZE:,}; choose e.g. 4096"
            )
        if self.digits and (self.algorithm == "character" or self.pretokenization == "whitespace"):
            raise UserError(
                f"--digits {self.digits} has no numbers to cut with --algorithm {self.algorithm} --pretokenization "
                f"{self.pretokenization}; leave it out, or choose bpe or unigram with gpt2 or gpt4"
            )
        if self.superword_transition is not None:
            self._check_superwords(smallest)

    def _check_superwords(self, smallest: int) -> None:
        if self.algorithm != "bpe" or self.pretokenization == "whitespace":
            raise UserError(
                f"--superword-transition goes on with BPE merges of gpt2 or gpt4, not with --algorithm {self.algorithm}"
                f" --pretokenization {self.pretokenization}; choose --algorithm bpe --pretokenization gpt4"
            )
        if not smallest <= self.superword_transition < self.vocab_size:
            raise UserError(
                f"--superword-transition is {self.superword_transition:,}; it is at least {smallest} and below "
                f"--vocab-size {self.vocab_size:,}; choose e.g. {max(smallest, self.vocab_size * 4 // 5)}"
            )
        if self.superword_sample_bytes < SEGMENT_BYTES:
            raise UserError(
                f"--superword-sample-bytes is {self.superword_sample_bytes:,}, a sample is made of pieces of "
                f"{SEGMENT_BYTES:,}; choose e.g. {64 << 20}"
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
        representation = SubwordRepresentation(self._train(_valid_texts(documents)))
        assert representation.vocab_size <= self.vocab_size, f"{representation.vocab_size=} {self.vocab_size=}"
        if representation.vocab_size < self.vocab_size:
            raise UserError(
                f"the corpus supports {representation.vocab_size:,} ids ({self._how}), "
                f"--vocab-size is {self.vocab_size:,}; use at most {representation.vocab_size:,}, or a larger corpus"
            )
        representation.fit_corpus_hash = corpus_hash
        return representation

    @property
    def _how(self) -> str:
        if self.algorithm == "character":
            return "character"
        how = [self.algorithm, self.pretokenization]
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
            self._check_transition(tokenizer.get_vocab_size() + 1)
            tokenizer.pre_tokenizer = _pre_tokenizer(self._with_digits(SUPERWORD_SPLIT))
            spec = add_superwords(tokenizer, sample.texts(), self.vocab_size - 1)
        if self.algorithm == "unigram":
            spec["model"]["vocab"] = _reproducible_unigram(spec["model"]["vocab"], self.vocab_size - 1)
        return json.dumps(spec, ensure_ascii=False).encode()

    def _check_transition(self, num_ids: int) -> None:
        if num_ids < self.superword_transition:
            raise UserError(
                f"the corpus supports {num_ids:,} ids within words ({self.pretokenization}), --superword-transition is "
                f"{self.superword_transition:,}; use at most {num_ids:,}, or a larger corpus"
            )

    def _train_on_words(self, texts: Iterable[str], num_tokens: int) -> tokenizers.Tokenizer:
        options = dict(vocab_size=num_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        if self.algorithm == "bpe":
            model, trainer = models.BPE(), trainers.BpeTrainer(min_frequency=MIN_COUNT, **options)
        else:
            model, trainer = models.Unigram(), trainers.UnigramTrainer(**options)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = _pre_tokenizer(self.split_pattern)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    @property
    def split_pattern(self) -> str:
        """The regular expression whose matches tokens do not cross."""
        return self._with_digits(PRETOKENIZATIONS[self.pretokenization])

    def _with_digits(self, pattern: str) -> str:
        if "DIGITS" not in pattern:
            return pattern
        return pattern.replace("DIGITS", DIGITS[self.digits or _PUBLISHED_DIGITS[self.pretokenization]])


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


FIT_OPTIONS = SubwordFit


def _load_tokenizer_json(path: pathlib.Path) -> SubwordRepresentation:
    content = read_bytes(path, "tokenizer", MAX_TOKENIZER_BYTES)
    try:
        return SubwordRepresentation(content)
    except UserError as error:
        raise UserError(f"{path} is {error}") from error


def _valid_texts(documents: Iterable[bytes]) -> Iterator[str]:
    """The valid UTF-8 runs of the documents, in segments."""
    for document in documents:
        for segment in _segments(document):
            yield from (run for run in _runs(segment) if not _is_invalid(run))


def _character_tokenizer(texts: Iterable[str], num_tokens: int) -> dict:
    """A tokenizer.json of the 256 bytes, which write ASCII and rare characters, and the most frequent other characters.

    Characters that occur equally often go by code point.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    often = [character for character, count in counts.items() if count >= MIN_COUNT and not character.isascii()]
    often.sort(key=lambda character: (-counts[character], character))
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *often][:num_tokens]
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
    if size == len(_EVERY_BYTE) or all(len(piece) == 1 for piece, _ in vocab):
        return sorted((piece, 0.0) for piece, _ in vocab if len(piece) == 1)
    lowest = min(score for _, score in vocab)
    lowest_of_seen_byte = lowest + 0.0001 * len(_EVERY_BYTE)
    scores = {piece: lowest if len(piece) == 1 and score < lowest_of_seen_byte else score for piece, score in vocab}
    rounded = [(piece, round(score * 2**12) / 2**12) for piece, score in scores.items()]
    return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))


def _segments(document: bytes) -> Iterator[bytes]:
    """The document, in one or more pieces of at most `SEGMENT_BYTES`, none of which ends inside a UTF-8 character."""
    start = 0
    while len(document) - start > SEGMENT_BYTES:
        end = _last_border(document, start + SEGMENT_BYTES)
        yield document[start:end]
        start = end
    yield document[start:]


def _last_border(document: bytes, end: int) -> int:
    """The last border between words shortly before `end`; else `end`, moved back to where a UTF-8 character begins."""
    borders = [match.start() for match in _WORD_BORDER.finditer(document, end - _WORD_BORDER_SEARCH_BYTES, end)]
    if borders:
        return borders[-1]
    longest_character_bytes = 4
    starts = (i for i in range(end, end - longest_character_bytes, -1) if document[i] & 0xC0 != 0x80)
    return next(starts, end)


def _runs(segment: bytes) -> list[str]:
    """The runs of valid UTF-8 and of other bytes, in turn."""
    return _VALID_OR_INVALID_RUN.findall(segment.decode("utf-8", "surrogateescape"))


def _is_invalid(run: str) -> bool:
    return "\udc80" <= run[0] <= "\udcff"


def _overlapping(ids: list[int], offsets: list[tuple[int, int]]) -> Iterator[tuple[list[int], int, int]]:
    """Ids grouped so that the characters of two groups do not overlap, e.g. the ids of one emoji: (ids, start, end)."""
    group, start, end = [], 0, 0
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


def _raise_unless_from_library(error: BaseException) -> None:
    """Raises `error` again, unless it is of `tokenizers`, which raises plain Exception and Rust's PanicException."""
    if type(error) is not Exception and type(error).__name__ != "PanicException":
        raise error


def _parse(tokenizer_json: bytes) -> dict:
    try:
        spec = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a tokenizer.json: {error}; it is the JSON that `Tokenizer.save` writes") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError("not a tokenizer.json: it has no 'model'; it is the JSON that `Tokenizer.save` writes")
    return spec


def _faithful_tokenizer(spec: dict) -> tokenizers.Tokenizer:
    """The tokenizer that `spec` describes, without what adds to the text, draws at random, or fails on a character."""
    try:
        spec = spec | {
            "truncation": None,
            "padding": None,
            "post_processor": None,
            "normalizer": _without_prefix_space(spec.get("normalizer")),
            "pre_tokenizer": _without_prefix_space(spec.get("pre_tokenizer")),
            "model": _plain_model(spec["model"]),
        }
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except BaseException as error:
        if not isinstance(error, (RecursionError, TypeError, ValueError)):  # Too deep, or not of the form we change.
            _raise_unless_from_library(error)
        raise UserError(f"not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}") from error
    tokenizer.encode_special_tokens = True  # Their literal text in a document is text.
    return tokenizer


def _plain_model(model: dict) -> dict:
    """A model, as in a tokenizer.json, without random merges, and with an id for what it does not know.

    Any id will do: its bytes are not those of the text, and so `encode` does not use it. Unigram takes neighbours with
    that id for one unknown word, so there it is the least probable, and none where nothing is unknown.
    """
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram
        if model.get("unk_id") is None and not _BYTE_OF_CHARACTER.keys() <= {piece for piece, _ in vocab}:
            return model | {"unk_id": min(range(len(vocab)), key=lambda id_: vocab[id_][1], default=None)}
    elif "merges" in model:  # BPE leaves out what it does not know
        return model | {"dropout": None}
    elif isinstance(vocab, dict) and str(model.get("unk_token")) not in vocab:
        return model | {"unk_token": min(vocab, default="")}
    return model


def _without_prefix_space(step: Any) -> Any:
    """A normalizer or pre-tokenizer, as in a tokenizer.json, that does not put a space before the text."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace":
        return step | {"prepend_scheme": "never"}
    if step.get("type") == "ByteLevel" and "add_prefix_space" in step:
        return step | {"add_prefix_space": False}
    for steps in ("normalizers", "pretokenizers"):
        if isinstance(step.get(steps), list):
            step = step | {steps: [x for x in map(_without_prefix_space, step[steps]) if x is not None]}
    return step


def _token_bytes(spec: dict, tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """What each id of the library stands for: b"" for special tokens, and where an id has no token.

    A token that is spelled in a way not known here gets wrong bytes, and `encode` then never uses it.
    """
    tokens = sorted((id_, token) for token, id_ in tokenizer.get_vocab(with_added_tokens=False).items())
    added = tokenizer.get_added_tokens_decoder()
    size = 1 + max([*added, *(id_ for id_, _ in tokens)], default=-1)
    if size > MAX_VOCAB_SIZE:
        raise UserError(
            f"not a tokenizer.json to use here: its largest id is {size - 1:,}, the limit is {MAX_VOCAB_SIZE - 1:,}"
        )
    spell = _spelling(spec, tokenizer.model)
    bytes_of_ids = [b""] * size
    for id_, token in tokens:
        bytes_of_ids[id_] = spell(token)
    for id_, token in added.items():
        bytes_of_ids[id_] = b"" if token.special else spell(token.content)
    return bytes_of_ids


def _spelling(spec: dict, model: models.Model) -> Callable[[str], bytes]:
    """How the tokens of a tokenizer write bytes."""
    steps = json.dumps([spec.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    byte_level, metaspace = '"ByteLevel"' in steps, "▁" in steps
    byte_fallback = getattr(model, "byte_fallback", False)
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""

    def spell(token: str) -> bytes:
        if byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        token = token.removeprefix(prefix).removesuffix(suffix)
        if byte_level and all(character in _BYTE_OF_CHARACTER for character in token):
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
        return (token.replace("▁", " ") if metaspace else token).encode()

    return spell
