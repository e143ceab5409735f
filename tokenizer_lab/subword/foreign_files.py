"""Files in which tokenizers of other makers come: a tokenizer.json is read, others are told how to become one."""

import pathlib
import re
import shlex

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import read_bytes

MAX_TOKENIZER_BYTES = 1 << 30

# The first piece of a SentencePiece model as protobuf writes it, and the first line of a file of tiktoken's ranks.
_SENTENCEPIECE = re.compile(rb"\n.\n.[^\x00-\x1f]{1,60}\x15", re.DOTALL)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_PYTHON = 'python -c "import sys; from transformers{} import {} as T; {}"'
_OF_FOLDER = "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"


def read_tokenizer_json(path: pathlib.Path) -> bytes:
    """The content of a tokenizer.json, or of the one in a model's folder. Raises UserError with the command that makes
    one of a SentencePiece model, of tiktoken's ranks and of a model's folder without one."""
    if path.is_dir():
        if not (path / "tokenizer.json").exists():
            raise UserError(_advice_for_folder(path))
        path /= "tokenizer.json"
    content = read_bytes(path, "tokenizer", MAX_TOKENIZER_BYTES)
    if advice := _advice_for_file(path, content[:200]):
        raise UserError(advice)
    return content


def _advice_for_folder(folder: pathlib.Path) -> str:
    if not any((folder / name).exists() for name in ("config.json", "tokenizer_config.json")):
        for path in sorted(folder.glob("*.*"))[:1000]:
            if path.is_file() and (advice := _advice_for_file(path, _beginning(path))):
                return advice
        return (
            f"{folder} has no tokenizer.json, nor anything else that a tokenizer could be made of; name a "
            "tokenizer.json, or a folder with one"
        )
    new = folder.with_name(f"{folder.resolve().name}-tokenizer")
    command = f"{_PYTHON.format('', 'AutoTokenizer', _OF_FOLDER)} {_quoted(folder)} {_quoted(new)}"
    return (
        f"{folder} has no tokenizer.json; this makes one (pip install transformers sentencepiece tiktoken protobuf): "
        f"{command}; then name --from-file {_quoted(new)}"
    )


def _advice_for_file(path: pathlib.Path, beginning: bytes) -> str | None:
    new = path.with_name(f"{path.stem}-tokenizer")
    copy = f"mkdir {_quoted(new)} && "
    if _SENTENCEPIECE.match(beginning):
        what, packages = "a SentencePiece model", "sentencepiece protobuf"
        command = f"cp {_quoted(path)} {_quoted(new / 'tokenizer.model')} && "
        command += f"{_PYTHON.format('', 'PreTrainedTokenizerFast', _OF_FOLDER)} {_quoted(new)} {_quoted(new)}"
    elif _TIKTOKEN.match(beginning):
        what, packages = "a file of tiktoken's ranks", "tiktoken"
        code = "T(sys.argv[1]).converted().save(sys.argv[2])"
        command = _PYTHON.format(".convert_slow_tokenizer", "TikTokenConverter", code)
        command += f" {_quoted(path)} {_quoted(new / 'tokenizer.json')}"
    else:
        return None
    return (
        f"{path} is {what}, not a tokenizer.json; this makes one (pip install transformers {packages}): "
        f"{copy}{command}; then name --from-file {_quoted(new)}"
    )


def _beginning(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(200)


def _quoted(path: pathlib.Path) -> str:
    return shlex.quote(str(path))
