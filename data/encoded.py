"""Ids of documents: made on the fly, or read from where `toklab encode` has written them (`data/encode_corpus.py`).

    FOLDER/manifest.json                             the corpus's content hash, the representation's fingerprint, shards
    FOLDER/<domain>/<split>-00000-<name>.zst         a record a document, in the corpus's order and units

A record is a byte that says how wide its integers are, the document's n ids, and the source bytes of each; unsigned,
little-endian.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from data import array_record_manifest
from data.array_record_store import ArrayRecordDocuments
from data.manifest import MANIFEST, MAX_MANIFEST_BYTES, Split, StoredText, check_files
from data.row_loops import first_wrong, unpack_records
from data.store import AnyDocuments, Corpus, Documents
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cache_folder, is_remote, read_json, remote_errors
from tokenizer_lab.representation import EncodedBatch, Representation, joined

FORMAT, OLD_FORMAT = "tokenizer-lab ids 2", "tokenizer-lab ids 1"
UNFINISHED = ".partial"  # in a folder that is not whole yet
_WIDTHS = (1, 2, 4)  # bytes of an integer in a record
AGAIN = "encode it again"
_PORTION_BYTES = 256 << 10  # of text that is encoded in one go, about

Item = TypeVar("Item")
Encoded = tuple[np.ndarray, np.ndarray]  # i32[n] ids and i64[n] source bytes of each


class EncodedText(bytes):
    """A document that brings its ids along. Parts of it are plain bytes."""

    encoded: Encoded


class EncodedTexts(list[bytes]):
    """Documents that bring their ids along, all in one."""

    def __init__(self, texts: Iterable[bytes], batch: EncodedBatch):
        super().__init__(texts)
        self.batch = batch


def encode(representation: Representation, texts: Sequence[bytes]) -> list[Encoded]:
    """`encode_batch`, text by text."""
    batch = encode_batch(representation, texts)
    bounds = [slice(*ends) for ends in itertools.pairwise([0, *batch.ends.tolist()])]
    return [(batch.ids[part], batch.bytes_per_id[part]) for part in bounds]


def encode_each(representation: Representation, documents: Iterable[bytes]) -> Iterator[Encoded]:
    """`encode` of any number of documents, some of them at a time."""
    for texts in portions(documents, len, representation.batch_documents):
        yield from encode(representation, texts)


def portions(items: Iterable[Item], num_bytes: Callable[[Item], int], together: int) -> Iterator[list[Item]]:
    """Documents to encode in one go: `together` of them where that is more than one, else more and more of them."""
    items = iter(items)
    count = together
    while portion := list(itertools.islice(items, count)):
        yield portion
        if together == 1:
            most = _PORTION_BYTES * len(portion) // max(1, sum(map(num_bytes, portion)))
            count = max(1, min(count + count // 2 + 1, most))


def encode_batch(representation: Representation, texts: Sequence[bytes]) -> EncodedBatch:
    """Texts as ids and the source bytes of each: all bytes, and no id that a model has no row for. Those that bring
    their ids keep them."""
    if isinstance(texts, EncodedTexts):
        return texts.batch  # which `EncodedDocuments` has checked when it read them
    if any(isinstance(text, EncodedText) for text in texts):
        batch = _some_encoded(representation, texts)
    else:
        batch = representation.encode_batch(texts)
    _check(batch, [len(text) for text in texts], representation.kind, representation.vocab_size)
    return batch


def _some_encoded(representation: Representation, texts: Sequence[bytes]) -> EncodedBatch:
    on_the_fly = [text for text in texts if not isinstance(text, EncodedText)]
    made = iter(representation.encode_many(on_the_fly) if on_the_fly else ())
    return joined([text.encoded if isinstance(text, EncodedText) else next(made) for text in texts])


def _check(batch: EncodedBatch, text_bytes: Sequence[int], kind: str, vocab_size: int) -> None:
    """No asserts, which `python -O` leaves out: a byte that is lost here makes every number wrong."""
    if not len(batch.ids) == len(batch.bytes_per_id) == (batch.ends[-1] if len(batch.ends) else 0):
        raise AssertionError(f"{kind}: {len(batch.ids)} ids and the bytes of {len(batch.bytes_per_id)}")
    wrong = first_wrong(batch.ids, batch.bytes_per_id, batch.ends, np.array(text_bytes, np.int64), vocab_size)
    if wrong < 0:
        return
    where = slice(batch.ends[wrong - 1] if wrong else 0, batch.ends[wrong])
    ids, num_bytes = batch.ids[where], batch.bytes_per_id[where].sum()
    if num_bytes != text_bytes[wrong]:
        raise AssertionError(f"{kind}: {num_bytes} bytes of a text of {text_bytes[wrong]}")
    raise AssertionError(f"{kind}: ids from {ids.min()} to {ids.max()}, and its vocabulary has {vocab_size}")


# ---- Reading -------------------------------------------------------------------------------------


class EncodedDocuments(Sequence[EncodedText]):
    """Documents of a corpus, each an `EncodedText`; they are read as `data.store.Documents` are."""

    def __init__(self, documents: AnyDocuments, ids: AnyDocuments, vocab_size: int):
        """
        Args:
          documents: the texts.
          ids: their records.
          vocab_size: of the representation.
        """
        self._documents, self._ids, self._vocab_size = documents, ids, vocab_size
        self.num_bytes, self.content_hash = documents.num_bytes, documents.content_hash
        self.block_documents = documents.block_documents
        self.domain, self.place = documents.domain, documents.place
        self.key, self.part = documents.key, documents.part

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedDocuments, (self._documents, self._ids, self._vocab_size)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> EncodedText:  # type: ignore[override]  # nobody takes slices
        """A document and its ids. Raises UserError, naming file and record, if one of the two is damaged."""
        return self._with_ids(index, self._documents[index], self._ids[index])

    def read_many(self, indices: Iterable[int]) -> EncodedTexts:
        """Documents in the order asked for, with their ids. Raises UserError as for one of them."""
        indices = list(indices)
        texts, batch = self._documents.read_many(indices), unpack_many(self._ids.read_many(indices))
        text_bytes = np.array([len(text) for text in texts], np.int64)
        if batch is None or first_wrong(*batch, text_bytes, self._vocab_size) >= 0:
            batch = joined([self[index].encoded for index in indices])  # which says what is wrong
        return EncodedTexts(texts, batch)

    def read_block(self, number: int) -> EncodedTexts:
        """Documents number * block_documents to the next block's first."""
        start = number * self.block_documents
        return self.read_many(range(start, min(len(self), start + self.block_documents)))

    def _with_ids(self, index: int, document: bytes, record: bytes) -> EncodedText:
        text = EncodedText(document)
        try:
            text.encoded = ids, lengths = unpack(record)
            if lengths.sum() != len(text) or ids.max(initial=0) >= self._vocab_size:
                raise ValueError(f"ids up to {ids.max(initial=0)} for {lengths.sum()} bytes")
        except ValueError as error:
            raise UserError(
                f"{self._ids.place(index)} holds {error}, for a document of {len(text)} bytes and {self._vocab_size}"
                f" ids there are; remove its folder and {AGAIN}"
            ) from error
        return text


