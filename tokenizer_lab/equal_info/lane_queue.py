"""Texts that lanes go through, and the windows that come out: a lane that has ended one text begins the next that
waits, so that what is held at a time does not depend on the longest.

Legend: N lanes, T steps, K limbs of 16 bits, the lowest first.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

END_OF_TEXT, IDLE = 256, -1  # what a lane is given instead of a byte

Windows = tuple[np.ndarray, np.ndarray]  # numbers u8[n, W / 8] (big-endian) and lengths i64[n] in bytes


@dataclasses.dataclass
class _Lane:
    """What a lane is at: bytes of a text that it was given, and those of them that are in no window yet."""

    text: int | None = None
    given: int = 0
    in_no_window: int = 0


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Steps `first` to `end - 1` of a lane, which are bytes of one text, and its end where that is there."""

    lane: int
    text: int
    first: int
    end: int


class LaneQueue:
    """Gives lanes their next steps, and sorts the windows that they end by their texts."""

    def __init__(self, texts: Sequence[bytes], num_lanes: int):
        self._texts = texts
        self._waiting = collections.deque(sorted(range(len(texts)), key=lambda number: -len(texts[number])))
        self._lanes = [_Lane() for _ in range(num_lanes)]
        self._pieces: list[_Piece] = []
        self._windows: list[list[Windows]] = [[] for _ in texts]

    def next_steps(self, num_steps: int) -> np.ndarray | None:
        """i32[T, N], what each lane takes next; None where all is done."""
        bytes_tn = np.full((num_steps, len(self._lanes)), IDLE, np.int32)
        self._pieces = [piece for lane in range(len(self._lanes)) for piece in self._fill(lane, bytes_tn[:, lane])]
        return bytes_tn if self._pieces else None

    def _fill(self, lane: int, bytes_t: np.ndarray) -> list[_Piece]:
        state, step, pieces = self._lanes[lane], 0, []
        while step < len(bytes_t):
            if state.text is None:
                if not self._waiting:
                    break
                state.text, state.given = self._waiting.popleft(), 0
            text = self._texts[state.text]
            taken = np.frombuffer(text, np.uint8, min(len(bytes_t) - step, len(text) - state.given), state.given)
            first, step, state.given = step, step + len(taken), state.given + len(taken)
            bytes_t[first:step] = taken
            is_whole = step < len(bytes_t)
            if is_whole:
                bytes_t[step] = END_OF_TEXT
                step += 1
            pieces.append(_Piece(lane, state.text, first, step))
            state.text = None if is_whole else state.text
        return pieces

    def take(self, ended_ten: np.ndarray, numbers_tekn: np.ndarray) -> None:
        """What came of the last steps: which windows ended, bool[T, 2, N], before a step's byte or behind it, and their
        numbers, u16[T, 2, K, N]."""
        for piece in self._pieces:
            state, steps = self._lanes[piece.lane], slice(piece.first, piece.end)
            ended_te = ended_ten[steps, :, piece.lane]
            step, behind = np.nonzero(ended_te)
            ends = step + behind  # in bytes of the piece
            limbs = numbers_tekn[steps, :, :, piece.lane][ended_te][:, ::-1]
            numbers = np.ascontiguousarray(limbs).astype(">u2").view(np.uint8)
            lengths = np.diff(ends, prepend=-state.in_no_window).astype(np.int64)
            self._windows[piece.text].append((numbers, lengths))
            state.in_no_window += piece.end - piece.first - int(lengths.sum())
            if state.text != piece.text:  # its end came last, and no window is open behind it
                state.in_no_window = 0

    def windows(self) -> list[Windows]:
        """Those of each text."""
        joined = []
        for parts in self._windows:
            numbers, lengths = zip(*parts, strict=True)
            joined.append((np.concatenate(numbers), np.concatenate(lengths)))
            parts.clear()
        return joined
