"""What `manifest.json` says in format 2, which earlier versions wrote: shards of ArrayRecord.

It may come from a stranger, and is checked for contradictions when it is read.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from data.manifest import Manifest, Shard, StoredText
from data.split import RULE
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import check_name, sha256_of_parts

FORMAT = "tokenizer-lab corpus 2"
_MIN_RECORD_FILE_BYTES = 40  # the header of a record in ArrayRecord; a file cannot hold more records than this allows


def read_manifest(path: epath.Path, value: dict[str, Any]) -> Manifest:
    """What `value`, in the file at `path`, says. Raises UserError where it contradicts itself."""
    try:
        shards = tuple(parse_shard(shard) for shard in value["shards"])
        test_fraction = float(value["holdout"]["test_fraction"])
        if not shards or not 0 <= test_fraction <= 1 or value != _to_json(shards, test_fraction):
            raise ValueError("its parts contradict each other")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or was changed by hand: {error}; ingest the corpus again") from error
    texts = texts_of(shards)
    return Manifest(test_fraction, {text.split: 1 for text in texts}, texts, FORMAT)


def texts_of(shards: Sequence[Shard]) -> tuple[StoredText, ...]:
    """The domains and splits of shards. The hash of a text's last shard is over all of its documents."""
    texts = []
    for (domain, split), group in itertools.groupby(shards, lambda shard: (shard.domain, shard.split)):
        of_text = tuple(group)
        texts.append(
            StoredText(
                domain=domain,
                split=split,
                rule="hash",
                name="",
                unit_documents=1,
                num_parts=0,
                content_hash=of_text[-1].content_hash,
                shards=of_text,
            )
        )
    return tuple(texts)


def parse_shard(value: Any) -> Shard:
    """What a manifest, which may come from a stranger, says of a shard. Raises UserError for what cannot be."""
    expected = dict.fromkeys(Shard.__annotations__, str) | dict(num_documents=int, num_bytes=int, file_bytes=int)
    if not isinstance(value, dict) or {key: type(x) for key, x in value.items()} != expected:
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


def _to_json(shards: Sequence[Shard], test_fraction: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "content_hash": _content_hash_of(shards),
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "holdout": {"rule": RULE, "test_fraction": test_fraction},
        "shards": [dict(vars(shard)) for shard in shards],
    }


def _content_hash_of(shards: Iterable[Shard]) -> str:
    hashes = {(shard.domain, shard.split): shard.content_hash for shard in shards}
    return sha256_of_parts(part.encode() for (domain, split), of in hashes.items() for part in (domain, split, of))
