"""Files of documents in units: some documents each, compressed together, with a checksum, read by one range of bytes.

    unit, unit, ..., footer

A unit is a zstd frame (RFC 8878) with its checksum; in it are 64-bit integers, little-endian, and then the documents:

    k, p, the sizes of k documents, p times (number in the unit, part), p keys of 16 bytes, the bytes of k documents

A document that was cut (`data/reading.py`) is there as p of those, each with the key of the whole. The
footer is a skippable frame, so that the `zstd` command takes the file: the sizes of the units, how many they are, a
CRC-32 of that, and four letters. Whoever reads it knows how many units there are, and so where it begins.
"""

import dataclasses
import itertools
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard

from data.split import KEY_BYTES

LEVEL = 1  # of zstd; 3 makes files 5 % smaller and takes twice as long
WHOLE = -1  # the part number of a document that was not cut
_SKIPPABLE = 0x184D2A5E
_LETTERS = b"TLS3"
_HEAD, _TAIL, _NUMBERS_HEAD = struct.Struct("<II"), struct.Struct("<QI4s"), struct.Struct("<qq")
_OF_THREAD = threading.local()  # what decompresses may not be used by two at a time


class Damaged(ValueError):
    """A file does not hold what it should."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Documents that were decompressed together.

    Attributes:
      edges: k + 1 numbers, where the documents begin and end in `content`.
      cut: number in the unit -> (key of the whole, part), of those documents that are parts.
    """

    content: bytes
    edges: list[int]
    cut: dict[int, tuple[bytes, int]]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.content[self.edges[number] : self.edges[number + 1]]

    @property
    def num_bytes(self) -> int:
        """What it takes of memory, about."""
        return len(self.content) + 40 * len(self.edges) + 200 * len(self.cut)


def encode_unit(
    documents: Sequence[bytes], cut: dict[int, tuple[bytes, int]], compress: Callable[[bytes], bytes]
) -> bytes:
    """The frame of a unit."""
    numbers = [len(documents), len(cut), *map(len, documents)]
    for number, (_, part) in cut.items():
        numbers += [number, part]
    keys = [key for key, _ in cut.values()]
    return compress(b"".join([np.array(numbers, "<i8").tobytes(), *keys, *documents]))


def decode_unit(frame: bytes, num_documents: int, max_bytes: int) -> Unit:
    """The unit in a frame that may come from a stranger. Raises Damaged.

    Args:
      max_bytes: the documents of its file have no more than this.
    """
    content = decompress(frame, max_bytes + 8 * (2 + num_documents) + (16 + KEY_BYTES) * num_documents)
    if len(content) < 16:
        raise Damaged("a unit has no head")
    count, num_cut = _NUMBERS_HEAD.unpack_from(content)
    if count != num_documents or not 0 <= num_cut <= count:
        raise Damaged(f"a unit of {count} documents, {num_cut} of them cut, where {num_documents} should be")
    keys_start = 16 + 8 * (count + 2 * num_cut)
    start = keys_start + KEY_BYTES * num_cut
    if start > len(content):
        raise Damaged("a unit ends in its head")
    numbers = struct.unpack_from(f"<{count + 2 * num_cut}q", content, 16)
    edges = list(itertools.accumulate(numbers[:count], initial=start))
    if min(numbers[:count], default=0) < 0 or edges[-1] != len(content):
        raise Damaged("the sizes of a unit's documents are not its own")
    cut = {
        numbers[count + 2 * at]: (content[keys_start + KEY_BYTES * at :][:KEY_BYTES], numbers[count + 2 * at + 1])
        for at in range(num_cut)
    }
    return Unit(content, edges, cut)


def compressor(level: int = LEVEL) -> Callable[[bytes], bytes]:
    """For one thread."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress


def decompress(frame: bytes, max_bytes: int) -> bytes:
    """The content of one frame. Raises Damaged, also where it would have more than `max_bytes`."""
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > max_bytes:
            raise Damaged(f"a unit of {size:,} bytes, in a file of at most {max_bytes:,}")
        if not hasattr(_OF_THREAD, "decompressor"):
            _OF_THREAD.decompressor = zstandard.ZstdDecompressor()
        return _OF_THREAD.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a unit cannot be decompressed: {error}") from error


# ---- Files ---------------------------------------------------------------------------------------


class UnitFile:
    """Writes units and, last, the footer."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sizes: list[int] = []

    def write(self, frame: bytes) -> None:
        self._file.write(frame)
        self.sizes.append(len(frame))

    def close(self) -> int:
        """Writes the footer; the file stays open. Returns the file's size in bytes."""
        footer = encode_footer(self.sizes)
        self._file.write(footer)
        return sum(self.sizes) + len(footer)


