import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_lab import UserError, files


@pytest.mark.parametrize("name", ["a", "manifest.json", "train-00000-of-00010.array_record", "_", "A" * 128, "a..b"])
def test_plain_names_pass(name):
    assert files.check_name(name, "file") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b",
        "a\\b",
        ".hidden",
        "-rf",
        "a\n",
        "a\0",
        "é",
        "A" * 129,
        "C:x",
        None,
        5,
        b"a",
        ["a"],
    ],
)
def test_names_that_could_leave_their_folder_are_refused(name):
    with pytest.raises(UserError, match="shard name .* is not a plain name"):
        files.check_name(name, "shard name")


def test_writing_makes_folders_and_replaces_the_whole_file(tmp_path):
    files.write_bytes(tmp_path / "a" / "b", b"old and long")
    files.write_bytes(tmp_path / "a" / "b", b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, ""), "No space left on device; free some space"),
        (OSError(errno.EROFS, ""), "Read-only file system; the file system is read-only; choose another folder"),
        (OSError(errno.EIO, ""), "Input/output error; choose another folder"),
        (OSError("no number"), "no number; choose another folder"),
    ],
)
def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch, error, message):
    files.write_bytes(tmp_path / "file", b"old")

    def fail(self, target):
        raise error

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), "replace", fail)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file: {message}"):
        files.write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_writing_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        files.write_bytes(tmp_path / "file" / "x", b"")


def test_json_round_trip(tmp_path):
    value = {"é": [1, 2.5, None, True, "\U0001f600"]}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json", "test") == value
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", float("nan"))
    assert files.read_json(tmp_path / "x.json", "test") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}x", b"[" * 100_000, b"9" * 10_000])
def test_unreadable_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not a readable test file: ") as error:
        files.read_json(tmp_path / "x.json", "test file")
    assert "\n" not in str(error.value)


def test_reading_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in ("nothing", "file/below"):
        with pytest.raises(UserError, match=f"{path} does not exist; is .* the folder of a corpus"):
            files.read_bytes(tmp_path / path, "corpus", max_bytes=10)
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        files.read_bytes(tmp_path, "corpus", max_bytes=10)


def test_a_file_beyond_its_limit_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert files.read_bytes(tmp_path / "file", "corpus", max_bytes=11) == b"x" * 11
    with pytest.raises(UserError, match="has 11 bytes, more than the 10 of a corpus"):
        files.read_bytes(tmp_path / "file", "corpus", max_bytes=10)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
@settings(deadline=None)
def test_the_hash_of_parts_tells_their_borders(a, b):
    assert (files.sha256_of_parts(a) == files.sha256_of_parts(b)) == (a == b)
