"""Runs: whatever order documents come in, they are merged in the order of their keys and parts, bucket by bucket."""

import pathlib
import tempfile

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings, strategies as st

from data import runs as runs_module
from data.reading import Document
from data.runs import NUM_BUCKETS, Histogram, RunWriter, merged, sum_of

# Few different values in each half of a key, so that they are often the same.
keys = st.tuples(*[st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff"])] * 2).map(
    lambda ends: ends[0] + bytes(12) + ends[1]
)
documents = st.lists(
    st.builds(
        lambda domain, key, part, text: Document(domain, None, text, (key, part)),
        st.sampled_from("ab"),
        keys,
        st.integers(0, 3),
        st.binary(max_size=30),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=40)
@given(documents, st.integers(1, 2000), st.integers(1, 100), st.integers(1, 200))
def test_runs_are_merged_in_order(documents, run_bytes, unit_bytes, merge_bytes):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "_UNIT_BYTES", unit_bytes)
        patch.setattr(runs_module, "_WINDOW_BYTES", 300)
        patch.setattr(runs_module, "_TAILS_TOGETHER", 2)
        folder = epath.Path(name)
        writer = RunWriter(folder, "run", 0.5, run_bytes)
        for start in range(0, len(documents), 7):
            writer.add(documents[start : start + 7])
        writer.close()
        found = {}
        for text in writer.histograms:
            place = lambda document: document.part
            split = {"test": False, "train": True}[text[1]]
            own = [one for one in documents if one.domain == text[0] and (one.part[0][:1] == b"\xff") == split]
            buckets = [0, 1, 2, NUM_BUCKETS]
            found[text] = []
            for first, end in zip(buckets, buckets[1:]):
                for columns in merged(folder, writer.runs, text, first, end, merge_bytes):
                    assert ((first <= columns.bucket) & (columns.bucket < end)).all()
                    numbers = range(len(columns.documents))
                    found[text] += [((columns.key(n), int(columns.part[n])), columns.documents[n]) for n in numbers]
            assert [one for one, _ in found[text]] == sorted(map(place, own))
            assert sorted(found[text]) == sorted((one.part, one.text) for one in own)
            assert writer.histograms[text].documents.sum() == len(own)
            assert writer.histograms[text].num_bytes.sum() == sum(len(one.text) for one in own)
        assert sum(map(len, found.values())) == len(documents)
        assert len(list(pathlib.Path(name).iterdir())) == len(writer.runs)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_sums_do_not_wrap(values):
    assert sum_of(np.array(values, np.uint64)) == sum(values)


def test_a_histogram_comes_back_from_json():
    histogram = Histogram.empty()
    histogram.documents[[0, 7, 65535]], histogram.num_bytes[[0, 7, 65535]], histogram.key_sum = [1, 2, 3], 2**40, 2**100
    found = Histogram.from_json(histogram.to_json())
    assert np.array_equal(found.documents, histogram.documents) and np.array_equal(found.num_bytes, histogram.num_bytes)
    assert found.key_sum == histogram.key_sum
