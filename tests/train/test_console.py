"""Tables in a terminal: whole names at any usual width."""

import io
import pathlib
import re

import pytest
import rich.console

from train.console import NamedRows, say

NAMES = ("demo_subword", "demo_equal_info", "a_name_of_just_thirty_letters_")


def printed(table, width: int) -> list[str]:
    console = rich.console.Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()


def numbers(names=NAMES, **options) -> NamedRows:
    """As wide as the table of a report."""
    table = NamedRows("arm", "bits/\nbyte", "95 %\ninterval", "vocab", *(f"number\n{n}" for n in range(5)), **options)
    for name in names:
        table.add_row(name, "2.330", "2.182–2.470", "32,768", *(f"1.3{n} MB" for n in range(5)))
    return table


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_line_is_printed_as_it_is(is_terminal):
    line = "byte[/x]\tagreement[plural] [bold]:cat:[/bold] 1e-3 'quoted' {a} " + "a long path/" * 20
    console = rich.console.Console(width=30, file=io.StringIO(), force_terminal=is_terminal)
    say(console, line)
    say(console, "[red]", end="", style="bold")
    assert console.file.getvalue() == line + "\n" + ("\x1b[1m[red]\x1b[0m" if is_terminal else "[red]")


def test_no_text_goes_through_markup():
    """Rich takes a str for markup: nothing but tables may be given to it."""
    train = pathlib.Path(__file__).parents[2] / "train"
    sources = {path: path.read_text() for path in train.rglob("*.py") if path != train / "console.py"}
    printed = [call for text in sources.values() for call in re.findall(r"onsole\.print\((.*)", text)]
    assert len(printed) > 5 and not [call for call in printed if not re.match(r"\w+_table\(", call)]
    columns = [call for text in sources.values() for call in re.findall(r"TextColumn\((.*)\),\n", text)]
    assert len(columns) > 2 and all(call.endswith("markup=False") for call in columns)


@pytest.mark.parametrize("width", [60, 80])
def test_names_and_numbers_are_whole(width):
    lines = printed(numbers(), width)
    assert max(map(len, lines)) <= width
    blocks = [[line for line in lines if line.startswith(name)] for name in NAMES]
    assert len({len(block) for block in blocks}) == 1
    for name, block in zip(NAMES, blocks, strict=True):
        words = " ".join(line.removeprefix(name) for line in block).split()
        assert words == ["2.330", "2.182–2.470", "32,768", *(w for n in range(5) for w in (f"1.3{n}", "MB"))]
    assert not any(sign in line for line in lines for sign in "…")


def test_what_fits_stands_side_by_side():
    lines = printed(numbers(NAMES[:2]), 80)
    assert len([line for line in lines if line.startswith("demo_subword")]) == 1
    assert len(lines) == 2 + 1 + 2  # titles, a rule, rows


def test_a_column_of_words_wraps_between_them():
    table = NamedRows("arm", "steps", words="runs")
    table.add_row("byte", "1,000", "2 done, 1 cut off at step 1,000, 3 missing")
    lines = printed(table, 30)
    assert lines[2].startswith("byte") and max(map(len, lines)) <= 30
    assert " ".join(" ".join(lines[2:]).split()) == "byte 1,000 2 done, 1 cut off at step 1,000, 3 missing"


def test_nothing_is_taken_for_markup_and_a_name_wider_than_the_terminal_is_folded():
    table = NamedRows("[b]arm", "[red]x", caption="[i]below")
    table.add_row("[red]y" * 20, "[b]1")
    shown = "".join(line.strip() for line in printed(table, 40))
    for text in ("[b]arm", "[red]x", "[b]1", "[i]below"):
        assert text in shown
    assert shown.count("[red]y") >= 15
