"""What steps of a tokenizer.json do to spaces: those that put one before a text are off, and one that drops spaces
which a later step would put back leaves them where they are."""

import json
from typing import Any

_SPLITS = ("normalizers", "pretokenizers")

# Pre-tokenizers that drop white space -> what cuts at the same places but leaves a space before the word behind it.
_BERT_PUNCTUATION = r"\p{P}$+<=>^`|~"
_KEEPING_SPACES = {
    "WhitespaceSplit": r" ?\S+|\s",
    "Whitespace": r" ?(?:\w+|[^\w\s]+)|\s",
    "BertPreTokenizer": rf" ?(?:[^\s{_BERT_PUNCTUATION}]+|[{_BERT_PUNCTUATION}])|\s",
}
_SPACE_PATTERNS = [{"String": " "}, {"Regex": " "}, {"Regex": " +"}, {"Regex": r"\s"}, {"Regex": r"\s+"}]


def without_prefix_space(step: Any) -> Any:
    """A normalizer or pre-tokenizer, as in a tokenizer.json, that does not put a space before the text."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace":
        return step | {"prepend_scheme": "never"}
    if step.get("type") == "ByteLevel" and "add_prefix_space" in step:
        return step | {"add_prefix_space": False}
    for steps in _SPLITS:
        if isinstance(step.get(steps), list):
            step = step | {steps: [x for x in map(without_prefix_space, step[steps]) if x is not None]}
    return step


def puts_space_before_text(step: Any) -> bool:
    """Whether a normalizer or pre-tokenizer does what `without_prefix_space` takes out."""
    if not isinstance(step, dict):
        return False
    if any(puts_space_before_text(part) for steps in _SPLITS for part in step.get(steps) or []):
        return True
    first = step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"
    return step.get("type") == "Prepend" or first or _puts_space_before_pieces(step)


def with_spaces_kept(pre_tokenizer: Any) -> Any:
    """A pre-tokenizer whose first steps do not drop spaces if a later one puts one before each piece (T5, XLM-R, NLLB).

    "the lamp" is "the", "lamp" behind `WhitespaceSplit`, and "▁the", "▁lamp" behind `Metaspace`: the mark of the second
    word is the space. Without the space before the text it has to come from the text itself.
    """
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(steps, list):
        return pre_tokenizer
    marks = [number for number, step in enumerate(steps) if _puts_space_before_pieces(step)]
    kept = [_keeping_spaces(step) if number < max(marks, default=0) else step for number, step in enumerate(steps)]
    return pre_tokenizer | {"pretokenizers": kept}


def mark_of_space(steps: Any) -> str | None:
    """What normalizer and pre-tokenizer write for a space, such as "▁"; None if a space is written as it is."""
    if isinstance(steps, dict):
        if steps.get("type") == "Metaspace":
            return str(steps.get("replacement"))
        content = str(steps.get("content") or " ")
        if steps.get("type") == "Replace" and (steps.get("pattern") == {"String": " "} or content == "▁"):
            return None if content.isspace() else content
        steps = [steps[name] for name in _SPLITS if name in steps]
    return next((mark for step in steps if (mark := mark_of_space(step))), None) if isinstance(steps, list) else None


def is_byte_level(steps: Any) -> bool:
    """Whether normalizer or pre-tokenizer write bytes in the byte-level alphabet."""
    return '"ByteLevel"' in json.dumps(steps)


def _puts_space_before_pieces(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    if step.get("type") == "Metaspace":
        return step.get("prepend_scheme", "always") == "always" and step.get("add_prefix_space", True) is True
    return step.get("type") == "ByteLevel" and step.get("add_prefix_space") is True


def _keeping_spaces(step: Any) -> Any:
    kind = str(step.get("type")) if isinstance(step, dict) else ""
    drops = kind in _KEEPING_SPACES
    if kind == "CharDelimiterSplit":
        drops = step.get("delimiter") == " "
    if kind == "Split":
        removed = step.get("behavior") == "Removed" and not step.get("invert")
        drops = removed and step.get("pattern") in _SPACE_PATTERNS
    if not drops:
        return step
    pattern = _KEEPING_SPACES.get(kind, _KEEPING_SPACES["WhitespaceSplit"])
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
