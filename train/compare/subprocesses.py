"""Runs `toklab` commands in child processes, so that this process holds no device and no model."""

import sys
from collections.abc import Sequence

import rich.console
from etils import epath

from tokenizer_lab.files import is_remote
from train.submit.local import Local, launch


def toklab(words: Sequence[str], logs: epath.Path, console: rich.console.Console) -> int:
    """Runs a `toklab` command in a child process and shows its output. Returns its exit code. Raises UserError if it
    fails."""
    logs = epath.Path("toklab-logs") / logs.name if is_remote(logs) else logs
    return launch([sys.executable, "-m", "train.commands.cli", *words], Local(max_restarts=0), logs, lambda: 0, console)
