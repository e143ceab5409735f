"""Text that is on every machine with Python, in two domains; nothing is downloaded or copied into the repository.

- `docs`: the reference documentation inside the interpreter, a document a topic;
- `code`: the source files of the standard library, without its tests, and without what holds the text of `docs`.
"""

import os
import pathlib
import sysconfig
from collections.abc import Iterator
from pydoc_data.topics import topics

from tokenizer_lab.errors import UserError

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


def embedded_documents() -> Iterator[tuple[str, str, bytes]]:
    """Yields (domain, name, document), sorted by domain and name. Raises UserError for a Python without its sources."""
    sources = sorted(_standard_library_sources())
    if not sources:
        raise UserError(f"{_root()} holds no Python sources; install a Python that has its standard library as files")
    for name in sources:
        yield "code", name, (_root() / name).read_bytes()
    for name in sorted(topics):
        yield "docs", name, topics[name].encode()


def _root() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("stdlib"))


def _standard_library_sources() -> Iterator[str]:
    """Yields paths relative to the library's folder."""
    for folder, subfolders, names in os.walk(_root()):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        for path in (pathlib.Path(folder, name) for name in names):
            # `_sysconfigdata_*.py` says how this one interpreter was built; it would differ from machine to machine.
            if path.suffix == ".py" and not path.name.startswith("_sysconfigdata") and path.stat().st_size:
                yield path.relative_to(_root()).as_posix()
