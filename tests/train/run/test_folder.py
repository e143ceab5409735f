import json

import pytest
from etils import epath

from tokenizer_lab.errors import UserError
from train.recipe import read_recipe
from train.run.folder import RunFolder, drop_lines_after, lock, read_lines


def test_lines_behind_a_checkpoint_are_dropped_and_a_cut_off_line_with_them(tmp_path):
    file = epath.Path(tmp_path) / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)) + '{"step": 5, "los')
    drop_lines_after(file, 2)
    assert read_lines(file) == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_a_damaged_line_is_named(tmp_path):
    file = epath.Path(tmp_path) / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl line 2 is not JSON"):
        read_lines(file)


def test_a_folder_that_is_no_run_says_which_command_makes_one(tmp_path):
    with pytest.raises(UserError, match="is not a run: it has no config.json; make one with 'toklab train RECIPE"):
        read_recipe(RunFolder(tmp_path))


def test_a_lock_is_for_one(tmp_path):
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is training"):
            lock(tmp_path / "run")
    lock(tmp_path / "run").close()