def footer_bytes(num_units: int) -> int:
    return _HEAD.size + 8 * num_units + _TAIL.size


def encode_footer(sizes: Sequence[int]) -> bytes:
    content = np.array(sizes, "<i8").tobytes()
    tail = _TAIL.pack(len(sizes), zlib.crc32(content), _LETTERS)
    return _HEAD.pack(_SKIPPABLE, len(content) + len(tail)) + content + tail


def decode_footer(footer: bytes, num_units: int, file_bytes: int) -> np.ndarray:
    """i64[num_units + 1], where the units of a file begin and end. The footer may come from a stranger. Raises
    Damaged."""
    if len(footer) != footer_bytes(num_units):
        raise Damaged("it has no footer")
    content = footer[_HEAD.size : -_TAIL.size]
    if _TAIL.unpack(footer[-_TAIL.size :]) != (num_units, zlib.crc32(content), _LETTERS):
        raise Damaged("its footer is not one")
    sizes = np.frombuffer(content, "<i8")
    if sizes.min(initial=0) < 0 or sizes.max(initial=0) > file_bytes:  # so that their sum does not wrap either
        raise Damaged("the size of a unit is none")
    edges = np.concatenate([[0], np.cumsum(sizes)])
    if edges[-1] + len(footer) != file_bytes:
        raise Damaged("its units are not as large as its footer says")
    return edges


class UnitSpan(NamedTuple):
    """How a file's documents are divided into units: as all documents of their domain and split are, counted from the
    first, in units of `unit_documents`. So the file's first unit and its last may have fewer."""

    first: int
    num_documents: int
    unit_documents: int

    @property
    def num_units(self) -> int:
        return (self.first + self.num_documents - 1) // self.unit_documents - self.first // self.unit_documents + 1

    def find(self, number: int) -> tuple[int, int]:
        """A document's number in the file -> its unit, and its number there."""
        unit = (self.first + number) // self.unit_documents - self.first // self.unit_documents
        return unit, number - self.start(unit)

    def start(self, unit: int) -> int:
        """The number in the file of a unit's first document."""
        return max(0, (self.first // self.unit_documents + unit) * self.unit_documents - self.first)

    def size(self, unit: int) -> int:
        """How many documents are in a unit."""
        return min(self.num_documents, self.start(unit + 1)) - self.start(unit)


class DocumentFile:
    """Writes documents into the units of a file."""

    def __init__(self, file: BinaryIO, first: int, unit_documents: int):
        """
        Args:
          first: how many documents of the domain and split are in files before this one.
          unit_documents: in a unit.
        """
        self._units, self._compress = UnitFile(file), compressor()
        self._unit_documents = unit_documents
        self._room = unit_documents - first % unit_documents
        self._waiting: list[bytes] = []
        self._cut: dict[int, tuple[bytes, int]] = {}

    def add(self, documents: Sequence[bytes], cut: dict[int, tuple[bytes, int]]) -> None:
        """Takes the next documents; `cut` has the keys and part numbers of those that are parts, by their number among
        the documents."""
        self._cut |= {len(self._waiting) + number: of for number, of in cut.items()}
        self._waiting += documents
        start = 0
        while len(self._waiting) - start >= self._room:
            self._write(start, start + self._room)
            start, self._room = start + self._room, self._unit_documents
        del self._waiting[:start]
        self._cut = {number - start: of for number, of in self._cut.items() if number >= start}

    def close(self) -> int:
        """Writes what is left; the file stays open. Returns its size in bytes."""
        if self._waiting:
            self._write(0, len(self._waiting))
        return self._units.close()

    def _write(self, start: int, end: int) -> None:
        cut = {number - start: of for number, of in self._cut.items() if start <= number < end}
        self._units.write(encode_unit(self._waiting[start:end], cut, self._compress))
