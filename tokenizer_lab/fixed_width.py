"""Ids of 8 or 16 bits each, cut from a code of whole bytes, and the settings of the representations that do so."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenizer_lab.errors import UserError

ID_BITS = (8, 16)


def check_id_bits(id_bits: int) -> None:
    """Raises UserError unless `id_bits`, an option of `toklab fit`, is one of `ID_BITS`."""
    if not _is_id_bits(id_bits):
        raise UserError(f"--id-bits is {id_bits!r}; an id has 8 or 16 bits; choose one of them")


def ids_from_code(code: bytes, id_bits: int) -> np.ndarray:
    """Bytes -> i32[n] ids, big-endian; a zero byte is appended where the last id would lack one."""
    id_bytes = id_bits // 8
    return np.frombuffer(code + bytes(-len(code) % id_bytes), dtype=f">u{id_bytes}").astype(np.int32)


def code_from_ids(ids: np.ndarray, id_bits: int) -> bytes:
    """i[n] ids below 2^id_bits -> their bytes."""
    return ids.astype(f">u{id_bits // 8}").tobytes()


def settings_files(kind: str, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of an artifact that is nothing but settings: one JSON file."""
    return {f"{kind}.json": (json.dumps(settings) + "\n").encode()}


def read_settings(kind: str, files: Mapping[str, bytes], keys: set[str]) -> dict[str, Any]:
    """The inverse of `settings_files`; the settings have just `keys`, of which `id_bits` is checked.

    Raises:
      UserError: other files are there, or the file is something else.
    """
    name = f"{kind}.json"
    if files.keys() != {name}:
        raise UserError(f"a {kind} artifact has the file {name}, not {', '.join(files) or 'none'}; fit it again")
    try:
        settings = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}; fit the representation again") from error
    if not isinstance(settings, dict) or settings.keys() != keys:
        raise UserError(f"{name} does not have just {', '.join(sorted(keys))}; fit the representation again")
    if not _is_id_bits(settings["id_bits"]):
        given = f"{settings['id_bits']!r:.40}"
        raise UserError(f"{name} has id_bits {given}, an id has 8 or 16 bits; fit the representation again")
    return settings


def _is_id_bits(value: Any) -> bool:
    return type(value) is int and value in ID_BITS
