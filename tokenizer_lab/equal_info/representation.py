"""Neurally compressed text: windows of equal information under a byte language model ("EqualInfoAC" of Lester+ 2024,
arXiv 2404.03626, in the exact code of `tokenizer_lab/equal_info/window_code.py`; or by the paper's own rule, for
fidelity to it).

A window is a number of W bits, cut into ids of N bits, the high ones first. Up to W = 24 the artifact is the table of
all windows, and encoding needs no language model; for 32, 64 and 128 bits it is the language model.

The bytes of a window count for its last id, with which they become certain. What follows no whole window, as in a
sequence of ids cut short, stands for no bytes.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt
from etils import epath

from tokenizer_lab.equal_info import window_code, window_stream
from tokenizer_lab.equal_info.byte_lm import PROBABILITY_BITS, ByteLM, positions_by_depth
from tokenizer_lab.equal_info.paper_windows import PaperCode
from tokenizer_lab.equal_info.window_code import Matcher, Tree
from tokenizer_lab.equal_info.window_stream import WindowStream
from tokenizer_lab.errors import UserError, check_numbers
from tokenizer_lab.files import npy_array, npy_bytes
from tokenizer_lab.fixed_width import ID_BITS, code_from_ids, ids_from_code
from tokenizer_lab.metrics import sample_text
from tokenizer_lab.representation import EncodedBatch, OpenPrompt, Representation, check_ids

WINDOW_BITS = (16, 24, 32, 64, 128)
MAX_CONTEXT_BYTES = 128  # few windows are longer; behind it the language model starts anew
SETTINGS_FILE = "equal_info.json"

Rule = Literal["exact", "paper", "delay"]
Progress = Callable[[int, int], None]


class WindowCode(Protocol):
    """Texts <-> windows' numbers, u8[n, W / 8], big-endian."""

    def encode(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text, its windows' numbers and the bytes of each, i64[n]."""

    def decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Any numbers -> the bytes of all windows, and how many each has, i64[n]."""

    def encoding_depths(self, texts: Sequence[bytes]) -> np.ndarray:
        """i64[D], how often encoding some texts asks the language model behind 0, 1, ..., D - 1 bytes of a window."""


class TableCode:
    """A window code that is a table of all windows."""

    def __init__(self, tree: Tree):
        self._tree, self._matcher, self._number_bytes = tree, Matcher(tree), -(-tree.window_bits // 8)

    def encode(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        if not texts:
            return []
        numbers, ends = self._matcher.encode_all(texts)
        lengths = self._tree.depths[numbers].astype(np.int64)
        return list(zip(np.split(self._to_bytes(numbers), ends[:-1]), np.split(lengths, ends[:-1]), strict=True))

    def encode_together(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows' numbers of all texts, u8[n, W / 8], the bytes they stand for, and where those of each text
        end, i64[d]."""
        numbers, ends = self._matcher.encode_all(texts)
        return self._to_bytes(numbers), self._tree.depths[numbers], ends

    def decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        return self._matcher.decode(self._from_bytes(numbers))

    def encoding_depths(self, texts: Sequence[bytes]) -> np.ndarray:
        return np.zeros(0, np.int64)

    def node(self, text: bytes) -> tuple[int, int]:
        """As `WindowStream.node`."""
        [number] = self._matcher.encode(text)
        behind = np.flatnonzero(self._tree.depths[number + 1 :] <= self._tree.depths[number])
        end = number + 1 + behind[0] if len(behind) else len(self._tree.depths)
        return int(number), int(end - number)

    def _to_bytes(self, numbers: np.ndarray) -> np.ndarray:
        return numbers.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - self._number_bytes :]

    def _from_bytes(self, numbers: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(numbers), 4), np.uint8)
        padded[:, 4 - self._number_bytes :] = numbers
        return padded.view(">u4")[:, 0].astype(np.int64)


