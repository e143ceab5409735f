"""What a run's rows have read: their running hashes, for the proof that runs have read the same documents in the same
order.

Rows note their hash (`data/document_hash.py` computes it) at few numbers of documents, the same ones in every run. Each
process writes those of its rows into a file of its own, before every checkpoint: what a crash loses, the run that goes
on from there notes again. Rows are filled ahead of the steps, so that a note may be of documents that are not trained
on yet.
"""

import collections

from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import matching, read_json, write_json

Hashes = dict[int, dict[int, str]]  # row -> documents it has finished -> their running hash


class DocumentHashes:
    """Collects the notes of this process's rows.

    Args:
      folder: of the run's notes.
      process: the number of this process, which its file has.
    """

    def __init__(self, folder: epath.Path, process: int):
        self._path = folder / f"{process:05}.json"
        self._new: collections.deque[tuple[int, int, str]] = collections.deque()

    def note(self, row: int, num_documents: int, digest: bytes) -> None:
        """To be called by any thread."""
        self._new.append((row, num_documents, digest.hex()))

    def write(self) -> None:
        """Adds what is new to the file. Raises UserError."""
        if not self._new:
            return
        hashes = _read_file(self._path) if self._path.exists() else {}
        while self._new:
            row, num_documents, digest = self._new.popleft()
            hashes.setdefault(row, {})[num_documents] = digest
        write_json(self._path, hashes)


def read_hashes(folder: epath.Path) -> Hashes:
    """The notes of all processes that a run ever had, none where there is no folder. Raises UserError."""
    hashes: Hashes = {}
    for path in matching(folder, "*.json"):
        for row, noted in _read_file(path).items():
            hashes.setdefault(row, {}).update(noted)
    return hashes


def _read_file(path: epath.Path) -> Hashes:
    rows = read_json(path, "note of documents read")
    try:
        hashes = {int(row): {int(number): digest for number, digest in noted.items()} for row, noted in rows.items()}
        good = all(isinstance(digest, str) for noted in hashes.values() for digest in noted.values())
    except (AttributeError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"{path} is damaged; remove it: what it proved is then not known of these rows")
    return hashes


def common_documents(one: Hashes, other: Hashes) -> dict[int, int] | None:
    """Row -> through which of its documents two runs have read the same; 0 where one of them has not finished a
    document of that row.

    None: they have read others.
    """
    through = {}
    for row in sorted(one.keys() | other.keys()):
        of_one, of_other = one.get(row, {}), other.get(row, {})
        both = of_one.keys() & of_other.keys()
        if any(of_one[number] != of_other[number] for number in both):
            return None
        through[row] = max(both, default=0)
    return through
