"""Files behind URLs, through `fsspec`: gs://, s3://, hf://, http(s):// and whatever else has a package for it.

Servers fail for a moment and come back: what may pass is tried again, some seconds later each time, and a file that was
being read is opened again where it stood.
"""

import dataclasses
import datetime
import io
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import fsspec

from tokenizer_lab.errors import UserError

BACK_OFF_SECONDS = (1, 2, 4, 8, 16, 32)
_BLOCK_BYTES = 8 << 20  # of a request
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "tokenizer-lab[gcs]"),
    **dict.fromkeys(("s3", "s3a"), "tokenizer-lab[s3]"),
    **dict.fromkeys(("http", "https"), "tokenizer-lab[http]"),
}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_CLIENTS = ("aiohttp", "botocore", "urllib3")  # whose errors are no OSError
_MARKS = ("etag", "ETag", "generation", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "created")

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Found:
    """A file behind a URL; `name` is relative to the source it was found by. See `data.sources.SourceFile`."""

    url: str
    name: str
    num_bytes: int
    version: str


def find(source: str) -> list[Found]:
    """What a URL stands for: a file, what is in a folder and not hidden, or what matches a glob. Raises UserError."""
    files, path = _file_system(source)
    is_web = source.startswith(("http://", "https://"))  # where ? begins a query, and a folder ends in /
    wildcard = re.search(r"[*\[]" if is_web else r"[*?\[]", path)
    if wildcard:
        root = path[: wildcard.start()].rpartition("/")[0]
        infos = _patiently(source, lambda: files.glob(path, detail=True))
    else:
        about = None if is_web and path.endswith("/") else _patiently(source, lambda: files.info(path))
        if about and about["type"] != "directory":
            return [_found(files, path, path.rstrip("/").rpartition("/")[2], about)]
        root, infos = path.rstrip("/"), _patiently(source, lambda: files.find(path, detail=True))
    named = {each: each.removeprefix(root).lstrip("/") for each, about in infos.items() if about["type"] != "directory"}
    return [
        _found(files, each, name, infos[each])
        for each, name in named.items()
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def open_file(url: str) -> io.RawIOBase:
    """Its bytes. Raises UserError, when it is read, where it cannot be read on."""
    return _RemoteFile(url)


def version_of(url: str) -> str:
    """As `Found.version`, of what is there now. Raises UserError."""
    files, path = _file_system(url)
    files.invalidate_cache()
    return _version(_patiently(url, lambda: files.info(path)))


class _RemoteFile(io.RawIOBase):
    def __init__(self, url: str):
        self._url, self._position = url, 0
        self._files, self._path = _file_system(url)
        self._opened: Any = None
        self._stands_at = 0  # where `_opened` is

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._size() if whence == io.SEEK_END else 0
        if size is None:
            raise io.UnsupportedOperation(f"the server of {self._url} does not say how large it is")
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = _patiently(self._url, lambda: self._read(len(buffer)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed and self._opened is not None:
            self._opened.close()
        super().close()

    def _read(self, num_bytes: int) -> bytes:
        try:
            if self._opened is None:
                self._opened, self._stands_at = self._files.open(self._path, "rb", block_size=_BLOCK_BYTES), 0
            if self._stands_at != self._position:
                self._go_to(self._position)
            content = self._opened.read(num_bytes)
        except BaseException:
            self._opened = None
            raise
        self._stands_at = self._position + len(content)
        return content

    def _go_to(self, position: int) -> None:
        if self._opened.seekable():
            self._opened.seek(position)
            return
        if position < self._stands_at:
            self._opened, self._stands_at = self._files.open(self._path, "rb", block_size=_BLOCK_BYTES), 0
        while self._stands_at < position:
            passed = len(self._opened.read(min(_BLOCK_BYTES, position - self._stands_at)))
            if not passed:
                raise EOFError(f"it has ended before its byte {position:,}")
            self._stands_at += passed

    def _size(self) -> int | None:
        return _patiently(self._url, lambda: self._files.info(self._path)).get("size")


def _file_system(url: str) -> tuple[Any, str]:
    """What reads a URL, and the path in it. Raises UserError where that is not installed."""
    protocol = url.partition("://")[0]
    if "::" in url:
        raise UserError(f"{url} is a file inside of another; unpack it first, and name what is in it")
    if protocol not in fsspec.available_protocols():
        raise UserError(f"{url}: nothing here reads {protocol}://; copy it to this machine or to a bucket first")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        remedy = f"pip install '{package}'" if package else f"install its package ({_words(error)})"
        raise UserError(f"{url} needs what reads {protocol}://, which is not installed: {remedy}") from error
    except Exception as error:  # those packages have hundreds of their own
        raise _cannot_read(url, error) from error


def _found(files: Any, path: str, name: str, about: Mapping[str, Any]) -> Found:
    if about.get("size") is None:  # of a page with links to files
        about = _patiently(path, lambda: files.info(path))
    return Found(files.unstrip_protocol(path), name, about.get("size") or 0, _version(about))


def _version(about: Mapping[str, Any]) -> str:
    mark = next((about[mark] for mark in _MARKS if about.get(mark) is not None), "")
    mark = mark.timestamp() if isinstance(mark, datetime.datetime) else mark  # a listing has numbers for some
    return f"{about.get('size')} bytes of {mark}"


def _patiently(url: str, do: Callable[[], Result]) -> Result:
    """What `do` returns, tried again where its error may pass. Raises UserError."""
    for wait in (*BACK_OFF_SECONDS, None):
        try:
            return do()
        except UserError:
            raise
        except Exception as error:
            if wait is None or not _may_pass(error):
                raise _cannot_read(url, error) from error
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    """Whether it may go better in a while: not where a file is missing or forbidden, or a request is wrong."""
    if status := _status(error):
        return status >= 500 or status in (408, 429)
    return isinstance(error, OSError | EOFError) and not isinstance(error, _LASTING) or _module(error) in _CLIENTS


def _status(error: BaseException) -> int | None:
    """The number that a server has answered with, which some packages hide behind an error of their own."""
    for each in (error, error.__cause__):
        status = getattr(each, "status", None)
        status = str(getattr(each, "code", None) if status is None else status)
        if re.fullmatch("[1-5][0-9]{2}", status):
            return int(status)
    return None


def _module(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _cannot_read(url: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError) and not _may_pass(error):
        return UserError(f"{url} is not there; name what is, or a glob")
    tried = f", {len(BACK_OFF_SECONDS) + 1} times" if _may_pass(error) else ""
    return UserError(
        f"cannot read {url}{tried}: {type(error).__name__}: {_words(error)}; look whether it is there, whether these"
        " credentials may read it, and start again"
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
