"""How much memory of the host something takes while it goes on in the background."""

import threading
from collections.abc import Callable

import psutil

_SAMPLE_SECONDS = 0.02


class MemoryGrowth:
    """How far this process's resident memory rose while it was watched.

    Attributes:
      peak_bytes: the most, of all that was watched, above where it stood when the watch began; what else the process
        did is in it.
    """

    def __init__(self):
        self.peak_bytes = 0
        self._process, self._ended = psutil.Process(), threading.Event()
        self._threads: list[threading.Thread] = []

    def watch_until(self, over: Callable[[], bool]) -> None:
        """Watches in the background from now on."""
        before = self._process.memory_info().rss
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=self._watch, args=(before, over), name="memory", daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        """Of every watch that still goes on."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, before: int, over: Callable[[], bool]) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - before)
            if over() or self._ended.wait(_SAMPLE_SECONDS):
                return
