import errno
import io

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

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


def npy(array, **options) -> bytes:
    """What `np.save` makes of an array, for better or worse."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<i8", "<f4", "<u2"])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (4, 0, 2)])
def test_arrays_come_back_from_the_content_of_their_file(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for content in (files.npy_bytes(array), npy(array)):
        loaded = files.npy_array(content, "x.npy")
        assert loaded.dtype == array.dtype and loaded.shape == array.shape and np.array_equal(loaded, array)


def test_an_array_in_another_order_is_stored_in_ours():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    for view in (array.T, array[::-1], array[:, ::2]):
        assert np.array_equal(files.npy_array(files.npy_bytes(view), "x.npy"), view)


def test_objects_are_never_written():
    with pytest.raises(ValueError):
        files.npy_bytes(np.array([{}], dtype=object))


WHOLE = files.npy_bytes(np.arange(6, dtype=np.int32).reshape(2, 3))


def with_header(header: str) -> bytes:
    """A file of 24 bytes with a header of its own."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(24)


def header(shape="(6,)", descr="'<i4'", order="False") -> bytes:
    return with_header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")


def test_a_header_by_hand_is_read():
    assert files.npy_array(header(), "x.npy").tolist() == [0] * 6


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", b"PK\x03\x04", WHOLE[:-1], WHOLE + b"\0", WHOLE[:40], WHOLE[:6] + b"\x03\x00" + WHOLE[8:],
    b"\0" * 200, npy(np.array([{}, []], dtype=object), allow_pickle=True), npy(np.array(["text"])),
    npy(np.asfortranarray(np.zeros((2, 3), np.int32))), npy(np.array([True])), npy(np.zeros(3, "i4,f4")),
    npy(np.zeros(2, "M8[s]")), npy(np.zeros(2, complex)),
    header(shape="(7,)"), header(shape="(-6,)"), header(shape="(-2, -3)"), header(shape="(1" + "0" * 30 + ",)"),
    header(shape="(4611686018427387904, 4)"), header(shape="(10**30,)"), header(shape="6"), header(shape="(6.0,)"),
    header(descr="'O'"), header(descr="'|O8'"), header(descr="'nonsense'"),
    header(descr="[]"), header(descr="'<i4'", order="True"), header(descr="'<i4'", order="2"), header(descr="'<V4'"),
    with_header("__import__('os').getcwd()"), with_header("{"), with_header("[" * 5000), with_header("{}"),
    with_header("\n"),
])  # fmt: skip
def test_what_is_no_whole_array_of_numbers_is_refused(content):
    with pytest.raises(UserError, match="^x.npy is not a whole .npy file of numbers; fit the representation again$"):
        files.npy_array(content, "x.npy")


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_one_byte_changed_is_refused_or_an_array_of_as_many_bytes(position, byte):
    content = bytearray(WHOLE)
    content[position] = byte
    try:
        assert files.npy_array(bytes(content), "x.npy").nbytes == 24
    except UserError:
        pass
