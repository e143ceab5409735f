"""Pages harm nobody, whatever a run's texts are, and work in a browser."""

import csv
import io
import json
import re

import rich.console

from train.compare.decision_report import write_decision
from train.report.report import console_table, write_report

SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ORDER = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].dataset.value)"
SORTED = "[...document.querySelector('table').querySelectorAll('[aria-sort]')].map(head => head.ariaSort)"
SHOWN = "[...document.querySelector('.charts').querySelectorAll('.chart')].map(c => getComputedStyle(c).display)"
MARK = "JSON.stringify(document.querySelector('.chart .mark.final').getBoundingClientRect())"
PAPER = "getComputedStyle(document.body).backgroundColor"

TABLES = """[...document.querySelectorAll('body section table')].filter(table => !table.closest('details')).map(
    table => [...table.tBodies[0].rows].map(row => row.cells[0].dataset.value))"""


def test_page_is_well_formed_and_self_contained(runs, tmp_path, assert_harmless):
    assert_harmless(write_report(runs, tmp_path / "out").index.read_text())


def test_text_of_a_run_stays_text(tmp_path, assert_harmless, hostile_runs):
    report = write_report(hostile_runs, tmp_path / "out")
    page = report.index.read_text()
    assert_harmless(page)
    assert page.count("&lt;script&gt;window.stung = 1&lt;/script&gt;") > 20
    assert page.count("{{ title }}{% raw %}") > 20, "a text is no template"
    assert not re.search("[\ud800-\udfff\u202e\x1b]", page)
    rich.console.Console(file=io.StringIO()).print(console_table(report))
    for row in csv.DictReader((tmp_path / "out/report.csv").open()):
        assert "window.stung" in row["arm"]


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


def test_hostile_page_in_chromium(tmp_path, browser, hostile_runs):
    report = write_report(hostile_runs, tmp_path / "out")
    for width in (390, 1280):
        browser.open(report.index, width)
        assert browser.javascript(SIDEWAYS) <= 0
    assert browser.javascript("window.stung") is None
    assert browser.javascript("document.images.length + document.scripts.length") == 1
    browser.assert_quiet()
