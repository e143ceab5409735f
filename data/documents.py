"""What rows read: documents by their numbers."""

from collections.abc import Sequence
from typing import Protocol


class Documents(Protocol):
    """Random access to documents' bytes, such as `data.store.Documents`.

    It may have `read_many(indices) -> Sequence[bytes]`; `block_documents`, how many neighbours are read in one request;
    and `key(index) -> bytes`, the first bytes of the hash of a document or of the whole that it is a part of.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


def read_many(documents: Documents, indices: Sequence[int]) -> Sequence[bytes]:
    """The documents with these numbers."""
    if hasattr(documents, "read_many"):
        return documents.read_many(indices)
    return [documents[index] for index in indices]


def block_documents(documents: Documents) -> int:
    """K, how many neighbours are read in one request."""
    return getattr(documents, "block_documents", 1)
