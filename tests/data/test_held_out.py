import collections

import numpy as np
import pytest

from data.held_out import fixed_subset


class Counted:
    """Many documents, of which it is known which were read."""

    def __init__(self, count, make=lambda number: b"%012d" % number):
        self._count, self._make, self.read = count, make, []

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        self.read.append(number)
        return self._make(number)


@pytest.mark.parametrize("count", [1, 50, 4_000_000_000])
@pytest.mark.parametrize("max_bytes", [1, 12, 100, 1205])
def test_a_subset_reads_what_it_takes_and_nothing_else(count, max_bytes):
    documents = Counted(count)
    subset = fixed_subset(documents, max_bytes)
    assert sum(map(len, subset)) == min(max_bytes, 12 * count)
    assert len(documents.read) == len(subset) == len(set(documents.read))
    assert all(found == b"%012d" % number for found, number in zip(subset[:-1], documents.read))
    assert fixed_subset(Counted(count), max_bytes) == subset


def test_other_seeds_take_other_documents_from_all_over():
    documents = [Counted(100_000) for _ in range(2)]
    subsets = [set(fixed_subset(part, 12_000, seed)) for seed, part in enumerate(documents)]
    assert len(subsets[0] & subsets[1]) < 50
    tenths = collections.Counter(number // 10_000 for number in documents[0].read)
    assert len(tenths) == 10 and max(tenths.values()) < 200


def test_long_documents_are_as_likely_as_short_ones():
    """Those that would no longer fit were left out once, so that the last ones were all short."""
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 20_000).astype(int) + 1
    subset = fixed_subset(Counted(len(lengths), lambda number: b"x" * lengths[number]), 500_000)
    assert np.mean([len(document) for document in subset]) == pytest.approx(lengths.mean(), rel=0.2)


def test_a_document_is_cut_behind_a_character():
    text = "\N{SNOWMAN}".encode() * 5
    assert [len(fixed_subset([text], max_bytes)[0]) for max_bytes in range(1, 10)] == [1, 2, 3, 3, 3, 6, 6, 6, 9]
    assert fixed_subset([b"\x80" * 9], 5) == [b"\x80" * 5], "bytes that are no text"
    assert fixed_subset([b"", text], 3)[-1] == text[:3]
