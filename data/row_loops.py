"""Loops over rows, documents and ids, as machine code: what `data/rows.py` and `data/encoder_rows.py` do to many of
them at once.

Rows r of a worker, each with a line of documents that it has drawn and not finished, the one it is in first:

    rows_r        ROW[R]
    finished_rs   i64[R, S]        documents finished of each source
    queue_rq      DOCUMENT[R, Q]   of row r, its documents are `queue_rq[r, head:head + count]`
    ids_n         i32[n]           of all their documents
    lengths_n     i32[n]           the source bytes of each id
"""

import numpy as np

from tokenizer_lab.compiled import compiled

PASSED_OVER = -1

ROW = np.dtype(
    [
        ("position", np.int64),  # in the document that the row is in
        ("hash", np.uint64),  # running, of the documents it has finished
        ("head", np.int64),
        ("count", np.int64),
        ("filled", np.int64),  # positions of the sequence that is being filled
        ("segment", np.int64),  # the last one in it
        ("num_bytes", np.int64),  # in it
        ("passed", np.int64),  # documents passed over since the last one that was not
    ]
)
DOCUMENT = np.dtype(
    [
        ("start", np.int64),  # of its ids
        ("length", np.int64),  # how many they are; PASSED_OVER where it is not trained on
        ("source", np.int64),
        ("first_end", np.int64),  # where the first piece of it ends, if it is cut into pieces
        ("hash", np.uint64),  # running, of the row when it has finished it
    ]
)


@compiled
def is_at_document(row, finished_s, queue_q):
    """Whether the row is in a document, after those that are passed over; else it needs more."""
    while row.count and queue_q[row.head].length < 0:
        finish_document(row, finished_s, queue_q)
        row.passed += 1
    if row.count:
        row.passed = 0
    return row.count > 0


@compiled
def count_waiting(rows_r, finished_rs, queue_rq):
    """How many rows are in no document and need more."""
    num_waiting = 0
    for r in range(len(rows_r)):
        if not is_at_document(rows_r[r], finished_rs[r], queue_rq[r]):
            num_waiting += 1
    return num_waiting


@compiled
def finish_document(row, finished_s, queue_q):
    """Moves a row behind the document it is in."""
    document = queue_q[row.head]
    finished_s[document.source] += 1
    row.hash = document.hash
    row.position = 0
    row.head += 1
    row.count -= 1


@compiled
def fill_causal(
    rows_r,
    finished_rs,
    queue_rq,
    ids_n,
    lengths_n,
    eod_id,
    piece_length,
    out_ids,
    out_targets,
    out_segments,
    out_positions,
):
    """Fills what is left of each row, until its documents are used up. Returns how many rows need more of them.

    Args:
      eod_id: of the representation.
      piece_length: of `RowStreams`.
      out_ids, out_targets, out_segments, out_positions: i32[R, T].
    """
    num_waiting = 0
    for r in range(len(rows_r)):
        row, finished_s, queue_q = rows_r[r], finished_rs[r], queue_rq[r]
        ids_t, targets_t, segments_t, positions_t = out_ids[r], out_targets[r], out_segments[r], out_positions[r]
        while row.filled < len(ids_t):
            if not is_at_document(row, finished_s, queue_q):
                num_waiting += 1
                break
            document = queue_q[row.head]
            start, end, at = row.position, document.length + 1, row.filled
            stop = end
            if piece_length:
                stop = min(end, start + piece_length - (start - document.first_end) % piece_length)
            take = min(len(ids_t) - at, stop - start)
            row.segment += 1
            first = document.start + start
            num_ids = min(take, document.length - start)
            for k in range(num_ids):
                targets_t[at + k] = ids_n[first + k]
                row.num_bytes += lengths_n[first + k]
            if num_ids < take:
                targets_t[at + num_ids] = eod_id
            ids_t[at] = eod_id if piece_length or start == 0 else ids_n[first - 1]
            for k in range(1, take):
                ids_t[at + k] = ids_n[first + k - 1]
            segments_t[at : at + take] = row.segment
            for k in range(take):
                positions_t[at + k] = k
            row.filled += take
            row.position += take
            if row.position == end:
                finish_document(row, finished_s, queue_q)
    return num_waiting


