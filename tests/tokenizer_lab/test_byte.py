import numpy as np
import pytest

from tokenizer_lab import UserError
from tokenizer_lab.byte import FIT_OPTIONS, ByteRepresentation


def test_ids_are_the_bytes():
    representation = ByteRepresentation()
    assert representation.encode("aé\n".encode()).tolist() == [0x61, 0xC3, 0xA9, 0x0A]
    assert (representation.vocab_size, representation.eod_id) == (257, 256)


def test_every_byte_is_one_id():
    representation = ByteRepresentation()
    every_byte = bytes(range(256))
    assert representation.encode(every_byte).tolist() == list(range(256))
    assert representation.byte_lengths(np.arange(257)).tolist() == [1] * 256 + [0]
    assert representation.decode(np.arange(257)) == every_byte


def test_fitting_does_not_touch_the_corpus():
    def documents():
        raise AssertionError("read")
        yield b""

    representation = FIT_OPTIONS().fit(documents(), corpus_hash="abc")
    assert representation.fingerprint == ByteRepresentation().fingerprint
    assert representation.fit_corpus_hash == ""


def test_files_in_a_byte_artifact_are_refused():
    with pytest.raises(UserError, match="no files but its manifest, not table.npy"):
        ByteRepresentation.from_files({"table.npy": b""})
