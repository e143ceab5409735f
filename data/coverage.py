"""How much of a corpus the rows of a run have read, and how often, by their cursors alone.

Row r of B reads blocks r, r + B, ... of an endless shuffled order (`data/rows.py`), a document each or several. Rows
with short documents are ahead of others: some have begun the next pass over the corpus while others are still in this
one. So one epoch of bytes is not one pass.
"""

import numpy as np


def coverage(num_finished: np.ndarray, num_documents: int, block_documents: int = 1) -> dict[str, float]:
    """Shares of a corpus's documents that were read never, once and more than once.

    Exact while no row is beyond the second pass and none is in both; else what is expected, because each pass is
    shuffled for itself. Places that the last block has no document for count as documents that are no different. A
    document that a row is in is not yet read; those are the long ones, so that of the bytes more are not yet read.

    Args:
      num_finished: i[B], how many documents of the corpus each row has finished.
      num_documents: in the corpus.
      block_documents: K.
    """
    finished = np.asarray(num_finished, np.int64)
    rows, num_rows = np.arange(len(finished)), len(finished)
    num_blocks = -(-num_documents // block_documents)
    num_passes = int((rows + num_rows * (finished // block_documents)).max()) // num_blocks + 1
    ends = num_blocks * np.arange(num_passes + 1)
    blocks_before = -((rows - ends[:, None]) // num_rows)
    read_before = np.clip(blocks_before * block_documents, 0, finished).sum(axis=1)
    never, once = 1.0, 0.0
    for share in np.diff(read_before) / (num_blocks * block_documents):  # of the documents, in each pass
        never, once = never * (1 - share), once * (1 - share) + never * share
    return {"never": float(never), "once": float(once), "more": float(max(0.0, 1 - never - once))}
