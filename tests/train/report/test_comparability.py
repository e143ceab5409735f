"""What a reader must know before comparing: budgets, texts, unfinished runs, documents."""

import json

from train.report.report import write_report


def page_of(report) -> str:
    return report.index.read_text()


def test_budgets_are_stated(tmp_path, make_run, text_of):
    same = [make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b", kind="subword", bytes_per_token=3.7)]
    says = text_of(write_report(same, tmp_path / "out"))
    assert "Budgets: the same bytes seen, 20.0 MB; different FLOPs spent, 133 TFLOP (b) to 374 TFLOP (a)." in says
    unequal = text_of(write_report([*same, make_run(tmp_path / "c", "c", bytes_seen=30_000_000)], tmp_path / "out"))
    assert "different bytes seen" in unequal and "does not compare like with like" in unequal


def test_an_arm_without_evaluation_is_shown_but_not_ranked(runs, tmp_path, text_of):
    report = write_report(runs, tmp_path / "out")
    assert len(report.groups) == 1 and report.rows[-1]["bits_per_byte"] is None
    assert f"unigram-4k has not been evaluated, so it has no rank; run toklab eval {runs[2]}." in text_of(report)
    assert "not evaluated2.145 on a subset while training" in text_of(report)
    assert "unigram-4k (not evaluated)" in text_of(report)


def test_a_new_objective_of_decoders_is_not_taken_for_an_encoders(runs, tmp_path, edit, text_of):
    edit(runs[2] / "config.json", objective={"kind": "focal"})
    assert "not evaluated2.145 on a subset while training" in text_of(write_report(runs, tmp_path / "out"))


def test_an_unfinished_run_and_a_stale_evaluation_are_named(runs, tmp_path, edit, text_of):
    edit(runs[0] / "summary.json", steps=1200, bytes_seen=30_000_000)
    report = write_report(runs, tmp_path / "out")
    says = text_of(report)
    assert report.rows[1]["bytes_seen"] == 20_000_000  # those that its bits per byte took
    assert "unigram-4k has not finished: stopped at step 800." in says
    assert "byte was evaluated at step 800 and has trained to step 1,200" in says


def test_arms_on_different_texts_are_not_in_one_ranking(runs, tmp_path, make_run, text_of):
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


def test_a_curve_on_another_text_than_the_evaluation_is_not_drawn(runs, tmp_path, edit, text_of):
    evaluated_elsewhere = {"corpus_content_hash": "c" * 64 + "+" + "d" * 64}
    edit(runs[0] / "eval.json", **evaluated_elsewhere)
    edit(runs[1] / "eval.json", **evaluated_elsewhere)
    page, says = (of(write_report(runs[:2], tmp_path / "out")) for of in (page_of, text_of))
    assert "byte was evaluated on another text than its curve, which is therefore not drawn" in says
    assert "a subset of another text, while training" in says and "(cccccccccccc+dddddddddddd)" in says
    held_out = page[page.index("<h2>Charts") : page.index("<details><summary>The points")]
    assert held_out.count('class="mark final ') == 4 and 'class="mark some ' not in held_out


def test_curves_on_different_subsets_are_stated(runs, tmp_path, dump_lines, text_of):
    assert "different subsets" not in text_of(write_report(runs, tmp_path / "out"))
    lines = [json.loads(line) | {"num_bytes": 1_000} for line in (runs[0] / "eval.jsonl").read_text().splitlines()]
    dump_lines(runs[0] / "eval.jsonl", lines)
    says = text_of(write_report(runs, tmp_path / "out"))
    assert "held-out text cccccccccccc: they are on different subsets (1.00 kB and 65.5 kB)." in says


def test_different_training_corpora_and_devices_are_stated(runs, tmp_path, edit, text_of):
    edit(runs[0] / "summary.json", corpora=[{"path": "elsewhere", "content_hash": "b" * 64}], device="v5e x8")
    says = text_of(write_report(runs, tmp_path / "out"))
    assert "trained on different corpora" in says and "ran on different devices" in says


def test_two_runs_on_the_same_documents_are_told_apart_in_pairs(experiment, tmp_path):
    """Their intervals overlap; each document costs one of them more."""
    folders, _ = experiment
    found = write_report([folders[0], folders[1]], tmp_path / "out").findings[0]
    assert (
        "On the same documents byte-small-s1 is behind by 0.010 to 0.010 (95 %, a bootstrap over documents; other seeds"
        " may differ)." in found
    )


def test_documents_that_were_trained_on_are_warned_of(experiment, tmp_path, edit, text_of):
    edit(experiment[0][0] / "eval.json", num_documents_in_training=3)
    assert "3 of the held-out documents of byte-small-s0 are also among those it was trained on" in text_of(
        write_report(experiment[0], tmp_path / "out")
    )
