"""`toklab encode`: writes the ids of a corpus's documents (`data/encoded.py` reads them), on one machine or many.

Encoding takes long where a language model is in the loop, so that what is done is kept: until the manifest is there,
`unfinished.jsonl` has what the ids are of in its first line, and then a line for each shard that is whole. The same
command goes on.
"""

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
from typing import Any, cast

import tyro
from etils import epath

import tokenizer_lab
from data.corpus_writer import locked, open_writer, write_errors
from data.encoded import AGAIN, UNFINISHED, Origin, encode, ids_manifest, pack, read_ids_store
from data.engines import Engine, LocalEngine
from data.manifest import MANIFEST, Shard, Split, parse_shard, write_manifest
from data.store import Corpus
from tokenizer_lab.errors import UserError, check_numbers
from tokenizer_lab.files import cannot_write, is_remote
from tokenizer_lab.representation import Representation, read_manifest

SHARD_BYTES = 32 << 20  # of text, about; what is lost at most when encoding is cut off, for each worker
_PARTIAL = ".partial.array_record"
_BATCH_DOCUMENTS = 64  # encoded together, where the representation does not want more


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

    def __post_init__(self) -> None:
        if is_remote(self.out):
            raise UserError(
                f"--out {self.out} is in an object store, where files cannot be locked and renamed; encode into a"
                " folder here and copy it"
            )
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
                found, shards = read_ids_store(epath.Path(out))
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
                write_manifest(out / MANIFEST, ids_manifest(origin, shards))
                (out / UNFINISHED).unlink()
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
    pieces: list[Piece] = []
    firsts = {"train": 0, "test": 0}
    for shard in corpus.shards:
        count = min(shard.num_documents, max(1, -(-shard.num_bytes // shard_bytes)))
        split = cast(Split, shard.split)  # `parse_shard` has seen to it
        edges = [firsts[split] + shard.num_documents * part // count for part in range(count + 1)]
        for first, end in itertools.pairwise(edges):
            pieces.append(Piece(f"ids-{len(pieces):06d}.array_record", shard.domain, split, first, end))
        firsts[split] = edges[-1]
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
    if (out / UNFINISHED).exists():
        found, kept = _read_unfinished(out)
        _check_origin(out, found, origin)
        return kept
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no ids; choose another --out")
    return {}


def _read_unfinished(out: pathlib.Path) -> tuple[Origin, dict[Piece, Shard]]:
    """Of a folder that was cut off, whose ids it holds, and the shards whose files are there."""
    origin, kept = None, {}
    for line in (out / UNFINISHED).read_text(errors="replace").splitlines():
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
        raise UserError(f"{out / UNFINISHED} is damaged; remove {out} and {AGAIN}")
    return origin, kept


def _note(out: pathlib.Path, value: dict[str, Any]) -> None:
    with (out / UNFINISHED).open("a") as file:
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
    out = pathlib.Path(options.out)
    shards: dict[Piece, Shard] = {}
    encoder = Encoder(os.fspath(options.corpus), os.fspath(options.artifact), origin)
    with contextlib.closing(engine.stream(encoder, pieces, options.devices)) as portions:
        for piece, portions_of_piece in itertools.groupby(portions, key=operator.attrgetter("piece")):
            if not (out / UNFINISHED).exists():
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
        if num_documents != piece.end - piece.first:
            raise AssertionError(f"{num_documents} documents are written for {piece}")
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
