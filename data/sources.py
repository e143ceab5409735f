"""Which files a source stands for: a file, a directory or a glob, on this machine or behind a URL that `fsspec` reads
(`data/remote_sources.py`)."""

import dataclasses
import glob
import io
import os
import pathlib
from collections.abc import Iterator

from data import remote_sources
from data.manifest import Split
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
      path: of this machine, or a URL.
      name: the path relative to the source that the person gave.
      num_bytes: its size; 0 where a server does not say.
      version: another one means another content.
      split: of all its documents, where whoever published them says so.
    """

    path: str
    name: str
    num_bytes: int
    version: str
    split: Split | None = None

    def __str__(self) -> str:
        return self.path

    @property
    def suffixes(self) -> list[str]:
        """In lower case; what is behind a URL's question mark is no name."""
        path = self.path.partition("?")[0] if is_remote(self.path) else self.path
        return [suffix.lower() for suffix in pathlib.PurePosixPath(path).suffixes]

    @property
    def identity(self) -> str:
        """One for all names that a file may have."""
        return self.path if is_remote(self.path) else os.path.realpath(self.path)

    def open(self) -> io.RawIOBase:
        """Its bytes, from the beginning. A local one raises OSError, a remote one UserError when it is read."""
        return remote_sources.open_file(self.path) if is_remote(self.path) else io.FileIO(self.path, "rb")

    def check_unchanged(self) -> None:
        """Raises UserError where the file is not any more the one that was found."""
        try:
            now: str | None = (
                remote_sources.version_of(self.path) if is_remote(self.path) else _version(os.stat(self.path))
            )
        except OSError as error:
            now = error.strerror
        if now != self.version:
            raise UserError(
                f"{self.path} has changed while it was being read; wait until it is whole, then start again"
            )


def find_files(source: str, leave_out: os.PathLike[str] | str) -> list[SourceFile]:
    """The files that a source stands for, sorted by name.

    In a directory, hidden files and symbolic links are left out, but for links as a Hugging Face hub cache has them; so
    is everywhere what is in the folder `leave_out`.

    Raises:
      UserError: there are none, or a directory cannot be read or is such a cache with several revisions.
    """
    source = source.removeprefix("file://")
    files = _remote_files(source, str(leave_out)) if is_remote(source) else _local_files(source, leave_out)
    if not files:
        raise UserError(
            f"{source} stands for no files (hidden ones and symbolic links in a directory do not count); name others,"
            " or files and links by a glob"
        )
    return sorted(files, key=lambda file: file.name)


def _remote_files(source: str, leave_out: str) -> list[SourceFile]:
    inside = leave_out.rstrip("/") + "/"
    return [
        SourceFile(found.url, found.name, found.num_bytes, found.version)
        for found in remote_sources.find(source)
        if not found.url.startswith(inside)
    ]


def _local_files(source: str, leave_out: os.PathLike[str] | str) -> list[SourceFile]:
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
        inside = pathlib.Path(leave_out).resolve()
        return [
            SourceFile(str(file), name, (about := file.stat()).st_size, _version(about))
            for file, name in found.items()
            if not file.resolve().is_relative_to(inside)
        ]
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or source}: {error.strerror or error}; check its permissions"
        ) from error


def _version(about: os.stat_result) -> str:
    return f"{about.st_size} bytes of {about.st_mtime_ns}"


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
