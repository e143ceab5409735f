"""The contract between text and ids that every input representation keeps, and the folder that stores one.

A representation turns a document's bytes into ids and back:

- lossless on every byte string: `decode(encode(x)) == x`, also where `x` is not UTF-8. One that is not says so
  (`is_lossless`), and there are no bits per byte of it;
- total: `decode` of any ids in `[0, vocab_size)` returns bytes, never an exception;
- exact about bytes: `sum(byte_lengths(encode(x))) == len(x)`;
- the same ids on every machine for the same artifact;
- immutable, so that any number of threads may encode at once.

An artifact is a folder: `manifest.json` and the files that `Representation.to_files` names. Its fingerprint is the hash
of kind and files, so two artifacts with one fingerprint give the same ids. Nothing in it is code.
"""

import abc
import functools
import hashlib
import importlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import (
    cannot_write,
    check_name,
    is_remote,
    read_bytes,
    read_json,
    sha256_of_parts,
    write_bytes,
    write_json,
)

FORMAT = "tokenizer-lab representation 2"
MAX_FILE_BYTES = 4 << 30

# What encoders know besides a representation's ids: these, each added to its vocab_size.
MASK, CLS, SEP = range(3)
NUM_ENCODER_IDS = 3

EMPTY: Mapping[str, float] = MappingProxyType({})


class EncodedBatch(NamedTuple):
    """Several documents' ids, one document after the other.

    Attributes:
      ids: i32[n].
      bytes_per_id: i32[n], source bytes of each.
      ends: i64[d]; document k is `ids[ends[k - 1]:ends[k]]`.
    """

    ids: np.ndarray
    bytes_per_id: np.ndarray
    ends: np.ndarray


