"""The report: made-up run folders in, a page, a CSV and a JSON out."""

import csv
import dataclasses
import html
import io
import json
import math
import pathlib
import re
import shutil

import hypothesis
import hypothesis.strategies as st
import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.compare.decision_report import write_decision
from train.compare.in_words import supported
from train.compare.results import Design
from train.report import chart
from train.report.report import console_table, write_report

HOSTILE = (
    "x" * 80 + "[red]`\"'></pre></td></script><script>window.stung = 1</script>"
    "<img src=http://x.example/ onerror=alert(1)>$title\ud800\u202e\x1b[2J"
)


def make_run(
    folder: pathlib.Path,
    name: str,
    *,
    kind="byte",
    bits=2.0,
    bytes_per_token=1.0,
    bytes_seen=20_000_000,
    corpus="c" * 64,
    evaluated=True,
    state="finished",
    samples=True,
) -> pathlib.Path:
    """A run folder as the trainer, `toklab eval` and `toklab sample` leave it; `bits` is where its curve ends."""
    steps, vocab_size = 800, 258 if kind == "byte" else 4096
    per_token = {"attention": 4.1e6, "mlp": 14.2e6, "embedding": 0.0, "softmax": 1536.0 * vocab_size}
    per_token["total"] = sum(per_token.values())
    per_byte = per_token["total"] / bytes_per_token
    parameters = {"embedding": 256 * vocab_size, "attention": 1_050_000, "mlp": 2_360_000, "norms": 2304}
    parameters["total"] = sum(parameters.values())

    def point(step):
        seen, above = bytes_seen * step // steps, (8 - bits) * math.exp(-6 * step / steps) + 0.02
        return {"step": step, "bytes_seen": seen, "flops": seen * per_byte, "bits_per_byte": bits + above}

    def score(number, num_bytes, num_documents):
        size = {"num_bytes": num_bytes, "num_documents": num_documents}
        return {"bits_per_byte": number, "interval_95": [number - 0.04, number + 0.05], **size}

    speed = {"bytes_per_second": 95_000.0 * bytes_per_token, "tokens_per_second": 95_000.0}
    summary = {
        "name": name,
        "state": state,
        "steps": steps,
        **point(steps),
        **speed,
        "representation": {
            "kind": kind,
            "vocab_size": vocab_size,
            "fingerprint": "f" * 64,
            "bytes_per_token": bytes_per_token,
            "costs": {} if kind == "byte" else {"fit_flops": 2e12, "encode_flops_per_id": 0.0},
            "statistics": {} if kind == "byte" else {"stop_bits_per_byte": 0.05, "closing_bits_per_byte": 0.25},
        },
        "parameters": parameters,
        "flops_per_token": per_token,
        "flops_per_byte": per_byte,
        "tokens_seen": int(bytes_seen / bytes_per_token),
        "seconds": 118.2,
        "outside_step_share": 0.021,
        "skipped_steps": 0,
        "corpora": [{"path": "demo/corpus/train", "content_hash": corpus}],
        "device": "cpu x1",
        "versions": {"python": "3.11.2", "jax": "0.10.2"},
    }
    config = {
        "name": name,
        "seed": 0,
        "corpus": "demo/corpus/train",
        "representation": kind,
        "model": {"num_layers": 4, "embed_dim": 256},
        "budget": {"bytes": bytes_seen},
    }
    of_step = {
        "tokens_seen": 1,
        "loss": 1.4,
        "learning_rate": 1e-3,
        "grad_norm": 0.7,
        "step_seconds": 0.14,
        "data_wait_seconds": 0.001,
        "mfu": None,
    }
    metrics = [point(step) | speed | of_step for step in range(5, steps + 1, 5)]
    metrics[3]["bits_per_byte"] = None
    folder.mkdir(parents=True)
    dump(folder / "config.json", config)
    dump(folder / "summary.json", summary)
    dump_lines(folder / "metrics.jsonl", metrics)
    dump_lines(folder / "eval.jsonl", [point(step) | {"num_bytes": 65_536} for step in range(80, steps + 1, 80)])
    if evaluated:
        domains = {"code": score(bits - 0.2, 400_000, 60), "docs": score(bits + 0.2, 600_000, 80)}
        dump(
            folder / "eval.json",
            point(steps)
            | score(bits, 1_000_000, 140)
            | {
                "num_tokens": 7,
                "total_nats": 1.0,
                "corpus_content_hash": corpus,
                "by_domain": domains,
                "text": {"bytes_per_id": bytes_per_token, "uniform_bits_per_byte": 8.0, "unigram_bits_per_byte": 4.6},
            },
        )
    if samples:
        text = "import os\n\ndef path_of(name):\n    return os.path.join(name, '<root>')\n"
        settings = {"temperature": 0.8, "top_k": 40, "top_p": None, "seed": 0, "step": steps}
        dump(folder / "samples.json", [{"prompt": text[:9], "text": text[9:], **settings}])
    return folder


