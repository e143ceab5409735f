"""`toklab finetune RUN --task FILE`: a run with a new head, on labelled sentences or pairs."""

import rich.console

from train.commands.options import parse
from train.commands.terminal import progress_bar
from train.console import say
from train.evaluate.finetune import FinetuneOptions, finetune


def run(arguments: list[str]) -> None:
    options, console = parse(FinetuneOptions, arguments, "finetune"), rich.console.Console()
    with progress_bar(console, "finetune", of_bytes=False) as update:
        result = finetune(options, update)
    if (rows := result["settings"]["batch_rows"]) != options.batch_rows:
        say(
            console,
            f"{options.run}  {rows} examples a step in place of {options.batch_rows}, for the devices to divide",
        )
    for metric, values in result["metrics"].items():
        say(
            console,
            f"{options.run}  {result['task']:12} {metric:10} median {values['median']:.4f}  [{values['low']:.4f},"
            f" {values['high']:.4f}]  {len(values['values'])} seeds, {result['num_dev']:,} examples",
        )
