"""Bad records: the first one ends an ingest, or as many as are allowed go into a file, each with what is wrong."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.bad_records import RAW_BYTES
from data.quarantine import check_budget
from data.text_records import split_text
from tokenizer_lab.errors import UserError

GOOD = [b'{"text": "line %d"}' % number for number in range(20)]
BAD = [
    b"{",
    b'{"text": null}',
    b'{"text": 7}',
    b'{"body": "x"}',
    b'{"text": "\xff\\ud800"}',
    b'{"text": "%s"}' % (b"y" * 9000),
]


def quarantined(folder, domain="text"):
    return [json.loads(line) for line in (folder / "corpus" / f"quarantine-{domain}.jsonl").read_text().splitlines()]


def test_bad_lines_are_left_out_and_kept_with_the_reason(ingest_from, stored, write_files, tmp_path):
    lines = [line for pair in zip(BAD, GOOD) for line in pair] + GOOD[len(BAD) :]
    write_files(tmp_path, {"a.jsonl": b"\n".join(lines) + b"\n"})
    result = ingest_from(tmp_path, "a.jsonl", max_bad=0.5, max_document_bytes=5000)
    assert sorted(stored(tmp_path)) == sorted(b"line %d" % number for number in range(20))
    assert result.counts["bad"] == len(BAD) and "6 bad records left out, see" in str(result)
    kept = quarantined(tmp_path)
    assert [each["record"] for each in kept] == [1, 3, 5, 7, 9, 11]
    assert all(each["file"] == str(tmp_path / "a.jsonl") and each["reason"] for each in kept)
    assert [each["raw"].encode("latin-1") for each in kept[2:5]] == BAD[2:5]
    assert kept[0]["reason"].startswith(f"{tmp_path / 'a.jsonl'}, record 1, is not JSON")
    assert "over the limit of 5000" in kept[5]["reason"]
    assert kept[5]["raw"].encode("latin-1") == BAD[5][:RAW_BYTES] and kept[5]["num_bytes"] > 5000


def test_a_line_of_any_length_is_passed_over_in_bounded_memory():
    line = b"x" * (1 << 14)
    chunks = iter([b"a\n", *[line] * 256, b"\nb\n"])

    class Stream:
        def read(self, size):
            return next(chunks, b"")

    tracemalloc.start()
    first, too_large, last = split_text(Stream(), "a.txt", b"\n", 100_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (first, last) == ((1, b"a"), (3, b"b")) and "a.txt, record 2, has" in too_large[1].reason
    assert 100_000 < too_large[1].num_bytes < 200_000 and peak_bytes < 1 << 20


def test_what_is_after_a_line_of_any_length_is_read(ingest_from, stored, write_files, tmp_path):
    lines = b'{"text": "a"}\n{"text": "%s"}\n{"text": "b"}\n' % (b"x" * (3 << 20))
    write_files(tmp_path, {"a.jsonl": lines})
    ingest_from(tmp_path, "a.jsonl", max_bad=0.4, max_document_bytes=1000)
    assert sorted(stored(tmp_path)) == [b"a", b"b"]


def test_other_formats_go_on_behind_what_is_bad(ingest_from, stored, write_files, tmp_path):
    write_files(
        tmp_path,
        {
            "a.json": b'[{"text": "one"}, {"text": 5}, 7, {"text": "two"}]',
            "b.csv": b"id,text\n1,three\n2,four,5\n3,five\n",
            "c.txt": b"six|" + b"x" * 3000 + b"|seven",
        },
    )
    pq.write_table(pa.table({"text": ["eight", None, "y" * 3000, "nine"]}), tmp_path / "d.parquet")
    ingest_from(tmp_path, "a.json", "b.csv", "c.txt", "d.parquet", separator="|", max_bad=0.5, max_document_bytes=1000)
    assert sorted(stored(tmp_path)) == sorted(b"one two three five six seven eight nine".split())
    assert len(quarantined(tmp_path)) == 6


def test_more_bad_records_than_are_allowed_end_it(ingest_from, write_files, tmp_path):
    write_files(tmp_path, {"a.jsonl": b"\n".join([*GOOD[:18], b"{", b"}"])})
    with pytest.raises(
        UserError, match="2 bad records of 20 that were read are more than --max-bad 0.099 allows: .*a.jsonl"
    ):
        ingest_from(tmp_path, "a.jsonl", max_bad=0.099)
    ingest_from(tmp_path, "a.jsonl", max_bad=0.1)
    with pytest.raises(UserError, match="--max-bad is 2; it must be at most 1"):
        ingest_from(tmp_path, "a.jsonl", max_bad=2)


def test_a_budget_is_held_against_what_there_will_be():
    bad = [{"reason": "this"}] * 200
    check_budget(1e-3, {"bad": 200, "records": 2000}, bad, share_read=0.01)  # as many as 200,000 are to come
    with pytest.raises(UserError, match="200 bad records of 2,000 that were read .*: this; this; this; mend"):
        check_budget(1e-3, {"bad": 200, "records": 2000}, bad, share_read=0.02)
    check_budget(1e-3, {"bad": 99, "records": 99}, bad[:99], share_read=0.5)  # too few to judge by
    with pytest.raises(UserError, match="99 bad records"):
        check_budget(1e-3, {"bad": 99, "records": 99}, bad[:99])
    check_budget(0.0, {"records": 5}, [])
