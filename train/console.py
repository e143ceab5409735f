"""What terminals show: lines as they are, the one look of tables, and durations."""

from collections.abc import Iterator, Sequence
from typing import Any

import rich.box
import rich.cells
import rich.console
import rich.segment
import rich.table
import rich.text


def say(console: rich.console.Console, what: "str | NamedRows", end: str = "\n", style: str | None = None) -> None:
    """Prints a table, or a line as it is: what a person has named is no markup, nothing is wrapped, and tabs stay
    tabs."""
    if isinstance(what, NamedRows):
        console.print(what)
        return
    text = rich.segment.Segment(what + end, console.get_style(style) if style else None)
    console.print(rich.segment.Segments([text]), end="", soft_wrap=True)


class NamedRows:
    """A table of rows with names: names on the left, numbers on the right.

    No name and no number is broken in two. Where the columns do not fit beside each other, the rest goes on below,
    under the same names. Cells are texts, never markup.

    Args:
      first: title of the names.
      titles: of the columns with numbers.
      words: title of a last column that holds words and may wrap between them.
      caption: lines below the table.
    """

    def __init__(self, first: str, *titles: str, words: str | None = None, caption: str = ""):
        self._titles = [first, *titles, *([] if words is None else [words])]
        self._words = None if words is None else len(self._titles) - 1
        self._rows: list[Sequence[rich.text.Text]] = []
        self._section_ends: set[int] = set()
        self.caption = caption

    def add_row(self, name: str, *cells: str, style: str = "") -> None:
        """A row; the cells of missing columns are empty."""
        cells += ("",) * (len(self._titles) - 1 - len(cells))
        self._rows.append([rich.text.Text(text, style=style) for text in (name, *cells)])

    def add_section(self) -> None:
        """A line below the rows so far, if more are coming."""
        self._section_ends.add(len(self._rows) - 1)

    def __rich_console__(self, console: rich.console.Console, options: rich.console.ConsoleOptions) -> Iterator[Any]:
        widths = [self._width(column) for column in range(len(self._titles))]
        widths[0] = min(widths[0], max(1, options.max_width - 2 - max(widths[1:])))  # a longer name has to be folded
        for columns, space in _blocks(widths, options.max_width):
            yield self._table(columns, space, widths[0])
        if self.caption:
            yield rich.text.Text(self.caption, style="table.caption")

    def _width(self, column: int) -> int:
        texts = [self._titles[column], *(row[column].plain for row in self._rows)]
        pieces = (piece for text in texts for piece in (text.split() if column == self._words else text.split("\n")))
        return max(map(rich.cells.cell_len, pieces), default=0)

    def _table(self, columns: Sequence[int], space: int, name_width: int) -> rich.table.Table:
        # The border between columns is a space too.
        table = rich.table.Table(
            box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, space - 1, 0, 0), pad_edge=False
        )
        for column in columns:
            title = rich.text.Text(self._titles[column])
            if column == self._words:
                table.add_column(title)
            elif column:
                table.add_column(title, justify="right", no_wrap=True)
            else:
                table.add_column(title, overflow="fold", width=name_width)
        for number, row in enumerate(self._rows):
            table.add_row(*(row[column] for column in columns), end_section=number in self._section_ends)
        return table


def _blocks(widths: Sequence[int], width: int) -> list[tuple[list[int], int]]:
    """Which columns stand beside each other, the names in every block, and with how much space between them."""
    everything = list(range(len(widths)))
    for space in (2, 1):
        if sum(widths) + space * (len(widths) - 1) <= width:
            return [(everything, space)]
    blocks, left = [[0]], width - widths[0]
    for column in everything[1:]:
        left -= 2 + widths[column]
        if left < 0 and len(blocks[-1]) > 1:
            blocks.append([0])
            left = width - widths[0] - 2 - widths[column]
        blocks[-1].append(column)
    return [(block, 2) for block in blocks]


def duration(seconds: float) -> str:
    """`5400 -> "1.5 h"`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
