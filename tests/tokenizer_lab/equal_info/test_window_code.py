"""The exact window code as a table: every number a byte string of its own, by the walk of design.md."""

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tokenizer_lab.equal_info import window_code
from tokenizer_lab.equal_info.window_code import Matcher, Tree, build_tree, check_memory, check_table_bits, divide
from tokenizer_lab.errors import UserError


def skewed_shares(contexts: np.ndarray) -> np.ndarray:
    """Behind each byte, itself is nearly certain: as long windows as there are, and deep trees."""
    shares = np.ones((len(contexts), 256), np.int32)
    last = contexts[:, -1] if contexts.shape[1] else np.full(len(contexts), 97)
    shares[np.arange(len(contexts)), last] = 2**16 - 255
    return shares


def level_shares(contexts: np.ndarray) -> np.ndarray:
    """All bytes are as likely: nothing but ties."""
    return np.full((len(contexts), 256), 256, np.int32)


def noise_shares(contexts: np.ndarray) -> np.ndarray:
    """Depends on all of the context."""
    shares = np.empty((len(contexts), 256), np.int32)
    for row, context in zip(shares, contexts, strict=True):
        weight = np.random.RandomState(list(context) or 0).standard_gamma(0.05, 256)
        row[:] = 1 + np.floor(weight / weight.sum() * (2**16 - 256))
        row[row.argmax()] += 2**16 - row.sum()
    return shares


@pytest.fixture(params=["counted", "skewed", "level", "noise"])
def shares(request, count_shares):
    made_here = {"skewed": skewed_shares, "level": level_shares, "noise": noise_shares}
    return made_here.get(request.param, count_shares)


def strings(tree: Tree) -> list[bytes]:
    """The byte string of every number."""
    text, starts = tree.text()
    return [text[start:end].tobytes() for start, end in zip(starts, starts[1:])]


points = st.one_of(st.integers(0, 600), st.integers(0, 1 << 24))
weights = st.lists(st.integers(0, 2**16), min_size=256, max_size=256) | st.just([1] * 256) | st.just([0] * 255 + [1])


