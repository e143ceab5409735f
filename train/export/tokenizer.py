"""A representation as the tokenizer files of Hugging Face `transformers`, with the same ids for the same text.

Most are a tokenizer.json, which loads without any code of ours:

- bytes: BPE without merges;
- subwords: the artifact's own, as it is used here;
- equal-info windows of one id each: encoding is the longest match with a set of byte strings that has every prefix of
its members, so
  one pattern, the tree of the windows with every branch optional, cuts text into windows, and a lookup gives their ids.

Where a window is several ids, no tokenizer.json can say it: then a Python file goes along (`tokenization_windows.py`),
which `transformers` runs only if told to trust it.

A tokenizer of transformers takes text, so that what is not UTF-8 cannot be given to it.
"""

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from tokenizer_lab.equal_info import EqualInfoRepresentation
from tokenizer_lab.equal_info.window_code import MAX_TABLE_BITS, Tree
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import npy_array
from tokenizer_lab.representation import CLS, MASK, SEP, Representation
from tokenizer_lab.subword import SubwordRepresentation
from tokenizer_lab.subword.spelling import CHARACTER_OF_BYTE

WINDOWS_CODE = pathlib.Path(__file__).with_name("tokenization_windows.py")
_END_OF_DOCUMENT = "<|endoftext|>"
_MARKS = {"[MASK]": MASK, "[CLS]": CLS, "[SEP]": SEP}


def check_tokenizer(representation: Representation) -> None:
    """Raises UserError where transformers can have no tokenizer for a representation."""
    kind = representation.kind
    of_kind: Any = representation  # with the attributes that its kind has
    if kind == "equal_info" and "depths.npy" not in representation.to_files():
        raise UserError(
            f"windows of {of_kind.window_bits} bits by the {of_kind.rule} rule are encoded by a language"
            " model, which no tokenizer of transformers has; only tables can be exported, of windows of up to"
            f" {MAX_TABLE_BITS} bits by the exact rule"
        )
    if kind == "subword" and not of_kind.spells_every_byte:
        raise UserError(
            "the subword tokenizer lacks ids for some of the 256 bytes; what it cannot say has byte ids here, and a"
            " tokenizer.json cannot do that; fit one with 'toklab fit subword', or take one that is byte-level"
        )
    if kind not in ("byte", "subword", "equal_info"):
        raise UserError(
            f"there is no tokenizer of transformers for ids of kind {kind}; byte, subword and equal_info can be"
            " exported"
        )


def tokenizer_files(representation: Representation, *, for_encoder: bool, max_positions: int) -> dict[str, bytes]:
    """The files of a tokenizer, by name. Raises UserError as `check_tokenizer` does.

    Args:
      representation: the one the model was trained on.
      for_encoder: texts become `[CLS] text [SEP]`, or `[CLS] text [SEP] text [SEP]`; else the end-of-document id and
        the text.
      max_positions: ids that the model's rows have had.
    """
    check_tokenizer(representation)
    special = special_tokens(representation, for_encoder)
    config = _config(special, for_encoder, max_positions)
    if isinstance(representation, EqualInfoRepresentation) and representation.window_bits != representation.id_bits:
        about = {
            "tokenizer_class": "WindowTokenizer",
            "auto_map": {"AutoTokenizer": [f"{WINDOWS_CODE.stem}.WindowTokenizer", None]},
            "added_tokens_decoder": {
                str(id_): {
                    "content": token,
                    "special": True,
                    "normalized": False,
                    "lstrip": False,
                    "rstrip": False,
                    "single_word": False,
                }
                for token, id_ in special.items()
            },
        }
        arrays = {name: content for name, content in representation.to_files().items() if name.endswith(".npy")}
        return arrays | {WINDOWS_CODE.name: WINDOWS_CODE.read_bytes(), "tokenizer_config.json": _json(config | about)}
    tokenizer = _tokenizer(representation)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = _template(special, for_encoder)
    if any(tokenizer.token_to_id(token) != id_ for token, id_ in special.items()):
        raise UserError(
            "the subword tokenizer has gaps between its ids, and a tokenizer.json can then not say which are the"
            " special ones; it cannot be exported"
        )
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(config | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    }


