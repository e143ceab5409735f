"""`toklab COMMAND ...`: finds the command, and turns every error into one line and an exit code.

A command is the module of its name in this folder, with a function `run(arguments)`. It is imported when it is called
for, so that help and mistakes take no time.

Exit codes: 0 done, 2 the person can mend it (one line on stderr), 75 stopped by a signal, what was trained is saved
(start it again), 76 another host was lost, or something took longer than its deadline (start it again), 130
interrupted.
"""

import importlib
import logging
import sys
import threading
import traceback
from collections.abc import Sequence

from tokenizer_lab.errors import UserError
from train.commands.out_of_memory import REMEDIES, out_of_memory
from train.exits import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USER_ERROR, interruptible_import
from train.nearest import nearest

COMMANDS = {
    "ingest": "text, jsonl or parquet -> a corpus store",
    "fit": "learn a representation's artifact from a corpus",
    "encode": "write down the ids of a corpus's documents, for runs that would encode them again and again",
    "train": "train a recipe; goes on by itself where the run folder has a checkpoint",
    "plan": "what a recipe's training step takes on TPUs: memory, FLOPs, collectives, time",
    "submit": "train a recipe on other machines, or in several processes here, restarted as needed",
    "eval": "bits per byte of a run over all held-out text",
    "sample": "text from a run",
    "finetune": "a run with a new head, on a task of labelled sentences or pairs",
    "blimp": "how often a run prefers the better sentence of a minimal pair",
    "report": "many runs -> one page, CSV and JSON",
    "compare": "an experiment: plans its runs, does what is missing, ends in one report",
    "inspect": "what representations do to a text: metrics, and the text cut into tokens",
    "export": "a run as a folder that Hugging Face transformers loads",
}


def run(arguments: Sequence[str]) -> int:
    """Runs `toklab` with the arguments behind its name; returns the exit code."""
    silence_libraries()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return 0
        name, *arguments = arguments
        if name not in COMMANDS:
            raise UserError(f"no command {name!r}{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
        with interruptible_import():
            command = importlib.import_module(f"train.commands.{name}")
        return command.run(arguments) or 0
    except UserError as error:
        print(f"toklab: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("toklab: interrupted; what was committed before is whole", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_INTERRUPTED
    except Exception as error:
        if (reason := out_of_memory(error)) is not None:
            print(f"toklab: out of memory ({reason}); {REMEDIES[name]}", file=sys.stderr)
            return EXIT_USER_ERROR
        if scheme := _unknown_scheme(error):
            print(
                f"toklab: {scheme} is no object store; give gs://BUCKET/FOLDER or a path of this machine",
                file=sys.stderr,
            )
            return EXIT_USER_ERROR
        traceback.print_exc()  # ours: everything that can be seen of it
        return EXIT_BUG


def _unknown_scheme(error: Exception) -> str | None:
    """What etils, which all paths go through, does not know, e.g. "foo://"."""
    scheme = error.args[0] if isinstance(error, KeyError) and error.args else None
    return scheme if isinstance(scheme, str) and scheme.endswith("://") else None


def usage() -> str:
    lines = ["usage: toklab COMMAND ...", ""]
    lines += [f"  {name:8} {description}" for name, description in COMMANDS.items()]
    return "\n".join([*lines, "", "toklab COMMAND --help shows a command's options."])


def silence_libraries() -> None:
    """What goes wrong reaches a person as our one line; the tracebacks that libraries log or print from their threads
    do not."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None
    sys.excepthook = lambda *_: None  # native code prints through it; what reaches `run` is shown there
