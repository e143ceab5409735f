"""WET files: a document is the text of a page."""

import sys

import pytest

from tokenizer_lab.errors import UserError

TEXTS = ["one page\n", "naïve ☃\r\n\r\n", "", "the last"]


def warc(texts, kind="conversion"):
    """As Common Crawl writes them: a record about the file, then one a page."""
    records = [("warcinfo", b"software: test\r\n"), *((kind, text.encode()) for text in texts)]
    return b"".join(
        b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%d>\r\nWARC-Date: 2026-11-29T00:00:00Z\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (kind.encode(), number, len(text), text)
        for number, (kind, text) in enumerate(records)
    )


@pytest.fixture
def warcio():
    return pytest.importorskip("warcio", reason="an extra")


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_document_is_the_text_of_a_page(warcio, ingest_from, stored, write_files, compress, tmp_path, compression):
    write_files(tmp_path, {f"a.warc.wet{compression}": compress(compression, warc(TEXTS))})
    ingest_from(tmp_path, f"a.warc.wet{compression}", on_empty="keep")
    assert sorted(stored(tmp_path)) == sorted(text.encode() for text in TEXTS)


def test_bad_wet_files(warcio, ingest_from, write_files, tmp_path):
    write_files(
        tmp_path,
        {
            "cut.wet": warc(TEXTS)[:-12],
            "pages.warc": warc(["<html>"], "response"),
            "junk.wet": warc(TEXTS[:1]) + b"junk\r\n",
        },
    )
    for name, message in (
        ("cut.wet", "cut.wet cannot be read on after record 3: it is cut off"),
        ("pages.warc", "pages.warc has web pages .*, not their text; take the WET files"),
        ("junk.wet", "junk.wet cannot be read on as WARC after record 1"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ingest_from(tmp_path, name, on_empty="keep")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cut.wet, record 2, has .* bytes or more, over the limit of 10"):
        ingest_from(tmp_path, "cut.wet", max_document_bytes=10)


def test_the_extra_is_named(ingest_from, write_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "warcio.archiveiterator", None)
    write_files(tmp_path, {"a.wet": warc(TEXTS)})
    with pytest.raises(UserError, match=r"a.wet is a WARC file, .*: pip install 'tokenizer-lab\[warc\]'"):
        ingest_from(tmp_path, "a.wet")
