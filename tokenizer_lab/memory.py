"""How much memory this process may still take."""

import pathlib
from collections.abc import Iterator

import psutil

_CGROUPS, _OWN = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/proc/self/cgroup")


def available_bytes(cgroups: pathlib.Path = _CGROUPS, own: pathlib.Path = _OWN) -> int:
    """What the machine can give without swapping, caches that it would drop included, within the limits of the control
    groups that this process is in, as containers and SLURM set them.

    Args:
      cgroups: where they are mounted.
      own: the file that says which ones this process is in.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(cgroups, own)])


def _left_in_groups(cgroups: pathlib.Path, own: pathlib.Path) -> Iterator[int]:
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2 and version 1
            top = cgroups / controllers
            group = top / path.lstrip("/")
            for folder in (group, *group.parents[: len(group.relative_to(top).parts)]):
                yield from _left(folder, *_FILES[controllers])


_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _left(folder: pathlib.Path, limit_file: str, usage_file: str, cache: str) -> Iterator[int]:
    """What a group's limit leaves, if it has one: files that are only cached are dropped where memory is needed."""
    limit, usage = (_read(folder / name).strip() for name in (limit_file, usage_file))
    if limit.isdigit() and usage.isdigit():
        statistics = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
        yield max(0, int(limit) - int(usage) + int(statistics.get(cache, 0)))


def _read(path: pathlib.Path) -> str:
    """Its text; nothing where there is no such file, as on other systems."""
    try:
        return path.read_text()
    except OSError:
        return ""
