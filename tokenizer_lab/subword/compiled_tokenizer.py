"""Compiled: documents to ids, by tables that `exact_encoder.py` makes of a tokenizer."""

from typing import Any, NamedTuple

import numpy as np

from tokenizer_lab.compiled import borrowed, compiled
from tokenizer_lab.subword.merging import Unigram, best_path, child, merge
from tokenizer_lab.subword.scanning import character_bytes, code_point, piece_end, valid_end
from tokenizer_lab.subword.words import Words, keep, recall, slot_of

MAX_SYMBOLS = 1 << 16
"""The bytes of the longest word that is encoded here."""
IS_BYTES, IS_UNKNOWN = -1, -2
"""In place of a character's symbol: it has those of its bytes; it has none."""


class Model(NamedTuple):
    """What makes ids of a word.

    Attributes:
      is_unigram: else it is BPE.
      by_character: whether a character is a symbol, else a byte is.
      byte_symbols: i32[256], of the bytes, or `IS_UNKNOWN`.
      character_symbols: i32[0x110000] if `by_character`.
      merges: u64 table, left << 32 | right -> rank << 32 | id.
      end_rank: the ranks from here on are merged across words.
      num_ranks: all there are.
      cuts_before_space: bool[256], the bytes between which and a space behind them no merge below `end_rank` goes: a
        piece is cut there into words.
      cuts_words: whether any piece is cut.
      unigram: the pieces, of a Unigram model.
      whole_words: words that have one id, whatever the merges say.
      has_whole_words: whether there are any.
      is_other: bool[ids], those that do not stand for the text they are found in, such as the names of special tokens.
    """

    is_unigram: Any
    by_character: Any
    byte_symbols: Any
    character_symbols: Any
    merges: Any
    end_rank: Any
    num_ranks: Any
    cuts_before_space: Any
    cuts_words: Any
    unigram: Unigram
    whole_words: Words
    has_whole_words: Any
    is_other: Any


class AddedTokens(NamedTuple):
    """Texts that are found before anything else, as a tree of bytes.

    Attributes:
      first_bytes: bool[256], those they begin with.
      children: u64 table, node << 8 | byte -> node.
      ids: i32[nodes], of those that end there; -1 where none does, `IS_UNKNOWN` where one does that stays text.
    """

    first_bytes: Any
    children: Any
    ids: Any


@compiled
def encode_documents(text, ends, splits, model, added, byte_ids, words, ids, ends_of_ids, is_given_up):
    """Writes the ids of documents, i32[n], and where each one's end, i64[d]. One that is given up has none.

    Args:
      text: u8[n + PADDING_BYTES], one document after the other.
      ends: i64[d], where each ends.
      added: the added tokens that are found first, and the others.
      byte_ids: i32[256], of bytes that are not UTF-8.
      words: a memory that no other thread uses.
    """
    text, splits, model, added, words, ids = borrowed((text, splits, model, added, words, ids))
    own_symbols = np.empty(MAX_SYMBOLS, np.int32)
    symbols = borrowed(own_symbols)
    start, count = np.int64(0), np.int64(0)
    for number in range(len(ends)):
        end, after = ends[number], count
        while start < end and after >= 0:
            valid = valid_end(text, start, end)
            if valid > start:
                after = _encode_text(text, start, valid, splits, model, added, words, symbols, ids, after)
            start = valid
            while after >= 0 and start < end and character_bytes(text, start, end) == 0:
                ids[after] = byte_ids[text[start]]
                start, after = start + 1, after + 1
        is_given_up[number] = after < 0
        count = max(count, after)
        ends_of_ids[number] = count
        start = end
    own_symbols[0] = 0  # alive until here
    return count


@compiled(inline=True)
def _encode_text(text, start, end, splits, model, added, words, symbols, ids, count):
    """Valid UTF-8: the added tokens that are found first, then the others between them, then the text between all."""
    first, second = added
    first_at, first_after, first_id = start, start, np.int32(-1)
    while start < end and count >= 0:
        if start >= first_at:
            first_at, first_after, first_id = _next_added(text, start, end, first)
        at, after, id_ = _next_added(text, start, first_at, second)
        if id_ < 0:
            after, id_ = first_after, first_id
        count = _encode_piece(text, start, at, splits, model, words, symbols, ids, count)
        if count >= 0 and id_ >= 0:
            ids[count] = id_
            count += 1
        start = after
    return count


