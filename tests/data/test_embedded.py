"""The text that comes with Python."""

import os
import pathlib
from pydoc_data.topics import topics

import pytest

import data.embedded
from data.embedded import embedded_documents
from tokenizer_lab.errors import UserError


@pytest.fixture(scope="module")
def documents():
    return list(embedded_documents())


def test_two_domains_of_known_content(documents):
    contents = {(domain, name): content for domain, name, content in documents}
    assert len(contents) == len(documents)
    assert contents["docs", "lambda"] == topics["lambda"].encode()
    assert (
        contents["code", "json/__init__.py"]
        == pathlib.Path(os.path.dirname(os.__file__), "json", "__init__.py").read_bytes()
    )
    assert sum(domain == "docs" for domain, _ in contents) == len(topics)
    assert sum(len(content) for (domain, _), content in contents.items() if domain == "code") > 5_000_000
    assert all(contents.values())


def test_sorted_by_domain_and_name(documents):
    assert documents == sorted(documents, key=lambda document: document[:2])


def test_no_tests_no_packages_and_no_docs_in_code(documents):
    parts = {part for _, name, _ in documents for part in name.split("/")[:-1]}
    assert "encodings" in parts
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}


def test_a_python_without_its_sources(tmp_path, monkeypatch):
    (tmp_path / "empty.py").touch()
    monkeypatch.setattr(data.embedded.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match="holds no Python sources; install a Python"):
        list(embedded_documents())
