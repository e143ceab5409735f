"""What cursors say of the text that was read, against rows that are followed document by document."""

import collections

import numpy as np
import pytest

from data.coverage import coverage


def followed(num_documents: int, num_rows: int, epochs: float, sigma: float, seed: int = 0):
    """Rows that read documents of log-normal sizes, in turns of as many bytes, until `epochs` of bytes are read.

    Returns:
      Documents finished by each row, and the shares of documents and of bytes read never, once and more often.
    """
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, sigma, num_documents))
    passes = [rng.permutation(num_documents) for _ in range(int(20 * epochs) + 3)]
    order = np.concatenate(passes)
    bytes_of_row, finished = epochs * sizes.sum() / num_rows, []
    times = np.zeros(num_documents, int)
    for row in range(num_rows):
        own = order[row::num_rows]
        finished.append(int(np.searchsorted(np.cumsum(sizes[own]), bytes_of_row, side="right")))
        assert finished[-1] < len(own)
        np.add.at(times, own[: finished[-1]], 1)
    kinds = {"never": times == 0, "once": times == 1, "more": times > 1}
    shares = {name: (chosen.mean(), sizes[chosen].sum() / sizes.sum()) for name, chosen in kinds.items()}
    return np.array(finished), shares


@pytest.mark.parametrize(
    "num_documents, num_rows, epochs, sigma",
    [(20_000, 64, 0.3, 1.5), (20_000, 64, 1.0, 1.5), (20_000, 512, 1.0, 1.5), (20_000, 64, 2.5, 1.0), (5000, 8, 1, 0)],
)
def test_shares_are_those_of_rows_that_are_followed(num_documents, num_rows, epochs, sigma):
    finished, shares = followed(num_documents, num_rows, epochs, sigma)
    found = coverage(finished, num_documents)
    assert sum(found.values()) == pytest.approx(1)
    for name, (of_documents, _) in shares.items():
        assert found[name] == pytest.approx(of_documents, abs=0.006)


def test_an_epoch_of_bytes_is_not_a_pass():
    """Why it is told: with long tails of sizes, rows drift apart."""
    finished, shares = followed(20_000, 512, 1.0, 1.5)
    found = coverage(finished, 20_000)
    assert found["never"] > 0.05 and found["more"] > 0.05
    assert shares["never"][1] > found["never"], "rows are in long documents more often than in short ones"


@pytest.mark.parametrize("num_rows, num_documents", [(4, 10), (3, 9), (8, 3), (1, 5), (5, 1)])
def test_counts_are_exact_within_one_pass_and_between_passes(num_rows, num_documents):
    for num_read in range(3 * num_documents + 1):
        finished = np.array([len(range(row, num_read, num_rows)) for row in range(num_rows)])
        whole, rest = divmod(num_read, num_documents)
        expected = [0.0, 0.0, 0.0]
        expected[min(whole, 2)] = 1 - rest / num_documents
        expected[min(whole + 1, 2)] += rest / num_documents
        assert list(coverage(finished, num_documents).values()) == pytest.approx(expected)


def test_nothing_read():
    assert coverage(np.zeros(4, int), 10) == {"never": 1.0, "once": 0.0, "more": 0.0}


@pytest.mark.parametrize("block_documents, num_documents", [(4, 24), (4, 23), (7, 7), (3, 100)])
def test_blocks_count_as_their_documents(block_documents, num_documents):
    num_rows, num_blocks = 3, -(-num_documents // block_documents)
    order = [(block, k) for block in range(3 * num_blocks) for k in range(block_documents)]
    by_row = [[slot for slot in order if slot[0] % num_rows == row] for row in range(num_rows)]
    for finished in ([0, 0, 0], [5, 3, 4], [9, 8, 8], [12, 17, 13], [2 * block_documents, 0, 1]):
        times = collections.Counter(
            (block % num_blocks, k) for row in range(num_rows) for block, k in by_row[row][: finished[row]]
        )
        if max(times.values(), default=0) < 2:
            found = coverage(np.array(finished), num_documents, block_documents)
            read = len(times) / (num_blocks * block_documents)
            assert list(found.values()) == pytest.approx([1 - read, read, 0])
