"""How the tokens of a tokenizer.json write bytes: which bytes each id stands for, and a decoder that says the same."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders

from tokenizer_lab.errors import UserError
from tokenizer_lab.subword.spaces import is_byte_level, mark_of_space

MAX_VOCAB_SIZE = 1 << 24
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# How byte-level tokenizers write bytes in JSON: visible ones as themselves, the others as characters from 256 on.
_VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN_BYTES = sorted(set(range(256)) - set(_VISIBLE_BYTES))
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _VISIBLE_BYTES} | {
    chr(256 + order): byte for order, byte in enumerate(_HIDDEN_BYTES)
}
CHARACTER_OF_BYTE = sorted(BYTE_OF_CHARACTER, key=BYTE_OF_CHARACTER.__getitem__)


_PRIVATE_USE = range(0xE000, 0xF900)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How the tokens of a model write bytes.

    Attributes:
      byte_level: in the byte-level alphabet.
      mark: what stands for a space, if not a space.
      byte_fallback: a token such as <0x0A> is a byte.
      prefix: what a token that continues a word begins with, and stands for nothing.
      suffix: what a token that ends a word ends with, and stands for nothing.
    """

    byte_level: bool
    mark: str | None
    byte_fallback: bool
    prefix: str
    suffix: str

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token of the model. Of one that is spelled in no such way they are wrong, and `encode` then
        never uses it."""
        if self.byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        token = token.removeprefix(self.prefix).removesuffix(self.suffix)
        if self.byte_level and all(character in BYTE_OF_CHARACTER for character in token):
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
        return (token.replace(self.mark, " ") if self.mark else token).encode()

    def decoder(self, other: Mapping[str, bytes], unused: list[str]) -> decoders.Decoder:
        """A decoder that writes just `bytes_of` for every token, but for some others the bytes given.

        Args:
          unused: two characters that no token has.
        """
        parts: list[decoders.Decoder] = []
        shield, space = unused
        for token, bytes_ in other.items():
            if self.byte_level:
                spelled = "".join(map(CHARACTER_OF_BYTE.__getitem__, bytes_))
            else:  # So that no step below knows it: these are taken out again at the end.
                text = bytes_.decode()
                spelled = shield + (text.replace(self.mark, space) if self.mark else text) + shield
            parts.append(decoders.Replace(tokenizers.Regex(rf"\A{re.escape(token)}\z"), spelled))
        if self.prefix:
            parts.append(decoders.Replace(tokenizers.Regex(rf"\A{re.escape(self.prefix)}"), ""))
        if self.suffix:
            parts.append(decoders.Replace(tokenizers.Regex(rf"{re.escape(self.suffix)}\z"), ""))
        if self.byte_level:
            return decoders.Sequence([*parts, decoders.ByteLevel()]) if parts else decoders.ByteLevel()
        parts += [decoders.Replace(self.mark, " ")] if self.mark else []
        parts += [decoders.ByteFallback()] if self.byte_fallback else []
        if other:
            parts += [decoders.Replace(shield, ""), decoders.Replace(space, self.mark or "")]
        return decoders.Sequence([*parts, decoders.Fuse()])


def spelling_of(spec: dict[str, Any], reading: int) -> Spelling:
    """How the tokenizer of a tokenizer.json spells; see `tokenizer_json.READING`."""
    steps, model = [spec.get("normalizer"), spec.get("pre_tokenizer")], spec["model"]
    if reading == 1:
        steps.append(spec.get("decoder"))
        mark = "▁" if "▁" in json.dumps(steps, ensure_ascii=False) else None
    else:
        mark = mark_of_space(steps)
    return Spelling(
        byte_level=is_byte_level(steps),
        mark=mark,
        byte_fallback=bool(model.get("byte_fallback")) and (reading > 1 or "merges" in model),
        prefix=model.get("continuing_subword_prefix") or "",
        suffix=model.get("end_of_word_suffix") or "",
    )


def ambiguous_added_tokens(spec: dict[str, Any], spelling: Spelling) -> set[str]:
    """Added tokens that the model makes too, of other text: "é" is also the byte E9 of the byte-level alphabet, and
    "▁▁" two spaces. Their ids stand for what the model makes of them, so they cannot be found as added tokens."""
    contents = {token["content"] for token in spec.get("added_tokens") or [] if not token.get("special")}
    other = {content for content in contents if spelling.bytes_of(content) != content.encode()}
    return other & _made_by_model(spec["model"]) if other else set()


def _made_by_model(model: dict[str, Any]) -> set[str]:
    vocab = model.get("vocab") or {}
    tokens = set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    if "merges" not in model or model.get("ignore_merges"):
        return tokens
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    prefix = model.get("continuing_subword_prefix") or ""
    merged = {left + right.removeprefix(prefix) for left, right in pairs}
    return {token for token in tokens if len(token) == 1 or BYTE_TOKEN.fullmatch(token)} | tokens & merged


def token_bytes(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer, reading: int) -> list[bytes]:
    """What each id of the library stands for: b"" for special tokens, and where an id has no token."""
    tokens = {id_: token for token, id_ in tokenizer.get_vocab(with_added_tokens=False).items()}
    added = tokenizer.get_added_tokens_decoder()
    size = 1 + max([*added, *tokens], default=-1)
    if size > MAX_VOCAB_SIZE:
        raise UserError(
            f"not a tokenizer.json to use here: its largest id is {size - 1:,}, the limit is {MAX_VOCAB_SIZE - 1:,}"
        )
    spelling, bytes_of_ids = spelling_of(spec, reading), [b""] * size
    for id_, token in tokens.items():
        bytes_of_ids[id_] = spelling.bytes_of(token)
    for id_, added_token in added.items():
        bytes_of_ids[id_] = b"" if added_token.special else _bytes_of_added(added_token, spec, spelling, reading)
    return bytes_of_ids


def unknown_id(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id that the library writes for what its model has no token for."""
    model = spec["model"]
    unknown: int | None = model["unk_id"] if "unk_id" in model else tokenizer.token_to_id(str(model.get("unk_token")))
    return unknown


def byte_tokens(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    """The ids by which the library itself spells in bytes what it has no token for."""
    if not spec["model"].get("byte_fallback"):
        return frozenset()
    return frozenset(id_ for token, id_ in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token))


def _bytes_of_added(token: tokenizers.AddedToken, spec: dict[str, Any], spelling: Spelling, reading: int) -> bytes:
    """An added token is found in the text as it is, or in the text as the normalizer leaves it."""
    if reading == 1:
        return spelling.bytes_of(token.content)
    mark = mark_of_space(spec.get("normalizer")) if token.normalized else None
    return (token.content.replace(mark, " ") if mark else token.content).encode()


def exact_decoder(spec: dict[str, Any], tokenizer: tokenizers.Tokenizer, reading: int) -> decoders.Decoder:
    """The decoder that writes the bytes of `token_bytes`, whatever the decoder of `spec` adds, drops or changes."""
    spelling, other = spelling_of(spec, reading), dict[str, bytes]()
    for id_, token in tokenizer.get_added_tokens_decoder().items():
        bytes_ = _bytes_of_added(token, spec, spelling, reading)
        given = tokenizer.id_to_token(id_) or token.content  # What a decoder is given is as the normalizer leaves it.
        if not token.special and spelling.bytes_of(given) != bytes_:
            other[given] = bytes_
    used = set("".join(tokenizer.get_vocab())) if other else set()
    unused = [character for character in map(chr, _PRIVATE_USE) if character not in used]
    return spelling.decoder(other, unused[:2])
