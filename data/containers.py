"""What a file is, by its first bytes: names say little of files that come from elsewhere."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import unicodedata
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, Protocol

import zstandard

from data.json_object import loads
from data.sources import SourceFile
from tokenizer_lab.errors import UserError

Kind = Literal["text", "jsonl", "object", "json", "csv", "parquet", "arrow", "warc"]

_HEAD_BYTES = 1 << 16  # of a file's content, by which it is known
_UTF16_CONTROLS = 0.03  # at least, of the bytes of such text: of Chinese about a tenth of the lower ones, and line ends
CONTROL = re.compile(rb"[\0-\x08\x0e-\x19\x1c-\x1f]")
"""A byte that is in no text, but for one now and then."""
_FRAME_INPUT_BYTES = 256  # taken at once, because a few bytes may stand for a hundred kilobytes


_COMPRESSIONS = dict(  # how a file begins
    gzip=rb"\x1f\x8b",
    zstd=rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    xz=rb"\xfd7zXZ\0",
    lzma=rb"\x5d\0\0.{2}(?:\xff{8}|.{5}\0{3})",
    bzip2=rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
)
_COMPRESSION_NAMES = {
    **dict.fromkeys((".gz", ".gzip"), "gzip"),
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    **dict.fromkeys((".bz2", ".bzip2"), "bzip2"),
    ".xz": "xz",
    ".lzma": "lzma",
}
JSONL_NAMES = {".jsonl", ".ndjson", ".jsonlines"}

_UNPACK = "unpack it first"
_CONVERT = "convert it to JSON lines, parquet or text first"
_REFUSED = {  # remedy -> name of a format -> how it begins
    _UNPACK: {
        "a zip archive": rb"PK(?:\x03\x04|\x05\x06)",  # and docx, xlsx, odt, epub, npz, jar
        "a tar archive": rb".{257}ustar",
        "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
        "a RAR archive": rb"Rar!\x1a\x07",
        "an LZ4 file": rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18",
        "a Snappy file": rb"\xff\x06\0\0sNaPpY",
        "an LZIP file": rb"LZIP\x01",
        "a file of compress": rb"\x1f[\x9d\xa0]",
        "a file of lzop": rb"\x89LZO\0",
        "an ar archive": rb"!<arch>\n",  # and deb
        "a cabinet": rb"MSCF\0{4}",
    },
    _CONVERT: {
        "a PDF": rb"(?:\xef\xbb\xbf)?\s*%PDF-",  # of which readers take one behind blank lines
        "a PostScript file": rb"\s*%!PS-",
        "an RTF document": rb"\s*\{\\rtf",
        "a Mobipocket book": rb".{60}BOOKMOBI",
        "an old Office document": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an SQLite database": rb"SQLite format 3\0",
        "an HDF5 file": rb"\x89HDF\r\n\x1a\n",
        "an Avro file": rb"Obj\x01",
        "an ORC file": rb"ORC[\0-\x08\x0e-\x1f]",
        "a Feather file of version 1": rb"FEA1",
        "a NumPy array": rb"\x93NUMPY",
        "a safetensors file": rb".{5}\0{3}\{\s*\"",
        "a GGUF file": rb"GGUF.\0{3}",
        "a pickle": rb"\([dl]p\d+\n|\x80[\x02-\x05][\x80-\xffc(\]}X\x8c\x95]",
        "an image": rb"II\*\0|MM\0\*|\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP",
        "a sound or a film": rb"RIFF.{4}(?:WAVE|AVI )|ID3[\x02-\x04]|OggS\0|fLaC\0|\0{3}.ftyp",
        "a font": rb"wOF[F2]|OTTO\0|\0\x01\0{3}",
        "a program": rb"MZ.\0.\0{3}|\x7fELF|\0asm|\xca\xfe\xba\xbe",
    },
    "convert it to UTF-8, e.g. with iconv": {
        "text in UTF-32": rb"\xff\xfe\0\0|\0\0\xfe\xff",
        "text in UTF-16": rb"\xff\xfe|\xfe\xff",
    },
    "get the file itself, e.g. with git lfs pull or git annex get": {
        "a Git LFS pointer": rb"version https://git-lfs\.github\.com/spec/",
        "a git-annex pointer": rb"/annex/objects/",
    },
}


class Readable(Protocol):
    """A binary stream, as far as it is needed here."""

    def read(self, size: int = -1, /) -> bytes: ...


def compression_of(raw: BinaryIO, file: SourceFile) -> str | None:
    """What a file, which `raw` begins, is compressed with. Raises UserError where its name says that it is, and it is
    not."""
    head = raw.read(_HEAD_BYTES)
    raw.seek(0)
    found = _compression(head)
    [claimed] = [_COMPRESSION_NAMES.get(suffix) for suffix in file.suffixes[-1:]] or [None]
    if head and claimed and not found:
        raise UserError(
            f"{file} is named {file.suffixes[-1]} and is not compressed with {claimed}, by its first bytes; get it"
            " again, or rename it if that is what it should be"
        )
    return found


def decompressed(raw: BinaryIO, compression: str | None, path: object, max_window_bytes: int) -> Any:
    """A stream of which any amount can be read in bounded memory, and that raises for a file that was cut off.

    Args:
      raw: the file.
      compression: of `compression_of`.
      path: for errors.
      max_window_bytes: memory that zstd may take, by the frame's own account.
    """
    match compression:
        case None:
            return raw
        case "gzip":
            return gzip.GzipFile(fileobj=raw)
        case "bzip2":
            new: Callable[[], Any] = bz2.BZ2Decompressor
        case "xz" | "lzma":
            new = lzma.LZMADecompressor
        case _:
            new = zstandard.ZstdDecompressor(max_window_size=max_window_bytes).decompressobj
    return io.BufferedReader(_Frames(raw, new, path, max_window_bytes))


class _Frames(io.RawIOBase):
    """What is in compressed frames that follow each other.

    The libraries' own readers take what is cut off (zstandard), or what stands behind the first frame and is damaged
    (bz2, lzma), for the end.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Any], path: object, max_window_bytes: int):
        self._raw, self._new, self._path, self._max_window_bytes = raw, new, path, max_window_bytes
        self._frame: Any = None  # the one that is being read
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(_FRAME_INPUT_BYTES)
            if self._frame is None:
                self._input = self._input.lstrip(b"\0")  # padding, which may stand between frames
                if not self._input and self._raw.peek(1):  # type: ignore[attr-defined]
                    continue
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it is cut off")
                return 0
            self._take()
        num_bytes = min(len(buffer), len(self._output))
        buffer[:num_bytes], self._output = self._output[:num_bytes], self._output[num_bytes:]
        return num_bytes

    def _take(self) -> None:
        """Decompresses what was read."""
        self._frame = self._frame or self._new()
        try:
            self._output = memoryview(self._frame.decompress(self._input))
        except zstandard.ZstdError as error:
            if "too much memory" not in str(error):
                raise
            raise UserError(
                f"{self._path} asks for more memory than {self._max_window_bytes:,} bytes, for a long window of zstd;"
                f" raise --max-window-bytes, e.g. to {1 << 31}"
            ) from error
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None


