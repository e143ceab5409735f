"""The contract between text and ids that every input representation keeps, and the folder that stores one.

A representation turns a document's bytes into ids and back:

- lossless on every byte string: `decode(encode(x)) == x`, also where `x` is not UTF-8;
- total: `decode` of any ids in `[0, vocab_size)` returns bytes, never an exception;
- exact about bytes: `sum(byte_lengths(encode(x))) == len(x)`;
- the same ids on every machine for the same artifact.

An artifact is a folder: `manifest.json` and the files that `Representation.to_files` names. Its fingerprint is the hash
of kind and files, so two artifacts with one fingerprint give the same ids. Nothing in it is code.
"""

import abc
import hashlib
import importlib
import shutil
import uuid
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, check_name, read_json, sha256_of_parts, write_json

FORMAT = "tokenizer-lab representation 1"
MAX_FILE_BYTES = 4 << 30

# Kind -> where its class lives. A new representation is one file beside this one and one line here.
KINDS = {
    "byte": "tokenizer_lab.byte:ByteRepresentation",
    "subword": "tokenizer_lab.subword:SubwordRepresentation",
}


class Representation(abc.ABC):
    """Text <-> ids; see the module docstring for what holds.

    Attributes:
      kind: the name under which artifacts and reports know this class.
      vocab_size: ids are in `[0, vocab_size)`, special ids included.
      eod_id: the end-of-document id. `encode` never returns it; it stands for no bytes.
      fit_corpus_hash: content hash of the corpus the representation was fitted on; empty where nothing was fitted.
    """

    kind: ClassVar[str]
    vocab_size: int
    eod_id: int
    fit_corpus_hash: str = ""

    @abc.abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """One document's bytes -> i32[n] ids."""

    @abc.abstractmethod
    def decode(self, ids: np.ndarray) -> bytes:
        """i[n] ids, any in range -> bytes. Special ids stand for nothing. Raises UserError for ids out of range."""

    @abc.abstractmethod
    def byte_lengths(self, ids: np.ndarray) -> np.ndarray:
        """i[n] ids of one document, from its start -> i64[n], the source bytes that each id carries."""

    @abc.abstractmethod
    def to_files(self) -> dict[str, bytes]:
        """Everything the ids depend on, as file name -> content (JSON, npy, ...; never pickle)."""

    @classmethod
    @abc.abstractmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The inverse of `to_files`. Raises UserError for content that is not what it should be."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of kind and files, as hex."""
        if not hasattr(self, "_fingerprint"):
            files = self.to_files()
            self._fingerprint = sha256_of_parts([self.kind.encode(), *(x for name in sorted(files) for x in (name.encode(), files[name]))])
        return self._fingerprint

    def save(self, folder: epath.PathLike) -> None:
        """Writes the artifact folder, whole or not at all; the same artifact again changes nothing.

        Raises:
          UserError: another artifact, or something else, is already there; or it cannot be written.
        """
        folder = epath.Path(folder)
        if folder.exists():
            if (folder / "manifest.json").exists() and read_manifest(folder)["fingerprint"] == self.fingerprint:
                return
            raise UserError(f"{folder} already exists and holds something else; choose another --out or remove it")
        partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
        files = self.to_files()
        try:
            partial.mkdir(parents=True)
            for name, content in files.items():
                (partial / check_name(name, "artifact file")).write_bytes(content)
            manifest = {
                "format": FORMAT,
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "fit_corpus_hash": self.fit_corpus_hash,
                "fingerprint": self.fingerprint,
                "files": {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in sorted(files.items())},
            }
            write_json(partial / "manifest.json", manifest)
            partial.rename(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read_manifest(folder: epath.PathLike) -> dict:
    """The manifest of an artifact folder, checked for form. Raises UserError."""
    folder = epath.Path(folder)
    manifest = read_json(folder / "manifest.json", "representation artifact")
    required = {"format": str, "kind": str, "vocab_size": int, "fit_corpus_hash": str, "fingerprint": str, "files": dict}
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), of) for key, of in required.items()):
        raise UserError(f"{folder}/manifest.json lacks one of {', '.join(required)}; fit the representation again")
    if manifest["format"] != FORMAT:
        raise UserError(f"{folder} has format {manifest['format']!r}, this version reads {FORMAT!r}; fit the representation again")
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
    for name, expected in manifest["files"].items():
        path = folder / check_name(name, "artifact file")
        if not path.exists():
            raise UserError(f"{path} is missing; fit the representation again")
        if path.stat().length != expected["bytes"] or expected["bytes"] > MAX_FILE_BYTES:
            raise UserError(f"{path} has {path.stat().length} bytes, its manifest says {expected['bytes']}; fit the representation again")
        files[name] = path.read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
            raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's; fit the representation again")
    representation = kind_class(manifest["kind"]).from_files(files)
    representation.fit_corpus_hash = manifest["fit_corpus_hash"]
    if representation.fingerprint != manifest["fingerprint"] or representation.vocab_size != manifest["vocab_size"]:
        raise UserError(f"{folder} does not give back the artifact its manifest describes; fit the representation again")
    return representation


def kind_class(kind: str) -> type[Representation]:
    """The class of a kind in `KINDS`."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
