"""The regular expressions by which tokenizers split a text, as automata: what they match is what the backtracking
engine of `tokenizers` matches, in time that grows with the text alone.

A pattern is compiled to a program of threads (Thompson 1968, "Regular expression search algorithm"). Sets of threads,
in their order of priority, are the states of a deterministic automaton, and of all matches it finds the one that
backtracking would find first. A step knows the next character before it follows the threads, so that looking one
character ahead costs nothing. Characters come in classes: those that no set of the pattern tells apart.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tokenizer_lab.subword.character_sets import NUM_CODE_POINTS, known, named_set

UNKNOWN, END = 0, 1
"""Classes: of characters of which it is not known what the library takes them for, and of no character, the end."""
DEAD, GIVE_UP = 0, 1
"""States: no longer match is possible; the text has a character of class `UNKNOWN`."""
ASCII = 128
# What a cell of an automaton says: the next state, whether it matches before the character, and if so, how many
# characters the match has (0: all up to here).
STATE_BITS = 12
MATCH_BIT, LENGTH_SHIFT = 1 << STATE_BITS, STATE_BITS + 1

_MAX_STATES, _MAX_CLASSES, _MAX_REPEATS = 1 << 10, 100, 100


class UnknownPattern(ValueError):
    """A pattern, or something in it, that is not read here."""


@dataclasses.dataclass(frozen=True)
class Automaton:
    """What a pattern is compiled to.

    Attributes:
      classes: u8[0x110000], of every character.
      cells: i32[states, 128 + classes], by the next character's byte if it is ASCII, else by 128 + its class.
      starts: i32[classes], the first state behind a character of each class, or behind none (`END`).
    """

    classes: np.ndarray
    cells: np.ndarray
    starts: np.ndarray


# ---- Patterns to programs ------------------------------------------------------------------------

# A node is ("set", number), ("look", "ahead" | "behind", number, whether it is wanted), ("sequence", nodes),
# ("either", nodes), ("repeat", node, least, most or None) or ("counted", nodes by count, node that has to follow).
Node = tuple[Any, ...]

_TOKEN = re.compile(
    r"(?P<escape>\\(?:[pP]\{\^?\w+\}|[sSdDwWnrtfv]|[^\w\s]))|(?P<group>\((?:\?(?:i?:|<?[=!]))?)"
    r"|(?P<repeat>(?:[?*+]|\{\d+(?:,\d*)?\})[?+]?)|(?P<set>\[\^?)|(?P<end>[)|])|(?P<literal>[^\\\[\](){}*+?|^$.])"
)
_IN_SET = re.compile(r"\\(?:[pP]\{\^?\w+\}|[sSdDwWnrtfv]|[^\w\s])|&(?!&)|[^\\\[\]&]", re.DOTALL)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


class _Parser:
    """Reads the part of the library's syntax that split patterns are written in."""

    def __init__(self, pattern: str):
        self._pattern, self._at = pattern, 0
        self.sets: list[np.ndarray] = []
        self._set_numbers: dict[bytes, int] = {}

    def node(self) -> Node:
        node = self._either(ignore_case=False)
        if self._at < len(self._pattern):
            raise self._unknown()
        return node

    def _unknown(self) -> UnknownPattern:
        return UnknownPattern(f"{self._pattern[self._at :][:20]!r} in the pattern {self._pattern!r}")

    def _either(self, ignore_case: bool) -> Node:
        nodes = [self._sequence(ignore_case)]
        while self._pattern[self._at : self._at + 1] == "|":
            self._at += 1
            nodes.append(self._sequence(ignore_case))
        return nodes[0] if len(nodes) == 1 else ("either", nodes)

    def _sequence(self, ignore_case: bool) -> Node:
        nodes: list[Node] = []
        while self._at < len(self._pattern):
            token = _TOKEN.match(self._pattern, self._at)
            if not token:
                raise self._unknown()
            if token.lastgroup == "end":
                break
            if token.lastgroup == "repeat":
                nodes.append(self._repeat(nodes.pop() if nodes else ("sequence", []), token[0]))
            elif token.lastgroup == "group" and token[0] not in ("(", "(?:", "(?i:"):
                self._look(nodes, token[0], ignore_case)
            else:
                nodes.append(self._atom(token, ignore_case))
        return ("sequence", nodes)

    def _repeat(self, node: Node, repeat: str) -> Node:
        if node[0] == "look" or _may_be_empty(node) or (len(repeat) > 1 and repeat[-1] in "?+"):
            raise self._unknown()  # Those that give nothing back, or as little as they can, too.
        self._at += len(repeat)
        if repeat in "?*+":
            return ("repeat", node, int(repeat == "+"), 1 if repeat == "?" else None)
        least, comma, most = repeat[1:-1].partition(",")
        if max(int(least), int(most or 0)) > _MAX_REPEATS:
            raise self._unknown()
        return ("repeat", node, int(least), (int(most) if most else None) if comma else int(least))

    def _look(self, nodes: list[Node], opening: str, ignore_case: bool) -> None:
        start, self._at = self._at, self._at + len(opening)
        inside = self._either(ignore_case)
        self._close()
        set_ = _only_set(inside)
        if set_ is not None:
            nodes.append(("look", "behind" if "<" in opening else "ahead", set_, opening.endswith("=")))
            return
        # Anything longer may follow where all that stands before is one set so many times.
        self._at = start
        if opening != "(?=" or len(nodes) != 1 or nodes[0][0] != "repeat" or nodes[0][3] is None:
            raise self._unknown()
        _, node, least, most = nodes.pop()
        if _only_set(node) is None or least < 1:
            raise self._unknown()
        self._at = start + len(opening)
        nodes.append(("counted", node, least, most, self._either(ignore_case)))
        self._close()
        if self._pattern[self._at : self._at + 1] not in ("|", ""):
            raise self._unknown()

    def _close(self) -> None:
        if self._pattern[self._at : self._at + 1] != ")":
            raise self._unknown()
        self._at += 1

    def _atom(self, token: re.Match[str], ignore_case: bool) -> Node:
        if token.lastgroup == "group":
            self._at = token.end()
            node = self._either(ignore_case or token[0] == "(?i:")
            self._close()
            return node
        members = self._set() if token.lastgroup == "set" else _characters(token[0], ignore_case)
        if token.lastgroup == "set" and ignore_case:
            raise self._unknown()
        self._at = max(self._at, token.end())
        return ("set", self._number(members))

    def _set(self) -> np.ndarray:
        """Reads `[...]`."""
        members, start = np.zeros(NUM_CODE_POINTS, bool), self._at
        negated = self._pattern.startswith("[^", self._at)
        self._at += 1 + negated
        while self._pattern[self._at : self._at + 1] != "]":
            item = _IN_SET.match(self._pattern, self._at)
            if not item:
                raise self._unknown()
            self._at = item.end()
            last = _IN_SET.match(self._pattern, self._at + 1) if self._pattern[self._at : self._at + 1] == "-" else None
            if last:
                low, high = _literal(item[0]), _literal(last[0])
                if not low or not high or low > high:
                    raise self._unknown()
                members[ord(low) : ord(high) + 1] = True
                self._at = last.end()
            else:
                members |= _characters(item[0], ignore_case=False)
        self._at += 1
        assert self._at > start
        return ~members if negated else members

    def _number(self, members: np.ndarray) -> int:
        key = np.packbits(members).tobytes()
        if key not in self._set_numbers:
            self._set_numbers[key] = len(self.sets)
            self.sets.append(members)
        return self._set_numbers[key]


