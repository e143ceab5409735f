"""`toklab blimp RUN --pairs FILE`: how often a run prefers the better sentence of a minimal pair."""

import rich.console

from train.commands.options import parse
from train.commands.terminal import progress_bar
from train.console import say
from train.evaluate.minimal_pairs import MinimalPairsOptions, score_minimal_pairs


def run(arguments: list[str]) -> None:
    options, console = parse(MinimalPairsOptions, arguments, "blimp"), rich.console.Console()
    with progress_bar(console, "blimp", of_bytes=False) as update:
        result = score_minimal_pairs(options, update)
    for paradigm, share in result["by_paradigm"].items():
        say(console, f"{options.run}  {paradigm:56} {share:.3f}")
    say(
        console,
        f"{options.run}  {'all':56} {result['accuracy']:.3f}  {result['num_pairs']:,} pairs, by {result['score']}",
    )
