"""What a corpus's `manifest.json` says: its texts (the documents of one domain and split), their shards and hashes.

A manifest may come from a stranger, and is checked for contradictions when it is read. Format 2, which earlier versions
wrote, is read in `data/array_record_manifest.py`.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, get_args

from etils import epath

from data.split import RULE
from data.storage import sizes_in
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import check_name, is_remote, read_json, sha256_of_parts, sync_folder, write_bytes

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Text = tuple[str, Split]  # a domain and a split
Rule = Literal["hash", "given"]  # how a document's split was chosen: by `data/split.py`, or by who gave it

FORMAT = "tokenizer-lab corpus 3"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 30  # some millions of shards, of 256 MiB of text each
_MIN_FILE_BYTES = 24  # of a shard's footer
_MAX_DOCUMENTS_A_BYTE = 1 << 15  # of a file: zstd makes no more of a byte than this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of documents of one text.

    Attributes:
      num_bytes: of text; `file_bytes` is the size of the (compressed) file.
      content_hash: over its documents.
    """

    file: str
    domain: str
    split: Split
    num_documents: int
    num_bytes: int
    file_bytes: int
    content_hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredText:
    """The documents of one domain and split.

    Attributes:
      rule: how their split was chosen.
      name: part of its files' names.
      unit_documents: documents that are compressed together.
      num_parts: how many of its documents are parts of larger ones.
      content_hash: over its documents, wherever the borders of shards and units are.
    """

    domain: str
    split: Split
    rule: Rule
    name: str
    unit_documents: int
    num_parts: int
    content_hash: str
    shards: tuple[Shard, ...]

    @property
    def text(self) -> Text:
        return self.domain, self.split

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        value["shards"] = [
            [shard.num_documents, shard.num_bytes, shard.file_bytes, shard.content_hash] for shard in self.shards
        ]
        return value

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Of a stranger's manifest. Raises ValueError or UserError for what cannot be."""
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or set(value) != expected:
            raise ValueError(f"a text is not described by {', '.join(sorted(expected))}")
        text = cls(**value | {"shards": ()})
        check_name(text.domain, "domain")
        check_name(text.name, "text")
        if not isinstance(text.content_hash, str):
            raise ValueError(f"{text.domain} has no hash")
        if text.split not in SPLITS or text.rule not in get_args(Rule):
            raise ValueError(f"{text.domain} is of split {text.split!r} by {text.rule!r}")
        if not is_count(text.unit_documents) or text.unit_documents < 1 or not is_count(text.num_parts):
            raise ValueError(f"units of {text.unit_documents} documents, {text.num_parts} of which are parts")
        shards = tuple(_shard(text, number, row) for number, row in enumerate(value["shards"]))
        if not shards:
            raise ValueError(f"{text.domain} has no shards")
        return dataclasses.replace(text, shards=shards)


def shard_file(domain: str, split: str, number: int, name: str) -> str:
    return f"{domain}/{split}-{number:05d}-{name}.zst"


