"""Records that cannot be read: what is told of them, how many there may be, and the file they are put into.

    CORPUS/quarantine-<domain>.jsonl    {"file", "record", "reason", "num_bytes", "raw"}, a line a record

`raw` is how a record begins: `line["raw"].encode("latin-1")` gives its bytes back.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizer_lab.errors import UserError

_FEWEST_TO_JUDGE_BY = 100  # bad records, before the last one is read
KEPT_RECORDS = 10_000  # others are counted


def check_budget(
    max_share: float, counts: Mapping[str, int], bad: Sequence[Mapping[str, Any]], share_read: float = 1.0
) -> None:
    """Raises UserError where an ingest has more bad records than a share of all.

    Before all is read they are held, as soon as there are some, against as many records as there will be if the rest of
    the input is like what was read.

    Args:
      max_share: that may be bad.
      counts: of `data.reading.Portion`, of all that was read.
      bad: those that are kept, as `BadRecord` in JSON.
      share_read: of all input.
    """
    num_bad, num_records = counts.get("bad", 0), counts.get("records", 0)
    is_judged = share_read == 1.0 or num_bad >= _FEWEST_TO_JUDGE_BY
    if not is_judged or num_bad * share_read <= max_share * num_records:
        return
    first = "; ".join(each["reason"] for each in bad[:3])
    raise UserError(
        f"{num_bad:,} bad records of {num_records:,} that were read are more than --max-bad {max_share:g} allows:"
        f" {first}; mend the input, or raise --max-bad if it may lose so many"
    )


def quarantine_name(domain: str) -> str:
    return f"quarantine-{domain}.jsonl"


def quarantine_lines(bad: Sequence[Mapping[str, Any]]) -> bytes:
    """The lines of a quarantine file."""
    return "".join(json.dumps(each) + "\n" for each in bad).encode()
