"""Folders as Hugging Face `datasets` saves them: which of their files have documents, in which order and split.

FOLDER/dataset_dict.json                {"splits": ["train", "validation"]}; there is none for a single dataset
FOLDER/train/state.json                 {"_data_files": [{"filename": "data-00000-of-00002.arrow"}, ...]}
FOLDER/train/data-00000-of-00002.arrow  an Arrow stream
"""

import dataclasses
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from data.manifest import Split
from data.sources import SourceFile
from tokenizer_lab.errors import UserError

_STATE, _DICT = "state.json", "dataset_dict.json"
_MAX_JSON_BYTES = 64 << 20
_SPLITS: Mapping[str, Split] = {
    "train": "train",
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    "test": "test",
}


def in_published_order(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Files of a source; where some are a dataset's, those with its documents, in its order and with its split.

    Raises:
      UserError: a dataset's files are not what it says, or its split is none that is known here.
    """
    at = {file.name: file for file in files}
    ordered: list[SourceFile] = []
    datasets = {posixpath.dirname(file.name) for file in files if posixpath.basename(file.name) == _STATE}
    for file in files:
        folder, name = posixpath.split(file.name)
        if folder in datasets:
            ordered += _dataset_files(folder, at) if name == _STATE else []
        elif not (name == _DICT and any(posixpath.dirname(dataset) == folder for dataset in datasets)):
            ordered.append(file)
    return ordered


def _dataset_files(folder: str, at: Mapping[str, SourceFile]) -> list[SourceFile]:
    state_file = at[posixpath.join(folder, _STATE)]
    state = _read_json(state_file)
    try:
        names = [str(each["filename"]) for each in state["_data_files"]]
        has_indices = bool(state.get("_indices_files") or state.get("_indices_data_files"))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{state_file} is not what Hugging Face datasets writes; name the files beside it by a glob"
        ) from error
    if has_indices:
        raise UserError(f"{state_file} has other rows than its files; save the dataset again, flattened")
    missing = [name for name in names if posixpath.join(folder, name) not in at]
    if missing:
        raise UserError(f"{state_file} names {missing[0]!r}, which is not beside it; get the dataset again")
    split = _split_of(folder, at)
    return [dataclasses.replace(at[posixpath.join(folder, name)], split=split) for name in names]


def _split_of(folder: str, at: Mapping[str, SourceFile]) -> Split | None:
    """The split that a folder of a DatasetDict has by its name."""
    parent, name = posixpath.split(folder)
    if not folder or posixpath.join(parent, _DICT) not in at:
        return None
    if name not in _SPLITS:
        raise UserError(
            f"{at[posixpath.join(folder, _STATE)]} is of split {name!r}, which is none of {', '.join(_SPLITS)}; name"
            " the folders to take one by one, with --split"
        )
    return _SPLITS[name]


def _read_json(file: SourceFile) -> Any:
    with file.open() as raw:
        content = raw.read() if file.num_bytes <= _MAX_JSON_BYTES else b""
    try:
        return json.loads(content or b"")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}; get the dataset again") from error
