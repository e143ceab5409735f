"""A JSON array, element by element, in the memory of one."""

import re
from collections.abc import Callable, Iterator

_MARK = re.compile(rb'\\.?|["\[\]{},]', re.DOTALL)


def array_elements(read: Callable[[], bytes], max_bytes: int) -> Iterator[bytes]:
    """Yields the bytes of each element; whether they are JSON is not looked at.

    Args:
      read: gives the next bytes of the file, and none at its end.
      max_bytes: of an element that is still read; what is yielded may be longer by what one `read` gives.

    Raises:
      ValueError: the file ends inside the array, or does not begin or end with it; or for a longer element.
    """
    buffer, start, at, depth, in_string, num_elements, is_over = bytearray(), 0, 0, 0, False, 0, False
    while chunk := read():
        buffer += chunk
        while (mark := _MARK.search(buffer, at)) and mark[0] != b"\\":  # of which the next byte is not read yet
            at = mark.end()
            if mark[0] == b'"':
                in_string = not in_string
            elif in_string or mark[0][:1] == b"\\":
                continue
            elif mark[0] in b"[{":
                depth += 1
                start = at if depth == 1 else start
            elif depth == 1:  # a comma or the end behind an element
                element, start, is_over = bytes(buffer[start : mark.start()]), at, mark[0] == b"]"
                if element.strip() or num_elements or not is_over:
                    yield element
                    num_elements += 1
                depth -= is_over
            elif mark[0] != b",":
                depth -= 1
        del buffer[:start]
        at, start = mark.start() - start if mark else len(buffer), 0
        if is_over and buffer.strip():
            raise ValueError("something stands behind the array")
        if len(buffer) > max_bytes:
            raise ValueError(f"an element has {len(buffer)} bytes or more, over the limit of {max_bytes}")
    if not is_over:
        raise ValueError("it ends inside of the array")
