"""Files of JSON objects that are not one a line: over several lines each, or one with a list of records in it."""

import json
import re
from typing import Any

from tokenizer_lab.errors import UserError

_SPACE = re.compile(r"\s*")
_DIGITS = 20  # of a number of which nothing depends: Python refuses to read thousands


def loads(text: str) -> Any:
    """The value of a JSON text, in which the numbers are not meant to be used. Raises ValueError, RecursionError."""
    return json.loads(text, parse_int=lambda digits: int(digits[:_DIGITS]))


def objects_in(text: str, path: object) -> list[dict[str, Any]]:
    """The objects that a text has one after the other; none where it is something else.

    Raises UserError where an object is damaged behind others, or in a file that is named as if it had objects.
    """
    decoder, objects, at = json.JSONDecoder(parse_int=lambda digits: int(digits[:_DIGITS])), list[Any](), 0
    try:
        while (at := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
            found, at = decoder.raw_decode(text, at)
            objects.append(found)
    except (ValueError, RecursionError) as error:
        if len(objects) > 1 or ".json" in str(path).lower():
            raise UserError(
                f"{path} is not JSON behind object {len(objects)}: {error}; mend the file, or take its bytes as they"
                " are: --read-as text"
            ) from error
        return []
    return objects if all(isinstance(found, dict) for found in objects) else []


def records_of(record: Any, path: object, field: str) -> list[Any]:
    """What the only object of a file stands for: itself, if it has the field; or the one list of records in it that
    have. None where there is no such list. Raises UserError where there are others."""
    if not isinstance(record, dict) or isinstance(record.get(field), str):
        return [record]
    lists = {
        name: value
        for name, value in record.items()
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value)
    }
    if len(lists) == 1 and any(field in part for part in next(iter(lists.values()))):
        return next(iter(lists.values()))
    if lists:
        fields = {name: ", ".join(map(repr, list(value[0])[:5])) for name, value in lists.items()}
        has = " and ".join(f"{name!r} with {names}" for name, names in list(fields.items())[:5])
        raise UserError(
            f"{path} is one JSON object and has lists of records, {has}; --field {field} is in none of them or they are"
            " several: choose another, convert it to JSON lines, or take its bytes as they are: --read-as text"
        )
    return []