def joined(encoded: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> EncodedBatch:
    """The ids and source bytes of documents, one document after the other."""
    ids, lengths = ([np.zeros(0, np.int32), *(np.asarray(pair[part], np.int32) for pair in encoded)] for part in (0, 1))
    ends = np.cumsum([len(of_document) for of_document in ids[1:]], dtype=np.int64)
    return EncodedBatch(np.concatenate(ids), np.concatenate(lengths), ends)


# Kind -> its class, in a module that also has FIT_OPTIONS. A new representation is one file beside this one and one
# line here.
KINDS = {
    "byte": "tokenizer_lab.byte:ByteRepresentation",
    "subword": "tokenizer_lab.subword:SubwordRepresentation",
    "ac": "tokenizer_lab.baselines.ac:ACRepresentation",
    "static_ac": "tokenizer_lab.baselines.static_ac:StaticACRepresentation",
    "equal_info": "tokenizer_lab.equal_info.representation:EqualInfoRepresentation",
    "gzip": "tokenizer_lab.baselines.gzip_code:GzipRepresentation",
}


class Representation(abc.ABC):
    """Text <-> ids; see the module docstring for what holds.

    Attributes:
      kind: the name under which artifacts and reports know this class.
      is_lossless: whether every text comes back. Where one does not, bits divided by its bytes say nothing about it,
        and `byte_lengths` of its ids add up to what they decode to.
      verifies_encoding: whether `encode` raises where ids would not decode to their text, so that nobody need decode
        them to know, which may take long.
      vocab_size: ids are in `[0, vocab_size)`, special ids included.
      eod_id: the end-of-document id. `encode` never returns it; it stands for no bytes.
      fit_corpus_hash: content hash of the corpus the representation was fitted on; empty where nothing was fitted.
      costs: what it takes, where a model is behind it: `fit_flops` once, and `encode_flops_per_id`.
      statistics: what was measured when it was fitted, e.g. `bytes_per_id`.
      left_out: what the tokenizer that it was made of does to a text and this does not, so that ids differ; empty
        where there is nothing.
      batch_documents: how many documents `encode_many` and `encode_batch` are best given at once.
    """

    kind: ClassVar[str]
    is_lossless: bool = True
    verifies_encoding: bool = False
    vocab_size: int
    eod_id: int
    fit_corpus_hash: str = ""
    costs: Mapping[str, float] = EMPTY
    statistics: Mapping[str, float] = EMPTY
    left_out: str = ""
    batch_documents: int = 1

    @abc.abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """One document's bytes -> i32[n] ids."""

    @abc.abstractmethod
    def decode(self, ids: npt.ArrayLike) -> bytes:
        """i[n] ids, any in range -> bytes. Special ids stand for nothing. Raises UserError for ids out of range."""

    @abc.abstractmethod
    def byte_lengths(self, ids: npt.ArrayLike) -> np.ndarray:
        """i[n] ids of one document, from its start -> i64[n], the source bytes that each id carries.

        Raises UserError for ids out of range."""

    def encode_many(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Documents -> for each, what `encode` and `byte_lengths` say: i32[n] ids and i64[n] source bytes of each."""
        encoded = [self.encode(text) for text in texts]
        return [(ids, self.byte_lengths(ids)) for ids in encoded]

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedBatch:
        """The same as `encode_many`, in arrays that one loop goes through. Any number of threads may call it."""
        return joined(self.encode_many(texts) if texts else [])

    @property
    def encoded_by(self) -> str | None:
        """What encodes, in words; None where there is but one way."""
        return None

    def spelled_bytes(self, documents: Iterable[bytes]) -> Mapping[str, int] | None:
        """Why text has ids of single bytes instead of the tokenizer's own -> how many bytes of `documents` have. None
        of a representation that has no other ids."""
        return None

    def open_prompt(self, text: bytes) -> "OpenPrompt":
        """What is certain of the ids of all documents that begin with `text`.

        By default its ids as they stand: exact where an id does not depend on the text behind it, else an
        approximation.
        """
        return OpenPrompt(self.encode(text), (), ())

    @abc.abstractmethod
    def to_files(self) -> dict[str, bytes]:
        """Everything the ids depend on, as file name -> content (JSON, npy, ...; never pickle)."""

    @classmethod
    @abc.abstractmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The inverse of `to_files`. Raises UserError for content that is not what it should be."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of kind and files, as hex."""
        files = sorted(self.to_files().items())
        return sha256_of_parts(
            [self.kind.encode(), *(part for name, content in files for part in (name.encode(), content))]
        )

    def save(self, folder: epath.PathLike) -> None:
        """Writes the artifact folder, whole or not at all; the same artifact again changes nothing.

        Raises:
          UserError: another artifact, or something else, is already there; or it cannot be written.
        """
        folder = epath.Path(folder)
        if folder.exists():
            if (folder / "manifest.json").exists() and load(folder).fingerprint == self.fingerprint:
                return
            if not is_remote(folder) or (folder / "manifest.json").exists():
                raise UserError(f"{folder} already exists and is not this artifact; choose another folder or remove it")
        files = self.to_files()
        manifest = {
            "format": FORMAT,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fit_corpus_hash": self.fit_corpus_hash,
            "fingerprint": self.fingerprint,
            "costs": dict(self.costs),
            "statistics": dict(self.statistics),
            "files": {name: _sha256(files[name]) for name in sorted(files)},
        }
        manifest |= {"manifest_sha256": _manifest_sha256(manifest)}
        if is_remote(folder):
            # No folder can be renamed there in one go: without its manifest, which comes last, it is no artifact.
            for name, content in files.items():
                write_bytes(folder / check_name(name, "artifact file"), content)
            write_json(folder / "manifest.json", manifest)
            return
        partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            partial.mkdir(parents=True)
            try:
                for name, content in files.items():
                    (partial / check_name(name, "artifact file")).write_bytes(content)
                write_json(partial / "manifest.json", manifest)
                partial.rename(folder)
            except BaseException:
                partial.rmtree(missing_ok=True)
                raise
        except OSError as error:
            raise cannot_write(folder, error) from error

    def fitted(
        self, corpus_hash: str, costs: Mapping[str, float] = EMPTY, statistics: Mapping[str, float] = EMPTY
    ) -> Self:
        """The same representation, which knows what fitting it took and measured; see the attributes."""
        about = {"fit_corpus_hash": corpus_hash, "costs": costs, "statistics": statistics}
        same = object.__new__(type(self))
        same.__dict__.update(self.__dict__ | about)
        return same

    def __reduce__(self):
        # Worker processes rebuild a representation from its files: what a backend pickles of itself may be less.
        about = {name: getattr(self, name) for name in ("fit_corpus_hash", "costs", "statistics")}
        return (
            type(self).from_files,
            (self.to_files(),),
            {name: value if isinstance(value, str) else dict(value) for name, value in about.items()},
        )


class OpenPrompt(NamedTuple):
    """A prompt of which the end is open.

    Attributes:
      ids: i32[n], the ids that are certain.
      low, high: of the next ids, the first and the last choice, in the order of tuples; empty where nothing is known.
    """

    ids: np.ndarray
    low: tuple[int, ...]
    high: tuple[int, ...]


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """The manifest of an artifact folder, checked for form and damage. Raises UserError."""
    path = epath.Path(folder) / "manifest.json"
    manifest = read_json(path, "representation artifact")
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise UserError(f"{path} is not the manifest of a representation artifact; fit the representation again")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has format {manifest['format']!r}, this version reads {FORMAT!r}; fit the representation again"
        )
    form = {
        "format": str,
        "kind": str,
        "vocab_size": int,
        "fit_corpus_hash": str,
        "fingerprint": str,
        "costs": dict,
        "statistics": dict,
        "files": dict,
        "manifest_sha256": str,
    }
    if (
        manifest.keys() != form.keys()
        or any(type(manifest[key]) is not of for key, of in form.items())
        or any(type(sha256) is not str for sha256 in manifest["files"].values())
        or any(type(x) is not float for name in ("costs", "statistics") for x in manifest[name].values())
    ):
        raise UserError(f"{path} does not have just {', '.join(form)}, each of its type; fit the representation again")
    if manifest.pop("manifest_sha256") != _manifest_sha256(manifest):
        raise UserError(f"{path} is damaged: its SHA-256 is not the one it states; fit the representation again")
    return manifest


def load(folder: epath.PathLike) -> Representation:
    """The representation stored in an artifact folder.

    Raises:
      UserError: the folder is not an artifact, is damaged, or is of an unknown kind.
    """
    folder = epath.Path(folder)
    manifest = read_manifest(folder)
    if manifest["kind"] not in KINDS:
        raise UserError(f"{folder} is of kind {manifest['kind']!r}; this version knows {', '.join(KINDS)}")
    files = {}
    for name, sha256 in manifest["files"].items():
        path = folder / check_name(name, f"{folder}: artifact file")
        files[name] = read_bytes(path, "representation artifact", MAX_FILE_BYTES)
        if _sha256(files[name]) != sha256:
            raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's; fit the representation again")
    try:
        representation = kind_class(manifest["kind"]).from_files(files)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    representation = representation.fitted(*(manifest[name] for name in ("fit_corpus_hash", "costs", "statistics")))
    if representation.fingerprint != manifest["fingerprint"] or representation.vocab_size != manifest["vocab_size"]:
        raise UserError(
            f"{folder} does not give back the artifact its manifest describes; fit the representation again"
        )
    return representation


def kind_class(kind: str) -> type[Representation]:
    """The class of a kind in `KINDS`."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def fit_options(kind: str) -> type:
    """The dataclass of a kind's options of `toklab fit`, whose method `fit(documents, corpus_hash)` learns it; `learns`
    is False on one that looks at no document."""
    return importlib.import_module(KINDS[kind].partition(":")[0]).FIT_OPTIONS


def together(ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of each document, i32[n] -> those of all, i32[sum n], and where those of each end, i64[d]."""
    return np.concatenate([np.zeros(0, np.int32), *ids]), np.cumsum([len(each) for each in ids], dtype=np.int64)


def check_lossless(representation: Representation) -> None:
    """Raises UserError where texts do not come back, so that there are no bits per byte."""
    if not representation.is_lossless:
        raise UserError(
            f"the {representation.kind} representation {representation.fingerprint[:12]} does not give every text back,"
            " so that its bits per byte would be of another text; fit one that is lossless, e.g. toklab fit equal_info"
            " with --rule exact or delay"
        )


def check_ids(ids: npt.ArrayLike, vocab_size: int) -> np.ndarray:
    """i[n] ids -> i64[n], all in `[0, vocab_size)`. Raises UserError for an id outside."""
    ids = np.asarray(ids)
    assert ids.ndim == 1 and (ids.size == 0 or ids.dtype.kind in "iu"), (
        f"ids are i[n], not {ids.dtype}{list(ids.shape)}"
    )
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise UserError(
            f"id {outside[0]} is outside the vocabulary, 0 to {vocab_size - 1}; decode with the artifact that encoded"
        )
    return ids.astype(np.int64)


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
