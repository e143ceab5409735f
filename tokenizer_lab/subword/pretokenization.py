"""Where tokens may not cross: the published split patterns, and how they cut numbers."""

import tokenizers
from tokenizers import pre_tokenizers

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


def with_digits(pattern: str, pretokenization: str, digits: str | None) -> str:
    """`pattern` with its DIGITS replaced; with those that were published with the pretokenization, if None."""
    if "DIGITS" not in pattern:
        return pattern
    return pattern.replace("DIGITS", DIGITS[digits or _PUBLISHED_DIGITS[pretokenization]])


def pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Splits a text into the matches of a pattern, and writes these in the byte-level alphabet."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
