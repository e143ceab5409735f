"""Reading any tokenizer.json: the tokenizer without what changes a text."""

import json
from typing import Any

import tokenizers

from tokenizer_lab.errors import UserError, reason
from tokenizer_lab.subword.spaces import with_spaces_kept, without_prefix_space
from tokenizer_lab.subword.spelling import (
    BYTE_OF_CHARACTER,
    ambiguous_added_tokens,
    exact_decoder,
    spelling_of,
    token_bytes,
)

# How a tokenizer.json is read. Artifacts say it where it makes a difference; those that do not are read the first way:
# added tokens through the byte alphabet, byte tokens of BPE only, spaces lost where the pre-tokenizer drops them.
READING = 2

_UNKNOWN_PENALTY = 10.0  # What the library's Unigram takes off the lowest score for an unknown character.

# What changing a JSON raises that is too deep, or not of the form we change.
_OF_OUR_CHANGES = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


def parse(tokenizer_json: bytes) -> dict[str, Any]:
    """What the JSON says. Raises UserError if it is not a tokenizer.json."""
    try:
        spec = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"not a tokenizer.json: {reason(error)}; it is the JSON that `Tokenizer.save` writes"
        ) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError("not a tokenizer.json: it has no 'model'; it is the JSON that `Tokenizer.save` writes")
    return spec


def faithful_tokenizer(spec: dict[str, Any], reading: int = READING) -> tokenizers.Tokenizer:
    """The tokenizer that `spec` describes, without what adds to the text, draws at random, or fails on a character.

    What it decodes is what `token_bytes` says of its ids, whatever the decoder of `spec`.
    """
    try:
        pre_tokenizer, added = spec.get("pre_tokenizer"), spec.get("added_tokens") or []
        if reading > 1:
            ambiguous = ambiguous_added_tokens(spec, spelling_of(spec, reading))
            pre_tokenizer = with_spaces_kept(pre_tokenizer)
            # Nor do they take in the spaces around them.
            added = [x | {"lstrip": False, "rstrip": False} for x in added if x["content"] not in ambiguous]
        changes = {
            "truncation": None,
            "padding": None,
            "post_processor": None,
            "added_tokens": added,
            "normalizer": without_prefix_space(spec.get("normalizer")),
            "pre_tokenizer": without_prefix_space(pre_tokenizer),
            "decoder": None,
            "model": _plain_model(spec, reading),
        }
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec | changes))
    except BaseException as error:
        if not isinstance(error, _OF_OUR_CHANGES):
            raise_unless_from_library(error)
        raise UserError(f"not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}") from error
    tokenizer.encode_special_tokens = True  # Their literal text in a document is text.
    tokenizer.decoder = exact_decoder(spec, tokenizer, reading)
    return tokenizer


def reading_matters(spec: dict[str, Any]) -> bool:
    """Whether the first reading gives other ids or bytes than today's."""
    if spec["model"].get("byte_fallback") and "merges" not in spec["model"]:
        return True
    today, first = (faithful_tokenizer(spec, reading) for reading in (READING, 1))
    return (
        token_bytes(spec, today, READING) != token_bytes(spec, first, 1)
        or _plain_model(spec, READING) != _plain_model(spec, 1)
        or with_spaces_kept(spec.get("pre_tokenizer")) != spec.get("pre_tokenizer")
        or _found_as(today) != _found_as(first)
    )


def _found_as(tokenizer: tokenizers.Tokenizer) -> list[tuple[str, bool, bool]]:
    """Added tokens that are text, and on which sides they take in spaces."""
    added = tokenizer.get_added_tokens_decoder().values()
    return [(token.content, token.lstrip, token.rstrip) for token in added if not token.special]


def _plain_model(spec: dict[str, Any], reading: int) -> dict[str, Any]:
    """The model without random merges, and with an id for what it does not know.

    Any id will do: its bytes are not those of the text, and so `encode` does not use it. Unigram takes neighbours with
    that id for one unknown word, so there it is the least probable, and none where nothing is unknown.
    """
    model = spec["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram
        if reading > 1 and (names := _names(spec) & {piece for piece, _ in vocab}):
            model = model | {"vocab": _names_last(vocab, names)}
        if model.get("unk_id") is None and not BYTE_OF_CHARACTER.keys() <= {piece for piece, _ in vocab}:
            return model | {"unk_id": min(range(len(vocab)), key=lambda id_: vocab[id_][1], default=None)}
    elif "merges" in model:  # BPE leaves out what it does not know
        return model | {"dropout": None}
    elif isinstance(vocab, dict) and str(model.get("unk_token")) not in vocab:
        return model | {"unk_token": min(vocab, default="")}
    return model


def _names(spec: dict[str, Any]) -> set[str]:
    """Tokens that stand for something else than their name: special ones, and those of bytes."""
    special = {token["content"] for token in spec.get("added_tokens") or [] if token.get("special")}
    return special | {f"<0x{byte:02X}>" for byte in range(256) if spec["model"].get("byte_fallback")}


def _names_last(vocab: list[Any], names: set[str]) -> list[Any]:
    """A Unigram vocabulary that writes names in a text by other pieces, as SentencePiece does. It has them with a score
    of 0, and so would find them."""
    lowest = min([0.0, *(score for piece, score in vocab if piece not in names)]) - _UNKNOWN_PENALTY
    return [[piece, lowest * (1 + len(piece)) if piece in names else score] for piece, score in vocab]


def raise_unless_from_library(error: BaseException) -> None:
    """Raises `error` again, unless it is of `tokenizers`, which raises plain Exception and Rust's PanicException."""
    if type(error) is not Exception and type(error).__name__ != "PanicException":
        raise error
