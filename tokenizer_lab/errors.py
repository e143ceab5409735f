"""The one error type that is for people rather than for us, and the ranges that people's numbers lie in."""

import dataclasses
import re
import sys
import types
import typing
from typing import Any


class UserError(ValueError):
    """A person's mistake: one line with the values, the rule and the remedy.

    `toklab` prints it without a traceback and exits with code 2. Everything that only a bug can cause is an `assert`.
    """


def reason(error: Exception | str) -> str:
    """What a library says, in one line and without advice that only a programmer can follow."""
    text = " ".join(str(error).split())
    return re.sub(r"Exceeds the limit.*set_int_max_str_digits.*? limit", "a number has thousands of digits", text)


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a number has to lie; what is None does not bound it."""

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None

    def complaint(self, value: float) -> str | None:
        """What is wrong with a value, in words; None where nothing is."""
        if not -sys.float_info.max <= value <= sys.float_info.max:
            return "be a finite number"
        if self.least is not None and value < self.least:
            return f"be at least {self.least}"
        if self.above is not None and value <= self.above:
            return f"be more than {self.above}"
        if self.below is not None and value >= self.below:
            return f"be less than {self.below}"
        return f"be at most {self.most}" if self.most is not None and value > self.most else None


SHARE = Range(least=0, most=1)
POSITIVE = Range(above=0)
FROM_0 = Range(least=0)
SEED = Range(least=0, most=2**32 - 1)  # of JAX's keys, which leave further bits out


def check_numbers(config: Any, section: str, **ranges: Range) -> None:
    """Raises UserError for a number of a dataclass that is of another type than its field, or not in its range.

    Where nothing else is said, whole numbers are at least 1, others at least 0. Counts fit 32 bits, and those of bytes
    64: what is larger is a mistake. None, where a field may be that, is no number.

    Args:
      config: the dataclass.
      section: what its fields are called by, e.g. "data." or "--".
      ranges: of fields, where they are others.
    """
    for field in dataclasses.fields(config):
        choices = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        kinds = {kind for kind in (int, float) if kind in choices}
        value = getattr(config, field.name)
        if not kinds or (value is None and type(None) in choices):
            continue
        name = section + (field.name.replace("_", "-") if section == "--" else field.name)
        if type(value) is not int and not (float in kinds and type(value) is float):
            raise UserError(f"{name} is {value!r}; it must be a {'whole ' if kinds == {int} else ''}number")
        found = ranges.get(field.name, Range(least=1) if kinds == {int} else FROM_0)
        limit = Range(most=2**63 - 1 if field.name.endswith("bytes") else 2**31 - 1)
        complaint = found.complaint(value) or (
            limit.complaint(value) if kinds == {int} and found.most is None else None
        )
        if complaint:
            raise UserError(f"{name} is {value}; it must {complaint}")