def _shard(text: StoredText, number: int, row: Any) -> Shard:
    num_documents, num_bytes, file_bytes, content_hash = row
    shard = Shard(
        file=shard_file(text.domain, text.split, number, text.name),
        domain=text.domain,
        split=text.split,
        num_documents=num_documents,
        num_bytes=num_bytes,
        file_bytes=file_bytes,
        content_hash=content_hash,
    )
    counts = num_documents, num_bytes, file_bytes
    if not all(map(is_count, counts)) or not isinstance(content_hash, str):
        raise ValueError(f"{shard.file} is not described by three counts and a hash")
    if not 0 < num_documents <= (file_bytes - _MIN_FILE_BYTES) * _MAX_DOCUMENTS_A_BYTE:
        raise ValueError(f"{shard.file} ({file_bytes} bytes): not {num_documents} documents of {num_bytes} bytes")
    return shard


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 56


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a corpus holds.

    Attributes:
      format: of the shards' files.
      test_fraction: the share of documents that is held out by `data/split.py`.
      block_documents: of a split, how many consecutive documents are shuffled as one; a power of two.
      texts: sorted by domain and split.
    """

    test_fraction: float
    block_documents: dict[str, int]
    texts: tuple[StoredText, ...]
    format: str = FORMAT

    @property
    def content_hash(self) -> str:
        """Over all documents in order, with their domain and split; not over how files encode them."""
        return content_hash_of(self.texts)

    @property
    def num_documents(self) -> int:
        return sum(text.num_documents for text in self.texts)

    @property
    def num_bytes(self) -> int:
        return sum(text.num_bytes for text in self.texts)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "content_hash": self.content_hash,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "holdout": {"rule": RULE, "test_fraction": self.test_fraction},
            "block_documents": self.block_documents,
            "texts": [text.to_json() for text in self.texts],
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Of a stranger's manifest. Raises KeyError, TypeError, ValueError, OverflowError or UserError for what cannot
        be."""
        texts = tuple(StoredText.from_json(text) for text in value["texts"])
        manifest = cls(float(value["holdout"]["test_fraction"]), dict(value["block_documents"]), texts)
        names = [text.text for text in texts]
        if not 0 <= manifest.test_fraction <= 1 or not names or names != sorted(set(names)):
            raise ValueError("its parts contradict each other")
        if value != manifest.to_json() or manifest.block_documents.keys() != {text.split for text in texts}:
            raise ValueError("its parts contradict each other")
        if not all(is_count(count) and count.bit_count() == 1 for count in manifest.block_documents.values()):
            raise ValueError(f"blocks of {manifest.block_documents} documents")
        return manifest


def content_hash_of(texts: Iterable[StoredText]) -> str:
    return sha256_of_parts(part.encode() for text in texts for part in (text.domain, text.split, text.content_hash))


def read_manifest(path: epath.Path, value: Any = None) -> Manifest:
    """A manifest that may come from a stranger; `value` is what is in the file, if that has been read. Raises UserError
    for one that contradicts itself."""
    value = read_json(path, "corpus manifest", MAX_MANIFEST_BYTES) if value is None else value
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT!r}; ingest the corpus again")
    try:
        return Manifest.from_json(value)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or was changed by hand: {error}; ingest the corpus again") from error


def write_manifest(path: epath.PathLike, value: dict[str, Any]) -> None:
    """Commits a store: writes its manifest, as JSON with a shard on each line, when the names of the shards are on the
    disk. Raises OSError, or UserError where it would be more than can be read back."""
    content, path = manifest_bytes(value), epath.Path(path)
    if len(content) > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{path} would have {len(content):,} bytes for {sum(len(text['shards']) for text in value['texts']):,}"
            f" shards, and {MAX_MANIFEST_BYTES:,} can be read; divide the text among several corpora, a run takes any"
            " number of them"
        )
    if not is_remote(path):
        for domain in sorted({text["domain"] for text in value["texts"] if (path.parent / text["domain"]).exists()}):
            sync_folder(path.parent / domain)
    write_bytes(path, content)


def manifest_bytes(value: dict[str, Any]) -> bytes:
    about = {name: part for name, part in value.items() if name != "texts"}
    texts = ",\n".join(map(_text_lines, value["texts"]))
    return f'{json.dumps(about, indent=2, ensure_ascii=False)[:-2]},\n  "texts": [\n{texts}\n]}}\n'.encode()


def _text_lines(text: dict[str, Any]) -> str:
    about = {name: part for name, part in text.items() if name != "shards"}
    shards = ",\n".join(map(json.dumps, text["shards"]))
    return f'{json.dumps(about, ensure_ascii=False)[:-1]}, "shards": [\n{shards}]}}'


def check_files(folder: epath.Path, shards: Sequence[Shard], again: str) -> None:
    """Raises UserError, with `again` as what to do, unless all files of the shards are there and as large as they
    should be. Takes one listing."""
    there = sizes_in(folder)
    for shard in shards:
        path = folder / shard.file
        if shard.file not in there:
            raise UserError(f"{path} is missing; remove {folder} and {again}")
        if (file_bytes := there[shard.file]) != shard.file_bytes:
            raise UserError(
                f"{path} has {file_bytes} bytes, the manifest says {shard.file_bytes}; remove {folder} and {again}"
            )
