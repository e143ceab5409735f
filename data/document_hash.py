"""Hashes by which two runs prove that they have read the same documents in the same order.

Each document has a hash, of its source, its number in the shuffled order and its bytes. A row keeps a running hash of
the documents it has finished, one after the other: where the hashes of two runs agree after n documents, they have read
the same n documents in the same order, whatever they encode them to. A row keeps it in its cursor (`data/rows.py`), and
a run's folder has the few that are noted (`train/run/document_hashes.py`).
"""

import hashlib
from collections.abc import Callable

import numpy as np

HASH_WORDS = 2  # of 32 bits, in a row's cursor
NoteHash = Callable[[int, int, bytes], None]  # of a row, the documents it has finished, and their running hash


def document_hash(source: int, ordinal: int, document: bytes) -> bytes:
    """Of the document with this number in a source's shuffled order."""
    digest = hashlib.blake2b(b"%d/%d/" % (source, ordinal), digest_size=4 * HASH_WORDS)
    digest.update(document)
    return digest.digest()


def running_hash(before: bytes, finished_document: bytes) -> bytes:
    """The running hash behind one more document, of which the hash is given."""
    return hashlib.blake2b(before + finished_document, digest_size=4 * HASH_WORDS).digest()


def is_noted(num_documents: np.ndarray) -> np.ndarray:
    """Whether a row's running hash after so many documents is noted: where that number has three binary digits and then
    zeros, or is below 8.

    Few are kept, and of two rows that have come to n documents or further, both have noted one of more than 4/5 n, or
    of n itself.
    """
    num_digits = np.frexp(num_documents)[1].astype(np.int64)
    return num_documents % (1 << np.maximum(0, num_digits - 3)) == 0
