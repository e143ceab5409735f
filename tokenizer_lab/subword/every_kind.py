"""Texts with every kind of character, on which two encoders are held against each other."""

import itertools
import unicodedata
from collections.abc import Iterator, Sequence

from tokenizer_lab.subword.character_sets import characters_by_category

_OF_A_CATEGORY = 24
_TOKENS = 400
_DOCUMENT_CHARACTERS = 2000

_BY_HAND = [
    *(space * count + "x" for space in " \t\n\r\u00a0\u2028\u3000" for count in (1, 2, 3, 17)),
    "a \n b\r\n\r\n  c \t\n\n   d   ",
    "it's IT'S we'Ll they'RE I'd'Ve x's'",
    "'\u017f '\u212a \u0130 \u0149 stra\u00dfe \ufb06",
    *("1234567890123"[:count] + "," for count in range(1, 14)),
    "12\u0663\u0664\u0665\u0666 \u0967\u0968\u0969\u096a \u00bd\u2167\u4e09 3.14 1,000,000 0x1F",
    "CamelCase snake_case HTTPServer a.b->c(); // ==!= ...\n",
    "https://example.com/?q=a%20b&c=d#e me@example.com",
    "e\u0301 \u00e9 o\u0323\u0302 \u1ed9 \u0928\u093f \u0e19\u0e49\u0e33 \ud55c\u1112\u1161\u11ab",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44d\U0001f3fd",
    "\u65e5\u672c\u8a9e\u3068\u4e2d\u6587\u3001\u305d\u3057\u3066\ud55c\uad6d\uc5b4\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    *("a" * 300, "ab" * 150, " " * 300 + "\n", "=" * 100, "\u4e00\u4e8c" * 60),
    "\u2581x \u2581\u2581",
    "\x00\x01\x7f\ufeff\ufffd",
]
_NOT_UTF8 = [b"\xff", b"a\xc3", b"\xe2\x82 x", b"\xed\xa0\x80", b"\xf4\x90\x80\x80z", b"\xc0\xaf", b"ok \x80\x80 ok"]


def texts_of_every_kind(tokens: Sequence[bytes]) -> Iterator[bytes]:
    """Some twenty documents; `tokens` are what the ids of the tokenizer stand for, of which some are taken."""
    yield from _NOT_UTF8
    yield from (text.encode() for text in _BY_HAND)
    yield "".join(_BY_HAND).encode()
    characters = [
        character
        for members in characters_by_category().values()
        for character in members[:: max(1, len(members) // _OF_A_CATEGORY)]
    ]
    characters += [character for character in map(chr, range(256)) if character.isprintable()]
    characters += [
        chr(point)
        for point in range(0x10000)
        if len(chr(point).casefold()) > 1 or unicodedata.combining(chr(point)) > 1
    ][:100]
    parts = (f"{x}a 1{x}{x}  {x}\n'{x}s{x}" for x in characters)
    while document := "".join(itertools.islice(parts, _DOCUMENT_CHARACTERS // 12)):
        yield document.encode()
    some = [token for token in tokens[:: max(1, len(tokens) // _TOKENS)] if token]
    yield b"".join(some)
    yield b" ".join(reversed(some))
