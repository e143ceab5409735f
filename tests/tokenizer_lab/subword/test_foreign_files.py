"""Tokenizers in other forms than a tokenizer.json: read, or told in one line how to become one."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit

# The beginning of what `sentencepiece` and `tiktoken` write.
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00\x18\x03"
TIKTOKEN = b"IQ== 0\nIg== 1\nIw== 2\n"


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        SubwordFit(from_file=path).fit([], "")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_with_a_tokenizer_json_is_read(tmp_path):
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    assert SubwordFit(from_file=tmp_path).fit([], "").to_files() == {
        "tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()
    }


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "any name", "tokenizer.json"])
def test_a_sentencepiece_model_is_known_by_its_first_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(SENTENCEPIECE)
    message = refusal(tmp_path / name)
    assert "a SentencePiece model" in message and "PreTrainedTokenizerFast" in message and "sentencepiece" in message


@pytest.mark.parametrize("content", [TIKTOKEN, TIKTOKEN.replace(b"\n", b"\r\n")])
def test_ranks_of_tiktoken_are_known_by_their_first_line(tmp_path, content):
    (tmp_path / "ranks").write_bytes(content)
    assert "tiktoken's ranks" in refusal(tmp_path / "ranks") and "TikTokenConverter" in refusal(tmp_path / "ranks")


def test_a_model_s_folder_is_told_by_what_it_holds(tmp_path):
    assert "nor anything else" in refusal(tmp_path)
    (tmp_path / "my.tiktoken").write_bytes(TIKTOKEN)
    assert "my.tiktoken is a file of tiktoken's ranks" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "AutoTokenizer" in refusal(tmp_path)


@pytest.mark.slow
def test_the_command_for_a_model_s_folder_makes_what_is_read(tmp_path):
    pytest.importorskip("transformers")
    folder = tmp_path / "it's a model"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"h": 0, "i": 1, "hi": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\nh i\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    command, new = re.fullmatch(r".*protobuf\): (.*); then name --from-file (.*)", refusal(folder)).groups()
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True)
    representation = SubwordFit(from_file=tmp_path / shlex.split(new)[0]).fit([], "")
    assert representation.encode(b"hi").tolist() == [2]


@pytest.mark.slow
def test_the_command_for_ranks_of_tiktoken_makes_what_is_read(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("tiktoken")
    (tmp_path / "my ranks").write_bytes(TIKTOKEN + b"ISI= 3\n")
    command, new = re.fullmatch(
        r".*tiktoken\): (.*); then name --from-file (.*)", refusal(tmp_path / "my ranks")
    ).groups()
    subprocess.run(["bash", "-c", command.replace("python ", f"{sys.executable} ")], check=True, capture_output=True)
    assert SubwordFit(from_file=tmp_path / shlex.split(new)[0]).fit([], "").encode(b'!"').tolist() == [3]
