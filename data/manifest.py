"""What a corpus's `manifest.json` says: its shards, and the hash over its documents.

A manifest may come from a stranger, and is checked for contradictions when it is read.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from etils import epath

from data.split import RULE
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import check_name, read_json, sha256_of_parts, write_bytes

Split = Literal["train", "test"]

FORMAT = "tokenizer-lab corpus 2"
MANIFEST = "manifest.json"
PARTIAL = ".partial"
MAX_MANIFEST_BYTES = 1 << 30  # some millions of shards, of 256 MiB of text each
_MIN_RECORD_FILE_BYTES = 40  # the header of a record in ArrayRecord; a file cannot hold more records than this allows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of documents of one domain and split.

    Attributes:
      num_bytes: of text; `file_bytes` is the size of the (compressed) file.
      content_hash: over the documents of this domain and split, from the very first to the last in this shard; so that
        of the last shard stands for them all, wherever the borders of shards are.
    """

    file: str
    domain: str
    split: str
    num_documents: int
    num_bytes: int
    file_bytes: int
    content_hash: str


def read_manifest(path: epath.Path) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    """A manifest that may come from a stranger, and its shards. Raises UserError for one that contradicts itself."""
    manifest = read_json(path, "corpus manifest", MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT!r}; ingest the corpus again")
    try:
        shards = tuple(parse_shard(value) for value in manifest["shards"])
        test_fraction = float(manifest["holdout"]["test_fraction"])
        if not shards or not 0 <= test_fraction <= 1 or manifest != make_manifest(shards, test_fraction):
            raise ValueError("its parts contradict each other")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or was changed by hand: {error}; ingest the corpus again") from error
    return manifest, shards


def parse_shard(value: Any) -> Shard:
    """What a manifest, which may come from a stranger, says of a shard. Raises UserError for what cannot be."""
    if not isinstance(value, dict) or {key: type(x) for key, x in value.items()} != Shard.__annotations__:
        raise UserError(f"a shard is not described by {', '.join(Shard.__annotations__)}")
    shard = Shard(**value)
    check_name(shard.file, "corpus shard")
    check_name(shard.domain, "domain")
    if shard.split not in ("train", "test"):
        raise UserError(f"{shard.file} is of split {shard.split!r}, not train or test")
    if not 0 < shard.num_documents * _MIN_RECORD_FILE_BYTES <= shard.file_bytes or not 0 <= shard.num_bytes < 1 << 62:
        raise UserError(
            f"{shard.file} ({shard.file_bytes} bytes): not {shard.num_documents} documents of {shard.num_bytes} bytes"
        )
    return shard


def make_manifest(shards: Sequence[Shard], test_fraction: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "content_hash": content_hash_of(shards),
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "holdout": {"rule": RULE, "test_fraction": test_fraction},
        "shards": [dict(vars(shard)) for shard in shards],
    }


def write_manifest(path: epath.PathLike, manifest: dict[str, Any]) -> None:
    """A manifest as JSON with a shard on each line. Raises UserError where it would be more than can be read back."""
    about = {name: value for name, value in manifest.items() if name != "shards"}
    shards = ",\n".join(json.dumps(shard, ensure_ascii=False) for shard in manifest["shards"])
    content = f'{json.dumps(about, indent=2, ensure_ascii=False)[:-2]},\n  "shards": [\n{shards}\n]}}\n'.encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{path} would have {len(content):,} bytes for {len(manifest['shards']):,} shards, and"
            f" {MAX_MANIFEST_BYTES:,} can be read; divide the text among several corpora, a run takes any number of"
            " them"
        )
    write_bytes(path, content)


def split_hashes(shards: Iterable[Shard]) -> dict[tuple[str, str], str]:
    """(domain, split) -> the hash over its documents, which is that of its last shard."""
    return {(shard.domain, shard.split): shard.content_hash for shard in shards}


def content_hash_of(shards: Iterable[Shard]) -> str:
    return sha256_of_parts(
        part.encode() for (domain, split), content in split_hashes(shards).items() for part in (domain, split, content)
    )


def check_files(folder: epath.Path, shards: Iterable[Shard], again: str) -> None:
    """Raises UserError, with `again` as what to do, unless all files of the shards are there and as large as they
    should be."""
    for shard in shards:
        path = folder / shard.file
        if not path.exists():
            raise UserError(f"{path} is missing; remove {folder} and {again}")
        if (file_bytes := path.stat().length) != shard.file_bytes:
            raise UserError(
                f"{path} has {file_bytes} bytes, the manifest says {shard.file_bytes}; remove {folder} and {again}"
            )
