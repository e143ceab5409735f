"""What a folder's files were when it was written: one file in it, which `sha256sum --check` reads too."""

import concurrent.futures
import hashlib
from collections.abc import Collection

from etils import epath

from tokenizer_lab.files import files_in, write_bytes

CHECKSUMS = "checksums.sha256"
_NUM_THREADS = 8  # SHA-256 lets go of Python's lock; a checkpoint's large files have up to 2 GB each


def write_checksums(folder: epath.Path, leave_out: Collection[str]) -> None:
    """Reads back every file in a folder and writes down its SHA-256. Raises OSError, UserError.

    Args:
      leave_out: paths in the folder that do not count.
    """
    write_bytes(folder / CHECKSUMS, _listing(_sha256_of_files(folder, leave_out)))


def find_damage(folder: epath.Path, leave_out: Collection[str]) -> str | None:
    """The first file that is not what it was when `write_checksums` was called, in words; None where all are. Raises
    OSError."""
    if not (folder / CHECKSUMS).exists():
        return f"it has no {CHECKSUMS}"
    found, stored = _sha256_of_files(folder, leave_out), (folder / CHECKSUMS).read_bytes()
    if stored == _listing(found):
        return None
    lines = [line.partition("  ") for line in stored.decode(errors="replace").splitlines()]
    told = {name: digest for digest, _, name in lines}
    differing = [f"{name} is missing" for name in told.keys() - found.keys()]
    differing += [f"{name} is not its own" for name in found.keys() - told.keys()]
    differing += [f"{name} is not what was saved" for name in told.keys() & found.keys() if told[name] != found[name]]
    first = min(differing, default=f"{CHECKSUMS} is not what was saved")
    return "".join(letter if letter.isprintable() else "?" for letter in first[:200]) + (
        f", and {len(differing) - 1} more" if len(differing) > 1 else ""
    )


def _sha256_of_files(folder: epath.Path, leave_out: Collection[str]) -> dict[str, str]:
    """Path in the folder -> SHA-256 as hex, sorted."""
    paths = {name: path for name, path in files_in(folder).items() if name not in {CHECKSUMS, *leave_out}}
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as threads:
        return dict(zip(paths, threads.map(_sha256, paths.values())))


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode(errors="surrogateescape")