class EncodedCorpus(Corpus):
    """A corpus whose documents bring their ids along."""

    def __init__(self, corpus: Corpus, ids: "IdsStore", vocab_size: int):
        super().__init__(corpus.folder, corpus.manifest)
        self._corpus, self._ids, self._vocab_size = corpus, ids, vocab_size

    def documents(self, split: Split) -> EncodedDocuments:  # type: ignore[override]  # which are read in the same way
        return EncodedDocuments(self._corpus.documents(split), self._ids.records(split), self._vocab_size)


def bring_ids(
    corpora: Sequence[Corpus], ids_folders: Iterable[epath.PathLike], representation: Representation
) -> list[Corpus]:
    """The corpora; the documents of those whose ids are in one of the folders bring them along.

    Raises:
      UserError: a folder has no ids, or those of another representation, or of none of the corpora.
    """
    corpora = list(corpora)
    for folder in map(epath.Path, ids_folders):
        with remote_errors(folder):
            ids = read_ids_store(folder)
        origin = ids.origin
        if origin.fingerprint != representation.fingerprint:
            raise UserError(
                f"{folder} holds ids of another representation: its fingerprint is {origin.fingerprint[:12]}, that of"
                f" the run's is {representation.fingerprint[:12]}; {AGAIN} with the run's, or leave it out"
            )
        own = [number for number, corpus in enumerate(corpora) if corpus.content_hash == origin.corpus]
        if not own:
            there = ", ".join(f"{corpus.folder} has {corpus.content_hash[:12]}" for corpus in corpora)
            raise UserError(
                f"{folder} holds ids of another corpus: of the one with content hash {origin.corpus[:12]}, and {there};"
                f" {AGAIN}, or leave it out"
            )
        for number in own:
            if _counts(ids.texts) != _counts(corpora[number].manifest.texts):
                raise UserError(
                    f"{folder} has not as many documents as {corpora[number].folder}; remove it and {AGAIN}"
                )
            corpora[number] = EncodedCorpus(corpora[number], ids, representation.vocab_size)
    return corpora


def _counts(texts: Iterable[StoredText]) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts[text.split] += text.num_documents
    return counts


