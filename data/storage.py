"""Files on this machine or in an object store: written whole or not at all, read by ranges, listed in one go."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from etils import epath

from tokenizer_lab.files import is_remote, remote_errors


class Range(NamedTuple):
    """Some bytes of a file."""

    path: str
    start: int
    num_bytes: int


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of ranges, of an object store's at the same time, a request each. May be fewer at the end of a file.

    Raises:
      OSError: a file of this machine cannot be read.
      UserError: the object store says no.
    """
    if not ranges or not is_remote(ranges[0].path):
        return [_read_here(*wanted) for wanted in ranges]
    with remote_errors(ranges[0].path):
        if len(ranges) == 1:  # `cat_ranges` would do the same by way of more tasks
            [wanted] = ranges
            file_system, name = _file_system(wanted.path)
            return [file_system.cat_file(name, start=wanted.start, end=wanted.start + wanted.num_bytes)]
        file_system, _ = _file_system(ranges[0].path)
        return file_system.cat_ranges(
            [wanted.path for wanted in ranges],
            [wanted.start for wanted in ranges],
            [wanted.start + wanted.num_bytes for wanted in ranges],
            on_error="raise",
        )


def read_if_there(path: epath.Path) -> bytes | None:
    """The content of a small file, or None where there is none. Raises OSError or, for an object store, UserError."""
    if not is_remote(path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    with remote_errors(path):
        file_system, name = _file_system(path)
        try:
            return file_system.cat_file(name)
        except FileNotFoundError:
            return None


def sizes_in(folder: epath.Path) -> dict[str, int]:
    """Name relative to the folder -> size in bytes, of all files in it and in its folders: one listing. Empty where
    there is no folder. Raises OSError or, for an object store, UserError."""
    if not is_remote(folder):
        return {
            os.path.relpath(os.path.join(root, name), folder): os.lstat(os.path.join(root, name)).st_size
            for root, _, names in os.walk(folder)
            for name in names
        }
    with remote_errors(folder):
        file_system, top = _file_system(folder)
        file_system.invalidate_cache()  # others write there too
        found = file_system.find(top, detail=True)
    return {name.removeprefix(top.rstrip("/") + "/"): about["size"] for name, about in found.items()}


@contextlib.contextmanager
def new_file(path: epath.Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A large file to write: whole and under its name when the block ends, and not there when it raises. With `sync` it
    is then on the disk, and its name is after `sync_folder`.

    In an object store a writer that fails may leave a part of the file under its name: whoever relies on it asks for
    something that was written after it.
    """
    if is_remote(path):
        with remote_errors(path), path.open("wb") as file:
            yield cast(BinaryIO, file)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with partial.open("wb") as file:
            yield cast(BinaryIO, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove(folder: epath.Path, names: Sequence[str]) -> None:
    """Removes files of a folder, where they are there. Raises OSError or UserError."""
    if not is_remote(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
    elif names:
        with remote_errors(folder):
            file_system, top = _file_system(folder)
            with contextlib.suppress(FileNotFoundError):
                file_system.rm([f"{top.rstrip('/')}/{name}" for name in names])


def remove_empty_folders(folder: epath.Path, names: Iterable[str]) -> None:
    """Removes those of a folder's folders in which nothing is; an object store has none."""
    for name in names if not is_remote(folder) else ():
        with contextlib.suppress(OSError):
            os.rmdir(folder / name)


def remove_folder(folder: epath.Path) -> None:
    """Removes a folder with all that is in it. Raises UserError where an object store says no."""
    if is_remote(folder):
        remove(folder, list(sizes_in(folder)))
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _read_here(path: str, start: int, num_bytes: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(file, num_bytes, start)
        while len(content) < num_bytes and (more := os.pread(file, num_bytes - len(content), start + len(content))):
            content += more
        return content
    finally:
        os.close(file)


def _file_system(path: epath.PathLike) -> tuple[Any, str]:
    """What speaks to the object store, and the path's name there."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))
