"""The report: made-up run folders in, a page, a CSV and a JSON out."""

import csv
import io
import json
import re

import pytest
import rich.console

from train.report.report import console_table, write_report


def page_of(report) -> str:
    return report.index.read_text()


def test_page_csv_and_json_hold_the_same_ranked_rows(runs, tmp_path, text_of):
    report = write_report(runs, tmp_path / "out")
    assert [row["arm"] for row in report.rows] == ["subword-4k", "byte", "unigram-4k"]
    best = report.rows[0]
    assert best["bits_per_byte"] == 2.02 and best["bits_per_byte_low"] == pytest.approx(1.98)
    assert best["flops"] == 20_000_000 * best["flops_per_byte"]
    assert best["parameters"] - best["parameters_without_embeddings"] == 256 * 4096
    in_csv = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    in_json = json.loads((tmp_path / "out/report.json").read_text())
    for row, csv_row, json_row in zip(report.rows, in_csv, in_json["arms"], strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()}.items() <= csv_row.items()
        assert row.items() <= json_row.items()
    docs = in_json["arms"][0]["domains"]["docs"]["bits_per_byte"]
    assert float(in_csv[0]["bits_per_byte:docs"]) == docs == pytest.approx(2.22)
    row = r'<tr><th scope="row" data-value="([^"]*)">.*?<td class="number"(?: data-value="([^"]*)")?>'
    rows = re.findall(row, page_of(report))
    assert rows[:3] == [("subword-4k", "2.02"), ("byte", "2.31"), ("unigram-4k", "")]
    for shown in ("2.020", "1.980 to 2.070", "3.70", "4.46 M", "18.7 M", "20.0 MB", "352 kB/s", "2.1 %", "1.820"):
        assert shown in text_of(report), shown


def test_headings_of_tables_are_words(runs, tmp_path):
    page = page_of(write_report(runs, tmp_path / "out"))
    titles = re.findall(r'<th scope="col"[^>]*><button type="button"><span>([^<]*)</span>', page)
    assert titles.count("Arm") == 3 and all(re.fullmatch(r"[\w' -]+", title) for title in titles), titles


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    first, second = (write_report(runs, tmp_path / name).index.parent for name in ("one", "two"))
    assert sorted(path.name for path in first.iterdir()) == ["index.html", "report.csv", "report.json"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        ((2.0, 2.3), "The intervals do not overlap."),
        ((2.0, 2.05), "The intervals overlap: this evaluation alone does not settle which of the two is better."),
    ],
)
def test_finding_says_whether_the_intervals_overlap(tmp_path, bits, says, make_run, text_of):
    folders = [make_run(tmp_path / name, name, bits=score) for name, score in zip("ab", bits, strict=True)]
    report = write_report(folders, tmp_path / "out")
    start = f"a has the lowest bits per byte, 2.000 (95 % interval 1.960 to 2.050); next is b, {bits[1]:.3f} "
    assert report.findings[0].startswith(start) and report.findings[0].endswith(says)
    assert report.findings[0] in text_of(report)


def test_one_arm_is_no_comparison(tmp_path, make_run, text_of):
    report = write_report([make_run(tmp_path / "a", "a")], tmp_path / "out")
    finding = "Bits per byte of a: 2.000 (95 % interval 1.960 to 2.050). No other arm has been evaluated on this text"
    assert finding in text_of(report)
    assert "Budgets" not in text_of(report)


def test_goodput_is_shown_with_where_the_rest_went(runs, tmp_path, edit, text_of):
    edit(
        runs[0] / "summary.json",
        save_memory_growth_bytes=2_500_000,
        goodput={
            "seconds": 1000.0,
            "share": 0.75,
            "starts": 3,
            "seconds_by_part": {"step": 750.0, "repeated": 50.0, "down": 200.0, "data": 0.0},
        },
    )
    report = write_report(runs, tmp_path / "out")
    assert (
        "75.0 % of 1,000.0 s over 3 starts: step 750.0 s, down 200.0 s, repeated 50.0 s; saves took up to 2.5"
        in text_of(report)
    )
    row = next(row for row in report.rows if row["folder"] == str(runs[0]))
    assert (row["goodput"], row["life_seconds"], row["starts"]) == (0.75, 1000.0, 3)
    arms = json.loads((tmp_path / "out" / "report.json").read_text())["arms"]
    assert [arm["seconds_by_part"].get("down") for arm in arms if arm["folder"] == str(runs[0])] == [200.0]
    assert {row["goodput"] for row in report.rows if row["folder"] != str(runs[0])} == {
        None
    }  # of before it was written down


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path, make_run):
    names = {"one": "byte", "two": "byte", "three": "other"}
    folders = [make_run(tmp_path / folder, name) for folder, name in names.items()]
    report = write_report(folders, tmp_path / "out")
    assert {row["arm"] for row in report.rows} == {f"byte ({folders[0]})", f"byte ({folders[1]})", "other"}


