"""The second phase of an ingest: sorted runs (`data/runs.py`) become shards (`data/shards.py`).

A worker takes some consecutive shards of a text, reads the documents in their buckets from all runs, and writes them
where they are to be. When a shard is whole it leaves a note beside the runs; what has a note is not made again.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from etils import epath

from data.duplicates import NO_KEYS, kept
from data.layout import PlannedShard, PlannedText
from data.manifest import Shard, StoredText, Text, shard_file
from data.runs import Columns, RunFile, merged
from data.shards import WHOLE, Damaged, DocumentFile
from data.storage import new_file, read_if_there
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, write_json


@dataclasses.dataclass(frozen=True)
class MergeTask:
    """Shards that one worker makes, of a text; `write` says whether, or only their hashes."""

    text: PlannedText
    shards: tuple[PlannedShard, ...]
    write: bool


@dataclasses.dataclass(frozen=True)
class MadeShard:
    """A shard that was made.

    Attributes:
      num_parts: how many of its documents are parts of larger ones.
      bucket_hashes: of each bucket with documents, in order, its number in 2 bytes and the hash over them in 32.
    """

    shard: Shard
    num_parts: int
    bucket_hashes: bytes

    def to_json(self) -> dict[str, Any]:
        hashes = base64.b64encode(self.bucket_hashes).decode()
        return dict(shard=vars(self.shard), num_parts=self.num_parts, bucket_hashes=hashes)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(Shard(**value["shard"]), value["num_parts"], base64.b64decode(value["bucket_hashes"]))


@dataclasses.dataclass(frozen=True)
class Merge:
    """Makes shards of runs; what an engine's workers do.

    Attributes:
      folder: of the corpus.
      partial: of the runs.
      runs: all of them.
      merge_bytes: of text that is sorted at a time.
      gone: of each text, keys of documents that do not stay, where others stay once (`data/duplicates.py`); None where
        all stay.
    """

    folder: epath.Path
    partial: epath.Path
    runs: tuple[RunFile, ...]
    merge_bytes: int
    gone: Mapping[Text, np.ndarray] | None = None

    def __call__(self, task: MergeTask) -> Iterator[MadeShard]:
        """Raises UserError where a run cannot be read or a shard cannot be written."""
        try:
            for planned in task.shards:
                yield self._kept(task, planned) or self._make(task, planned)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing; remove {self.partial} and start again") from error
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        except Damaged as error:
            raise UserError(f"{self.partial} is damaged: {error}; remove it and start again") from error

    def _kept(self, task: MergeTask, planned: PlannedShard) -> MadeShard | None:
        """A shard that was made before."""
        note = read_if_there(self._note(task.text, planned)) if task.write else None
        return MadeShard.from_json(json.loads(note)) if note else None

    def _make(self, task: MergeTask, planned: PlannedShard) -> MadeShard:
        text, (domain, split) = task.text, task.text.text
        name, hashes, file_bytes = shard_file(domain, split, planned.number, text.name), BucketHashes(), 0
        columns = merged(self.partial, self.runs, text.text, planned.first_bucket, planned.end_bucket, self.merge_bytes)
        if self.gone is not None:
            columns = kept(columns, self.gone.get(text.text, NO_KEYS))
        if task.write:
            with new_file(self.folder / name) as opened:
                file = DocumentFile(opened, planned.first, text.unit_documents)
                for documents in columns:
                    hashes.add(documents)
                    file.add(documents.documents, _cut(documents))
                file_bytes = file.close()
        else:
            for documents in columns:
                hashes.add(documents)
        if (hashes.num_documents, hashes.num_bytes) != (planned.num_documents, planned.num_bytes):
            raise Damaged(f"{hashes.num_documents} documents are there, where {planned.num_documents} were counted")
        shard = Shard(
            file=name,
            domain=domain,
            split=split,
            num_documents=planned.num_documents,
            num_bytes=planned.num_bytes,
            file_bytes=file_bytes,
            content_hash=hashlib.sha256(hashes.close()).hexdigest(),
        )
        made = MadeShard(shard, hashes.num_parts, hashes.close())
        if task.write:
            write_json(self._note(text, planned), made.to_json(), sync=False)
        return made

    def _note(self, text: PlannedText, planned: PlannedShard) -> epath.Path:
        domain, split = text.text
        return self.partial / f"{domain}-{split}-{planned.number:05d}-{text.name}.json"


def _cut(columns: Columns) -> dict[int, tuple[bytes, int]]:
    cut = np.flatnonzero(columns.part != WHOLE).tolist()
    return {number: (columns.key(number), int(columns.part[number])) for number in cut}


class BucketHashes:
    """The hash over the documents in each bucket: over their keys, part numbers and sizes, which say what they are."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._bucket, self._digest = -1, hashlib.sha256()
        self.num_documents = self.num_bytes = self.num_parts = 0

    def add(self, columns: Columns) -> None:
        """Takes the next documents."""
        sizes, buckets = columns.sizes, columns.bucket
        about = columns.high.astype(">u8"), columns.low.astype(">u8"), columns.part.astype("<i8"), sizes.astype("<i8")
        rows = np.stack([array.view(np.uint64) for array in about], axis=1).tobytes()
        borders = np.flatnonzero(buckets[1:] != buckets[:-1]) + 1
        for start, end in zip([0, *borders.tolist()], [*borders.tolist(), len(buckets)]):
            if buckets[start] != self._bucket:
                self._end_bucket()
                self._bucket = int(buckets[start])
            self._digest.update(rows[32 * start : 32 * end])
        self.num_documents += len(buckets)
        self.num_bytes += int(sizes.sum())
        self.num_parts += int(np.count_nonzero(columns.part != WHOLE))

    def close(self) -> bytes:
        """See `MadeShard.bucket_hashes`."""
        self._end_bucket()
        self._bucket = -1
        return b"".join(self._done)

    def _end_bucket(self) -> None:
        if self._bucket >= 0:
            self._done.append(self._bucket.to_bytes(2) + self._digest.digest())
            self._digest = hashlib.sha256()


def stored_text(planned: PlannedText, made: Sequence[MadeShard]) -> StoredText:
    """A text of which all shards were made. Its hash is over those of its buckets, whatever shards they are in."""
    domain, split = planned.text
    return StoredText(
        domain=domain,
        split=split,
        rule=planned.rule,
        name=planned.name,
        unit_documents=planned.unit_documents,
        num_parts=sum(shard.num_parts for shard in made),
        content_hash=hashlib.sha256(b"".join(shard.bucket_hashes for shard in made)).hexdigest(),
        shards=tuple(shard.shard for shard in made),
    )