def special_tokens(representation: Representation, for_encoder: bool) -> dict[str, int]:
    """Name -> id of what stands for no text, in the order of ids."""
    taken = representation.used_tokenizer.get_vocab() if isinstance(representation, SubwordRepresentation) else {}
    marks = {name: representation.vocab_size + mark for name, mark in _MARKS.items()} if for_encoder else {}
    named = {}
    for name, id_ in ({_END_OF_DOCUMENT: representation.eod_id} | marks).items():
        while name in taken:
            name = f"<{name}>"
        named[name] = id_
    return named


def _config(special: dict[str, int], for_encoder: bool, max_positions: int) -> dict[str, Any]:
    end, *marks = special
    about: dict[str, Any] = {
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # their literal text in a document is text
        "pad_token": end,
    }
    if for_encoder:
        mask, cls, sep = marks
        return about | {
            "mask_token": mask,
            "cls_token": cls,
            "sep_token": sep,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
    return about | {"bos_token": end, "eos_token": end, "model_input_names": ["input_ids", "attention_mask"]}


def _template(special: dict[str, int], for_encoder: bool) -> processors.TemplateProcessing:
    end, *marks = special
    if not for_encoder:
        return processors.TemplateProcessing(
            single=[end, "$A"], pair=[end, "$A", end, "$B"], special_tokens=[(end, special[end])]
        )
    _, cls, sep = marks
    return processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, special[cls]), (sep, special[sep])],
    )


def _tokenizer(representation: Representation) -> tokenizers.Tokenizer:
    """The tokenizer without special tokens, for ids that each stand for text of their own."""
    if isinstance(representation, SubwordRepresentation):
        return representation.used_tokenizer
    spell_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if isinstance(representation, EqualInfoRepresentation):
        files = representation.to_files()
        tree = Tree(*(npy_array(files[name], name) for name in ("depths.npy", "last_bytes.npy")))
        text, starts = tree.text()
        spelled = _spell(text.tobytes())
        vocab = {
            spelled[start:end]: number
            for number, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist()))
        }
        tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=CHARACTER_OF_BYTE[0]))  # nothing is unknown
        cut = pre_tokenizers.Split(tokenizers.Regex(windows_pattern(tree)), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spell_bytes, cut])
    else:
        tokenizer = tokenizers.Tokenizer(
            models.BPE({character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}, [])
        )
        tokenizer.pre_tokenizer = spell_bytes
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def windows_pattern(tree: Tree) -> str:
    """A regular expression that matches the longest string of a tree: `a(?:b(?:c)?)?|...`, without ever going back.

    A node's children begin with different bytes, so their order is free: those with most below them, which are the
    likeliest, come first.
    """
    parents, last_bytes, is_leaf = tree.parents.tolist(), tree.last_bytes.tolist(), tree.is_leaf.tolist()
    below = [1] * len(parents)
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]  # the root is the last
    patterns = [""] * (len(parents) + 1)
    for number in range(len(parents) - 1, -2, -1):  # children have higher numbers than their parents
        if number >= 0:
            children[parents[number]].append(number)
            if parents[number] >= 0:
                below[parents[number]] += below[number]
        if number < 0 or not is_leaf[number]:
            inner = sorted((child for child in children[number] if not is_leaf[child]), key=lambda child: -below[child])
            leaves = "".join(_in_pattern(last_bytes[child]) for child in children[number] if is_leaf[child])
            alternatives = [_in_pattern(last_bytes[child]) + patterns[child] for child in inner] + (
                [f"[{leaves}]"] if leaves else []
            )
            patterns[number] = f"(?>{'|'.join(alternatives)})" + ("?" if number >= 0 else "")
    return patterns[-1]


def _in_pattern(byte: int) -> str:
    character = CHARACTER_OF_BYTE[byte]
    return character if character.isalnum() or byte >= 128 else f"\\{character}"


def _spell(text: bytes) -> str:
    return "".join(map(CHARACTER_OF_BYTE.__getitem__, text))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
