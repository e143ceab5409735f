"""`toklab inspect`: artifacts, a corpus, translations and words in; a table, metrics and a page out."""

import csv
import html
import io
import json
import re

import pytest
import rich.console
from tokenizers import Tokenizer, models

from tokenizer_lab.baselines.gzip_code import GzipRepresentation
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.subword import SubwordRepresentation
from train.commands import command_line
from train.inspect import inspection_page
from train.inspect.inspection import console_table, inspect
from train.inspect.measuring import shown_pieces
from train.inspect.options import InspectOptions
from train.inspect.texts import read_morphscore, read_parallel

HOSTILE = (
    "'\"></i></pre></td></script><script>window.stung = 1</script><img src=http://x.example/ onerror=alert(1)>$title"
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> list:
    """A byte, a subword and a gzip artifact."""
    folder = tmp_path_factory.mktemp("artifacts")
    tokens = [*"abcdefghijklmnopqrstuvwxyz ", "th", "the"]
    model = models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=[("t", "h"), ("th", "e")])
    made = {
        "byte": ByteRepresentation(),
        "bpe": SubwordRepresentation(Tokenizer(model).to_str().encode()),
        "gzip": GzipRepresentation(8),
    }
    for name, representation in made.items():
        representation.save(folder / name)
    return [folder / name for name in made]


@pytest.fixture
def parallel(tmp_path):
    """Two lines in three languages, of which two have files of the same last part, as in NTREX-128."""
    folder = tmp_path / "parallel"
    folder.mkdir()
    (folder / "news-src.eng.txt").write_text("the end\nthe\n")
    (folder / "news-ref.deu.txt").write_text("das ende\nthethethe\n")
    (folder / "news-ref.spa.txt").write_text("fin\nel\n")
    (folder / "news-ref-2.spa.txt").write_text("fin\nlos\n")
    return folder


@pytest.fixture
def morphscore(tmp_path):
    folder = tmp_path / "morphscore"
    folder.mkdir()
    (folder / "english_morph_data.csv").write_text(
        ",full_word,pt1,rest\n0,theme,the,me\n1,bathe,bat,he\n2,the,th,e\n3,odd,o,ther\n4,it,it,\n"
    )
    return folder


@pytest.fixture
def options(artifacts, corpus, parallel, morphscore, tmp_path):
    """options(**fields): of an inspection of all there is."""
    fields = dict(
        artifacts=tuple(artifacts), corpus=corpus, out=tmp_path / "out", parallel=parallel, morphscore=morphscore
    )
    return lambda **other: InspectOptions(**(fields | other))


def run(options: InspectOptions):
    return inspect(options, lambda done, total: None)