def test_a_step_taken_again_after_a_resume_counts_once(runs, tmp_path):
    lines = (runs[0] / "eval.jsonl").read_text().splitlines()
    again = json.loads(lines[3]) | {"bits_per_byte": 3.25}
    (runs[0] / "eval.jsonl").write_text("\n".join([*lines[:5], json.dumps(again), *lines[4:]]) + "\n")
    curve = write_report(runs, tmp_path / "out").arms[0].curve
    assert [point["step"] for point in curve] == list(range(80, 801, 80))
    assert curve[3]["bits_per_byte"] == 3.25


def test_every_number_may_be_null(runs, tmp_path, dump, dump_lines, text_of):
    def without_numbers(value):
        if isinstance(value, dict):
            return {key: without_numbers(item) for key, item in value.items()}
        if isinstance(value, list) and not all(isinstance(item, float) for item in value):
            return [without_numbers(item) for item in value]
        return value if isinstance(value, str) else None

    for path in (runs[0] / name for name in ("summary.json", "eval.json", "samples.json")):
        dump(path, without_numbers(json.loads(path.read_text())))
    for path in (runs[0] / name for name in ("metrics.jsonl", "eval.jsonl")):
        dump_lines(path, [without_numbers(json.loads(line)) for line in path.read_text().splitlines()])
    for given in (runs, runs[:1]):
        report = write_report(given, tmp_path / "out")
        assert "None" not in text_of(report).replace("None. toklab", "") and "nan" not in page_of(report)
        rich.console.Console(file=io.StringIO()).print(console_table(report))


def test_a_run_that_has_only_begun(runs, tmp_path, text_of):
    for name in ("metrics.jsonl", "eval.jsonl"):
        (runs[2] / name).unlink()
    assert "No evaluation to draw." in text_of(write_report(runs[2:], tmp_path / "out"))


def test_console_table_fits_80_columns_and_takes_no_markup(runs, tmp_path, edit):
    edit(runs[0] / "summary.json", name="[b]byte[/]")
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(console_table(write_report(runs, tmp_path / "out")))
    printed = console.file.getvalue()
    for shown in ("[b]byte[/] 2.310 2.270–2.360 258 1.00", "unigram-4k – unevaluated 4,096", "do not overlap."):
        assert shown in re.sub(r"\s+", " ", printed)
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80


def test_csv_holds_no_formula(tmp_path, make_run):
    folder = make_run(tmp_path / "a", "=HYPERLINK(1)")
    write_report([folder], tmp_path / "out")
    assert next(csv.DictReader((tmp_path / "out/report.csv").open()))["arm"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize("width", [60, 80])
def test_console_table_never_breaks_a_name(make_run, tmp_path, width):
    names = ("demo_subword", "demo_equal_info", "demo_byte", "subword_64k_superword_seed_0_x")
    folders = [
        make_run(tmp_path / name, name, bits=2.0 + 0.1 * number, kind="subword", bytes_seen=812_000)
        for number, name in enumerate(names)
    ]
    console = rich.console.Console(width=width, file=io.StringIO())
    console.print(console_table(write_report(folders, tmp_path / "out")))
    lines = console.file.getvalue().splitlines()
    for name in names:
        cells = " ".join(line.removeprefix(name) for line in lines if re.match(rf"{name} +\d", line))
        assert "4,096" in cells and "812 kB" in cells.replace("\N{NARROW NO-BREAK SPACE}", " "), lines
    assert max(map(len, lines)) <= width
