"""Where the time of a run went, from the first process that worked on it to the last.

Every few seconds a process writes down, in a file of its own, how long it has run by a clock that only goes forward,
what on, and from which step to which. A process that dies loses no more than the last of these seconds. Between two
processes there is only the time of day: from the last that one wrote to the start of the next, the run was "down" (the
loading of Python and its libraries included). A clock that is set meanwhile can make that wrong, but no time negative.

A step that a later process took again, because the run went on from a checkpoint before it, was lost: its time is
"repeated".
"""

import time
import uuid
from typing import Any

from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import matching, read_json, write_json
from train.run.logs import Stopwatch

_EVERY_SECONDS = 10.0
_MERGED = {"last evaluation": "evaluation"}


class Timekeeper:
    """Writes down the time of this process.

    Args:
      folder: of the run's records, one file a process; None where another process of the run writes them.
      clock: the seconds of each part, and of all.
      first_step: where this process goes on from.
    """

    def __init__(self, folder: epath.Path | None, clock: Stopwatch, first_step: int):
        self._clock, self._first_step = clock, first_step
        self._started = time.time() - clock.total_seconds
        # In an object store there is no lock: two processes that start at once have a file each all the same.
        self._path = folder / f"{_next_number(folder):05}-{uuid.uuid4().hex[:8]}.json" if folder else None
        self.write(first_step)

    def note(self, step: int) -> None:
        """That this many steps are done; written from time to time."""
        if self._clock.total_seconds >= self._written_seconds + _EVERY_SECONDS:
            self.write(step)

    def write(self, step: int, finished: bool = False) -> None:
        """Args: step: as many are done. finished: whether nothing is left to do, so that a pause behind it is not lost
        time."""
        self._written_seconds = self._clock.total_seconds
        if self._path is not None:
            write_json(
                self._path,
                {
                    "started": self._started,
                    "seconds": self._written_seconds,
                    "seconds_by_part": self._clock.seconds,
                    "first_step": self._first_step,
                    "step": step,
                    "finished": finished,
                },
            )


def account(folder: epath.Path) -> dict[str, Any]:
    """What the records in a folder come to.

    Returns:
      seconds: of the run's life, pauses between a finished budget and a longer one left out.
      starts: processes that worked on it, one after the other.
      seconds_by_part: they add up to `seconds`. "step" is of steps that count.
      share: that of "step" in `seconds`; the goodput.
    """
    records = _records(folder)
    parts: dict[str, float] = {}
    for number, record in enumerate(records):
        later = records[number + 1 :]
        spent = _by_part(record)
        num_steps = record["step"] - record["first_step"]
        num_kept = max(0, min([record["step"], *(other["first_step"] for other in later)]) - record["first_step"])
        stepping = spent.pop("step", 0.0)
        kept = stepping * num_kept / num_steps if num_steps else stepping
        spent |= {"step": kept, "repeated": stepping - kept}
        if later and not record["finished"]:
            spent["down"] = max(0.0, later[0]["started"] - record["started"] - record["seconds"])
        for part, seconds in spent.items():
            parts[part] = parts.get(part, 0.0) + seconds
    total = sum(parts.values())
    return {
        "seconds": total,
        "starts": len(records),
        "share": parts["step"] / total if total else None,
        "seconds_by_part": parts,
    }


def _next_number(folder: epath.Path) -> int:
    """Behind the last record's, whichever of those before are still there."""
    numbers = [path.stem.partition("-")[0] for path in matching(folder, "*.json")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _by_part(record: dict[str, Any]) -> dict[str, float]:
    parts: dict[str, float] = {}
    for part, seconds in record["seconds_by_part"].items():
        parts[_MERGED.get(part, part)] = parts.get(_MERGED.get(part, part), 0.0) + seconds
    return parts | {"other": max(0.0, record["seconds"] - sum(parts.values()))}


def _records(folder: epath.Path) -> list[dict[str, Any]]:
    """In the order of their processes. What cannot be read is time that the run was down."""
    records = []
    for path in matching(folder, "*.json"):
        try:
            record = read_json(path, "record of a run's time")
            numbers = [
                record["started"],
                record["seconds"],
                record["first_step"],
                record["step"],
                *record["seconds_by_part"].values(),
            ]
            if all(isinstance(number, int | float) and number >= 0 for number in numbers):
                records.append({**record, "finished": record.get("finished") is True})
        except (UserError, KeyError, TypeError, AttributeError):
            continue
    return records