@compiled
def fill_encoder(
    rows_r, finished_rs, queue_rq, ids_n, lengths_n, cls_id, sep_id, is_full_r, out_ids, out_segments, out_positions
):
    """Fills rows with `[CLS] piece [SEP]`, until they are full or their documents are used up. Returns how many need
    more.

    Args:
      is_full_r: b[R], rows that take nothing more.
      out_ids, out_segments, out_positions: i32[R, T], zeros where nothing is written.
    """
    num_waiting = 0
    for r in range(len(rows_r)):
        row, finished_s, queue_q = rows_r[r], finished_rs[r], queue_rq[r]
        ids_t, segments_t, positions_t = out_ids[r], out_segments[r], out_positions[r]
        while not is_full_r[r]:
            if not is_at_document(row, finished_s, queue_q):
                num_waiting += 1
                break
            document = queue_q[row.head]
            start, at = row.position, row.filled
            rest, free = document.length - start, len(ids_t) - at - 2
            take = min(free, rest)
            if free < 0 or (at > 0 and take < min(rest, len(ids_t) // 8)):  # as `RowBuilder.room_for` has it
                is_full_r[r] = True
                break
            row.segment += 1
            ids_t[at], ids_t[at + take + 1] = cls_id, sep_id
            for k in range(take):
                ids_t[at + 1 + k] = ids_n[document.start + start + k]
                row.num_bytes += lengths_n[document.start + start + k]
            segments_t[at : at + take + 2] = row.segment
            for k in range(take + 2):
                positions_t[at + k] = k
            row.filled += take + 2
            row.position += take
            if row.position == document.length:
                finish_document(row, finished_s, queue_q)
    return num_waiting


@compiled
def add_documents(rows_r, queue_rq, row_d, documents_d, out_rq):
    """Moves each row's documents to the beginning of `out_rq`, DOCUMENT[R, Q'], and puts new ones behind them, each to
    the row that `row_d`, i64[d], names."""
    for r in range(len(rows_r)):
        row = rows_r[r]
        out_rq[r, : row.count] = queue_rq[r, row.head : row.head + row.count]
        row.head = 0
    for d in range(len(row_d)):
        row = rows_r[row_d[d]]
        out_rq[row_d[d], row.count] = documents_d[d]
        row.count += 1


@compiled
def count_ids(rows_r, queue_rq):
    """Ids of all documents that rows have not finished."""
    count = 0
    for r in range(len(rows_r)):
        for q in range(rows_r[r].head, rows_r[r].head + rows_r[r].count):
            count += max(0, queue_rq[r, q].length)
    return count


@compiled
def move_ids(rows_r, queue_rq, ids_n, lengths_n, out_ids, out_lengths):
    """Moves the ids of documents that are not finished into other arrays. Returns how many they are."""
    used = 0
    for r in range(len(rows_r)):
        for q in range(rows_r[r].head, rows_r[r].head + rows_r[r].count):
            document = queue_rq[r, q]
            for k in range(document.length):
                out_ids[used + k] = ids_n[document.start + k]
                out_lengths[used + k] = lengths_n[document.start + k]
            document.start = used
            used += max(0, document.length)
    return used


@compiled
def first_wrong(ids_n, lengths_n, ends_d, num_bytes_d, vocab_size):
    """The first document of which the ids have not its bytes, or are none of the vocabulary's; -1 where there is
    none."""
    start = 0
    for d in range(len(ends_d)):
        num_bytes, low, high = 0, 0, 0
        for n in range(start, ends_d[d]):
            num_bytes += lengths_n[n]
            low, high = min(low, ids_n[n]), max(high, ids_n[n])
        if num_bytes != num_bytes_d[d] or low < 0 or high >= vocab_size:
            return d
        start = ends_d[d]
    return -1


@compiled
def unpack_records(records_n, record_ends_d, ends_d, out_ids, out_lengths):
    """The ids and lengths in records of `data.encoded.pack`, one after the other; `ends_d` are where documents end in
    what comes out."""
    record = 0
    start = 0
    for d in range(len(ends_d)):
        id_bytes, length_bytes = records_n[record] >> 4, records_n[record] & 15
        count = ends_d[d] - start
        _widen(records_n, record + 1, id_bytes, out_ids[start : ends_d[d]])
        _widen(records_n, record + 1 + count * id_bytes, length_bytes, out_lengths[start : ends_d[d]])
        start, record = ends_d[d], record_ends_d[d]


@compiled
def _widen(bytes_n, at, width, out_n):
    """Unsigned little-endian integers of `width` bytes, from byte `at` on."""
    if width == 1:
        for n in range(len(out_n)):
            out_n[n] = bytes_n[at + n]
        return
    for n in range(len(out_n)):
        value = np.uint32(0)
        for k in range(width):
            value |= np.uint32(bytes_n[at + n * width + k]) << np.uint32(8 * k)
        out_n[n] = value


# ---- Scoring

SCORING = np.dtype(
    [
        ("document", np.int64),  # that is scored, of those at hand
        ("start", np.int64),  # of the piece or window of it that comes next
        ("done", np.int64),  # positions of it that are scored
        ("used", np.int64),  # positions of the row that several pieces share
        ("segment", np.int64),  # the last one in it
        ("num_rows", np.int64),  # of the batch that are filled
    ]
)


@compiled
def score_documents(state, ids_n, lengths_n, ends_d, numbers_d, eod_id, piece_length, stride, shared_at, out_art):
    """Puts the pieces or windows of documents into rows: one that fills a row has it for itself, the others share one.

    Args:
      state: SCORING, where this stands.
      ids_n, lengths_n, ends_d: see `EncodedBatch`.
      numbers_d: i64[d], what `documents` says of each document.
      eod_id: of the representation.
      piece_length, stride: see `scoring_batches`.
      shared_at: i32[6, T], the row that is shared, and
      out_art: i32[6, R, T], the batch: ids, targets, segment_ids, positions, documents, target_bytes.

    Returns:
      Whether all documents are done; the batch is full otherwise.
    """
    num_rows, row_length = out_art.shape[1], out_art.shape[2]
    length = min(piece_length, row_length) if piece_length else row_length
    while state.document < len(ends_d):
        d = state.document
        first = ends_d[d - 1] if d > 0 else 0
        end = ends_d[d] - first + 1
        take = min(length, end - state.start)
        is_whole = take == row_length
        if is_whole or state.used + take > row_length:
            if state.num_rows == num_rows:
                return False
            if not is_whole:
                share_row(state, shared_at, out_art)
        row_at, at, segment = shared_at, state.used, state.segment + 1
        if is_whole:
            row_at, at, segment = out_art[:, state.num_rows], 0, 1
            state.num_rows += 1
        else:
            state.used += take
            state.segment += 1
        _put_scored(row_at, at, segment, ids_n[first : ends_d[d]], lengths_n[first : ends_d[d]], state, take, eod_id)
        if piece_length:
            row_at[0, at] = eod_id
        for k in range(state.done, state.start + take):
            row_at[4, at + k - state.start] = numbers_d[d]
        state.done = state.start + take
        state.start += stride if stride else take
        if state.done == end:
            state.document += 1
            state.start = state.done = 0
    return True


@compiled
def _put_scored(row_at, at, segment, ids_n, lengths_n, state, take, eod_id):
    """Writes `take` positions of a document, from `state.start` on, to place `at` of a row."""
    for k in range(take):
        position = state.start + k
        row_at[0, at + k] = ids_n[position - 1] if position else eod_id
        row_at[1, at + k] = ids_n[position] if position < len(ids_n) else eod_id
        row_at[2, at + k] = segment
        row_at[3, at + k] = k
        if state.done <= position < len(ids_n):
            row_at[5, at + k] = lengths_n[position]


@compiled
def share_row(state, shared_at, out_art):
    """Moves the row that is shared into the batch, and begins another."""
    out_art[:, state.num_rows] = shared_at
    shared_at[:] = 0
    shared_at[4] = -1
    state.num_rows += 1
    state.used = state.segment = 0
