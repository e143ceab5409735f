"""Long documents are cut into segments, which do not show in the ids."""

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from tokenizer_lab.subword import segments


@pytest.mark.parametrize("name", ["bpe-gpt2", "bpe-gpt4", "bpe-whitespace", "character", "unigram-gpt4"])
def test_segments_do_not_show_in_the_ids(representations, documents, name):
    text = b"\n".join(documents) * 2
    assert len(text) > 3 * segments.SEGMENT_BYTES
    tokenizer = Tokenizer.from_str(representations[name].to_files()["tokenizer.json"].decode())
    assert representations[name].encode(text).tolist() == tokenizer.encode(text.decode(), add_special_tokens=False).ids


@given(
    unit=st.sampled_from(
        [b"a", b" ", "é".encode(), "語".encode(), "😀".encode(), b"\xff", b"\x80", b"two words ", b"\xe8\xaa"]
    ),
    count=st.integers(0, 300),
    offset=st.integers(0, 3),
)
@settings(deadline=None)
def test_segments_are_short_and_end_between_characters(unit, count, offset):
    document = b"x" * offset + unit * count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_BYTES", 64)
        patch.setattr(segments, "_WORD_BORDER_SEARCH_BYTES", 16)
        pieces = list(segments.segments_of(document))
    assert b"".join(pieces) == document
    assert all(0 < len(segment) <= 64 for segment in pieces) or document == b""
    assert len(pieces) <= 1 + len(document) // 45
    if unit.decode(errors="ignore").encode() == unit:
        assert all(segment.decode().encode() == segment for segment in pieces)


@pytest.mark.slow
def test_whitespace_beyond_the_library_s_retry_limit_is_encoded(representations):
    document = b" " * 10_500_000 + b"x"
    ids = representations["bpe-gpt4"].encode(document)
    assert representations["bpe-gpt4"].decode(ids) == document
    assert len(ids) < len(document) / 2  # Not byte ids, which stand for what the library fails on.