def dump(path, value):
    path.write_text(json.dumps(value))


def dump_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def edit(path, **changes):
    dump(path, json.loads(path.read_text()) | changes)


@pytest.fixture
def runs(tmp_path):
    """A byte arm, a clearly better subword arm, and one that was stopped and not evaluated."""
    begun = {"evaluated": False, "state": "stopped", "samples": False}
    folder = tmp_path / "runs"
    return [
        make_run(folder / "byte", "byte", bits=2.31),
        make_run(folder / "subword-4k", "subword-4k", kind="subword", bits=2.02, bytes_per_token=3.7),
        make_run(folder / "unigram-4k", "unigram-4k", kind="subword", bits=2.11, bytes_per_token=3.5, **begun),
    ]


@pytest.fixture
def experiment(tmp_path):
    """(folders, design) of two arms x two sizes x two seeds, evaluated document by document and under noise."""
    folders, places = [], []
    for arm, kind, bits in (("byte", "byte", 2.3), ("subword-4k", "subword", 2.0)):
        for size, gain in (("small", 0.0), ("large", 0.4)):
            for seed in (0, 1):
                folder = make_run(
                    tmp_path / "runs" / f"{arm}-{size}-s{seed}",
                    f"{arm}-{size}-s{seed}",
                    kind=kind,
                    bits=bits - gain + 0.01 * seed,
                    bytes_per_token=1.0 if kind == "byte" else 3.7,
                    bytes_seen=20_000_000 if size == "small" else 80_000_000,
                )
                add_documents_and_noise(folder, bits - gain + 0.01 * seed)
                folders.append(folder)
                places.append((arm, size, seed))
    return folders, Design(
        name="mine",
        budget="bytes",
        arms=("byte", "subword-4k"),
        sizes=("small", "large"),
        num_seeds=2,
        places=tuple(places),
    )


def add_documents_and_noise(folder: pathlib.Path, bits: float):
    """What `toklab eval --noise` leaves besides: 140 documents, the later the harder."""
    evaluation = json.loads((folder / "eval.json").read_text())
    of = {key: evaluation[key] for key in ("step", "corpus_content_hash")}
    sizes = [7142] * 140
    dump(
        folder / "eval_documents.json",
        of
        | {
            "nats": [(bits + 0.001 * (number - 69.5)) * math.log(2) * size for number, size in enumerate(sizes)],
            "num_bytes": sizes,
            "domains": ["code"] * 60 + ["docs"] * 80,
            "scripts": ["Latin"] * 100 + ["Cyrillic"] * 40,
        },
    )
    dump(
        folder / "noise.json",
        of
        | {
            "levels": [
                {"rate": rate, "bits_per_byte": bits + rate, "accuracy": 0.7 - rate} for rate in (0.0, 0.05, 0.15)
            ]
        },
    )
    dump(
        folder / "eval.json",
        evaluation
        | {
            "costs": {
                "train_flops_per_byte": 3e6,
                "generate_flops_per_byte": 1e6 / bits,
                "kv_cache_bytes_per_byte": 1000.0,
                "encode_flops_per_byte": 0.0,
                "generator_flops_per_byte": 0.0,
            },
            "num_documents_in_training": 0,
        },
    )


