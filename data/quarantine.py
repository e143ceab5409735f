"""Records that cannot be read: what is told of them, how many there may be, and the file they are put into.

    CORPUS/quarantine-<domain>.jsonl    {"file", "record", "reason", "num_bytes", "raw"}, a line a record

`raw` is how a record begins: `line["raw"].encode("latin-1")` gives its bytes back.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from data.bad_records import BadRecord
from tokenizer_lab.errors import UserError

_FEWEST_TO_JUDGE_BY = 100  # bad records, before the last one is read
KEPT_RECORDS = 10_000  # of a unit of the input; others are counted


class Budget:
    """How many bad records an ingest may have: a share of all its records.

    Their count is held against all records at the end; and before that, as soon as there are some, against as many as
    there will be if the rest of the input is like what was read.
    """

    def __init__(self, max_share: float):
        self._max_share, self._num_records, self.num_bad = max_share, 0, 0
        self.first: list[BadRecord] = []

    def add(self, counts: Mapping[str, int], bad: Sequence[BadRecord], share_read: float) -> None:
        """Takes what was met in a part of the input: the counts of `data.reading.Portion`, and those bad records that
        are kept. `share_read` is of all input, so far.

        Raises:
          UserError: there are too many.
        """
        self._num_records += counts.get("records", 0)
        self.num_bad += counts.get("bad", 0)
        self.first += bad[: max(0, 3 - len(self.first))]
        if self.num_bad >= _FEWEST_TO_JUDGE_BY and self.num_bad > self._allowed(share_read):
            raise self._too_many("read so far")

    def check(self) -> None:
        """Raises UserError where there are too many, all in all."""
        if self.num_bad > self._allowed(1.0):
            raise self._too_many("in all")

    def _allowed(self, share_read: float) -> float:
        return self._max_share * self._num_records / max(share_read, 1e-9)

    def _too_many(self, of_which: str) -> UserError:
        first = "; ".join(bad.reason for bad in self.first)
        return UserError(
            f"{self.num_bad:,} bad records of {self._num_records:,} {of_which} are more than --max-bad"
            f" {self._max_share:g} allows: {first}; mend the input, or raise --max-bad if it may lose so many"
        )


def quarantine_name(domain: str) -> str:
    return f"quarantine-{domain}.jsonl"


def quarantine_lines(bad: Sequence[BadRecord]) -> bytes:
    """The lines of a quarantine file."""
    return "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in bad).encode()
