"""What an engine is, and the one that does the work in this process."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from tokenizer_lab.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Does work somewhere."""

    def stream(
        self,
        function: Callable[[Item], Iterable[Result]],
        items: Sequence[Item],
        devices: Mapping[str, float] | None = None,
    ) -> Generator[Result]:
        """Yields all that `function` yields for the first item, then for the second, and so on.

        Args:
          function: what it yields must be decided by the item alone. Each worker gets one copy of it and keeps that.
          items: what to work on.
          devices: what each worker has to itself, e.g. {"GPU": 1}; a CPU core by default.

        Raises:
          UserError: of `function` for the first item that has one; or the engine has failed in a way that a person can
            mend.
        """


class LocalEngine:
    """Does the work in this process, when it is asked for."""

    def stream(
        self,
        function: Callable[[Item], Iterable[Result]],
        items: Sequence[Item],
        devices: Mapping[str, float] | None = None,
    ) -> Generator[Result]:
        if devices:
            raise UserError(
                f"this process takes the devices it finds; {listed(devices)} for each worker needs --engine ray"
            )
        for item in items:
            yield from function(item)


def listed(devices: Mapping[str, float]) -> str:
    return ", ".join(
        f"{count:g} {name}" for name, count in sorted(devices.items()) if ":" not in name and "memory" not in name
    )
