"""What is refused of a recipe before anything is allocated."""

import json

import pytest

from data.ingest import IngestOptions, ingest
from data.store import Corpus
from tokenizer_lab import UserError
from tokenizer_lab.subword.fit import SubwordFit
from train import setup
from train.setup import set_up

TEXTS = [f"document {number} of the corpus" for number in range(60)]


@pytest.fixture
def corpus_of(tmp_path):
    """corpus_of(name, texts, share): the path of a corpus that holds out this share."""

    def make(name, texts, share):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        ingest(IngestOptions(sources=(str(tmp_path / f"{name}.jsonl"),), out=tmp_path / name, test_fraction=share))
        return str(tmp_path / name)

    return make


@pytest.fixture
def mixed(recipe, change, tmp_path):
    """mixed(fitted, corpora): a recipe over corpora, with a tokenizer that was fitted on one."""

    def make(fitted, *corpora):
        opened = Corpus.open(fitted)
        documents = opened.documents("train")
        texts = [documents[number] for number in range(len(documents))]
        SubwordFit(vocab_size=265).fit(texts, opened.content_hash).save(tmp_path / "subword")
        return change(recipe, representation=str(tmp_path / "subword"), data={"corpora": corpora})

    return make


@pytest.mark.usefixtures("one_device")
def test_a_tokenizer_that_has_seen_what_another_corpus_holds_out_is_refused(corpus_of, mixed, capsys, monkeypatch):
    little, much = corpus_of("little", TEXTS, 0.1), corpus_of("much", TEXTS[20:], 0.5)
    recipe = mixed(little, little, much)
    with pytest.raises(UserError) as error:
        set_up(recipe)
    documents, small = Corpus.open(much).documents("test"), Corpus.open(little).documents("train")
    train = {small[number] for number in range(len(small))}
    seen = sum(documents[number] in train for number in range(len(documents)))
    assert f"has seen {seen:,} documents that the run is scored on; ingest" in str(error.value) and seen > 3
    assert "--test-fraction 0.5, or fit on another corpus" in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(setup, "count_seen_by_fit", lambda *_: None)
    set_up(recipe)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("toklab: ") and "may have seen documents of theirs" in line


@pytest.mark.usefixtures("one_device")
def test_a_tokenizer_that_has_not_is_taken(corpus_of, mixed, tmp_path, capsys):
    little, much = corpus_of("little", TEXTS, 0.1), corpus_of("much", TEXTS[20:], 0.5)
    other = corpus_of("other", [f"another {number}" for number in range(60)], 0.5)
    set_up(mixed(little, little, other))
    (tmp_path / "subword").rename(tmp_path / "before")
    set_up(mixed(much, little, much))
    assert capsys.readouterr().err == ""
