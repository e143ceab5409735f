"""Every number that a command takes: the bound that is said is the bound, of each option of each command."""

import dataclasses
import typing

import pytest

from data.encode_corpus import EncodeOptions
from data.engines import EngineOptions
from data.ingest import IngestOptions
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import KINDS, fit_options
from tokenizer_lab.subword.segments import SEGMENT_BYTES
from train.commands.eval import EvalOptions
from train.commands.plan import PlanOptions
from train.commands.sample import SampleOptions
from train.compare.comparison import CompareOptions
from train.evaluate.finetune import FinetuneOptions
from train.evaluate.generation import Draw
from train.evaluate.minimal_pairs import MinimalPairsOptions
from train.inspect.options import InspectOptions
from train.report.report import ReportOptions
from train.submit import TARGETS, target_class

COMMANDS = (
    IngestOptions, EncodeOptions, EngineOptions, EvalOptions, PlanOptions, SampleOptions, Draw, CompareOptions,
    FinetuneOptions, MinimalPairsOptions, InspectOptions, ReportOptions,
    *map(fit_options, KINDS), *map(target_class, TARGETS),
)  # fmt: skip
ANY = "/nowhere"  # of what is no number, no option looks at it before a command works
NOT_1 = {  # the least, and None where that itself is too little
    "IngestOptions.test_fraction": 0, "IngestOptions.max_window_bytes": 1024,
    "IngestOptions.max_bad": 0, "IngestOptions.max_part_bytes": 0,
    "EncodeOptions.worker_gpus": 0, "EncodeOptions.worker_tpus": 0,
    "PlanOptions.vocab_size": 2, "PlanOptions.bytes_per_id": None,
    "Draw.temperature": 0, "Draw.top_k": 0, "Draw.top_p": None, "Draw.seed": 0,
    "CompareOptions.max_hours": 0, "MinimalPairsOptions.max_pairs": 0,
    "FinetuneOptions.sequence_length": 8, "FinetuneOptions.learning_rate": None, "FinetuneOptions.layer_decay": None,
    "FinetuneOptions.warmup_share": 0, "FinetuneOptions.weight_decay": 0, "FinetuneOptions.dropout": 0,
    "SubwordFit.vocab_size": 257, "SubwordFit.superword_transition": 257,
    "SubwordFit.superword_sample_bytes": SEGMENT_BYTES,
    "Local.max_restarts": 0, "Local.grace_seconds": 0, "Slurm.gpus_per_node": 0, "Slurm.max_restarts": 0,
    "JobSet.max_restarts": 0, "JobSet.grace_seconds": 0,
    "QueuedResource.max_restarts": 0, "QueuedResource.grace_seconds": 0,
}  # fmt: skip
MOST = {
    "IngestOptions.test_fraction": 1, "IngestOptions.max_window_bytes": 2**31, "Draw.top_p": 1,
    "IngestOptions.max_bad": 1,
    "Draw.seed": 2**32 - 1, "FinetuneOptions.layer_decay": 1, "FinetuneOptions.warmup_share": 1,
}  # fmt: skip
CHOICES = {"id_bits": "8 or 16", "window_bits": "16, 24, 32"}


def numbers(field):
    return {int, float} & {field.type, *typing.get_args(field.type)}


ALL = {f"{of.__name__}.{field.name}": of for of in COMMANDS for field in dataclasses.fields(of) if numbers(field)}
NUMBERS = {name: of for name, of in ALL.items() if name.partition(".")[2] not in CHOICES}


def make(option, value):
    of, name = ALL[option], option.partition(".")[2]
    required = {
        field.name: (ANY,) if "tuple" in str(field.type) else ANY
        for field in dataclasses.fields(of)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    given = {SampleOptions: {"prompt": ANY}, EngineOptions: {"engine": "processes"}}.get(of, {})
    return of(**required | given | {name: value})


def complaint(option, value):
    with pytest.raises(UserError) as error:
        make(option, value)
    message, name = str(error.value), option.partition(".")[2].replace("_", "-")
    assert f"--{name} " in message and "\n" not in message, (option, message)
    return message


def test_the_tables_name_options_that_are_there():
    assert NOT_1.keys() | MOST.keys() <= NUMBERS.keys() and len(NUMBERS) > 40


@pytest.mark.parametrize("option", NUMBERS)
def test_the_bound_that_is_said_is_the_bound(option):
    least, most = NOT_1.get(option, 1), MOST.get(option)
    if least is None:
        assert all("more than 0" in complaint(option, value) for value in (-3, 0))
        make(option, 1e-9)
    else:
        assert all(f"at least {least}" in complaint(option, value) for value in (-3, least - 1))
        make(option, least)
    if most:
        assert f"at most {most}" in complaint(option, most + 1)
        make(option, most)
    complaint(option, 10**400)


@pytest.mark.parametrize("option", [name for name in ALL if name not in NUMBERS])
def test_a_choice_of_numbers_names_them(option):
    choices = CHOICES[option.partition(".")[2]]
    assert all(choices in complaint(option, value) for value in (-7, 0, 7, 10**400))