def kind_of(raw: BinaryIO, file: SourceFile, compression: str | None, field: str, max_window_bytes: int) -> Kind:
    """What the content of a file, which `raw` begins, is, decompressed. Raises UserError, naming the format, for what
    has no documents."""
    head = decompressed(raw, compression, file, max_window_bytes).read(_HEAD_BYTES)
    raw.seek(0)
    if inner := _compression(head):
        raise _refused(file, f"{inner} inside of {compression}", _UNPACK)
    for remedy, formats in _REFUSED.items():
        for name, pattern in formats.items():
            if re.match(pattern, head, re.DOTALL):
                raise _refused(file, name, remedy)
    if encoding := _utf16(head):
        remedy = f"convert it to UTF-8, e.g. with iconv -f {encoding} -t UTF-8"
        raise _refused(file, "text in UTF-16 without a byte order mark", remedy)
    suffixes = file.suffixes
    named = [suffix for suffix in suffixes if suffix not in _COMPRESSION_NAMES and not suffix[1:].isdigit()][-1:]
    if re.match(rb"PAR1|ARROW1\0\0|\xff{4}[^\xff]{3}\0", head):
        kind: Kind = "parquet" if head.startswith(b"PAR1") else "arrow"
        if compression:
            raise _refused(file, f"{kind} inside of {compression}", _UNPACK)
        return kind
    if re.match(rb"WARC/\d", head):
        return "warc"
    if named == [".tsv"]:
        raise _refused(file, "tab-separated values, of which nobody can tell how they are quoted", _CONVERT)
    if named in ([".parquet"], [".csv"]):
        return "csv" if named == [".csv"] else "parquet"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if (named == [".json"] and text.startswith(b"[")) or re.match(rb'\[\s*\{\s*["}]', text):
        return "json"
    if re.match(rb'\{[ \t]*\r?\n\s*["}]', text):
        return "object"
    if JSONL_NAMES.intersection(suffixes) or (named == [".json"] and compression):
        return "jsonl"
    if _is_json_lines(text, len(head) == _HEAD_BYTES, field):
        return "jsonl"
    return "object" if re.match(rb'\{\s*"', text) else "text"


def _is_json_lines(text: bytes, goes_on: bool, field: str) -> bool:
    """Whether a file with this beginning has an object a line; one that is alone in its file has the field, too."""
    first, *others = (line for line in text.split(b"\n") if line.strip()) if text.strip() else [b""]
    if goes_on and not others:
        return re.match(rb'\{\s*"', first) is not None
    try:
        record = loads(first.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    return others[0].lstrip().startswith(b"{") if others else field in record


def _utf16(head: bytes) -> str | None:
    """ "UTF-16LE" or "UTF-16BE" where a file with this beginning is text in that, without a mark: every second byte is
    one that no text has (Latin, Cyrillic, ...), or the whole is no UTF-8 and good in the other (Chinese, Korean)."""
    pairs = head[: len(head) // 2 * 2]
    if len(pairs) < 8 or len(CONTROL.findall(pairs)) < _UTF16_CONTROLS * len(pairs):
        return None
    is_utf8 = "\ufffd" not in pairs[:-4].decode(errors="replace")
    found: dict[str, int] = {}
    for encoding, upper in (("UTF-16LE", pairs[1::2]), ("UTF-16BE", pairs[::2])):
        has_controls = sum(byte < 0x20 for byte in upper) > 0.7 * len(upper)
        text = pairs.decode(encoding, "replace") if has_controls or not is_utf8 else ""
        num_good = sum(c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cn", "Co", "Cs") for c in text)
        if text and num_good - text.count("\ufffd") > 0.99 * len(text) - 1:
            found[encoding] = sum(map(text.count, " \n\u3002"))
    encoding = max(found, key=found.__getitem__, default="")  # the order of bytes that gives more of them
    return encoding if found.get(encoding) else None


def _compression(head: bytes) -> str | None:
    return next((name for name, pattern in _COMPRESSIONS.items() if re.match(pattern, head, re.DOTALL)), None)


def _refused(path: object, what: str, remedy: str) -> UserError:
    return UserError(f"{path} is {what}, by its first bytes; {remedy}, or take its bytes as they are: --read-as text")
