"""`toklab export`: a trained run as a folder that Hugging Face `transformers` loads. See docs/export.md."""

import dataclasses
import pathlib
import uuid
from typing import Any, Literal

import safetensors.numpy
import tokenizers
import tyro
from etils import epath

from data.held_out import fixed_subset
from models.config import ModelConfig
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, write_bytes, write_json
from tokenizer_lab.representation import Representation
from train.export.tokenizer import WINDOWS_CODE, check_tokenizer, tokenizer_files
from train.export.weights import Pretrained, array, decoder, encoder
from train.setup import LoadedRun, load_run

_CHECKED_BYTES = 1 << 20

_README = """\
---
library_name: transformers
---
# {name}

Step {step} of a run of tokenizer-lab, {seen:,} bytes of text seen. Input representation: {kind}, {vocab_size:,} ids,
fingerprint {fingerprint}.

```python
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
model = {auto_class}.from_pretrained(FOLDER)
```

{notes}
"""
_DECODER_NOTES = """\
- A document begins with the id {eod}, which the tokenizer puts first, and ends with it.
  `add_special_tokens=False` leaves it out.
- The model has seen rows of {length} ids.
- The tokenizer takes text: bytes that are not UTF-8 cannot be given to it, although the model has ids for them."""
_ENCODER_NOTES = """\
- A text is `[CLS] text [SEP]`, a pair `[CLS] text [SEP] text [SEP]`; the tokenizer puts the marks.
- The model has seen rows of {length} ids.
- Class 1 of a detector is "this id was replaced". A model of masked ids gives the marks no probability.
- The tokenizer takes text: bytes that are not UTF-8 cannot be given to it, although the model has ids for them."""
_CODE_NOTE = """
- `trust_remote_code=True` runs `{file}`, which lies in this folder: a window of this representation is
  several ids, and no tokenizer.json can say that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run as a folder for other software."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    to: Literal["hf"]
    """What it is written for: Hugging Face transformers."""
    out: pathlib.Path
    """The folder to make."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    architectures: dict[str, str]
    """Folder, under `out` -> class of transformers."""
    num_parameters: int
    """Of all classes, shared ones counted in each."""
    needs_code: bool
    """Whether the tokenizer is a Python file, to be loaded with trust_remote_code=True."""
    checked: tuple[int, int] | None
    """Of subwords: how many documents of the corpus have the same ids by the exported tokenizer, of how many."""
    missing_corpora: list[str]
    """Where the corpora of subwords were that the tokenizer would have been checked with, and are not any more."""


def export_run(options: ExportOptions) -> Exported:
    """Writes the newest checkpoint of a run, whole or not at all. Raises UserError where no class of transformers
    computes the same."""
    if options.out.exists():
        raise UserError(f"{options.out} already exists; choose another --out or remove it")
    loaded = load_run(str(options.run))
    representation = loaded.setup.representation
    check_tokenizer(representation)
    models = pretrained(loaded)
    is_encoder = loaded.setup.recipe.model.kind == "encoder"
    files = tokenizer_files(representation, for_encoder=is_encoder, max_positions=_row_length(loaded))
    partial = options.out.parent / f".{options.out.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        for folder, model in models.items():
            write_model(partial / folder, model, files)
            write_bytes(partial / folder / "README.md", _readme(loaded, model, WINDOWS_CODE.name in files).encode())
        partial.rename(options.out)
    except OSError as error:
        raise cannot_write(options.out, error) from error
    finally:
        if partial.exists():
            epath.Path(partial).rmtree()
    num_parameters = sum(tensor.size for model in models.values() for tensor in model.tensors.values())
    checkable = representation.kind == "subword"
    missing = loaded.missing_corpora if checkable else []
    return Exported(
        {folder: model.config["architectures"][0] for folder, model in models.items()},
        num_parameters,
        WINDOWS_CODE.name in files,
        _check(loaded, files) if checkable and not missing else None,
        missing,
    )


def pretrained(loaded: LoadedRun) -> dict[str, Pretrained]:
    """A run's models by folder: "" for what the run is about, "generator" for ELECTRA's. Raises UserError where no
    class fits."""
    recipe, representation = loaded.setup.recipe, loaded.setup.representation
    model: ModelConfig = recipe.model
    if isinstance(model, DecoderConfig):
        length = _row_length(loaded)
        return {"": decoder(loaded.params, model, representation.vocab_size, representation.eod_id, length)}
    if isinstance(model, EncoderConfig):
        objective = recipe.objective
        assert objective.model_family == "encoder"
        return encoder(loaded.params, model, objective.heads, representation.vocab_size, representation.eod_id)
    raise UserError(
        f"{recipe.name} is a run of a model of kind {recipe.model.kind!r}, which no class of transformers computes;"
        " models of the kinds 'decoder' and 'encoder' can be exported"
    )


def _row_length(loaded: LoadedRun) -> int:
    data = loaded.setup.recipe.data
    return data.piece_length or data.sequence_length


def write_model(folder: pathlib.Path, model: Pretrained, files: dict[str, bytes]) -> None:
    """Makes a folder with a model and further files."""
    folder.mkdir(parents=True)
    # The library writes an array's memory as it lies there.
    tensors = {name: array(tensor).copy(order="C") for name, tensor in model.tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model.config)
    if "bos_token_id" in model.config:
        write_json(
            folder / "generation_config.json",
            {name: model.config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    for name, content in files.items():
        write_bytes(folder / name, content)


def _readme(loaded: LoadedRun, model: Pretrained, needs_code: bool) -> str:
    recipe, representation = loaded.setup.recipe, loaded.setup.representation
    [architecture] = model.config["architectures"]
    auto_class = (
        "AutoModelForCausalLM" if recipe.model.kind == "decoder" else architecture.replace("Electra", "AutoModel")
    )
    notes = _DECODER_NOTES if recipe.model.kind == "decoder" else _ENCODER_NOTES
    notes = notes.format(eod=representation.eod_id, length=_row_length(loaded)) + (
        _CODE_NOTE.format(file=WINDOWS_CODE.name) if needs_code else ""
    )
    return _README.format(
        name=recipe.name,
        step=loaded.counters["step"],
        seen=loaded.counters["bytes_seen"],
        kind=representation.kind,
        vocab_size=representation.vocab_size,
        fingerprint=representation.fingerprint,
        auto_class=auto_class,
        trust=", trust_remote_code=True" if needs_code else "",
        notes=notes,
    )


def _check(loaded: LoadedRun, files: dict[str, bytes]) -> tuple[int, int]:
    """How many of some training documents have the same ids by the exported tokenizer, and of how many."""
    representation: Representation = loaded.setup.representation
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.encode_special_tokens = True
    same: list[bool] = []
    for corpus in loaded.open_corpora():
        for document in fixed_subset(corpus.documents("train"), _CHECKED_BYTES):
            try:
                ids: Any = tokenizer.encode(document.decode(), add_special_tokens=False).ids
            except UnicodeDecodeError:
                continue
            same.append(ids == representation.encode(document).tolist())
    return sum(same), len(same)
