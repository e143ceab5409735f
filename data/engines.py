"""Where work on many files or documents is done: in this process, in several of this machine, or on a Ray cluster. What
comes out is the same, in the same order."""

import contextlib
import dataclasses
import os
from typing import Literal

from data.local_engine import Engine, LocalEngine
from data.process_engine import ProcessEngine
from data.ray_engine import open_ray
from tokenizer_lab.errors import UserError, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the work is done."""

    engine: Literal["local", "processes", "ray"] = "local"
    """In this process, in several of this machine, or on a Ray cluster (pip install 'tokenizer-lab[ray]'); what is
    written is the same."""

    workers: int | None = None
    """With --engine processes: how many; as many as this process may use cores by default."""

    ray_address: str | None = None
    """HOST:PORT of the Ray cluster to use; RAY_ADDRESS if that is set; else one is started on this machine, for this
    command alone."""

    def __post_init__(self) -> None:
        check_numbers(self, "--")
        if self.ray_address and self.engine != "ray":
            raise UserError(
                f"--ray-address {self.ray_address} is for --engine ray, and the engine is {self.engine}; add"
                " --engine ray"
            )
        if self.workers is not None and self.engine != "processes":
            raise UserError(
                f"--workers {self.workers} is for --engine processes, and the engine is {self.engine}; add --engine"
                " processes"
            )

    def open(self) -> contextlib.AbstractContextManager[Engine]:
        """The engine, to be used inside. Raises UserError if there is none."""
        if self.engine == "local":
            return contextlib.nullcontext(LocalEngine())
        if self.engine == "processes":
            return contextlib.nullcontext(ProcessEngine(self.workers or _num_cores()))
        return open_ray(self.ray_address or os.environ.get("RAY_ADDRESS"))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
