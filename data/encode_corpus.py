"""`toklab encode`: writes the ids of a corpus's documents (`data/encoded.py` reads them), on one machine or many.

Encoding takes long where a language model is in the loop, so that what is done is kept. An engine's workers write
shards where they are to be. Until the manifest is there, `.partial/` has what the ids are of, and a note of each shard
that is whole. The same command goes on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import tyro
from etils import epath

import tokenizer_lab
from data.corpus_writer import claimed, locked
from data.encoded import UNFINISHED, Origin, encode, ids_manifest, pack, read_ids_store
from data.layout import unit_documents
from data.local_engine import Engine, LocalEngine
from data.manifest import MANIFEST, Shard, Split, StoredText, shard_file, write_manifest
from data.shards import DocumentFile, UnitSpan
from data.storage import Range, new_file, read_if_there, read_ranges, remove_empty_folders, remove_folder, sizes_in
from data.store import Corpus
from tokenizer_lab.errors import UserError, check_numbers
from tokenizer_lab.files import cannot_write, is_remote, write_json
from tokenizer_lab.representation import Representation, read_manifest

SHARD_BYTES = 32 << 20  # of text, about; what is lost at most when encoding is cut off, for each worker
_ORIGIN = "origin.json"  # among the notes
_BATCH_DOCUMENTS = 64  # encoded together, where the representation does not want more


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Write down the ids of a corpus's documents."""

    artifact: tyro.conf.Positional[epath.Path]
    """Folder of the representation's artifact."""

    corpus: epath.Path
    """Folder of the corpus; both of its splits are encoded."""

    out: epath.Path
    """The folder for the ids, here or in an object store. One that was cut off is gone on with."""

    worker_gpus: float = 0
    """With --engine ray: GPUs of each worker; there are as many workers as the cluster has room for."""

    worker_tpus: float = 0
    """With --engine ray: TPU chips of each worker, usually all of a host."""

    def __post_init__(self) -> None:
        check_numbers(self, "--")

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
      engine: where texts are encoded and ids written. This process reads no text and does not load the representation,
        whose accelerator the workers need.
      shard_bytes: of text in a shard of ids, about.

    Raises:
      UserError: the folder holds something else, or cannot be written; corpus or representation cannot be read.
    """
    corpus, out = Corpus.open(options.corpus), epath.Path(options.out)
    origin = Origin(corpus.content_hash, read_manifest(options.artifact)["fingerprint"])
    try:
        with contextlib.nullcontext() if is_remote(out) else locked(pathlib.Path(out), "encode"):
            if (out / MANIFEST).exists():
                found = read_ids_store(out)
                _check_origin(out, found.origin, origin)
                num_shards = num_kept = found.num_shards
            else:
                pieces, kept = cut(corpus, origin, shard_bytes), _kept_shards(out, origin)
                to_do = corpus.num_bytes - sum(shard.num_bytes for shard in kept.values())
                shards = _write_shards(options, origin, pieces, kept, lambda done: report(done, to_do), engine)
                num_shards, num_kept = len(pieces), sum(piece.file in kept for piece in pieces)
                _commit(out, origin, _texts(corpus, origin, [shards[piece.file] for piece in pieces]))
    except OSError as error:
        raise cannot_write(out, error) from error
    return EncodeResult(
        folder=options.out,
        num_documents=corpus.num_documents,
        num_bytes=corpus.num_bytes,
        num_shards=num_shards,
        num_kept=num_kept,
    )


@dataclasses.dataclass(frozen=True)
class Piece:
    """Documents `first` to `end - 1` of a split, whose ids go into one file; all of one domain.

    Attributes:
      before: how many documents of the domain and split come before `first`.
      unit_documents: in a unit of the file.
    """

    file: str
    domain: str
    split: Split
    first: int
    end: int
    before: int
    unit_documents: int


def cut(corpus: Corpus, origin: Origin, shard_bytes: int) -> list[Piece]:
    """Cuts each shard of a corpus into pieces of whole units; decided by the manifest alone, which tells the size of no
    document."""
    pieces: list[Piece] = []
    firsts: dict[str, int] = {}
    for text in corpus.manifest.texts:
        before, number, in_unit = 0, 0, _unit_documents(text)
        for shard in text.shards:
            span = UnitSpan(before, shard.num_documents, in_unit)
            count = min(span.num_units, max(1, -(-shard.num_bytes // shard_bytes)))
            starts = [span.start(span.num_units * part // count) for part in range(count)]
            for start, end in itertools.pairwise([*starts, shard.num_documents]):
                first = firsts.get(text.split, 0)
                file = shard_file(text.domain, text.split, number, origin.fingerprint[:8])
                pieces.append(Piece(file, text.domain, text.split, first, first + end - start, before + start, in_unit))
                firsts[text.split], number = first + end - start, number + 1
            before += shard.num_documents
    return pieces


def _unit_documents(text: StoredText) -> int:
    """Of corpora that earlier versions wrote, whose units are single documents, as if they were written now."""
    return text.unit_documents if text.name else unit_documents(text.num_documents, text.num_bytes)


def _texts(corpus: Corpus, origin: Origin, shards: Sequence[Shard]) -> list[StoredText]:
    """What the ids of a corpus's texts are written into."""
    texts = []
    for text in corpus.manifest.texts:
        own = tuple(shard for shard in shards if (shard.domain, shard.split) == text.text)
        content_hash = hashlib.sha256("".join(shard.content_hash for shard in own).encode()).hexdigest()
        texts.append(
            StoredText(
                domain=text.domain,
                split=text.split,
                rule=text.rule,
                name=origin.fingerprint[:8],
                unit_documents=_unit_documents(text),
                num_parts=0,
                content_hash=content_hash,
                shards=own,
            )
        )
    return texts


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes pieces and writes their shards; what an engine's workers do. Opens corpus and representation where it is,
    once."""

    corpus_folder: str
    artifact: str
    out: str
    origin: Origin

    def __call__(self, piece: Piece) -> Iterator[int | Shard]:
        """Yields bytes of text that were encoded, again and again, and last the shard. Raises UserError where corpus or
        representation are not those of `origin`, or the shard cannot be written."""
        out, digest, num_bytes = epath.Path(self.out), hashlib.sha256(), 0
        documents = self._corpus.documents(piece.split)
        together = max(_BATCH_DOCUMENTS, self._representation.batch_documents)
        try:
            with new_file(out / piece.file) as opened:
                file = DocumentFile(opened, piece.before, piece.unit_documents)
                for start in range(piece.first, piece.end, together):
                    texts = documents.read_many(range(start, min(start + together, piece.end)))
                    records = [pack(encoded) for encoded in encode(self._representation, texts)]
                    for record in records:
                        digest.update(len(record).to_bytes(8, "little"))
                        digest.update(record)
                    file.add(records, {})
                    size = sum(map(len, texts))
                    num_bytes += size
                    yield size
                file_bytes = file.close()
            shard = Shard(
                file=piece.file,
                domain=piece.domain,
                split=piece.split,
                num_documents=piece.end - piece.first,
                num_bytes=num_bytes,
                file_bytes=file_bytes,
                content_hash=digest.hexdigest(),
            )
            write_json(_note(out, piece.file), vars(shard), sync=False)
        except OSError as error:
            raise cannot_write(out, error) from error
        yield shard

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


def _note(out: epath.Path, file: str) -> epath.Path:
    return out / UNFINISHED / (file.replace("/", "-") + ".json")


def _check_origin(out: epath.Path, found: Origin, origin: Origin) -> None:
    if found != origin:
        raise UserError(
            f"{out} holds ids of another {'corpus' if found.corpus != origin.corpus else 'representation'}; choose"
            " another --out"
        )


def _kept_shards(out: epath.Path, origin: Origin) -> dict[str, Shard]:
    """The shards of a folder that was cut off, by their files. Raises UserError where it holds something else."""
    there = sizes_in(out)
    if about := read_if_there(out / UNFINISHED / _ORIGIN):
        _check_origin(out, Origin(**json.loads(about)), origin)
    elif any(not name.startswith(".") for name in there):
        raise UserError(f"{out} is not empty and holds no ids; choose another --out")
    notes = [name for name in there if name.startswith(f"{UNFINISHED}/") and name.endswith(".zst.json")]
    found = [
        json.loads(note)
        for note in read_ranges([Range(os.fspath(out / name), 0, there[name]) for name in sorted(notes)])
    ]
    shards = [Shard(**note) for note in found]
    return {shard.file: shard for shard in shards if there.get(shard.file) == shard.file_bytes}


def _write_shards(
    options: EncodeOptions,
    origin: Origin,
    pieces: Sequence[Piece],
    kept: Mapping[str, Shard],
    report: Callable[[int], None],
    engine: Engine,
) -> dict[str, Shard]:
    """Encodes the pieces that are not kept. Returns all shards by their files."""
    out, shards = epath.Path(options.out), dict(kept)
    to_do = [piece for piece in pieces if piece.file not in kept]
    encoder = Encoder(os.fspath(options.corpus), os.fspath(options.artifact), os.fspath(out), origin)
    num_bytes = 0
    write_json(out / UNFINISHED / _ORIGIN, dataclasses.asdict(origin), sync=False)
    try:
        with contextlib.closing(engine.stream(encoder, to_do, options.devices)) as results:
            for result in results:
                if isinstance(result, Shard):
                    shards[result.file] = result
                else:
                    num_bytes += result
                    report(num_bytes)
    except BaseException:
        if set(sizes_in(out / UNFINISHED)) == {_ORIGIN}:
            remove_folder(out / UNFINISHED)
            remove_empty_folders(out, {piece.domain for piece in pieces})
        raise
    return shards


def _commit(out: epath.Path, origin: Origin, texts: Sequence[StoredText]) -> None:
    with claimed(out) if is_remote(out) else contextlib.nullcontext():
        if (out / MANIFEST).exists():
            _check_origin(out, read_ids_store(out).origin, origin)
        write_manifest(out / MANIFEST, ids_manifest(origin, texts))
    remove_folder(out / UNFINISHED)
