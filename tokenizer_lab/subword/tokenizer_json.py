"""Reading any tokenizer.json: which bytes each id stands for, and the tokenizer without what changes a text."""

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import models

from tokenizer_lab.errors import UserError

MAX_VOCAB_SIZE = 1 << 24
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# How byte-level tokenizers write bytes in JSON: visible ones as themselves, the others as characters from 256 on.
_VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN_BYTES = sorted(set(range(256)) - set(_VISIBLE_BYTES))
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _VISIBLE_BYTES} | {
    chr(256 + order): byte for order, byte in enumerate(_HIDDEN_BYTES)
}
CHARACTER_OF_BYTE = sorted(BYTE_OF_CHARACTER, key=BYTE_OF_CHARACTER.__getitem__)


def parse(tokenizer_json: bytes) -> dict[str, Any]:
    """What the JSON says. Raises UserError if it is not a tokenizer.json."""
    try:
        spec = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a tokenizer.json: {error}; it is the JSON that `Tokenizer.save` writes") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError("not a tokenizer.json: it has no 'model'; it is the JSON that `Tokenizer.save` writes")
    return spec


def faithful_tokenizer(spec: dict[str, Any]) -> tokenizers.Tokenizer:
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
            raise_unless_from_library(error)
        raise UserError(f"not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}") from error
    tokenizer.encode_special_tokens = True  # Their literal text in a document is text.
    return tokenizer


def _plain_model(model: dict[str, Any]) -> dict[str, Any]:
    """A model, as in a tokenizer.json, without random merges, and with an id for what it does not know.

    Any id will do: its bytes are not those of the text, and so `encode` does not use it. Unigram takes neighbours with
    that id for one unknown word, so there it is the least probable, and none where nothing is unknown.
    """
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram
        if model.get("unk_id") is None and not BYTE_OF_CHARACTER.keys() <= {piece for piece, _ in vocab}:
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


def token_bytes(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> list[bytes]:
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
    for id_, added_token in added.items():
        bytes_of_ids[id_] = b"" if added_token.special else spell(added_token.content)
    return bytes_of_ids


def _spelling(spec: dict[str, Any], model: models.Model) -> Callable[[str], bytes]:
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
        if byte_level and all(character in BYTE_OF_CHARACTER for character in token):
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
        return (token.replace("▁", " ") if metaspace else token).encode()

    return spell


def raise_unless_from_library(error: BaseException) -> None:
    """Raises `error` again, unless it is of `tokenizers`, which raises plain Exception and Rust's PanicException."""
    if type(error) is not Exception and type(error).__name__ != "PanicException":
        raise error
