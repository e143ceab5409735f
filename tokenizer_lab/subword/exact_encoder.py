"""Encodes as `tokenizers` does, in machine code: what a tokenizer.json says, as tables for `compiled_tokenizer.py`.

Of what is not read here, and of texts that it does not know enough about (characters newer than Python's Unicode, or
without a token; words of 64 KiB; what a normalizer would change), it says so, and the library encodes.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from tokenizer_lab.subword.character_sets import NUM_CODE_POINTS, changed_by
from tokenizer_lab.subword.compiled_tokenizer import IS_BYTES, IS_UNKNOWN, AddedTokens, Model, encode_documents
from tokenizer_lab.subword.merging import Unigram, table_of
from tokenizer_lab.subword.scanning import PADDING_BYTES, Splits
from tokenizer_lab.subword.spaces import mark_of_space
from tokenizer_lab.subword.spelling import BYTE_OF_CHARACTER, BYTE_TOKEN
from tokenizer_lab.subword.split_patterns import ASCII, GIVE_UP, UNKNOWN, Automaton, UnknownPattern, automaton
from tokenizer_lab.subword.words import Words, empty_words, keep_all

_SLOT_BITS = 18  # Words of 60,000 kinds in 8 MB, which caches of processors hold in part.
_UNKNOWN_PENALTY = 10.0  # What the library's Unigram takes off the lowest score for an unknown character.
_BYTE_LEVEL_PATTERN = (  # of the library's ByteLevel
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
_SPACE = {"String": " "}


class NotCompiled(ValueError):
    """Something in a tokenizer.json that is not read here, in words."""


class ExactEncoder:
    """Documents to ids, for one tokenizer. Any number of threads may use it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, token_bytes: Sequence[bytes], byte_ids: Mapping[int, int]):
        """Reads the tokenizer. Special tokens in a text are text, as with `encode_special_tokens`.

        Args:
          token_bytes: what each id stands for.
          byte_ids: the ids of bytes that are not UTF-8.

        Raises:
          NotCompiled: it has something that is not read here.
        """
        spec = json.loads(tokenizer.to_str())
        mark = mark_of_space([spec["normalizer"], spec["pre_tokenizer"]])
        to_bytes = _byte_level if _is_byte_level(spec["pre_tokenizer"]) else functools.partial(_with_spaces, mark)
        self._splits = _splits(spec["pre_tokenizer"], mark, _changed_characters(spec["normalizer"], mark))
        self._added = _added_tokens(spec, mark, token_bytes)
        self._model = _model(spec["model"], to_bytes, mark, token_bytes, has_splits=len(self._splits.offsets) > 0)
        self._byte_ids = np.array([byte_ids[byte] for byte in range(256)], np.int32)
        self._free_words: list[Words] = []

    def encode(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of all documents, i32[n]; where those of each end, i64[d]; and which are given up, bool[d], and have
        none."""
        text = np.frombuffer(b"".join([*documents, bytes(PADDING_BYTES)]), np.uint8)
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        ids, ends_of_ids = np.empty(len(text), np.int32), np.empty(len(documents), np.int64)
        is_given_up = np.zeros(len(documents), bool)
        words = self._take_words()
        tables = self._splits, self._model, self._added, self._byte_ids
        count = encode_documents(text, ends, *tables, words, ids, ends_of_ids, is_given_up)
        self._free_words.append(words)
        return ids[:count].copy(), ends_of_ids, is_given_up

    def _take_words(self) -> Words:
        """A memory that no other thread uses."""
        try:
            return self._free_words.pop()  # a single step: who asks first whether there is one may find it gone
        except IndexError:
            return empty_words(_SLOT_BITS)


def _byte_level(token: str) -> bytes | None:
    if all(character in BYTE_OF_CHARACTER for character in token):
        return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
    return None


def _with_spaces(mark: str | None, token: str) -> bytes | None:
    """The text in which a token is found; None of one that is never found, as a space is no longer there."""
    if mark is None:
        return token.encode()
    return None if " " in token else token.replace(mark, " ").encode()


def _is_byte_level(pre_tokenizer: Any) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(pre_tokenizer, "pretokenizers"))


def _steps(step: Any, parts: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [x for part in step[parts] for x in _steps(part, parts)] if step["type"] == "Sequence" else [step]


def _changed_characters(normalizer: Any, mark: str | None) -> np.ndarray:
    """bool[0x110000], the characters with which a text may be changed, other than that a mark is put for a space."""
    changed = np.zeros(NUM_CODE_POINTS, bool)
    for step in _steps(normalizer, "normalizers"):
        if step["type"] in ("NFC", "NFKC"):
            changed |= changed_by(step["type"])
        elif step["type"] != "Replace" or step["pattern"] != _SPACE or step["content"] != mark:
            raise NotCompiled(f"the normalizer {step['type']}")
    return changed


# ---- Split patterns ------------------------------------------------------------------------------


def _splits(pre_tokenizer: Any, mark: str | None, given_up: np.ndarray) -> Splits:
    patterns: list[tuple[str, bool]] = []
    steps = _steps(pre_tokenizer, "pretokenizers")
    for number, step in enumerate(steps):
        patterns += _patterns_of(step, mark)
        if step["type"] in ("ByteLevel", "Metaspace") and number < len(steps) - 1:
            raise NotCompiled(f"{steps[number + 1]['type']} behind {step['type']}")
    try:
        automata = [(automaton(pattern), keeps_gaps) for pattern, keeps_gaps in patterns]
    except UnknownPattern as error:
        raise NotCompiled(str(error)) from error
    classes = np.array([each.classes for each, _ in automata], np.uint8).reshape(-1, NUM_CODE_POINTS)
    classes[:, given_up] = UNKNOWN
    if mark is not None:
        classes[:, ord(mark)] = UNKNOWN
    if given_up.any() and not automata:
        raise NotCompiled("a normalizer of texts that are not split")
    cells = [_given_up_in(each, given_up) for each, _ in automata]
    starts = np.zeros((len(automata), 256), np.int32)
    for number, (each, _) in enumerate(automata):
        starts[number, : len(each.starts)] = each.starts
    sizes = [each.size for each in cells]
    return Splits(
        classes,
        np.concatenate([np.zeros(0, np.int32), *(each.ravel() for each in cells)]),
        np.cumsum([0, *sizes], dtype=np.int64)[:-1],
        np.array([each.cells.shape[1] for each, _ in automata], np.int64),
        starts,
        np.array([keeps_gaps for _, keeps_gaps in automata], bool),
    )


def _given_up_in(automaton: Automaton, given_up: np.ndarray) -> np.ndarray:
    """The cells of an automaton, of which ASCII has its own."""
    cells = automaton.cells.copy()
    cells[:, :ASCII][:, given_up[:ASCII]] = GIVE_UP
    return cells


def _patterns_of(step: dict[str, Any], mark: str | None) -> list[tuple[str, bool]]:
    """The patterns that split as a pre-tokenizer does, and whether what they do not match stays."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return [(_BYTE_LEVEL_PATTERN, True)] if use_regex else []
        case {"type": "Metaspace", "prepend_scheme": "never", "split": split}:
            return [(" [^ ]*|[^ ]+", True)] if split else []
        case {"type": "Split", "pattern": {"String": " "}} if mark is not None:
            return []  # There are none any more.
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [(pattern, True)]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return [(pattern, False)]
        case {"type": "Digits", "individual_digits": individual}:
            return [(r"\p{N}" if individual else r"\p{N}+", True)]
    about = ", ".join(f"{name} {value}" for name, value in step.items() if name not in ("type", "pattern"))
    raise NotCompiled(f"the pre-tokenizer {step['type']}" + (f" ({about})" if about else ""))


# ---- Added tokens --------------------------------------------------------------------------------


def _added_tokens(
    spec: dict[str, Any], mark: str | None, token_bytes: Sequence[bytes]
) -> tuple[AddedTokens, AddedTokens]:
    """Those that are found first, and those that are found in what the normalizer has made of the text between."""
    groups: dict[bool, dict[bytes, int]] = {False: {}, True: {}}
    changed = _changed_characters(spec["normalizer"], mark_of_space(spec["normalizer"]))
    has_text = {token["normalized"] for token in spec["added_tokens"] if not token["special"]}
    mark = mark if mark_of_space(spec["normalizer"]) else None
    for token in spec["added_tokens"]:
        if not token["special"] and (token["single_word"] or token["lstrip"] or token["rstrip"]):
            raise NotCompiled("an added token that is a word or takes in spaces")
        content = token["content"]
        if token["normalized"] and mark:
            content = content.replace(mark, " ")
        if token["normalized"] and changed[list(map(ord, content))].any():
            raise NotCompiled("an added token that the normalizer changes")
        if not token["special"] and token_bytes[token["id"]] != content.encode():
            raise NotCompiled("an added token that stands for other text")
        groups[token["normalized"]][content.encode()] = IS_UNKNOWN if token["special"] else token["id"]
    return _found(groups[False] if False in has_text else {}), _found(groups[True] if True in has_text else {})


def _found(tokens: Mapping[bytes, int]) -> AddedTokens:
    children, ids = _tree(tokens)
    first_bytes = np.zeros(256, bool)
    first_bytes[[token[0] for token in tokens if token]] = True
    return AddedTokens(first_bytes, children, ids)


def _tree(values: Mapping[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """Byte strings and what each stands for -> a table of children, and i32[nodes] with -1 where no string ends."""
    nodes: dict[int, int] = {}
    ends: dict[int, int] = {}
    for string, value in values.items():
        node = 0
        for byte in string:
            node = nodes.setdefault(node << 8 | byte, len(nodes) + 1)
        ends[node] = value
    at_nodes = np.full(len(nodes) + 1, -1, np.int32)
    at_nodes[list(ends)] = list(ends.values())
    return _table(nodes), at_nodes


def _table(entries: Mapping[int, int]) -> np.ndarray:
    return table_of(*(np.array(list(column), np.uint64) for column in (entries.keys(), entries.values())))


# ---- The model -----------------------------------------------------------------------------------

_ToBytes = Callable[[str], bytes | None]


def _model(
    model: dict[str, Any], to_bytes: _ToBytes, mark: str | None, token_bytes: Sequence[bytes], has_splits: bool
) -> Model:
    by_character, is_other = to_bytes is not _byte_level, np.zeros(len(token_bytes), bool)
    if model["type"] == "Unigram":
        if not has_splits:
            raise NotCompiled("a Unigram model of texts that are not split")
        for id_, (piece, _) in enumerate(model["vocab"]):
            is_other[id_] = token_bytes[id_] != to_bytes(piece)
        unigram = _unigram(model, to_bytes)
        return _assemble(unigram=unigram, by_character=by_character, is_unigram=True, is_other=is_other)
    if model["type"] != "BPE":
        raise NotCompiled(f"the model {model['type']}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise NotCompiled(f"BPE with {name}")
    vocab, merges = model["vocab"], _merges(model)
    bytes_of_ids = {id_: to_bytes(token) for token, id_ in vocab.items()}
    for token, id_ in vocab.items():
        byte = BYTE_TOKEN.fullmatch(token) if model["byte_fallback"] else None
        is_other[id_] = token_bytes[id_] != (bytes.fromhex(byte[1]) if byte else bytes_of_ids[id_])
    if is_other[list(merges.values())].any():
        raise NotCompiled("a token that stands for other text than it is merged from")
    end_rank, cuts = _cuts(merges, bytes_of_ids)
    whole = {token: id_ for id_, token in bytes_of_ids.items() if token} if model["ignore_merges"] else {}
    cuts_words = not whole and (not has_splits or end_rank < len(merges))
    return _assemble(
        by_character=by_character,
        byte_symbols=_byte_symbols(vocab, by_character, model["byte_fallback"]),
        character_symbols=_character_symbols(vocab, mark, model["byte_fallback"]) if by_character else None,
        merges=_table(
            {left << 32 | right: rank << 32 | new for rank, ((left, right), new) in enumerate(merges.items())}
        ),
        end_rank=end_rank if cuts_words else len(merges),
        num_ranks=len(merges),
        cuts_before_space=cuts,
        cuts_words=cuts_words,
        whole_words=whole,
        is_other=is_other,
    )


def _assemble(
    *,
    by_character: bool,
    is_other: np.ndarray,
    is_unigram: bool = False,
    byte_symbols: np.ndarray | None = None,
    character_symbols: np.ndarray | None = None,
    merges: np.ndarray | None = None,
    end_rank: int = 0,
    num_ranks: int = 0,
    cuts_before_space: np.ndarray | None = None,
    cuts_words: bool = False,
    unigram: Unigram | None = None,
    whole_words: Mapping[bytes, int] = {},
) -> Model:
    none = _table({})
    return Model(
        is_unigram,
        by_character,
        np.zeros(0, np.int32) if byte_symbols is None else byte_symbols,
        np.zeros(0, np.int32) if character_symbols is None else character_symbols,
        none if merges is None else merges,
        end_rank,
        num_ranks,
        np.zeros(256, bool) if cuts_before_space is None else cuts_before_space,
        cuts_words,
        unigram or Unigram(none, np.zeros(0, np.int32), np.zeros(0), 0.0, np.int32(0)),
        _whole_words(whole_words),
        len(whole_words) > 0,
        is_other,
    )


def _whole_words(ids: Mapping[bytes, int]) -> Words:
    words = empty_words(max(2, (2 * len(ids)).bit_length()))
    text = np.frombuffer(b"".join([*ids, bytes(PADDING_BYTES)]), np.uint8)
    keep_all(
        text, np.cumsum([len(word) for word in ids], dtype=np.int64), np.array(list(ids.values()), np.int32), words
    )
    return words


def _merges(model: dict[str, Any]) -> dict[tuple[int, int], int]:
    """(left, right) -> the id they make, in the order of their ranks; of a pair that is there twice the last counts."""
    vocab, merges = model["vocab"], dict[tuple[int, int], int]()
    for left, right in model["merges"]:
        pair = vocab[left], vocab[right]
        merges.pop(pair, None)
        merges[pair] = vocab[left + right]
    return merges


def _byte_symbols(vocab: Mapping[str, int], by_character: bool, byte_fallback: bool) -> np.ndarray:
    if not by_character:
        symbols = {byte: vocab.get(character, IS_UNKNOWN) for character, byte in BYTE_OF_CHARACTER.items()}
    else:
        symbols = {byte: vocab.get(f"<0x{byte:02X}>", IS_UNKNOWN) for byte in range(256)}
        if not byte_fallback:
            symbols = dict.fromkeys(range(256), IS_UNKNOWN)
    return np.array([symbols[byte] for byte in range(256)], np.int32)


def _character_symbols(vocab: Mapping[str, int], mark: str | None, byte_fallback: bool) -> np.ndarray:
    symbols = np.full(NUM_CODE_POINTS, IS_BYTES if byte_fallback else IS_UNKNOWN, np.int32)
    for token, id_ in vocab.items():
        if len(token) == 1:
            symbols[ord(token)] = id_
    if mark is not None:
        symbols[ord(" ")], symbols[ord(mark)] = symbols[ord(mark)], IS_UNKNOWN
    return symbols


def _cuts(merges: Mapping[tuple[int, int], int], bytes_of_ids: Mapping[int, bytes | None]) -> tuple[int, np.ndarray]:
    """The first rank that merges across words, and bool[256], the bytes between which and a space no merge before that
    goes.

    All merges before that rank are done first, if none of them has parts that a later one makes.
    """
    crosses = re.compile(rb"[^\s] ")
    made = [bytes_of_ids[id_] or b"" for id_ in merges.values()]
    end = next((rank for rank, token in enumerate(made) if crosses.search(token)), len(made))
    pairs, new = list(merges), list(merges.values())
    if not {part for pair in pairs[:end] for part in pair}.isdisjoint(new[end:]):
        end = len(made)
    before = re.compile(rb".(?= )", re.DOTALL)
    cuts = np.ones(256, bool)
    cuts[[byte[0] for token in made[:end] for byte in before.findall(token)]] = False
    return end, cuts


def _unigram(model: dict[str, Any], to_bytes: _ToBytes) -> Unigram:
    vocab: Sequence[tuple[str, float]] = model["vocab"]
    pieces = {token: id_ for id_, (piece, _) in enumerate(vocab) if (token := to_bytes(piece))}
    children, ids = _tree(pieces)
    scores = np.array([score for _, score in vocab])
    return Unigram(
        children,
        ids,
        np.where(ids < 0, 0.0, scores[ids]),
        float(scores.min()) - _UNKNOWN_PENALTY,
        np.int32(-1 if model["unk_id"] is None else model["unk_id"]),
    )