def page_of(report) -> str:
    return report.index.read_text()


def text_of(report) -> str:
    """What the page says, without its markup and script."""
    text = re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(script|style)>.*?</\1>", "", page_of(report)))
    return html.unescape(text).replace("\N{NARROW NO-BREAK SPACE}", " ")


# ---- What it says --------------------------------------------------------------------------------


def test_page_csv_and_json_hold_the_same_ranked_rows(runs, tmp_path):
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
def test_finding_says_whether_the_intervals_overlap(tmp_path, bits, says):
    folders = [make_run(tmp_path / name, name, bits=score) for name, score in zip("ab", bits, strict=True)]
    report = write_report(folders, tmp_path / "out")
    start = f"a has the lowest bits per byte, 2.000 (95 % interval 1.960 to 2.050); next is b, {bits[1]:.3f} "
    assert report.findings[0].startswith(start) and report.findings[0].endswith(says)
    assert report.findings[0] in text_of(report)


def test_one_arm_is_no_comparison(tmp_path):
    report = write_report([make_run(tmp_path / "a", "a")], tmp_path / "out")
    finding = "Bits per byte of a: 2.000 (95 % interval 1.960 to 2.050). No other arm has been evaluated on this text"
    assert finding in text_of(report)
    assert "Budgets" not in text_of(report)


def test_budgets_are_stated(tmp_path):
    same = [make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b", kind="subword", bytes_per_token=3.7)]
    says = text_of(write_report(same, tmp_path / "out"))
    assert "Budgets: the same bytes seen, 20.0 MB; different FLOPs spent, 133 TFLOP (b) to 374 TFLOP (a)." in says
    unequal = text_of(write_report([*same, make_run(tmp_path / "c", "c", bytes_seen=30_000_000)], tmp_path / "out"))
    assert "different bytes seen" in unequal and "does not compare like with like" in unequal


def test_an_arm_without_evaluation_is_shown_but_not_ranked(runs, tmp_path):
    report = write_report(runs, tmp_path / "out")
    assert len(report.groups) == 1 and report.rows[-1]["bits_per_byte"] is None
    assert f"unigram-4k has not been evaluated, so it has no rank; run toklab eval {runs[2]}." in text_of(report)
    assert "not evaluated2.145 on a subset while training" in text_of(report)
    assert "unigram-4k (not evaluated)" in text_of(report)


def test_an_unfinished_run_and_a_stale_evaluation_are_named(runs, tmp_path):
    edit(runs[0] / "summary.json", steps=1200, bytes_seen=30_000_000)
    report = write_report(runs, tmp_path / "out")
    says = text_of(report)
    assert report.rows[1]["bytes_seen"] == 20_000_000  # those that its bits per byte took
    assert "unigram-4k has not finished: stopped at step 800." in says
    assert "byte was evaluated at step 800 and has trained to step 1,200" in says


def test_arms_on_different_texts_are_not_in_one_ranking(runs, tmp_path):
    other, undone = (make_run(tmp_path / name, name, bits=1.2, corpus=name[0] * 64) for name in ("data", "echo"))
    (undone / "eval.json").unlink()
    report = write_report([*runs, other, undone], tmp_path / "out")
    groups = [[arm.label for arm in group.arms] for group in report.groups]
    assert groups == [["data"], ["subword-4k", "byte", "unigram-4k"], ["echo"]]
    named = "data: dddddddddddd; subword-4k, byte, unigram-4k: cccccccccccc; echo: eeeeeeeeeeee"
    assert f"The arms have different held-out texts ({named})." in text_of(report)
    assert report.findings[1].startswith("Held-out text cccccccccccc: subword-4k has the lowest")
    assert report.findings[2] == "Held-out text eeeeeeeeeeee: Nothing to rank: no arm has been evaluated."
    assert page_of(report).count("<h2>Arms") == page_of(report).count("<h2>Charts") == 3


def test_a_curve_on_another_text_than_the_evaluation_is_not_drawn(runs, tmp_path):
    evaluated_elsewhere = {"corpus_content_hash": "c" * 64 + "+" + "d" * 64}
    edit(runs[0] / "eval.json", **evaluated_elsewhere)
    edit(runs[1] / "eval.json", **evaluated_elsewhere)
    page, says = (of(write_report(runs[:2], tmp_path / "out")) for of in (page_of, text_of))
    assert "byte was evaluated on another text than its curve, which is therefore not drawn" in says
    assert "a subset of another text, while training" in says and "(cccccccccccc+dddddddddddd)" in says
    held_out = page[page.index("<h2>Charts") : page.index("<details><summary>The points")]
    assert held_out.count('class="mark final ') == 4 and 'class="mark some ' not in held_out


def test_curves_on_different_subsets_are_stated(runs, tmp_path):
    assert "different subsets" not in text_of(write_report(runs, tmp_path / "out"))
    lines = [json.loads(line) | {"num_bytes": 1_000} for line in (runs[0] / "eval.jsonl").read_text().splitlines()]
    dump_lines(runs[0] / "eval.jsonl", lines)
    says = text_of(write_report(runs, tmp_path / "out"))
    assert "held-out text cccccccccccc: they are on different subsets (1.00 kB and 65.5 kB)." in says


def test_different_training_corpora_and_devices_are_stated(runs, tmp_path):
    edit(runs[0] / "summary.json", corpora=[{"path": "elsewhere", "content_hash": "b" * 64}], device="v5e x8")
    says = text_of(write_report(runs, tmp_path / "out"))
    assert "trained on different corpora" in says and "ran on different devices" in says


def test_goodput_is_shown_with_where_the_rest_went(runs, tmp_path):
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


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path):
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


