"""Which files a source stands for: a file, a directory or a glob."""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator

from tokenizer_lab.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read. `name` is its path relative to the source that the person gave."""

    path: pathlib.Path
    name: str
    num_bytes: int


def find_files(source: str, leave_out: pathlib.Path) -> list[SourceFile]:
    """The files that a source stands for, sorted by name.

    In a directory, hidden files and symbolic links are left out, but for links as a Hugging Face hub cache has them; so
    is everywhere what is in the folder `leave_out`.

    Raises:
      UserError: there are none, or a directory cannot be read or is such a cache with several revisions.
    """
    path = pathlib.Path(source)
    try:
        if os.path.isfile(source):
            found = {path: path.name}
        elif os.path.isdir(source):
            found = {file: file.relative_to(path).as_posix() for file in _walk(path)}
        elif glob.has_magic(source):
            found = _glob(source)
        else:
            raise UserError(
                f"{source!r} is neither a file nor a directory; name what is there, or a glob, or the word embedded"
            )
        inside = leave_out.resolve()
        files = [
            SourceFile(file, name, file.stat().st_size)
            for file, name in found.items()
            if not file.resolve().is_relative_to(inside)
        ]
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or source}: {error.strerror or error}; check its permissions"
        ) from error
    if not files:
        raise UserError(
            f"{source} stands for no files (hidden ones and symbolic links in a directory do not count); name others,"
            " or files and links by a glob"
        )
    return sorted(files, key=lambda file: file.name)


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        if {"blobs", "snapshots"} <= set(subfolders):
            raise UserError(
                f"{folder} is a Hugging Face hub cache, which has every file under several names; name a revision in"
                f" it, a folder of {os.path.join(folder, 'snapshots')}"
            )
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (pathlib.Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file() and (not path.is_symlink() or _is_of_hub_cache(path)):
                yield path


def _is_of_hub_cache(link: pathlib.Path) -> bool:
    """Whether a link leads from `snapshots` of a Hugging Face hub cache to its `blobs`."""
    target = link.resolve()
    return any(
        folder.name == "snapshots" and target.parent == (folder.parent / "blobs").resolve()
        for folder in link.absolute().parents
    )


def _glob(pattern: str) -> dict[pathlib.Path, str]:
    """Path -> its name, relative to the part of the pattern that is before the first wildcard."""
    parts = pathlib.Path(pattern).parts
    root = pathlib.Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matches = [pathlib.Path(match) for match in glob.glob(pattern, recursive=True)]
    files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match]) if file.is_file()]
    return {file: file.relative_to(root).as_posix() for file in files}