@compiled(inline=True)
def _next_added(text, start, end, added):
    """Where the next added token begins and ends, and its id; `end` twice and -1 if there is none."""
    at = start if len(added.ids) > 1 else end
    while at < end:
        if not added.first_bytes[text[at]]:
            at += 1
            continue
        node, place, found, id_ = np.int64(0), at, at + 1, np.int32(-1)
        while place < end:
            node = child(node, text[place], added.children)
            if node < 0:
                break
            place += 1
            if added.ids[node] != -1:
                found, id_ = place, added.ids[node]
        if id_ >= 0:
            return at, found, id_
        at = found
    return end, end, np.int32(-1)


@compiled(inline=True)
def _encode_piece(text, start, end, splits, model, words, symbols, ids, count):
    """Splits a text by all patterns; each piece may be cut into words."""
    num_levels = len(splits.offsets)
    # Where the piece of each pattern begins and ends; level 0 is the text itself.
    starts, ends = np.full(num_levels + 1, start), np.full(num_levels + 1, start)
    ends[0] = end
    at = start
    while at < end:
        for level in range(num_levels):
            if at == ends[level + 1]:
                starts[level + 1] = at
                ends[level + 1] = piece_end(splits, level, text, starts[level], at, ends[level])
                if ends[level + 1] < 0:
                    return np.int64(-1)
        piece, first = ends[num_levels], count
        while at < piece:
            word = _word_end(text, at, piece, model.cuts_before_space) if model.cuts_words else piece
            count = _encode_word(text, at, word, model, words, symbols, ids, count)
            if count < 0:
                return count
            at = word
        if model.end_rank < model.num_ranks:
            count = first + merge(ids[first:count], count - first, model.merges, model.num_ranks)
    return count


@compiled(inline=True)
def _word_end(text, at, end, cuts_before_space):
    at += 1
    while at < end and not (text[at] == 32 and cuts_before_space[text[at - 1]]):
        at += 1
    return at


@compiled(inline=True)
def _encode_word(text, start, end, model, words, symbols, ids, count):
    place = slot_of(text, start, end, words)
    known = recall(words, place, ids, count)
    if known >= 0:
        return known
    num_ids = _new_word(text, start, end, model, symbols)
    if num_ids < 0:
        return np.int64(-1)
    for number in range(num_ids):
        ids[count + number] = symbols[number]
    keep(text, start, end, symbols, num_ids, place, words)
    return count + num_ids


@compiled(inline=True)
def _new_word(text, start, end, model, symbols):
    """Writes the ids of a word; returns how many, or -1 where they are not known here."""
    if end - start > MAX_SYMBOLS:
        return np.int64(-1)
    count = np.int64(-1)
    if model.has_whole_words:
        count = recall(model.whole_words, slot_of(text, start, end, model.whole_words), symbols, np.int64(0))
    if count < 0:
        if model.is_unigram:
            count = best_path(text, start, end, model.unigram, model.by_character, symbols)
        else:
            count = _symbols_of(text, start, end, model, symbols)
            count = merge(symbols, count, model.merges, model.end_rank)
    for number in range(count):
        if model.is_other[symbols[number]]:
            return np.int64(-1)
    return count


@compiled(inline=True)
def _symbols_of(text, start, end, model, symbols):
    """Writes what a word is before any merge; returns how many symbols that is, or -1."""
    count, at = np.int64(0), start
    while at < end:
        symbol, size = np.int32(IS_BYTES), 1
        if model.by_character:
            point, size = code_point(text, at)
            symbol = model.character_symbols[point]
        for place in range(at, at + (size if symbol == IS_BYTES else 1)):
            symbols[count] = model.byte_symbols[text[place]] if symbol == IS_BYTES else symbol
            if symbols[count] < 0:
                return np.int64(-1)
            count += 1
        at += size
    return count