def _literal(item: str) -> str | None:
    """The one character that an item stands for; None of one that stands for several."""
    if item[0] != "\\":
        return item
    return _CONTROLS.get(item[1], item[1] if not item[1].isalnum() else None)


def _characters(item: str, ignore_case: bool) -> np.ndarray:
    literal = _literal(item)
    if literal is None:
        return named_set(item)
    if ignore_case and literal.isalpha():
        return named_set(f"(?i:{literal})")
    members = np.zeros(NUM_CODE_POINTS, bool)
    members[ord(literal)] = True
    return members


def _may_be_empty(node: Node) -> bool:
    kind, *rest = node
    if kind == "sequence":
        return all(map(_may_be_empty, rest[0]))
    if kind == "either":
        return any(map(_may_be_empty, rest[0]))
    return kind == "look" or (kind == "repeat" and rest[1] == 0)


def _only_set(node: Node) -> int | None:
    while node[0] == "sequence" and len(node[1]) == 1:
        node = node[1][0]
    return node[1] if node[0] == "set" else None


Program = list[tuple[Any, ...]]
"""Steps: ("set", number), ("look", which, number, wanted), ("go", targets in order) and ("match", length or 0)."""


def _emit(node: Node, program: Program) -> None:
    kind, *rest = node
    if kind in ("set", "look"):
        program.append(node)
    elif kind == "sequence":
        for part in rest[0]:
            _emit(part, program)
    elif kind == "either":
        _emit_choices([("sequence", [part]) for part in rest[0]], program)
    elif kind == "counted":
        node, least, most, behind = rest
        _emit_choices([("sequence", [*[node] * n, behind, ("end", n)]) for n in range(most, least - 1, -1)], program)
    elif kind == "end":
        program.append(("match", rest[0]))
    else:
        node, least, most = rest
        for _ in range(least):
            _emit(node, program)
        if most is None:
            _emit_optional(node, program, again=True)
        for _ in range((most or least) - least):
            _emit_optional(node, program, again=False)