class EqualInfoRepresentation(Representation):
    """Windows of `window_bits` bits in ids of `id_bits`."""

    kind = "equal_info"

    def __init__(self, code: WindowCode, window_bits: int, id_bits: int, rule: Rule, files: Mapping[str, bytes]):
        """`files`: what `code` is made from. Use `of_tree` or `of_lm`."""
        self.window_bits, self.id_bits, self.rule = window_bits, id_bits, rule
        self._code, self._files = code, dict(files)
        self._ids_per_window = window_bits // id_bits
        self.eod_id = 1 << id_bits
        self.vocab_size = self.eod_id + 1
        has_table = isinstance(code, TableCode)
        self.is_lossless = rule != "paper"
        self.verifies_encoding = not has_table and self.is_lossless
        self.batch_documents = 1 if has_table else window_stream.MAX_LANES

    @classmethod
    def of_tree(cls, tree: Tree, id_bits: int) -> Self:
        """The representation of a table. Raises UserError where ids do not fill a window."""
        check_window(tree.window_bits, id_bits)
        files = {"depths.npy": npy_bytes(tree.depths), "last_bytes.npy": npy_bytes(tree.last_bytes)}
        return cls(TableCode(tree), tree.window_bits, id_bits, "exact", files)

    @classmethod
    def of_lm(cls, lm: ByteLM, window_bits: int, id_bits: int, rule: Rule = "exact") -> Self:
        """The representation that keeps its language model. Raises UserError where ids do not fill a window."""
        check_window(window_bits, id_bits)
        code: WindowCode = WindowStream(lm, window_bits) if rule == "exact" else PaperCode(lm, window_bits, rule)
        return cls(code, window_bits, id_bits, rule, lm.to_files())

    def encode(self, text: bytes) -> np.ndarray:
        return self.encode_many([text])[0][0]

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedBatch:
        if not isinstance(self._code, TableCode):
            return super().encode_batch(texts)
        numbers, lengths, ends = self._code.encode_together(texts)
        bytes_per_id = self._at_last_ids(lengths, np.int32)
        return EncodedBatch(self._to_ids(numbers), bytes_per_id, ends * self._ids_per_window)

    def encode_many(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self._to_ids(numbers), self._at_last_ids(lengths)) for numbers, lengths in self._code.encode(texts)]

    def decode(self, ids: npt.ArrayLike) -> bytes:
        numbers, _ = self._whole_windows(ids)
        return self._code.decode(numbers)[0]

    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        numbers, last_ids = self._whole_windows(ids)
        lengths = np.zeros(len(np.asarray(ids)), np.int64)
        lengths[last_ids] = self._code.decode(numbers)[1]
        return lengths

    def open_prompt(self, text: bytes) -> OpenPrompt:
        """All windows but the last, which may become longer: its number is one of a node of the tree and those
        below."""
        if self.rule != "exact":
            return super().open_prompt(text)
        [(numbers, lengths)] = self._code.encode([text])
        if not len(numbers):
            return OpenPrompt(np.zeros(0, np.int32), (), ())
        assert isinstance(self._code, TableCode | WindowStream), self._code
        first, count = self._code.node(text[len(text) - lengths[-1] :])
        ends = (number.to_bytes(self.window_bits // 8, "big") for number in (first, first + count - 1))
        low, high = (tuple(ids_from_code(end, self.id_bits).tolist()) for end in ends)
        return OpenPrompt(self._to_ids(numbers[:-1]), low, high)

    def to_files(self) -> dict[str, bytes]:
        settings = {"window_bits": self.window_bits, "id_bits": self.id_bits, "rule": self.rule}
        return {SETTINGS_FILE: (json.dumps(settings) + "\n").encode()} | self._files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        window_bits, id_bits, rule = _read_settings(files)
        if window_bits > window_code.MAX_TABLE_BITS or rule != "exact":
            return cls.of_lm(ByteLM.from_files(files), window_bits, id_bits, rule)
        if files.keys() != {SETTINGS_FILE, "depths.npy", "last_bytes.npy"}:
            raise UserError(
                f"a table of windows is depths.npy and last_bytes.npy, not {', '.join(files)}; fit it again"
            )
        tree = Tree(*(npy_array(files[name], name) for name in ("depths.npy", "last_bytes.npy")))
        if tree.window_bits != window_bits:
            raise UserError(f"the table has windows of {tree.window_bits} bits, not {window_bits}; fit it again")
        return cls.of_tree(tree, id_bits)

    def encoding_depths(self, texts: Sequence[bytes]) -> np.ndarray:
        """See `WindowCode.encoding_depths`."""
        return self._code.encoding_depths(texts)

    def windows(self, ids: npt.ArrayLike) -> list[bytes]:
        """The bytes of each whole window of i[n] ids."""
        return _cut(*self._code.decode(self._whole_windows(ids)[0]))

    def _to_ids(self, numbers: np.ndarray) -> np.ndarray:
        return ids_from_code(numbers.tobytes(), self.id_bits)

    def _at_last_ids(self, lengths: np.ndarray, dtype: npt.DTypeLike = np.int64) -> np.ndarray:
        of_ids = np.zeros(len(lengths) * self._ids_per_window, dtype)
        of_ids[self._ids_per_window - 1 :: self._ids_per_window] = lengths
        return of_ids

    def _whole_windows(self, ids: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """u8[n, W / 8] numbers of the whole windows in i[m] ids, and the place of each one's last id, i64[n]."""
        ids = check_ids(ids, self.vocab_size)
        ends = np.flatnonzero(ids == self.eod_id)
        begins, ends = np.append(-1, ends) + 1, np.append(ends, len(ids))
        counts = (ends - begins) // self._ids_per_window
        # Of each stretch between ends of documents, the first whole windows: places of all their ids.
        firsts = np.repeat(begins, counts) + self._ids_per_window * _counting(counts)
        places = firsts[:, None] + np.arange(self._ids_per_window)
        code = np.frombuffer(code_from_ids(ids[places.ravel()], self.id_bits), np.uint8)
        return code.reshape(-1, self.window_bits // 8), places[:, -1]


def _counting(counts: np.ndarray) -> np.ndarray:
    """[2, 0, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def check_window(window_bits: int, id_bits: int) -> None:
    """Raises UserError unless windows of `window_bits` can be cut into ids of `id_bits`."""
    if window_bits not in WINDOW_BITS or id_bits not in ID_BITS or window_bits % id_bits:
        raise UserError(
            f"windows of {window_bits} bits in ids of {id_bits}: a window has {', '.join(map(str, WINDOW_BITS))} bits,"
            f" an id {' or '.join(map(str, ID_BITS))}, and ids fill windows; e.g. --window-bits 16 --id-bits 16"
        )


def _read_settings(files: Mapping[str, bytes]) -> tuple[int, int, Rule]:
    try:
        settings = json.loads(files[SETTINGS_FILE])
        window_bits, id_bits, rule = (settings[name] for name in ("window_bits", "id_bits", "rule"))
        if len(settings) != 3 or not type(window_bits) is type(id_bits) is int or rule not in get_args(Rule):
            raise ValueError(settings)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"an equal_info artifact has {SETTINGS_FILE} with window_bits, id_bits and rule; fit it again"
        ) from error
    check_window(window_bits, id_bits)
    return window_bits, id_bits, rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualInfoFit:
    """Options of `toklab fit equal_info`."""

    window_bits: int = 16
    """Information in a window: 16 or 24 (then the artifact is a table), or 32, 64, 128 (it keeps the language
    model)."""
    id_bits: int = 16
    """Bits of a window in an id, 8 or 16."""
    rule: Rule = "exact"
    """The exact window code; or the paper's, which loses some bytes, or its variant that delays bytes; for
    comparisons."""
    lm: epath.Path | None = None
    """The run of a byte language model to compress with; by default one is trained into the folder OUT-lm."""
    lm_recipe: str | None = None
    """The recipe it is trained with: a name in configs/, or a Python file. By default compressor_3m where there is an
    accelerator, on at most eight passes over the text, and else demo_compressor, which takes minutes."""
    sample_bytes: int = 1 << 16
    """Text of the train split, from many documents, on which bytes per id, lost bits and the FLOPs of encoding are
    measured."""

    def __post_init__(self) -> None:
        check_window(self.window_bits, self.id_bits)
        check_numbers(self, "--")
        if self.is_table:
            window_code.check_memory(self.window_bits)

    @property
    def is_table(self) -> bool:
        """Whether the artifact is a table of windows."""
        return self.window_bits <= window_code.MAX_TABLE_BITS and self.rule == "exact"

    def fit(
        self, documents: Iterable[bytes], corpus_hash: str, lm: ByteLM, lm_flops: float, on_progress: Progress
    ) -> EqualInfoRepresentation:
        """The representation that a trained language model gives.

        Args:
          documents: of the train split, in random order; a sample of them is encoded to measure.
          corpus_hash: of the corpus the language model was trained on.
          lm: the language model.
          lm_flops: what training it has cost.
          on_progress: called with what is done of the table, and all of it.

        Raises:
          UserError: there is no byte in the documents.
        """
        sample = sample_text(documents, self.sample_bytes)
        lm, fit_flops = lm.limited(MAX_CONTEXT_BYTES), lm_flops
        if self.is_table:
            tree = window_code.build_tree(lm.shares, self.window_bits, on_progress)
            fit_flops += _walk_flops(tree, lm)
            representation = EqualInfoRepresentation.of_tree(tree, self.id_bits)
        else:
            representation = EqualInfoRepresentation.of_lm(lm, self.window_bits, self.id_bits, self.rule)
        statistics = _measure(representation, lm, sample)
        num_ids = sum(map(len, sample)) / statistics["bytes_per_id"]
        encode_flops = lm.flops(representation.encoding_depths(sample))
        costs = {"fit_flops": fit_flops, "encode_flops_per_id": encode_flops / num_ids}
        return representation.fitted(corpus_hash, costs, statistics)


FIT_OPTIONS = EqualInfoFit


def _walk_flops(tree: Tree, lm: ByteLM) -> float:
    """What the language model took to build a table: at the root and at each inner node its start and the node's bytes
    go through it, and the next byte is predicted once."""
    depths = np.append(0, tree.depths[~tree.is_leaf]).astype(np.int64) % lm.context_bytes
    return lm.flops(positions_by_depth(depths), num_predictions=len(depths))


def _measure(representation: EqualInfoRepresentation, lm: ByteLM, texts: Sequence[bytes]) -> dict[str, float]:
    """Bytes per id of some texts, the share of windows that do not come back, and the bits per byte that no byte has
    taken.

    A byte of probability p takes -log2 p bits of a window, and STOP, at a node of R points, -log2(1 - 1 / R). What is
    left when the window closes is lost to closing.
    """
    window_bits, num_windows, num_lost, num_bytes, byte_bits, stop_bits = representation.window_bits, 0, 0, 0, 0.0, 0.0
    for text, (ids, lengths) in zip(texts, representation.encode_many(texts), strict=True):
        lengths = lengths[lengths > 0]
        num_lost += sum(a != b for a, b in zip(_cut(text, lengths), representation.windows(ids), strict=True))
        for windows in _windows_by_length(text, lengths):
            bits = -np.log2(lm.shares_along(windows) / 2**PROBABILITY_BITS)
            points = 2.0 ** (window_bits - np.cumsum(bits, axis=1)[:, :-1])
            byte_bits += bits.sum()
            if representation.rule == "exact":
                stop_bits -= np.log2(1 - 1 / np.maximum(points, 2)).sum()
        num_windows += len(lengths)
        num_bytes += len(text)
    closing_bits = num_windows * window_bits - byte_bits - stop_bits
    num_ids = num_windows * (window_bits // representation.id_bits)
    per_byte = max(1, num_bytes)
    statistics = {
        "bytes_per_id": num_bytes / max(1, num_ids),
        "lost_windows": num_lost / max(1, num_windows),
        "lm_bits_per_byte": byte_bits / per_byte,
        "stop_bits_per_byte": stop_bits / per_byte,
        "closing_bits_per_byte": closing_bits / per_byte,
    }
    return {name: float(value) for name, value in statistics.items()}


def _cut(text: bytes, lengths: np.ndarray) -> list[bytes]:
    ends = np.cumsum(lengths).tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends)]


def _windows_by_length(text: bytes, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The windows of a text, u8[n, length] for each length there is."""
    starts = np.cumsum(lengths) - lengths
    characters = np.frombuffer(text, np.uint8)
    for length in np.unique(lengths):
        yield characters[starts[lengths == length][:, None] + np.arange(length)]
