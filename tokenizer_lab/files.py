"""Small files that are there as a whole or not at all, and names that stay in their folder."""

import contextlib
import errno
import fnmatch
import hashlib
import io
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from tokenizer_lab.errors import UserError, reason

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_JSON_BYTES = 64 << 20
_CHUNK_BYTES = 8 << 20


def check_name(name: object, what: str) -> str:
    """`name`, if it is a plain file name that cannot leave its folder. Raises UserError otherwise."""
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
        raise UserError(
            f"{what} {name!r} is not a plain name; use up to 128 letters, digits, '.', '_' and '-', "
            "not starting with '.' or '-'"
        )
    return name


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store, such as gs://bucket/folder: no locks, no appending, no renaming of folders
    in one go."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def remote_errors(path: epath.PathLike) -> Iterator[None]:
    """Turns what an object store, or the library that speaks to it, complains about inside into one line. Nothing for a
    local path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # those libraries have hundreds of their own
        if not is_remote(path):
            raise
        if isinstance(error, ImportError):
            raise UserError(
                f"{os.fspath(path)} needs the client of its object store: pip install 'tokenizer-lab[gcs]' for gs://"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"cannot use {os.fspath(path)}: {reason}; is there such a bucket, and may these credentials write to it?"
        ) from error


def write_bytes(path: epath.PathLike, content: bytes, sync: bool = True) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part; and, with `sync`, so that a machine
    that crashes then keeps it. Raises UserError if it cannot."""
    path = epath.Path(path)
    if is_remote(path):  # an object appears when it is whole
        with remote_errors(path):
            path.write_bytes(content)
        return
    with _appearing_whole(path, sync) as partial:
        partial.write_bytes(content)


def fetch(source: epath.Path, target: epath.Path) -> None:
    """Copies a large file, of an object store say, to this machine. Raises UserError if it cannot."""

    def chunks() -> Iterator[bytes]:
        with remote_errors(source), source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    with _appearing_whole(target) as partial, partial.open("wb") as copy:
        for chunk in chunks():
            copy.write(chunk)


@contextlib.contextmanager
def _appearing_whole(path: epath.Path, sync: bool = True) -> Iterator[epath.Path]:
    """Where to write what becomes the local file `path` in one go. Raises UserError if it cannot."""
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if sync:
                _sync(partial)
            partial.replace(path)
            if sync:
                sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def sync_folder(folder: epath.PathLike) -> None:
    """Waits until the names in a folder of this machine are on its disk. Raises OSError."""
    _sync(folder)


def _sync(path: epath.PathLike) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> epath.Path:
    """A folder of this machine for what can be made again: $XDG_CACHE_HOME/tokenizer-lab/<name>."""
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenizer-lab" / name


def files_in(folder: epath.Path) -> dict[str, epath.Path]:
    """Name relative to the folder -> path, of the files in it and in the folders in it, sorted by name. Raises
    OSError."""
    top = os.fspath(folder).rpartition("://")[2]  # `walk` of an object store leaves the gs:// out
    found = {
        os.path.normpath(os.path.join(os.path.relpath(root, top), name))
        for root, _, names in folder.walk()
        for name in names
    }
    return {name: folder / name for name in sorted(found)}


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """The paths in a folder with names like `*.json`, sorted; none where there is no folder. The `glob` of etils takes
    the folder's own name for a pattern too."""
    return (
        sorted(path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)) if folder.exists() else []
    )


def copy_folder(source: epath.Path, target: epath.Path) -> None:
    """Copies the files in a folder, and in those in it, each whole. Raises UserError if it cannot."""
    for name, path in files_in(source).items():
        write_bytes(target / name, path.read_bytes())


def write_json(path: epath.PathLike, value: Any, sync: bool = True) -> None:
    """`write_bytes` of `value` as readable JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(), sync)


def read_bytes(path: epath.PathLike, what: str, max_bytes: int) -> bytes:
    """The content of a file that may come from a stranger. Raises UserError naming `what` and the file."""
    path = epath.Path(path)
    with remote_errors(path):
        try:
            with path.open("rb") as file:
                size_bytes = file.seek(0, os.SEEK_END)
                if size_bytes > max_bytes:
                    raise UserError(
                        f"{path} has {size_bytes:,} bytes, more than the {max_bytes:,} of a {what}; "
                        "it is damaged or something else"
                    )
                file.seek(0)
                return file.read(size_bytes)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} does not exist; is {path.parent} the folder of a {what}?") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {_reason(error)}; a {what} is a readable file there") from error


def read_json(path: epath.PathLike, what: str, max_bytes: int = _MAX_JSON_BYTES) -> Any:
    """The value in a JSON file that may come from a stranger. Raises UserError naming `what` and the file."""
    try:
        return json.loads(read_bytes(path, what, max_bytes))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable {what}: {reason(error)}") from error


def cannot_write(path: epath.PathLike, error: OSError) -> UserError:
    """The one-line error for a path that could not be written, with what would help."""
    remedies: dict[int | None, str] = {
        errno.ENOSPC: "free some space or choose another folder",
        errno.EDQUOT: "the quota is used up; free some space or choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EACCES: "no permission; choose another folder or change its mode",
        errno.EPERM: "no permission; choose another folder or change its mode",
        errno.ENOTDIR: "a file is where a folder is needed; choose another folder",
    }
    return UserError(
        f"cannot write {os.fspath(path)}: {_reason(error)}; {remedies.get(error.errno, 'choose another folder')}"
    )


def sha256_of_parts(parts: Iterable[bytes]) -> str:
    """SHA-256, as hex, of byte strings in order; each is preceded by its length, so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def npy_bytes(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def npy_array(content: bytes, what: str) -> np.ndarray:
    """The array in the content of a .npy file that may come from a stranger. Raises UserError naming `what`."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(version)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        num_bytes = math.prod(shape) * dtype.itemsize if all(size >= 0 for size in shape) else -1
        if dtype.kind not in "iuf" or fortran_order or num_bytes != len(content) - file.tell():
            raise ValueError(shape)
    except Exception as error:  # NumPy parses the header as Python literals, and lets whatever that raises through
        raise UserError(f"{what} is not a whole .npy file of numbers; fit the representation again") from error
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
