"""`toklab report RUN...`: many runs become one page, CSV and JSON."""

import rich.console

from train.commands.options import parse
from train.console import say
from train.report.report import ReportOptions, console_table, write_report


def run(arguments: list[str]) -> None:
    options, console = parse(ReportOptions, arguments, "report"), rich.console.Console()
    result = write_report(options.runs, options.out)
    console.print(console_table(result))
    say(console, f"{options.out / 'index.html'}")
