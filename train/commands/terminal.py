"""What commands show in a terminal while they work."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rich.console
import rich.progress

from train.console import say

STOPPED_AND_SAVED = "toklab: stopped by a signal; the state is saved, the same command goes on from there"


@contextlib.contextmanager
def progress_bar(console: rich.console.Console, what: str, *, of_bytes: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that is drawn on a terminal; yields `update(done, total)`."""
    columns = [
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
    ]
    columns += [rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()] if of_bytes else []
    with rich.progress.Progress(
        *columns, rich.progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def time_left(console: rich.console.Console, what: str, every_seconds: float = 30) -> Callable[[int, int], None]:
    """A function `tell(done, total)`, which says from time to time how much is done and how long the rest will take,
    where there is no terminal for a bar."""
    start_seconds = said_seconds = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said_seconds
        now = time.monotonic()
        if console.is_terminal or now - said_seconds < every_seconds or not done:
            return
        said_seconds = now
        minutes = (now - start_seconds) * (total - done) / done / 60
        say(console, f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB read, {minutes:,.1f} minutes left to read")

    return tell


@contextlib.contextmanager
def heartbeat(console: rich.console.Console, what: str, every_seconds: float = 30) -> Iterator[Callable[[], None]]:
    """Yields `begin()`, from which on a line says what takes so long and for how long, again and again: for work in a
    library that tells nothing until it is done."""
    began, ended = threading.Event(), threading.Event()

    def beat() -> None:
        began.wait()
        start_seconds = time.monotonic()
        while not ended.wait(every_seconds):
            seconds = time.monotonic() - start_seconds
            say(console, f"{what}, {seconds:.0f} s so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield began.set
    finally:
        ended.set()
        began.set()
        thread.join()


def show_config(config: dict[str, Any], console: rich.console.Console) -> None:
    """The resolved config, a line a section."""
    for name, value in config.items():
        if isinstance(value, dict):
            value = "  ".join(f"{field}={'' if part is None else part}" for field, part in value.items())
        say(console, f"{name:14} ", end="", style="bold")
        say(console, str(value))
