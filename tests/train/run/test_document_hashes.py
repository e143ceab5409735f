import pathlib

from train.run.document_hashes import DocumentHashes, common_documents, read_hashes


def test_runs_agree_through_the_last_number_of_documents_that_both_have_noted():
    one = {0: {1: "a", 2: "b", 4: "c"}, 1: {1: "x"}}
    assert common_documents(one, {0: {1: "a", 2: "b"}, 1: {1: "x", 2: "y"}}) == {0: 2, 1: 1}


def test_one_other_document_in_one_row_is_enough_to_differ():
    assert common_documents({0: {1: "a", 2: "b"}, 1: {1: "x"}}, {0: {1: "a", 2: "other"}, 1: {1: "x"}}) is None


def test_a_row_that_has_not_finished_a_document_proves_nothing_and_contradicts_nothing():
    """A small run may spend all its steps in one long document of a row."""
    assert common_documents({0: {1: "a"}, 1: {1: "x"}}, {0: {1: "a"}}) == {0: 1, 1: 0}
    assert common_documents({}, {0: {1: "a"}}) == {0: 0}


def test_notes_are_added_to_what_is_there(tmp_path):
    for process, row, number in ((0, 0, 1), (1, 1, 1), (0, 0, 2)):
        hashes = DocumentHashes(tmp_path, process)
        hashes.note(row, number, bytes([number]))
        hashes.write()
    assert read_hashes(tmp_path) == {0: {1: "01", 2: "02"}, 1: {1: "01"}}
    assert read_hashes(pathlib.Path("nowhere")) == {}
