"""Why a tokenizer's ids do not stand for the very text that they were made of."""

import unicodedata
from typing import Any

import tokenizers

from tokenizer_lab.subword.spaces import mark_of_space

NO_TOKEN = "its vocabulary has no token for them"
SPECIAL_NAME = "they are, or are taken for, one of its special tokens"


class Changes:
    """What the steps of one tokenizer do to text. Immutable."""

    def __init__(self, spec: dict[str, Any], tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._mark = mark_of_space(spec.get("normalizer"))
        self._normalizers = ", ".join(_types(spec.get("normalizer")))
        self._pre_tokenizers = ", ".join(_types(spec.get("pre_tokenizer")))

    def why_dropped(self, text: str, start: int, end: int) -> str:
        """Why `text[start:end]` has no ids."""
        if text[start:end].isspace() and self._pre_tokenizers and self._is_normalized(text[start:end]):
            return f"its pre-tokenizer drops them ({self._pre_tokenizers})"
        return self.why_changed(text, start, end)

    def why_changed(self, text: str, start: int, end: int) -> str:
        """Why `text[start:end]` has ids of other text."""
        while start > 0 and unicodedata.combining(text[start]):
            start -= 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        if not self._is_normalized(text[start:end]):
            return f"its normalizer changes them ({self._normalizers})"
        return NO_TOKEN

    def _is_normalized(self, text: str) -> bool:
        normalizer = self._tokenizer.normalizer
        if normalizer is None or "ByteLevel" in self._normalizers:
            return True
        normalized = normalizer.normalize_str(text)
        return text == (normalized.replace(self._mark, " ") if self._mark else normalized)


def _types(step: Any) -> list[str]:
    """The kinds of steps of a normalizer or pre-tokenizer, as in a tokenizer.json."""
    if not isinstance(step, dict):
        return []
    parts = step.get("normalizers") or step.get("pretokenizers")
    return [kind for part in parts for kind in _types(part)] if parts else [str(step.get("type"))]