def test_every_number_may_be_null(runs, tmp_path):
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


def test_a_run_that_has_only_begun(runs, tmp_path):
    for name in ("metrics.jsonl", "eval.jsonl"):
        (runs[2] / name).unlink()
    assert "No evaluation to draw." in text_of(write_report(runs[2:], tmp_path / "out"))


def test_console_table_fits_80_columns_and_takes_no_markup(runs, tmp_path):
    edit(runs[0] / "summary.json", name="[b]byte[/]")
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(console_table(write_report(runs, tmp_path / "out")))
    printed = console.file.getvalue()
    for shown in ("[b]byte[/] 2.310 2.270–2.360 258 1.00", "unigram-4k – unevaluated 4,096", "do not overlap."):
        assert shown in re.sub(r"\s+", " ", printed)
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80


# ---- What it is made of -----------------------------------------------------------------------------


def test_page_is_well_formed_and_self_contained(runs, tmp_path, assert_harmless):
    assert_harmless(page_of(write_report(runs, tmp_path / "out")))


def hostile(value):
    """`value` with every text in it, keys of open-ended objects included, turned against the page."""
    if isinstance(value, dict):
        open_ended = {"docs", "code", "python", "jax", "attention", "mlp", "softmax"}
        return {HOSTILE + key if key in open_ended else key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


def hostile_runs(tmp_path) -> list:
    folders = [make_run(tmp_path / name, name, evaluated=name != "c") for name in "abc"]
    for path in (path for folder in folders for path in folder.glob("*.json")):
        dump(path, hostile(json.loads(path.read_text())))
    return folders


def test_text_of_a_run_stays_text(tmp_path, assert_harmless):
    report = write_report(hostile_runs(tmp_path), tmp_path / "out")
    page = page_of(report)
    assert_harmless(page)
    assert page.count("&lt;script&gt;window.stung = 1&lt;/script&gt;") > 20
    assert not re.search("[\ud800-\udfff\u202e\x1b]", page)
    rich.console.Console(file=io.StringIO()).print(console_table(report))
    for row in csv.DictReader((tmp_path / "out/report.csv").open()):
        assert "window.stung" in row["arm"]


def test_csv_holds_no_formula(tmp_path):
    folder = make_run(tmp_path / "a", "=HYPERLINK(1)")
    write_report([folder], tmp_path / "out")
    assert next(csv.DictReader((tmp_path / "out/report.csv").open()))["arm"] == "'=HYPERLINK(1)"


def line(points, **final):
    return chart.Line(label="a", style=0, points=points, **final)


def positions(figure, kind):
    """Where the marks of a kind are, in a figure with one chart."""
    assert figure.count('<svg class="chart') == 1
    return [tuple(map(float, at)) for at in re.findall(rf'class="mark {kind} [^>]*translate\((\S+) (\S+)\)', figure)]


def test_a_chart_puts_points_where_they_belong():
    axis = chart.Axis("bytes_seen", "bytes seen", "B")
    curve = [(100, 8.0), (500, 3.0), (900, 2.0)]
    figure = chart.figure("Chart", [line(curve, final=[(900, 2.1)], intervals=[[1.9, 2.4]])], axis)
    (left, upper), (right, lower) = positions(figure, "some")  # the early value is above the frame
    assert chart._TOP < upper < lower < chart._BOTTOM and right == chart._RIGHT
    assert (left - chart._LEFT) / (right - chart._LEFT) == pytest.approx(5 / 9, abs=1e-3)
    [(final_x, final_y)] = positions(figure, "final")
    assert final_x == right and (lower - final_y) / (lower - upper) == pytest.approx(0.1, abs=2e-3)
    assert "bits per byte 2.100, 95 % interval 1.900 to 2.400" in figure
    [(x, y)] = positions(chart.figure("Chart", [line([(5, 2.0)])], axis), "some")
    assert (x, y) == (chart._RIGHT, (chart._TOP + chart._BOTTOM) / 2)
    decade = chart.figure("Chart", [line([(10, 2.0), (100, 1.0)])], axis)
    assert decade.count('<svg class="chart logarithmic') == decade.count('<svg class="chart linear') == 1
    assert chart.figure("Chart", [line([])], axis) == ""


def test_lines_look_different_without_colour():
    looks = {re.sub(r"color-\d", "", chart.key(style)) for style in range(20)}
    assert len(looks) == 20


@hypothesis.settings(deadline=None)
@hypothesis.given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_ticks_are_a_few_and_within(low, span):
    hypothesis.assume(span > 1e-6 * abs(low))
    high = low + span
    ticks = chart._ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks == sorted(ticks)
    assert all(low - 1e-9 * abs(low) - 1e-9 * span <= tick <= high + 1e-9 * abs(high) + 1e-9 * span for tick in ticks)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.floats(1e-3, 1e24), st.floats(10, 1e9))