@given(st.lists(st.tuples(points, weights), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_points_are_divided_by_largest_remainder_with_ties_to_the_lower_byte(divide_by_hand, nodes):
    shares = []
    for _, weight in nodes:
        whole = [1 + (2**16 - 256) * part // max(1, sum(weight)) for part in weight]
        shares.append([whole[0] + 2**16 - sum(whole), *whole[1:]])
    divided = divide(np.array([points for points, _ in nodes]), np.array(shares, np.int32))
    assert divided.sum(axis=1).tolist() == [points for points, _ in nodes]
    for row, (points, _), share in zip(divided, nodes, shares, strict=True):
        assert row.tolist() == divide_by_hand(points + 1, share, is_root=False)  # one of them is STOP


def test_ties_go_to_the_lower_bytes():
    shares = np.full((3, 256), 256, np.int32)
    divided = divide(np.array([0, 3, 257]), shares)
    assert divided[:, :4].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [2, 1, 1, 1]]


def all_by_hand(shares, divide_by_hand, context: tuple[int, ...], points: int) -> list[bytes]:
    """The strings of a node's numbers in order, after design.md: STOP is the first point, then child by child."""
    if points == 1:
        return [bytes(context)]
    share = shares(np.array([context], np.uint8).reshape(1, -1))[0].tolist()
    children = divide_by_hand(points, share, is_root=not context)
    found = [bytes(context)] if context else []
    for byte, count in enumerate(children):
        found += all_by_hand(shares, divide_by_hand, (*context, byte), count) if count else []
    return found


@pytest.mark.parametrize("window_bits", [9, 11])
def test_numbers_are_the_points_of_the_walk(shares, divide_by_hand, window_bits):
    tree = build_tree(shares, window_bits)
    assert strings(tree) == all_by_hand(shares, divide_by_hand, (), 1 << window_bits)


@pytest.mark.parametrize("window_bits", [9, 10, 12])
def test_all_numbers_are_used_each_by_a_string_of_its_own_that_comes_back(shares, window_bits):
    tree = build_tree(shares, window_bits)
    matcher, of_number = Matcher(tree), strings(tree)
    assert len(of_number) == len(set(of_number)) == 1 << window_bits
    assert {string[:-1] for string in of_number if len(string) > 1} <= set(of_number), "a prefix is missing"
    for number, string in enumerate(of_number):
        assert matcher.encode(string).tolist() == [number]
        assert matcher.decode(np.array([number])) == (string, np.array([len(string)]))


def test_longer_strings_of_a_node_lie_behind_it(make_tree):
    of_number = strings(make_tree(12))
    assert of_number == sorted(of_number)


def test_windows_are_those_of_the_walk_by_hand(count_shares, make_tree, windows_by_hand, documents):
    matcher, text = Matcher(make_tree(16)), documents[0][:400] + b"\0\xff\xff" + documents[1][:100]
    numbers = matcher.encode(text)
    lengths = matcher.decode(numbers)[1]
    assert list(zip(numbers.tolist(), lengths.tolist())) == windows_by_hand(count_shares, text, 16)
    assert lengths.mean() > 2, "windows of this model are too short to test much"


any_bytes = st.lists(
    st.one_of(st.binary(max_size=30), st.sampled_from([b"\0" * 50, b"a" * 700, b"the and of ", bytes(range(256))])),
    max_size=6,
).map(b"".join)
MATCHERS = {}


@pytest.mark.parametrize("window_bits", [9, 16])
@given(text=any_bytes)
@settings(deadline=None, max_examples=60)
def test_any_bytes_come_back(make_tree, window_bits, text):
    matcher = MATCHERS.setdefault(window_bits, Matcher(make_tree(window_bits)))
    numbers = matcher.encode(text)
    assert numbers.dtype == np.int32 and numbers.min(initial=0) >= 0 and numbers.max(initial=0) < 1 << window_bits
    decoded, lengths = matcher.decode(numbers)
    assert decoded == text and lengths.sum() == len(text) and lengths.min(initial=1) >= 1


@settings(deadline=None, max_examples=50)
@given(text=st.one_of(st.binary(max_size=300), st.text("ab \0", max_size=300).map(str.encode)), size=st.integers(1, 20))
def test_long_text_has_the_same_windows_in_pieces(make_tree, text, size):
    matcher = Matcher(make_tree(16))
    whole = matcher.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_code, "_PIECE_BYTES", size)
        in_pieces = matcher.encode(text)
    assert in_pieces.tolist() == whole.tolist() and in_pieces.dtype == np.int32


def test_a_tree_deeper_than_a_byte_can_count_encodes():
    """Long runs of a byte take few windows."""
    tree = build_tree(skewed_shares, 14)
    text = b"a" * 10_000
    numbers = Matcher(tree).encode(text)
    assert Matcher(tree).decode(numbers)[0] == text
    assert tree.depths.max() > 300 and len(numbers) < 40


def test_progress_ends_with_all_points(count_shares):
    told = []
    build_tree(count_shares, 10, lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (1024, 1024) and len(told) > 1


def test_batches_of_nodes_change_nothing(count_shares, monkeypatch):
    whole = build_tree(count_shares, 12)
    monkeypatch.setattr(window_code, "_BATCH_NODES", 3)
    in_parts = build_tree(count_shares, 12)
    assert np.array_equal(whole.depths, in_parts.depths) and np.array_equal(whole.last_bytes, in_parts.last_bytes)


def damaged(tree: Tree, how: str) -> tuple[np.ndarray, np.ndarray]:
    depths, last_bytes = tree.depths.copy(), tree.last_bytes.copy()
    shuffled = random.Random(0).sample(range(len(depths)), len(depths))
    second_child = np.flatnonzero((depths[1:-1] == 2) & (depths[2:] == 2))[0] + 2  # a sibling is right before it
    inner = np.flatnonzero(depths == 3)[0]
    match how:
        case "truncated":
            return depths[:-1], last_bytes[:-1]
        case "half":
            return depths[: len(depths) // 2], last_bytes[: len(depths) // 2]
        case "shuffled":
            return depths[shuffled], last_bytes[shuffled]
        case "reversed":
            return depths[::-1], last_bytes[::-1]
        case "equal children":
            last_bytes[second_child] = last_bytes[second_child - 1]
        case "children in another order":
            last_bytes[[second_child - 1, second_child]] = last_bytes[[second_child, second_child - 1]]
        case "a root missing":
            depths[np.flatnonzero(depths == 1)[7]] = 2
        case "a root too many":
            depths[second_child] = 1
        case "a depth skipped":
            depths[inner] = 5
        case "a depth of zero":
            depths[inner] = 0
        case "a depth that goes around":
            depths[inner] = 65535
        case "no first root":
            depths[0] = 2
        case "another dtype":
            return depths.astype(np.int32), last_bytes
        case "signed bytes":
            return depths, last_bytes.view(np.int8)
        case "two axes":
            return depths.reshape(2, -1), last_bytes.reshape(2, -1)
        case "fewer bytes":
            return depths, last_bytes[: len(depths) // 2]
        case "nothing":
            return depths[:0], last_bytes[:0]
        case "128 points":
            return depths[:128] * 0 + 1, np.arange(128, dtype=np.uint8)
    return depths, last_bytes


@pytest.mark.parametrize("how", [
    "truncated", "half", "shuffled", "reversed", "equal children", "children in another order", "a root missing",
    "a root too many", "a depth skipped", "a depth of zero", "a depth that goes around", "no first root",
    "another dtype", "signed bytes", "two axes", "fewer bytes", "nothing", "128 points",
])  # fmt: skip
def test_arrays_that_are_no_tree_are_refused(count_shares, how):
    tree = build_tree(count_shares, 11)
    with pytest.raises(UserError, match="not one of a window code; fit the representation again"):
        Tree(*damaged(tree, how))


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_tree_with_some_entries_changed_is_refused_or_still_lossless(make_tree, data):
    tree = make_tree(9)
    depths, last_bytes = tree.depths.copy(), tree.last_bytes.copy()
    for number in data.draw(st.lists(st.integers(0, 511), min_size=1, max_size=3)):
        depths[number] = data.draw(st.integers(0, 4))
        last_bytes[number] = data.draw(st.integers(0, 255))
    try:
        matcher = Matcher(Tree(depths, last_bytes))
    except UserError:
        return
    text = data.draw(any_bytes)
    assert matcher.decode(matcher.encode(text))[0] == text


@pytest.mark.parametrize("window_bits", [-1, 0, 8, 25, 32])
def test_windows_without_a_table_are_refused(count_shares, window_bits):
    for make in (check_table_bits, lambda bits: build_tree(count_shares, bits)):
        with pytest.raises(UserError, match=f"{window_bits} bits has no table; one has 9 to 24 bits, e.g. 16"):
            make(window_bits)


def test_the_narrowest_and_the_widest_windows_have_a_table():
    check_table_bits(9)
    check_table_bits(24)


def test_a_table_larger_than_the_free_memory_is_refused(monkeypatch):
    free = [1 << 30]
    monkeypatch.setattr(window_code, "available_bytes", lambda: free[0])
    check_memory(16)
    check_memory(24)
    free[0] -= 1
    check_memory(16)
    with pytest.raises(UserError, match="24 bits takes about 1.1 GB, 1.1 GB of memory are free; use --window-bits 16"):
        check_memory(24)
