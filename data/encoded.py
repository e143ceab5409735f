"""Ids of documents: made on the fly, or beforehand by `toklab encode` where every run would spend accelerator time on
them.

    FOLDER/manifest.json                  the corpus's content hash, the representation's fingerprint, the shards
    FOLDER/ids-000000.array_record        zstd, one record a document, in the corpus's order

A record is a byte that says how wide its integers are, the document's n ids, and the source bytes of each; unsigned,
little-endian.

Encoding takes long where a language model is in the loop, so that what is done is kept: until the manifest is there,
`unfinished.jsonl` has what the ids are of in its first line, and then a line for each shard that is whole. The same
command goes on.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tyro
from etils import epath

import tokenizer_lab
from data.engines import Engine, LocalEngine
from data.store import (
    MANIFEST,
    Corpus,
    Documents,
    Shard,
    Split,
    check_files,
    locked,
    open_writer,
    parse_shard,
    write_errors,
)
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cache_folder, cannot_write, is_remote, read_json, remote_errors, write_json
from tokenizer_lab.representation import Representation, read_manifest

FORMAT = "tokenizer-lab ids 1"
SHARD_BYTES = 32 << 20  # of text, about; what is lost at most when encoding is cut off, for each worker
_UNFINISHED, _PARTIAL = "unfinished.jsonl", ".partial.array_record"
_BATCH_DOCUMENTS = 64  # encoded together, where the representation does not want more
_WIDTHS = (1, 2, 4)  # bytes of an integer in a record
_AGAIN = "encode it again"

Encoded = tuple[np.ndarray, np.ndarray]  # i32[n] ids and i64[n] source bytes of each


class EncodedText(bytes):
    """A document that brings its ids along. Parts of it are plain bytes."""

    encoded: Encoded


def encode(representation: Representation, texts: Sequence[bytes]) -> list[Encoded]:
    """Texts as ids and the source bytes of each: all bytes, and no id that a model has no row for. Those that bring
    their ids keep them."""
    on_the_fly = [text for text in texts if not isinstance(text, EncodedText)]
    made = iter(representation.encode_many(on_the_fly) if on_the_fly else ())
    encoded = [text.encoded if isinstance(text, EncodedText) else next(made) for text in texts]
    encoded = [(ids.astype(np.int32), lengths) for ids, lengths in encoded]
    for text, (ids, lengths) in zip(texts, encoded, strict=True):
        assert lengths.sum() == len(text), f"{representation.kind}: {lengths.sum()} bytes of a text of {len(text)}"
        assert ids.size == 0 or 0 <= ids.min() <= ids.max() < representation.vocab_size, (
            f"{representation.kind}: ids from {ids.min()} to {ids.max()}, and its vocabulary has"
            f" {representation.vocab_size}"
        )
    return encoded


# ---- Reading -------------------------------------------------------------------------------------


class _Ids(Documents):
    """Records of ids, which are read as documents are."""

    _again = _AGAIN


class EncodedDocuments(Documents):
    """Documents of a corpus, each an `EncodedText`."""

    def __init__(
        self, folder: epath.Path, shards: tuple[Shard, ...], cache: epath.Path | None, ids: _Ids, vocab_size: int
    ):
        super().__init__(folder, shards, cache)
        self._ids, self._vocab_size = ids, vocab_size

    def __reduce__(self):
        return EncodedDocuments, (self._folder, self._shards, self._cache, self._ids, self._vocab_size)

    def __getitem__(self, index: int) -> EncodedText:
        """A document and its ids. Raises UserError, naming file and record, if one of the two is damaged on disk."""
        text = EncodedText(super().__getitem__(index))
        try:
            text.encoded = ids, lengths = unpack(self._ids[index])
            if lengths.sum() != len(text) or ids.max(initial=0) >= self._vocab_size:
                raise ValueError(f"ids up to {ids.max(initial=0)} for {lengths.sum()} bytes")
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{self._ids.place(index)} holds {error}, for a document of {len(text)} bytes and {self._vocab_size}"
                f" ids there are; remove its folder and {_AGAIN}"
            ) from error
        return text


class EncodedCorpus(Corpus):
    """A corpus whose documents bring their ids along."""

    def __init__(
        self,
        corpus: Corpus,
        ids_folder: epath.Path,
        ids_shards: Sequence[Shard],
        ids_cache: epath.Path | None,
        vocab_size: int,
    ):
        super().__init__(corpus.folder, corpus.manifest, corpus.shards)
        self._ids_folder, self._ids_shards, self._ids_cache, self._vocab_size = (
            ids_folder,
            ids_shards,
            ids_cache,
            vocab_size,
        )

    def documents(self, split: Split) -> EncodedDocuments:
        shards = self.shards_of(split)
        ids = _Ids(
            self._ids_folder, tuple(shard for shard in self._ids_shards if shard.split == split), self._ids_cache
        )
        return EncodedDocuments(self.folder, shards, self.cache, ids, self._vocab_size)


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
            origin, shards = _read_store(folder)
        cache = cache_folder("ids") / f"{origin.corpus[:16]}-{origin.fingerprint[:16]}" if is_remote(folder) else None
        if origin.fingerprint != representation.fingerprint:
            raise UserError(
                f"{folder} holds ids of another representation: its fingerprint is {origin.fingerprint[:12]}, that of"
                f" the run's is {representation.fingerprint[:12]}; {_AGAIN} with the run's, or leave it out"
            )
        own = [number for number, corpus in enumerate(corpora) if corpus.content_hash == origin.corpus]
        if not own:
            there = ", ".join(f"{corpus.folder} has {corpus.content_hash[:12]}" for corpus in corpora)
            raise UserError(
                f"{folder} holds ids of another corpus: of the one with content hash {origin.corpus[:12]}, and {there};"
                f" {_AGAIN}, or leave it out"
            )
        for number in own:
            if _counts(shards) != _counts(corpora[number].shards):
                raise UserError(
                    f"{folder} has not as many documents as {corpora[number].folder}; remove it and {_AGAIN}"
                )
            corpora[number] = EncodedCorpus(corpora[number], folder, shards, cache, representation.vocab_size)
    return corpora


def _counts(shards: Iterable[Shard]) -> collections.Counter:
    """Documents of each split."""
    counts = collections.Counter()
    for shard in shards:
        counts[shard.split] += shard.num_documents
    return counts


@dataclasses.dataclass(frozen=True)
class Origin:
    """Whose ids a folder holds, and by what: a corpus's content hash, and a representation's fingerprint."""

    corpus: str
    fingerprint: str
    format: str = FORMAT


def _read_store(folder: epath.Path) -> tuple[Origin, list[Shard]]:
    """What a whole folder of ids holds. Raises UserError for any other."""
    path = folder / MANIFEST
    if not path.exists():
        reason = "it is not finished" if (folder / _UNFINISHED).exists() else f"it has no {MANIFEST}"
        raise UserError(
            f"{folder} holds no ids of a corpus: {reason}; run toklab encode ARTIFACT --corpus CORPUS --out {folder}"
        )
    manifest = read_json(path, "manifest of ids")
    try:
        origin, shards = Origin(**manifest["origin"]), [parse_shard(value) for value in manifest["shards"]]
        if not _is_origin(origin) or manifest != _manifest(origin, shards):
            raise ValueError(f"it is not what this version writes, {FORMAT!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged, was changed by hand or is of another version: {error}; {_AGAIN}"
        ) from error
    check_files(folder, shards, _AGAIN)
    return origin, shards


def _is_origin(origin: Origin) -> bool:
    return origin.format == FORMAT and isinstance(origin.corpus, str) and isinstance(origin.fingerprint, str)


def _manifest(origin: Origin, shards: Sequence[Shard]) -> dict[str, Any]:
    return {"origin": dataclasses.asdict(origin), "shards": [dataclasses.asdict(shard) for shard in shards]}


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


# ---- Writing -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Write down the ids of a corpus's documents."""

    artifact: tyro.conf.Positional[epath.Path]
    """Folder of the representation's artifact."""

    corpus: epath.Path
    """Folder of the corpus; both of its splits are encoded."""

    out: epath.Path
    """The folder for the ids, on this machine. One that was cut off is gone on with."""

    worker_gpus: float = 0
    """With --engine ray: GPUs of each worker; there are as many workers as the cluster has room for."""

    worker_tpus: float = 0
    """With --engine ray: TPU chips of each worker, usually all of a host."""

    def __post_init__(self):
        if is_remote(self.out):
            raise UserError(
                f"--out {self.out} is in an object store, where files cannot be locked and renamed; encode into a"
                " folder here and copy it"
            )
        if min(self.worker_gpus, self.worker_tpus) < 0:
            raise UserError(
                f"--worker-gpus {self.worker_gpus} and --worker-tpus {self.worker_tpus}: a worker has 0 or more"
            )

    @property
    def devices(self) -> dict[str, float]:
        return {name: count for name, count in (("GPU", self.worker_gpus), ("TPU", self.worker_tpus)) if count}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode_corpus` did.

    Attributes:
      num_documents, num_bytes: of text whose ids the folder holds.
      num_shards, num_kept: files of ids, and how many of them were there already.
    """

    folder: epath.PathLike
    num_documents: int
    num_bytes: int
    num_shards: int
    num_kept: int

    def __str__(self) -> str:
        kept = f", {self.num_kept:,} of them were there" if self.num_kept else ""
        return (
            f"{self.folder}: the ids of {self.num_documents:,} documents, {self.num_bytes:,} bytes; {self.num_shards:,}"
            f" shards{kept}"
        )


def encode_corpus(
    options: EncodeOptions,
    report: Callable[[int, int], None] = lambda num_bytes_done, num_bytes_total: None,
    engine: Engine = LocalEngine(),
    shard_bytes: int = SHARD_BYTES,
) -> EncodeResult:
    """Writes the ids of all documents of a corpus.

    Args:
      report: called often with the bytes of text encoded so far, and those there are to encode.
      engine: where texts are encoded. This process reads no text and does not load the representation, whose
        accelerator the workers need; it writes the shards in order, whatever the engine.
      shard_bytes: of text in a shard of ids, about.

    Raises:
      UserError: the folder holds something else, or cannot be written; corpus or representation cannot be read.
    """
    corpus, out = Corpus.open(options.corpus), pathlib.Path(options.out)
    origin = Origin(corpus.content_hash, read_manifest(options.artifact)["fingerprint"])
    try:
        with locked(out, "encode"):
            if (out / MANIFEST).exists():
                found, shards = _read_store(epath.Path(out))
                _check_origin(out, found, origin)
                num_kept = len(shards)
            else:
                pieces, kept = cut(corpus, shard_bytes), _kept_shards(out, origin)
                to_do, num_bytes = (
                    [piece for piece in pieces if piece not in kept],
                    corpus.num_bytes - sum(shard.num_bytes for shard in kept.values()),
                )
                made = kept | _write_shards(options, origin, to_do, num_bytes, report, engine)
                shards, num_kept = [made[piece] for piece in pieces], len(pieces) - len(to_do)
                write_json(out / MANIFEST, _manifest(origin, shards))
                (out / _UNFINISHED).unlink()
    except OSError as error:
        raise cannot_write(out, error) from error
    return EncodeResult(
        folder=options.out,
        num_documents=corpus.num_documents,
        num_bytes=corpus.num_bytes,
        num_shards=len(shards),
        num_kept=num_kept,
    )


@dataclasses.dataclass(frozen=True)
class Piece:
    """Documents `first` to `end - 1` of a split, whose ids go into one file; all of one domain."""

    file: str
    domain: str
    split: Split
    first: int
    end: int


def cut(corpus: Corpus, shard_bytes: int) -> list[Piece]:
    """Cuts each shard of a corpus into pieces of as many documents; decided by the manifest alone, which tells the size
    of no document."""
    pieces, firsts = [], {"train": 0, "test": 0}
    for shard in corpus.shards:
        count = min(shard.num_documents, max(1, -(-shard.num_bytes // shard_bytes)))
        edges = [firsts[shard.split] + shard.num_documents * part // count for part in range(count + 1)]
        for first, end in itertools.pairwise(edges):
            pieces.append(Piece(f"ids-{len(pieces):06d}.array_record", shard.domain, shard.split, first, end))
        firsts[shard.split] = edges[-1]
    return pieces


@dataclasses.dataclass(frozen=True)
class EncodedPortion:
    """Records of the next documents of a piece, and how many bytes of text they stand for."""

    piece: Piece
    records: list[bytes]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes pieces; what an engine's workers do. Opens corpus and representation where it is, once."""

    corpus_folder: str
    artifact: str
    origin: Origin

    def __call__(self, piece: Piece) -> Iterator[EncodedPortion]:
        """Raises UserError where corpus or representation are not those of `origin`."""
        documents = self._corpus.documents(piece.split)
        together = max(_BATCH_DOCUMENTS, self._representation.batch_documents)
        for start in range(piece.first, piece.end, together):
            texts = [documents[number] for number in range(start, min(start + together, piece.end))]
            yield EncodedPortion(
                piece, [pack(encoded) for encoded in encode(self._representation, texts)], sum(map(len, texts))
            )

    @functools.cached_property
    def _corpus(self) -> Corpus:
        corpus = Corpus.open(self.corpus_folder)
        if corpus.content_hash != self.origin.corpus:
            raise UserError(
                f"{self.corpus_folder} is another corpus for the worker than for toklab encode; have one corpus under"
                " this path"
            )
        return corpus

    @functools.cached_property
    def _representation(self) -> Representation:
        representation = tokenizer_lab.load(self.artifact)
        if representation.fingerprint != self.origin.fingerprint:
            raise UserError(
                f"{self.artifact} is another artifact for the worker than for toklab encode; have one artifact under"
                " this path"
            )
        return representation


def _check_origin(out: pathlib.Path, found: Origin, origin: Origin) -> None:
    if found != origin:
        raise UserError(
            f"{out} holds ids of another {'corpus' if found.corpus != origin.corpus else 'representation'}; choose"
            " another --out"
        )


def _kept_shards(out: pathlib.Path, origin: Origin) -> dict[Piece, Shard]:
    """The shards of a folder that was cut off. Raises UserError where it holds something else."""
    if (out / _UNFINISHED).exists():
        found, kept = _read_unfinished(out)
        _check_origin(out, found, origin)
        return kept
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no ids; choose another --out")
    return {}


def _read_unfinished(out: pathlib.Path) -> tuple[Origin, dict[Piece, Shard]]:
    """Of a folder that was cut off, whose ids it holds, and the shards whose files are there."""
    origin, kept = None, {}
    for line in (out / _UNFINISHED).read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
            if origin is None:
                origin = Origin(**value)
                continue
            piece = Piece(**{field.name: value[field.name] for field in dataclasses.fields(Piece)})
            shard = parse_shard({field.name: value[field.name] for field in dataclasses.fields(Shard)})
        except (KeyError, TypeError, ValueError):
            continue  # a line that was cut off; its shard is written again
        path = out / shard.file
        if path.exists() and path.stat().st_size == shard.file_bytes:
            kept[piece] = shard
    if origin is None:
        raise UserError(f"{out / _UNFINISHED} is damaged; remove {out} and {_AGAIN}")
    return origin, kept


def _note(out: pathlib.Path, value: dict[str, Any]) -> None:
    with (out / _UNFINISHED).open("a") as file:
        file.write("\n" + json.dumps(value))  # the line end first: the line before may have been cut off


def _write_shards(
    options: EncodeOptions,
    origin: Origin,
    pieces: Sequence[Piece],
    num_bytes: int,
    report: Callable[[int, int], None],
    engine: Engine,
) -> dict[Piece, Shard]:
    """Encodes pieces, in order, each into its shard, which is noted as soon as it is whole."""
    out, shards = pathlib.Path(options.out), {}
    encoder = Encoder(os.fspath(options.corpus), os.fspath(options.artifact), origin)
    with contextlib.closing(engine.stream(encoder, pieces, options.devices)) as portions:
        for piece, portions_of_piece in itertools.groupby(portions, key=operator.attrgetter("piece")):
            if not (out / _UNFINISHED).exists():
                _note(out, dataclasses.asdict(origin))
            before = sum(shard.num_bytes for shard in shards.values())
            shards[piece] = _write_shard(out, piece, portions_of_piece, lambda done: report(before + done, num_bytes))
            _note(out, dataclasses.asdict(piece) | dataclasses.asdict(shards[piece]))
    return shards


def _write_shard(
    out: pathlib.Path, piece: Piece, portions: Iterable[EncodedPortion], report: Callable[[int], None]
) -> Shard:
    """Writes one file of ids, whole or not at all; `report` is told the bytes of text so far."""
    partial, digest, num_documents, num_bytes = out / _PARTIAL, hashlib.sha256(), 0, 0
    file = open_writer(partial)
    try:
        for portion in portions:
            for record in portion.records:
                digest.update(len(record).to_bytes(8, "little"))
                digest.update(record)
                with write_errors():
                    file.write(record)
            num_documents, num_bytes = num_documents + len(portion.records), num_bytes + portion.num_bytes
            report(num_bytes)
        with write_errors():
            file.close()
        assert num_documents == piece.end - piece.first, (piece, num_documents)
        partial.rename(out / piece.file)
    finally:
        partial.unlink(missing_ok=True)
    return Shard(
        file=piece.file,
        domain=piece.domain,
        split=piece.split,
        num_documents=num_documents,
        num_bytes=num_bytes,
        file_bytes=(out / piece.file).stat().st_size,
        content_hash=digest.hexdigest(),
    )