def test_log_ticks_are_a_few_and_within(low, ratio):
    ticks = chart._log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(low <= tick <= low * ratio for tick in ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (0.5, "0.500 B"),
        (258, "258 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (1000, "1.00 kB"),
        (20_000_000, "20.0 MB"),
        (4.1e24, "4.10 YB"),
    ],
)
def test_si(value, shown):
    assert chart.si(value, "B") == shown.replace(" ", "\N{NARROW NO-BREAK SPACE}")


# ---- Bad input --------------------------------------------------------------------------------------


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_values(file, **changes):
    return lambda folder: edit(folder / file, **changes)


POINT = '{"step": 1, "bytes_seen": 1, "flops": 1, "bits_per_byte": 1, "num_bytes": 1}\n'


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            without("config.json"),
            "byte is not a run: it has no config.json; make one with `toklab train RECIPE --run-dir ",
        ),
        (without("summary.json"), "byte has no summary.json: it still trains or was cut off; wait, or go on with `"),
        (shutil.rmtree, "byte is not a run: it does not exist; make"),
        (with_text("config.json", "{"), "config.json is not a readable run: "),
        (with_text("summary.json", "nope"), "summary.json is not a readable run: "),
        (with_text("summary.json", "[]"), "summary.json: [] should be an object; the file is damaged or "),
        (with_text("summary.json", "{}"), "summary.json lacks name, state, device, "),
        (with_values("summary.json", flops="many"), "summary.json: flops: 'many' should be a finite number or null"),
        (with_values("summary.json", flops=True), "flops: True should be a finite number or null"),
        (with_values("summary.json", flops=math.nan), "flops: nan should be a finite number or null"),
        (with_values("summary.json", flops=10**400), "000 should be a finite number or null"),
        (with_values("summary.json", name=["x"]), "summary.json: name: ['x'] should be a text"),
        (with_values("summary.json", parameters={"total": 1, "mlp": "x"}), "parameters: mlp: 'x' should be a "),
        (with_values("eval.json", interval_95=[1.0]), "eval.json: interval_95: [1.0] should be two numbers or null"),
        (with_values("eval.json", interval_95=[1.0, None]), "interval_95: [1.0, None] should be two numbers or null"),
        (with_values("eval.json", by_domain={"a\nb": {}}), "eval.json: by_domain: a b lacks bits_per_byte, "),
        (with_text("samples.json", "{}"), "samples.json: {} should be a list"),
        (with_text("metrics.jsonl", '{"step": 1}\n'), "metrics.jsonl line 1 lacks bytes_seen, "),
        (with_text("eval.jsonl", POINT + POINT[:20]), "eval.jsonl line 2 is damaged: "),
        (with_text("eval.jsonl", POINT[:20]), "; remove that line or train again"),
        (with_text("eval.jsonl", "[" * 100_000), "eval.jsonl line 1 is damaged: "),
        (with_text("eval.jsonl", "\n" + POINT), "eval.jsonl line 1 is damaged: "),
    ],
)
def test_damage_is_named_and_nothing_is_written(tmp_path, damage, says):
    folder = make_run(tmp_path / "byte", "byte")
    damage(folder)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        write_report([folder], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_half_written_last_line_of_an_unfinished_run_is_left_out(runs, tmp_path):
    with (runs[2] / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 80')
    write_report(runs, tmp_path / "out")
    edit(runs[2] / "summary.json", state="finished")
    with pytest.raises(UserError, match="metrics.jsonl line 161 is damaged"):
        write_report(runs, tmp_path / "out")


def test_runs_given_wrongly(runs, tmp_path):
    with pytest.raises(UserError, match="no runs were given; name one folder or more"):
        write_report([], tmp_path / "out")
    with pytest.raises(UserError, match="byte was given 2 times"):
        write_report([runs[0], runs[1], runs[0].parent / "." / "byte"], tmp_path / "out")
    with pytest.raises(UserError, match="config.json is not a run: it is not a folder"):
        write_report([runs[0] / "config.json"], tmp_path / "out")


def test_out_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(UserError, match="cannot write .*; .*choose another folder") as caught:
            write_report(runs, out)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


# ---- An experiment -------------------------------------------------------------------------------


def test_page_of_an_experiment_begins_with_what_is_supported(experiment, tmp_path):
    folders, design = experiment
    report, decided = write_decision(folders, tmp_path / "out", design)
    text = text_of(report)
    assert "mine: 2 arms, 2 sizes, 2 seeds" in text
    order = [
        "What the numbers support",
        "What they do not",
        "Results",
        "Bits per byte against compute and text",
        "Laws",
        "Domains and scripts at size large",
        "Costs",
        "Noise",
        "Every run by itself",
    ]
    assert [text.index(title) for title in order] == sorted(text.index(title) for title in order)
    assert (
        "Size large, equal bytes of text: subword-4k has the lowest bits per byte of 2 arms" in text
        and "clearly ahead of byte by 0.300" in text
    )
    for shown in ("1.605", "0.300", "yes", "70.0 %", "Cyrillic", "525 kFLOPs"):
        assert shown in text, shown
    in_csv = list(csv.DictReader((tmp_path / "out/decision.csv").open()))
    assert [(row["size"], row["arm"]) for row in in_csv] == [
        (size, arm) for size in ("small", "large") for arm in ("subword-4k", "byte")
    ]
    decision = json.loads((tmp_path / "out/report.json").read_text())["decision"]
    assert decision["supported"] == supported(decided) and float(in_csv[2]["bits_per_byte"]) == decision["arms"][2][
        "bits_per_byte"
    ] == pytest.approx(1.605)
    assert set(decision["laws"]) == {"subword-4k", "byte"} and decision["laws"]["byte"]["slope"] < 0


def test_encoders_of_an_experiment_have_a_table_of_their_own(experiment, tmp_path):
    folders, design = experiment
    for folder in folders[-2:]:
        detected = {
            "detection_nats": 0.3 + 0.02 * (folder is folders[-1]),
            "always_real_nats": 0.42,
            "auc": 0.7,
            "predicted_nats": None,
            "predicted_right": None,
        }
        edit(folder / "eval.json", bits_per_byte=None, interval_95=None, by_domain={}, encoder=detected)
    text = text_of(write_decision(folders, tmp_path / "out", design)[0])
    assert "What encoders detect and predict" in text and "0.3100" in text and "0.183 to 0.437" in text
    assert "Encoders have no bits per byte and are not ranked (subword-4k)" in text


def test_runs_that_are_missing_are_said(experiment, tmp_path):
    folders, design = experiment
    report, decided = write_decision(
        folders[:-1], tmp_path / "out", dataclasses.replace(design, places=design.places[:-1])
    )
    assert "subword-4k of size large is in no table yet: 1 of its 2 runs are finished and evaluated." in text_of(report)


def test_documents_of_another_evaluation_do_not_count(experiment, tmp_path):
    folders, design = experiment
    for folder in folders:
        edit(folder / "eval_documents.json", step=1)
    assert "nothing to compare" in text_of(write_decision(folders, tmp_path / "out", design)[0])


@pytest.mark.parametrize("changes", [{"nats": [1.0]}, {"num_bytes": [None] * 140}, {"nats": "x"}])
def test_damaged_documents_are_said(experiment, tmp_path, changes):
    edit(experiment[0][0] / "eval_documents.json", **changes)
    with pytest.raises(UserError, match="eval_documents.json"):
        write_decision(experiment[0], tmp_path / "out", experiment[1])


def test_two_runs_on_the_same_documents_are_told_apart_in_pairs(experiment, tmp_path):
    """Their intervals overlap; each document costs one of them more."""
    folders, _ = experiment
    found = write_report([folders[0], folders[1]], tmp_path / "out").findings[0]
    assert (
        "On the same documents byte-small-s1 is behind by 0.010 to 0.010 (95 %, a bootstrap over documents; other seeds"
        " may differ)." in found
    )


def test_documents_that_were_trained_on_are_warned_of(experiment, tmp_path):
    edit(experiment[0][0] / "eval.json", num_documents_in_training=3)
    assert "3 of the held-out documents of byte-small-s0 are also among those it was trained on" in text_of(
        write_report(experiment[0], tmp_path / "out")
    )


# ---- In a browser -----------------------------------------------------------------------------------


SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ORDER = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].dataset.value)"
SORTED = "[...document.querySelector('table').querySelectorAll('[aria-sort]')].map(head => head.ariaSort)"
SHOWN = "[...document.querySelector('.charts').querySelectorAll('.chart')].map(c => getComputedStyle(c).display)"
MARK = "JSON.stringify(document.querySelector('.chart .mark.final').getBoundingClientRect())"
PAPER = "getComputedStyle(document.body).backgroundColor"


