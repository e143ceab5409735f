"""The window code with the language model in the loop: the same windows as the table's, whatever is encoded with it."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from tokenizer_lab.equal_info import window_stream
from tokenizer_lab.equal_info.byte_lm import ByteLM
from tokenizer_lab.equal_info.window_code import Matcher, build_tree
from tokenizer_lab.equal_info.window_stream import WindowStream

any_text = st.one_of(
    st.binary(max_size=60),
    st.integers(0, 255).map(lambda byte: bytes([byte]) * 150),
    st.sampled_from([b"", b"\0", b"\0" * 40, b"the and of the and", bytes(range(256))]),
)
few_examples = settings(deadline=None, max_examples=7)
WIDTHS = [32, 64, 128]


@pytest.fixture(scope="module")
def streams(make_byte_lm) -> dict[int, WindowStream]:
    """A stream of each width. Their model's context is shorter than some windows."""
    return {bits: WindowStream(make_byte_lm(), bits) for bits in (16, *WIDTHS)}


def numbers_of(windows: np.ndarray) -> list[int]:
    return [int.from_bytes(window.tobytes(), "big") for window in windows]


def likely_text(stream: WindowStream, num_windows: int, seed: int = 0) -> bytes:
    """What random windows stand for: text as the model expects it."""
    windows = np.random.RandomState(seed).randint(0, 256, (num_windows, stream.window_bits // 8)).astype(np.uint8)
    return stream.decode(windows)[0]


def assert_same(encoded, others) -> None:
    for (numbers, lengths), (other_numbers, other_lengths) in zip(encoded, others, strict=True):
        np.testing.assert_array_equal(numbers, other_numbers)
        np.testing.assert_array_equal(lengths, other_lengths)


def assert_well_formed(stream: WindowStream, text: bytes, numbers: np.ndarray, lengths: np.ndarray) -> None:
    assert numbers.dtype == np.uint8 and numbers.shape == (len(lengths), stream.window_bits // 8)
    assert lengths.dtype == np.int64 and lengths.sum() == len(text) and lengths.min(initial=1) >= 1


def test_windows_of_16_bits_are_those_of_the_table(streams):
    stream = streams[16]
    tree = build_tree(shares_of_256(stream.lm), 16)
    matcher = Matcher(tree)
    texts = [likely_text(stream, 60), b"", bytes(range(256)), b"\0" * 100, b"x", likely_text(stream, 9, seed=1)]
    for text, (windows, lengths) in zip(texts, stream.encode(texts), strict=True):
        numbers = matcher.encode(text)
        assert numbers_of(windows) == numbers.tolist()
        assert lengths.tolist() == matcher.decode(numbers)[1].tolist()
    every_97th = np.arange(0, 1 << 16, 97)
    text, lengths = stream.decode(every_97th.astype(">u2").view(np.uint8).reshape(-1, 2))
    expected_text, expected_lengths = matcher.decode(every_97th)
    assert text == expected_text and lengths.tolist() == expected_lengths.tolist()
    all_text, starts = tree.text()
    strings = [all_text[start:end].tobytes() for start, end in zip(starts, starts[1:])]
    for prefix in (b"\0", b"\xff", text[:1], text[: lengths[0]]):
        below = [number for number, string in enumerate(strings) if string.startswith(prefix)]
        assert stream.node(prefix) == (below[0], len(below)) and below == list(range(below[0], below[-1] + 1))


def test_windows_are_decoded_some_at_a_time(streams, monkeypatch):
    stream = streams[16]
    numbers = np.random.RandomState(1).randint(0, 256, (40, 2)).astype(np.uint8)
    text, lengths = stream.decode(numbers)
    monkeypatch.setattr(window_stream, "_WINDOWS_OF_DECODE", 16)
    text_of_parts, lengths_of_parts = stream.decode(numbers)
    assert text_of_parts == text and lengths_of_parts.tolist() == lengths.tolist()
    assert_same(stream.encode([text, b"", text[:9]]), [stream.encode([each])[0] for each in (text, b"", text[:9])])


def shares_of_256(lm: ByteLM):
    """`lm.shares`, always of 256 contexts: each number of them is compiled anew."""

    def shares(contexts: np.ndarray) -> np.ndarray:
        padded = np.zeros((-(-len(contexts) // 256) * 256, contexts.shape[1]), np.uint8)
        padded[: len(contexts)] = contexts
        return np.concatenate([lm.shares(part) for part in np.split(padded, len(padded) // 256)])[: len(contexts)]

    return shares


@pytest.mark.parametrize("window_bits", WIDTHS)
@given(texts=st.lists(any_text, min_size=2, max_size=9))
@example(texts=[b"", b"\0", b"\0"])
@few_examples
def test_texts_come_back(streams, window_bits, texts):
    """More texts than lanes, of very different lengths, empty ones among them."""
    stream = streams[window_bits]
    encoded = stream.encode(texts)
    for text, (numbers, lengths) in zip(texts, encoded, strict=True):
        assert_well_formed(stream, text, numbers, lengths)
    decoded, lengths = stream.decode(np.concatenate([numbers for numbers, _ in encoded]))
    assert decoded == b"".join(texts)
    assert lengths.tolist() == [length for _, lengths in encoded for length in lengths]


@given(texts=st.lists(any_text, min_size=2, max_size=9))
@few_examples
def test_texts_have_the_same_windows_in_any_company(streams, texts):
    stream = streams[32]
    together = stream.encode(texts)
    assert_same(together, [stream.encode([text])[0] for text in texts])
    assert_same(together[::-1], stream.encode(texts[::-1]))


@pytest.mark.parametrize("window_bits", WIDTHS)
@given(data=st.data())
@few_examples
def test_any_numbers_decode_and_each_text_has_its_number_again(streams, window_bits, data):
    stream = streams[window_bits]
    last = 2**window_bits - 1
    number = st.one_of(st.integers(0, last), st.sampled_from([0, 1, last - 1, last]))
    numbers = data.draw(st.lists(number, min_size=2, max_size=9))
    windows = np.frombuffer(b"".join(number.to_bytes(window_bits // 8, "big") for number in numbers), np.uint8)
    text, lengths = stream.decode(windows.reshape(len(numbers), -1))
    assert len(text) == lengths.sum() and lengths.min() >= 1
    ends = np.cumsum(lengths)
    texts = [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    assert [numbers_of(windows) for windows, _ in stream.encode(texts)] == [[number] for number in numbers]


@pytest.mark.parametrize("window_bits", WIDTHS)
def test_windows_are_those_of_the_walk_by_hand(streams, windows_by_hand, window_bits):
    stream = streams[window_bits]
    texts = [likely_text(stream, 3), b"by hand", b"\0\0\0\0\0\0\0\0"]
    assert max(stream.encode(texts[:1])[0][1]) > stream.lm.context_bytes, "no window is longer than a context"
    for text, (windows, lengths) in zip(texts, stream.encode(texts), strict=True):
        expected = windows_by_hand(stream.lm.shares, text, window_bits)
        assert list(zip(numbers_of(windows), lengths.tolist(), strict=True)) == expected


def test_a_longer_text_has_the_windows_of_its_beginning(streams):
    """Up to the last one: what they are does not depend on how the steps are cut up for compiling."""
    stream = streams[32]
    text = likely_text(stream, 3 * window_stream._STEPS_OF_ENCODE)
    assert len(text) > 3 * window_stream._STEPS_OF_ENCODE
    [(whole, _)] = stream.encode([text])
    for length in (1, 127, 128, 129, 255, 256, 300):
        [(part, _)] = stream.encode([text[:length]])
        assert numbers_of(whole)[: len(part) - 1] == numbers_of(part)[:-1]


def test_node_is_all_windows_that_begin_so(streams):
    stream = streams[32]
    [window] = np.random.RandomState(0).randint(0, 256, (1, 4)).astype(np.uint8)
    text = stream.decode(window[None])[0]
    outer_first, outer_count = 0, 2**32
    for length in range(1, len(text) + 1):
        first, count = stream.node(text[:length])
        assert outer_first <= first and first + count <= outer_first + outer_count
        outer_first, outer_count = first, count
        for number, inside in ((first - 1, False), (first, True), (first + count - 1, True), (first + count, False)):
            if 0 <= number < 2**32:
                decoded = stream.decode(np.frombuffer(number.to_bytes(4, "big"), np.uint8)[None])[0]
                assert decoded.startswith(text[:length]) == inside
    assert outer_first == int.from_bytes(window.tobytes(), "big")


def test_an_empty_text_and_no_numbers_are_nothing(streams):
    stream = streams[32]
    [(numbers, lengths)] = stream.encode([b""])
    assert numbers.shape == (0, 4) and lengths.shape == (0,)
    text, lengths = stream.decode(np.zeros((0, 4), np.uint8))
    assert text == b"" and lengths.shape == (0,)


def test_no_texts_have_no_windows(streams):
    assert streams[32].encode([]) == []


def test_what_does_not_decode_is_a_bug_and_never_written(streams, monkeypatch):
    stream, decode = streams[32], WindowStream._decode

    def another_text(self, numbers):
        text, lengths = decode(self, numbers)
        return text[:-1] + b"?", lengths

    def other_lengths(self, numbers):
        text, lengths = decode(self, numbers)
        return text, lengths[::-1]

    monkeypatch.setattr(WindowStream, "_decode", another_text)
    with pytest.raises(AssertionError, match="do not decode to their texts"):
        stream.encode([b"text"])
    monkeypatch.setattr(WindowStream, "_decode", other_lengths)
    with pytest.raises(AssertionError):
        stream.encode([b"some more text, of windows of different lengths"])


def test_other_widths_are_a_bug(make_byte_lm):
    with pytest.raises(AssertionError, match="24"):
        WindowStream(make_byte_lm(), 24)
