"""JSON objects that are not one a line, and text that is not in UTF-8: read, or refused by name."""

import gzip
import json

import pytest

from tokenizer_lab.errors import UserError

TEXTS = ["one", 'a "quoted", [bracketed] {text}\\', "two\nlines\r\n", "naïve ☃", "the last"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a line\n" * 3, "строка\n" * 3, "第一行。\n第二行\n" * 3, "문장 하나.\n" * 5])
def test_utf_16_without_a_mark_is_known_in_any_script(ingest_from, write_files, tmp_path, text, encoding):
    write_files(tmp_path, {"a.txt": text.encode(encoding)})
    remedy = f"iconv -f {encoding.upper().replace('16-', '16')} -t UTF-8"
    with pytest.raises(UserError, match=f"text in UTF-16 without a byte order mark, by its first bytes; .*{remedy}"):
        ingest_from(tmp_path, "a.txt")


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "euc_kr", "koi8-r", "utf-8"])
def test_text_in_an_old_encoding_stays_text(ingest_from, stored, write_files, tmp_path, encoding):
    text = {"koi8-r": "строка\x0c\n", "euc_kr": "문장 하나.\n"}.get(encoding, "第一行。\n第二行\n")
    write_files(tmp_path, {"a.txt": (text * 20).encode(encoding)})
    ingest_from(tmp_path, "a.txt")
    assert stored(tmp_path) == [(text * 20).encode(encoding)]


@pytest.mark.parametrize("before", [b"\n", b"\r\n \n\n", b"\xef\xbb\xbf\n"])
def test_a_pdf_behind_blank_lines(ingest_from, write_files, tmp_path, before):
    write_files(tmp_path, {"a.txt": before + b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj"})
    with pytest.raises(UserError, match="a.txt is a PDF"):
        ingest_from(tmp_path, "a.txt")


def pretty(value):
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


RECORDS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (pretty(RECORDS[0]), TEXTS[:1]),
        (b"\n".join(map(pretty, RECORDS)), TEXTS),
        (pretty({"version": "1", "data": RECORDS}), TEXTS),
        (json.dumps({"version": [1, 2], "data": RECORDS}).encode(), TEXTS),
        (b"\xef\xbb\xbf" + pretty({"data": RECORDS, "of": {"list": RECORDS}}).replace(b"\n", b"\r\n"), TEXTS),
        (json.dumps({"data": RECORDS * 2000}).encode(), TEXTS * 2000),
        (pretty({"text": "one", "n": 0}).replace(b"0", b"7" * 5000), ["one"]),
        (b'{"text": "one", "n": %s}' % (b"7" * 5000), ["one"]),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.jsonl", "a.json.gz"])
def test_objects_over_several_lines_and_a_list_of_records(
    ingest_from, stored, write_files, tmp_path, name, content, texts
):
    write_files(tmp_path, {name: gzip.compress(content) if ".gz" in name else content})
    ingest_from(tmp_path, name)
    assert stored(tmp_path) == [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"train": RECORDS, "test": RECORDS},
            "a.json is one JSON object and has lists of records, 'train' with 'id', ",
        ),
        ({"data": [{"title": "x", "paragraphs": []}]}, "'data' with 'title', 'paragraphs'; --field text is in none of"),
        ({"data": [{"text": "one"}, {"id": 3}]}, "a.json, record 2: field 'text' is missing; choose --field from 'id'"),
    ],
)
@pytest.mark.parametrize("form", [pretty, lambda value: json.dumps(value).encode()])
def test_lists_of_which_nobody_can_tell_are_refused(ingest_from, write_files, tmp_path, content, message, form):
    write_files(tmp_path, {"a.json": form(content)})
    with pytest.raises(UserError, match=message) as caught:
        ingest_from(tmp_path, "a.json")
    assert "\n" not in str(caught.value)


def test_objects_that_are_damaged_are_refused_where_there_should_be_some(ingest_from, write_files, tmp_path):
    write_files(tmp_path, {"a.json": pretty(RECORDS[0])[:-3], "b": b"\n".join(map(pretty, RECORDS))[:-3]})
    for name, behind in (("a.json", 0), ("b", len(TEXTS) - 1)):
        with pytest.raises(UserError, match=f"{name} is not JSON behind object {behind}: .*--read-as text"):
            ingest_from(tmp_path, name)