def test_page_in_chromium(runs, tmp_path, browser):
    report = write_report(runs, tmp_path / "out")
    for width in (390, 1280):
        browser.open(report.index, width)
        assert browser.javascript(SIDEWAYS) <= 0
    paper = browser.javascript(PAPER)
    assert browser.javascript(ORDER) == ["subword-4k", "byte", "unigram-4k"]

    for order in (["byte", "subword-4k", "unigram-4k"], ["unigram-4k", "subword-4k", "byte"]):
        browser.javascript("document.querySelectorAll('th button')[0].click()")
        assert browser.javascript(ORDER) == order
    assert browser.javascript(SORTED) == ["descending"]

    browser.javascript("document.querySelectorAll('th button')[1].focus()")
    for order in (["subword-4k", "byte", "unigram-4k"], ["byte", "subword-4k", "unigram-4k"]):
        browser.press("Enter")
        assert browser.javascript(ORDER) == order  # the arm without a value is last either way
    assert browser.javascript("document.activeElement.parentElement.ariaSort") == "descending"

    browser.javascript("document.querySelector('.chart').scrollIntoView()")
    box = json.loads(browser.javascript(MARK))
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert "all held-out documents: bytes seen 20.0" in browser.javascript("document.getElementById('tip').textContent")
    assert browser.javascript("document.getElementById('tip').hidden") is False

    assert browser.javascript(SHOWN) == ["block", "none"] * 2
    browser.javascript("document.querySelector('.log input').click()")
    assert browser.javascript(SHOWN) == ["none", "block"] * 2

    browser.open(report.index, 1280, dark=True)
    assert browser.javascript(PAPER) != paper
    browser.assert_quiet()


