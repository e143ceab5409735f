"""Folders as Hugging Face `datasets` saves them: their files in their order, their splits, and nothing else."""

import json

import pyarrow as pa
import pyarrow.ipc
import pytest

from data.store import Corpus
from tokenizer_lab.errors import UserError


def save_dataset(folder, shards, **state):
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards):
        table = pa.table({"text": texts})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None} | state
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": None}))


def save_dict(folder, **splits):
    for name, shards in splits.items():
        save_dataset(folder / name, shards)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def test_a_dataset_is_read_by_its_state(ingest_from, stored, tmp_path):
    save_dataset(tmp_path / "d", [["one", "two"], ["three"]])
    (tmp_path / "d" / "cache-1234.arrow").write_bytes(b"of a function")
    ingest_from(tmp_path, "d")
    assert sorted(stored(tmp_path)) == [b"one", b"three", b"two"]


def test_a_dict_brings_its_splits(ingest_from, stored, tmp_path):
    save_dict(tmp_path / "d", train=[["a", "b"], ["c"]], validation=[["d"]], test=[["e", "f"]])
    result = ingest_from(tmp_path, "d", test_fraction=1 / 16)
    assert result.num_documents == {("text", "train"): 3, ("text", "valid"): 1, ("text", "test"): 2}
    assert sorted(stored(tmp_path, "test")) == [b"e", b"f"] and stored(tmp_path, "valid") == [b"d"]
    assert Corpus.open(tmp_path / "corpus").test_fraction == 0


def test_one_split_by_itself(ingest_from, stored, tmp_path):
    save_dict(tmp_path / "d", train=[["a"]], unsupervised=[["b"]])
    with pytest.raises(
        UserError, match="is of split 'unsupervised', which is none of train, valid, .*; name the folders"
    ):
        ingest_from(tmp_path, "d")
    with pytest.raises(UserError, match="is of split 'unsupervised'"):
        ingest_from(tmp_path, "d", split="train")
    ingest_from(tmp_path, "d/unsupervised", split="train")
    assert stored(tmp_path) == [b"b"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "names 'gone.arrow', which is not beside it"),
        ({"_data_files": 5}, "is not what Hugging Face datasets writes"),
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "has other rows than its files; save the dataset again"),
    ],
)
def test_a_dataset_that_is_not_whole(ingest_from, tmp_path, state, message):
    save_dataset(tmp_path / "d", [["one"]], **state)
    with pytest.raises(UserError, match=message):
        ingest_from(tmp_path, "d")
    (tmp_path / "d" / "state.json").write_text("{")
    with pytest.raises(UserError, match="state.json is not readable JSON"):
        ingest_from(tmp_path, "d")


def test_splits_by_folder_and_others_do_not_go_together(ingest_from, write_files, tmp_path):
    save_dict(tmp_path / "d", train=[["a"]], test=[["b"]])
    write_files(tmp_path, {"c.txt": b"c"})
    with pytest.raises(UserError, match="some sources bring their splits, by their folders, and others do not"):
        ingest_from(tmp_path, "d", "c.txt")
    with pytest.raises(UserError, match="is of the test split, by its folder, and --split is test; leave it out"):
        ingest_from(tmp_path, "d/", split="test")