def _emit_choices(nodes: list[Node], program: Program) -> None:
    first, ends = len(program), list[int]()
    program.append(("go", []))
    for node in nodes:
        program[first][1].append(len(program))
        _emit(node, program)
        ends.append(len(program))
        program.append(("go", []))
    for end in ends:
        program[end][1].append(len(program))


def _emit_optional(node: Node, program: Program, again: bool) -> None:
    first = len(program)
    program.append(("go", [first + 1]))
    _emit(node, program)
    if again:
        program.append(("go", [first]))
    program[first][1].append(len(program))


# ---- Programs to automata ------------------------------------------------------------------------

# The class of the character before (`END` unless the program looks behind) and the threads, highest priority first.
_State = tuple[int, tuple[int, ...]]
_DEAD: _State = (END, ())
_GIVE_UP: _State = (UNKNOWN, ())


@functools.lru_cache(maxsize=64)
def automaton(pattern: str) -> Automaton:
    """The automaton of a regular expression. Raises UnknownPattern."""
    parser, program = _Parser(pattern), Program()
    _emit(parser.node(), program)
    program.append(("match", 0))
    classes, members = _classes(parser.sets)
    looks_behind = any(step[:2] == ("look", "behind") for step in program)
    every_class = range(members.shape[1])
    starts: list[_State] = [(class_ if looks_behind else END, (0,)) for class_ in every_class]
    numbers = {state: number for number, state in enumerate(dict.fromkeys([_DEAD, _GIVE_UP, *starts]))}
    rows: list[list[int]] = []
    while len(rows) < len(numbers):
        state = list(numbers)[len(rows)]
        row = []
        for class_ in every_class:
            after, match = _step(program, members, state, class_)
            if after != _GIVE_UP and not (looks_behind and after[1]):
                after = (END, after[1])
            if match and state in starts:
                raise UnknownPattern(f"the pattern {pattern!r} matches an empty text")
            row.append(numbers.setdefault(after, len(numbers)) | match)
        rows.append(row)
        if len(numbers) > _MAX_STATES:
            raise UnknownPattern(f"the pattern {pattern!r} has more than {_MAX_STATES:,} states")
    by_class = np.array(rows, np.int32)
    cells = np.concatenate([by_class[:, classes[:ASCII]], by_class], axis=1)
    return Automaton(classes, cells, np.array([numbers[start] for start in starts], np.int32))


def _classes(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The class of every character, u8[0x110000], and which sets have a class, bool[sets, classes]."""
    classes = np.where(known(), END + 1, UNKNOWN)
    members = np.zeros((0, END + 2), bool)
    for set_ in sets:
        doubled = classes * 2 + (set_ & (classes != UNKNOWN))
        found = np.flatnonzero(np.bincount(doubled, minlength=2 * END + 2))
        found = np.concatenate([[2 * UNKNOWN, 2 * END], found[found >= 2 * (END + 1)]])
        new = np.zeros(found[-1] + 1, np.int64)
        new[found] = np.arange(len(found))
        classes, members = new[doubled], np.concatenate([members[:, found >> 1], [found & 1 == 1]])
        if len(found) > _MAX_CLASSES:
            raise UnknownPattern(f"more than {_MAX_CLASSES} classes of characters")
    return classes.astype(np.uint8), members


def _step(program: Program, members: np.ndarray, state: _State, class_: int) -> tuple[_State, int]:
    """The state behind a character of a class, and the match that ends before it as a cell says it, or 0."""
    if class_ == UNKNOWN or state == _GIVE_UP:
        return _GIVE_UP, 0
    behind, threads = state
    seen, after = set[int](), list[int]()

    def follow(thread: int) -> Iterator[int]:
        """The sets and matches that a thread comes to, in their order."""
        if thread in seen:
            return
        seen.add(thread)
        kind, *rest = program[thread]
        if kind == "go":
            for target in rest[0]:
                yield from follow(target)
        elif kind == "look":
            which, set_, wanted = rest
            if members[set_, class_ if which == "ahead" else behind] == wanted:
                yield from follow(thread + 1)
        else:
            yield thread

    for at in (at for thread in threads for at in follow(thread)):
        kind, operand = program[at]
        if kind == "match":
            return (class_, tuple(after)), MATCH_BIT | operand << LENGTH_SHIFT
        if members[operand, class_]:
            after.append(at + 1)
    return (class_, tuple(dict.fromkeys(after))), 0