TABLES = """[...document.querySelectorAll('body section table')].filter(table => !table.closest('details')).map(
    table => [...table.tBodies[0].rows].map(row => row.cells[0].dataset.value))"""


def test_page_of_an_experiment_in_chromium(experiment, tmp_path, browser):
    folders, design = experiment
    report, decided = write_decision(folders, tmp_path / "out", design)
    for width in (390, 1280):
        browser.open(report.index, width)
        assert browser.javascript(SIDEWAYS) <= 0
    results = browser.javascript(TABLES)[0]
    assert results == ["subword-4k", "byte"] * 2, "largest size first, best first"
    browser.javascript("document.querySelectorAll('th button')[0].focus()")
    browser.press("Enter")
    assert browser.javascript(TABLES)[0] == ["byte", "byte", "subword-4k", "subword-4k"]
    charts = (
        "[...document.querySelectorAll('.charts')].filter(charts =>"
        " !charts.closest('details'))[0].querySelectorAll('.chart.linear')"
    )
    assert browser.javascript(f"{charts}.length") == 6, (
        "all held-out text and two sizes while training, against FLOPs and bytes"
    )
    assert (
        browser.javascript(f"[...{charts}].every(chart => chart.role === 'img' && chart.ariaLabel.length > 20)") is True
    )
    browser.javascript("document.querySelector('.chart').scrollIntoView()")
    box = json.loads(browser.javascript(MARK))
    browser(
        "Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] / 2, y=box["y"] + box["height"] / 2
    )
    assert "95 % interval" in browser.javascript("document.getElementById('tip').textContent")
    browser.assert_quiet()


def test_hostile_page_in_chromium(tmp_path, browser):
    report = write_report(hostile_runs(tmp_path), tmp_path / "out")
    for width in (390, 1280):
        browser.open(report.index, width)
        assert browser.javascript(SIDEWAYS) <= 0
    assert browser.javascript("window.stung") is None
    assert browser.javascript("document.images.length + document.scripts.length") == 1
    browser.assert_quiet()