def text_of(page: str) -> str:
    """What the page says, without its markup and script."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(script|style)>.*?</\1>", "", page)))


def test_page_csv_and_json_say_the_same(options, tmp_path):
    told = []
    inspection = inspect(options(), lambda done, total: told.append((done, total)))
    byte, bpe, gzip = (found.row for found in inspection.representations)
    assert (byte["bytes_per_token"], byte["uniform_bits_per_byte"], byte["round_trip_share"]) == (1.0, 8.0, 1.0)
    assert 1 < bpe["bytes_per_token"] < 3 and bpe["dead_ids"] == bpe["text_ids"] - bpe["used_ids"] > 0
    assert byte["spelled_share"] is None and 0 < bpe["spelled_share"] < 1
    [note] = [note for note in inspection.notes if note.startswith("bpe: ") and "spelled" in note]
    assert "are spelled in bytes: " in note and "as its vocabulary has no token for them" in note
    assert 0 < told[0][0] < told[-1][0] <= told[-1][1]
    in_json = json.loads((tmp_path / "out" / "metrics.json").read_text())
    in_csv = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    for found, json_row, csv_row in zip(inspection.representations, in_json["representations"], in_csv, strict=True):
        assert found.row.items() <= json_row.items() and json_row["premium"] == found.premium
        assert {
            name: "" if value is None else str(value) for name, value in found.row.items()
        }.items() <= csv_row.items()
        assert csv_row["premium:deu"] == str(found.premium["deu"])
    page = text_of((tmp_path / "out" / "index.html").read_text())
    assert f"{byte['unigram_bits_per_byte']:.3f}" in page and inspection.about in page and inspection.machine in page
    assert f"of {in_json['text']['held_out_documents']} held-out documents" in inspection.about


def test_premiums_and_morph_scores_by_hand(options):
    inspection = run(options())
    byte, bpe, gzip = inspection.representations
    assert byte.premium == {"deu": 17 / 10, "news-ref.spa": 5 / 10, "news-ref-2.spa": 6 / 10}
    assert bpe.premium["deu"] == 11 / 6  # the . e n d | the  against  d a s . e n d e | the the the
    assert (byte.row["premium_median"], byte.row["premium_max"]) == (0.6, 1.7)
    assert bpe.morph_score["english"] == (1 / 2, 2)  # the m e | b a the | the, which is one token
    assert byte.morph_score["english"] == (1.0, 3)
    assert inspection.num_left_out == {"english": 2}
    assert any("2 of english" in note for note in inspection.notes)


def test_what_makes_no_sense_is_left_out_with_its_reason(options, tmp_path):
    inspection = run(options())
    assert inspection.representations[2].row["morph_score"] is None and inspection.representations[2].morph_score == {}
    assert any(
        note.startswith("No MorphScore of gzip: an id does not stand for the same bytes") for note in inspection.notes
    )
    assert "No MorphScore of gzip" in text_of((tmp_path / "out" / "index.html").read_text())
    assert "premium" not in str(run(options(parallel=None, morphscore=None)).notes)


def test_what_loses_text_has_no_bits_per_byte(options, tmp_path, monkeypatch):
    monkeypatch.setattr(GzipRepresentation, "is_lossless", False)
    byte, _, gzip = run(options()).representations
    for name in ("uniform_bits_per_byte", "unigram_bits_per_byte"):
        assert gzip.row[name] is None and byte.row[name] > 0
    page = text_of((tmp_path / "out" / "index.html").read_text())
    assert "No unigram bits/byte of gzip: texts do not come back from their ids" in page


def test_the_table_in_the_terminal_fits_and_takes_no_markup(options, artifacts, tmp_path):
    named = tmp_path / "[red]x"
    ByteRepresentation().save(named)
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(console_table(run(options(artifacts=(*artifacts, named)))))
    shown = console.file.getvalue()
    assert "[red]x" in shown and re.search(r"bytes/token +1\.00", shown) and "–" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_in_the_terminal_never_breaks_a_name(options, tmp_path, width):
    names = ("demo_subword", "demo_equal_info", "superword_64k_numbers_left", "a_name_of_just_thirty_letters_")
    for name in names:
        ByteRepresentation().save(tmp_path / name)
    console = rich.console.Console(width=width, file=io.StringIO())
    console.print(console_table(run(options(artifacts=tuple(tmp_path / name for name in names)))))
    lines = console.file.getvalue().splitlines()
    for name in names:
        assert len([line for line in lines if name in line.split()]) == 1, lines
    assert sum(line.count(" 1.00") for line in lines if line.startswith("bytes/token")) == len(names)
    assert max(map(len, lines)) <= width


def test_only_as_much_text_as_asked_for_is_read(options):
    inspection = run(options(max_bytes=100, parallel=None, morphscore=None))
    assert 0 < inspection.text["num_bytes"] <= 300 < inspection.text["held_out_bytes"]
    assert not inspection.has("premium_median") and not inspection.has("morph_score")


def test_two_artifacts_of_one_name_are_told_apart(options, artifacts, tmp_path):
    ByteRepresentation().save(tmp_path / "byte")
    labels = [found.label for found in run(options(artifacts=(artifacts[0], tmp_path / "byte"))).representations]
    assert labels == [str(artifacts[0]), str(tmp_path / "byte")]


def test_ids_that_carry_nothing_stand_with_the_next_that_does():
    assert shown_pieces(ByteRepresentation(), b"ab") == [([97], b"a"), ([98], b"b")]
    pieces = shown_pieces(GzipRepresentation(8), b"abc" * 50)
    assert b"".join(piece for _, piece in pieces) == b"abc" * 50
    assert len(pieces[0][0]) > 2 and pieces[-1][1] == b"", "first the header, last the checksum"


@pytest.mark.parametrize(
    "piece, shown",
    [
        (b" the", "␣the"),
        (b"a\n", "a⏎\n"),
        (b"\t", "⇥"),
        (b"\xff\xc3", "\\xff\\xc3"),
        ("é".encode(), "é"),
        ("\u0301x".encode(), "◌\u0301x"),
        ("\u200d\u202e\x00\xa0".encode(), "U+200DU+202EU+0000U+00A0"),
    ],
)
def test_everything_in_a_piece_can_be_seen(piece, shown):
    assert inspection_page.visible(piece) == shown


def test_the_page_is_harmless_whatever_the_text(options, tmp_path, assert_harmless):
    text, folder = tmp_path / "text", tmp_path / "hostile"
    text.write_bytes((HOSTILE + "\u202e\x1b\ud800").encode(errors="surrogatepass"))
    folder.mkdir()
    for name in ("eng", "<b>[red]deu"):
        (folder / f"{name}.txt").write_text("x\n")
    run(options(text=text, parallel=folder))
    page = (tmp_path / "out" / "index.html").read_text()
    assert_harmless(page)
    assert not re.search("[\ud800-\udfff\u202e\x1b]", page)
    assert "<b>[red]deu" in text_of(page) and HOSTILE in text_of(page).replace("␣", " ")


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "break_it, says",
    [
        (lambda folder: (folder / "news-ref.deu.txt").write_text("one\n"), "has 1 lines, news-src.eng.txt 2"),
        (lambda folder: (folder / "news-src.eng.txt").unlink(), "has no language 'eng'; --pivot is one of"),
        (lambda folder: [path.unlink() for path in folder.glob("*.txt")], "has 0 .txt files"),
    ],
)
def test_translations_that_are_not_aligned(options, parallel, break_it, says):
    break_it(parallel)
    with pytest.raises(UserError, match=re.escape(says)):
        run(options())


@pytest.mark.parametrize(
    "content, says",
    [
        (b"word,first\n", "lacks one of the columns full_word, pt1, rest"),
        (b",full_word,pt1,rest\n0,\xff,a,b\n", "is not CSV in UTF-8"),
        (b',full_word,pt1,rest\n0,"ab,a,b\n', "is not CSV in UTF-8"),
    ],
)
def test_words_that_are_not_morphscore(options, morphscore, content, says):
    path = morphscore / "english_morph_data.csv"
    path.write_bytes(content)
    for given in (path, morphscore):
        with pytest.raises(UserError, match=re.escape(says)):
            run(options(morphscore=given))
    path.unlink()
    with pytest.raises(UserError, match="has no .csv files"):
        run(options(morphscore=morphscore))


def test_mistakes_in_the_terminal_are_one_line(capsys, artifacts, corpus, tmp_path):
    byte, out = str(artifacts[0]), ["--corpus", str(corpus), "--out", str(tmp_path / "out")]
    for arguments, says in [
        ([byte, "--out", "x"], "--corpus"),
        ([byte, byte, *out], "was given more than once"),
        ([str(tmp_path), *out], "does not exist"),
        ([byte, *out, "--text", str(tmp_path / "none")], "does not exist"),
        ([byte, *out, "--max-bytes", "0"], "--max-bytes is 0; it must be at least 1"),
        ([byte, *out, "--parallel", str(tmp_path / "none")], "has 0 .txt files"),
        ([byte, "--corpus", byte, "--out", "x"], "ingest the corpus again"),
    ]:
        assert command_line.run(["inspect", *arguments]) == 2, arguments
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and says in complaint, complaint
    assert not (tmp_path / "out").exists()
    assert command_line.run(["inspect", byte, *out]) == 0
    assert "held-out documents" in capsys.readouterr().out and (tmp_path / "out" / "index.html").exists()


# ---- In a browser --------------------------------------------------------------------------------


SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ORDER = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].dataset.value)"
TIP = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"


def test_page_in_chromium(options, tmp_path, browser):
    text = tmp_path / "text"
    text.write_text("the end" + HOSTILE)
    run(options(text=text))
    for width in (390, 1280):
        browser.open(tmp_path / "out" / "index.html", width)
        assert browser.javascript(SIDEWAYS) <= 0
    assert browser.javascript("window.stung") is None

    browser.javascript("document.querySelector('th button').focus()")
    browser.press("Enter")
    assert browser.javascript(ORDER) == ["bpe", "byte", "gzip"]

    browser.javascript("document.querySelectorAll('.cut')[1].focus()")
    assert browser.javascript(TIP) is None
    for key, says in {
        "ArrowRight": "id 28: 74 68 65",
        "ArrowLeft": "1 of 115, id 28: 74 68 65",
        "End": "115 of 115, id 130: 65",
        "Home": "1 of 115",
        "Escape": None,
    }.items():
        browser.press(key)
        shown = browser.javascript(TIP)
        assert shown is None if says is None else says in shown, (key, shown)
    browser.assert_quiet()


def test_byte_order_marks_are_no_part_of_lines_and_names(parallel, morphscore):
    lines = read_parallel(parallel, "eng")
    for path in parallel.iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    [words] = morphscore.iterdir()
    words.write_text("full_word,pt1,rest\ntheme,the,me\n", encoding="utf-8-sig")
    assert read_parallel(parallel, "eng") == lines
    assert [item.word for item in read_morphscore(morphscore)[0]["english"]] == [b"theme"]
