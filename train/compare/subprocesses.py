"""Commands of `toklab` in processes of their own, so that this one holds no device and no model's memory."""

import sys
from collections.abc import Sequence

import rich.console
from etils import epath

from tokenizer_lab.files import is_remote
from train.submit.local import Local, launch


def toklab(words: Sequence[str], logs: epath.Path, console: rich.console.Console) -> int:
    """Runs a command of `toklab` in a process of its own and shows what it says; returns its exit code. Raises
    UserError where it fails."""
    logs = epath.Path("toklab-logs") / logs.name if is_remote(logs) else logs
    return launch([sys.executable, "-m", "train.commands.cli", *words], Local(max_restarts=0), logs, lambda: 0, console)