@dataclasses.dataclass(frozen=True)
class Origin:
    """Whose ids a folder holds, and by what: a corpus's content hash, and a representation's fingerprint."""

    corpus: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class IdsStore:
    """A whole folder of ids."""

    folder: epath.Path
    origin: Origin
    texts: tuple[StoredText, ...]
    is_old: bool

    def records(self, split: Split) -> AnyDocuments:
        """The records of the documents of a split."""
        texts = [text for text in self.texts if text.split == split]
        if not self.is_old:
            return Documents(self.folder, texts, 1, AGAIN)
        name = f"{self.origin.corpus[:16]}-{self.origin.fingerprint[:16]}"
        cache = cache_folder("ids") / name if is_remote(self.folder) else None
        return ArrayRecordDocuments(self.folder, texts, cache, AGAIN)

    @property
    def num_shards(self) -> int:
        return sum(len(text.shards) for text in self.texts)


def read_ids_store(folder: epath.Path) -> IdsStore:
    """What a whole folder of ids holds. Raises UserError for any other."""
    path = folder / MANIFEST
    if not path.exists():
        reason = "it is not finished" if (folder / UNFINISHED).exists() else f"it has no {MANIFEST}"
        raise UserError(
            f"{folder} holds no ids of a corpus: {reason}; run toklab encode ARTIFACT --corpus CORPUS --out {folder}"
        )
    manifest = read_json(path, "manifest of ids", MAX_MANIFEST_BYTES)
    try:
        store = _parsed(folder, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged, was changed by hand or is of another version: {error}; {AGAIN}") from error
    check_files(folder, [shard for text in store.texts for shard in text.shards], AGAIN)
    return store


def _parsed(folder: epath.Path, manifest: Any) -> IdsStore:
    is_old = "shards" in manifest
    about = dict(manifest["origin"])
    if is_old:
        found = about.pop("format")
        texts = array_record_manifest.texts_of([array_record_manifest.parse_shard(row) for row in manifest["shards"]])
    else:
        found = manifest["format"]
        texts = tuple(StoredText.from_json(text) for text in manifest["texts"])
    origin = Origin(**about)
    told = (origin.corpus, origin.fingerprint)
    if found != (OLD_FORMAT if is_old else FORMAT) or not all(isinstance(value, str) for value in told):
        raise ValueError(f"it is not what this version writes, {FORMAT!r}")
    if not is_old and manifest != ids_manifest(origin, texts):
        raise ValueError("its parts contradict each other")
    return IdsStore(folder, origin, texts, is_old)


def ids_manifest(origin: Origin, texts: Sequence[StoredText]) -> dict[str, Any]:
    return {"format": FORMAT, "origin": dataclasses.asdict(origin), "texts": [text.to_json() for text in texts]}


# ---- Records -------------------------------------------------------------------------------------


def pack(encoded: Encoded) -> bytes:
    """A document's record."""
    widths = [next(width for width in _WIDTHS if values.max(initial=0) < 1 << 8 * width) for values in encoded]
    return bytes([widths[0] << 4 | widths[1]]) + b"".join(
        values.astype(f"<u{width}").tobytes() for values, width in zip(encoded, widths)
    )


def unpack(record: bytes) -> Encoded:
    """The inverse of `pack`. Raises ValueError for what cannot be a record."""
    widths = divmod(record[0], 16) if record else ()
    if not widths or not set(widths) <= set(_WIDTHS) or (len(record) - 1) % sum(widths):
        raise ValueError(f"{len(record)} bytes are no record of ids")
    count = (len(record) - 1) // sum(widths)
    ids, lengths = (
        np.frombuffer(record, f"<u{width}", count, offset=offset)
        for width, offset in zip(widths, (1, 1 + count * widths[0]))
    )
    return ids.astype(np.int64), lengths.astype(np.int64)


def unpack_many(records: Sequence[bytes]) -> EncodedBatch | None:
    """The ids of records; None where one of them cannot be a record."""
    records_n = np.frombuffer(b"".join(records), np.uint8)
    sizes_d = np.array([len(record) for record in records], np.int64)
    if not sizes_d.all():
        return None
    record_ends_d = np.cumsum(sizes_d)
    first_d = records_n[record_ends_d - sizes_d]
    widths_d = np.stack([first_d >> 4, first_d & 15]).astype(np.int64)
    counts_d, rests_d = np.divmod(sizes_d - 1, np.maximum(1, widths_d.sum(axis=0)))
    if rests_d.any() or not np.isin(widths_d, _WIDTHS).all():
        return None
    ends_d = np.cumsum(counts_d)
    ids, lengths = (np.empty(counts_d.sum(), np.int32) for _ in range(2))
    unpack_records(records_n, record_ends_d, ends_d, ids, lengths)
    return EncodedBatch(ids, lengths, ends_d)
