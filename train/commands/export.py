"""`toklab export RUN --to hf`: a run as a folder that Hugging Face transformers loads."""

import rich.console

from train.commands.options import parse
from train.console import say
from train.export.hugging_face import ExportOptions, export_run


def run(arguments: list[str]) -> None:
    options, console = parse(ExportOptions, arguments, "export"), rich.console.Console()
    with console.status("exporting"):
        result = export_run(options)
    for folder, architecture in result.architectures.items():
        say(console, f"{options.out / folder}  {architecture}")
    if result.checked is not None:
        same, total = result.checked
        say(
            console,
            f"{options.out}  the tokenizer gives the same ids for {same:,} of {total:,} documents of the corpus"
            + ("" if same == total else "; in the others it changes text, which is spelled in bytes here"),
        )
    if result.missing_corpora:
        say(
            console,
            f"{options.out}  the tokenizer was not checked on the run's text, which is not in"
            f" {', '.join(result.missing_corpora)} any more; to check it, put the text back there and export again",
        )
    if result.needs_code:
        say(
            console,
            f"{options.out}  its tokenizer is a Python file in the folder: AutoTokenizer.from_pretrained(...,"
            " trust_remote_code=True)",
        )
