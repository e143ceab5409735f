"""A run's configuration: typed, complete, stored with the run, and read back from there.

A recipe is one Python file, in `configs/` or anywhere, with a function `recipe() -> Recipe` whose docstring gives the
command, what it costs and what came out.
"""

import dataclasses
import importlib.util
import math
import pathlib
import re
import types
import typing
from typing import Any, Literal

from jax.sharding import AbstractMesh

from data.encoder_rows import PairRow
from data.rows import CausalRow, Row
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.errors import FROM_0, SEED, UserError, check_numbers
from tokenizer_lab.files import read_json, remote_errors
from train.hosts.watchdog import Deadlines
from train.nearest import nearest
from train.objectives import AnyObjective, Causal, Objective
from train.optimizer import Budget, OptimizerConfig
from train.run.checkpoints import CheckpointConfig
from train.run.folder import RunFolder
from train.run.logs import LoggingConfig
from train.sharding import MeshConfig, check_batch, mesh_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads, and in which portions."""

    corpora: tuple[str, ...]
    """Folders of corpus stores; their train splits are trained on, their test splits held out."""
    weights: tuple[float, ...] = ()
    """Share of the documents drawn from each corpus; equal shares if none are given."""
    encoded: tuple[str, ...] = ()
    """Folders made by 'toklab encode': documents of their corpora are read with their ids, not encoded; changes nothing
    but the speed."""
    batch_rows: int = 32
    """Rows of the global batch, over all devices and microbatches."""
    sequence_length: int = 512
    """Positions of a row."""
    piece_length: int = 0
    """If not 0, documents are cut from random places on into pieces of at most this many positions that do not see each
    other: how a compressor of windows is trained."""
    segment_pairs: bool = False
    """For encoders: one example a row, two segments of neighbouring lines, as ELECTRA was trained; else rows are filled
    with pieces of documents."""
    num_microbatches: int = 1
    """Gradient accumulation: the batch is computed in this many parts."""
    num_workers: int = 2
    """Threads that read and encode documents on each host; changes nothing but the speed."""
    num_processes: int = 0
    """If not 0: so many processes on each host read and encode in place of threads, which wait for each other in parts
    of that (see docs/performance.md); changes nothing but the speed."""
    prefetch_batches: int = 4
    """Batches made ahead of the step; changes nothing but the speed."""

    @property
    def trained_length(self) -> int:
        """Positions that a model has seen a document at."""
        return min(self.piece_length or self.sequence_length, self.sequence_length)

    def __post_init__(self) -> None:
        check_numbers(self, "data.", piece_length=FROM_0, num_processes=FROM_0, prefetch_batches=FROM_0)
        if not self.corpora:
            raise UserError("data.corpora is empty; name at least one folder made by 'toklab ingest'")
        are_shares = all(type(weight) in (int, float) and 0 < weight < math.inf for weight in self.weights)
        if self.weights and (len(self.weights) != len(self.corpora) or not are_shares):
            raise UserError(
                f"data.weights {self.weights} do not fit {len(self.corpora)} corpora; give one number above 0 for each,"
                " or none"
            )
        if self.encoded and self.segment_pairs:
            raise UserError(
                f"data.encoded {self.encoded} holds ids of whole documents and data.segment_pairs encodes lines; leave"
                " one of the two out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How held-out text is scored while training and at its end; `toklab eval` scores all of it."""

    every_steps: int = 500
    """0: never, not at the end either; `toklab eval` scores the run then."""
    max_bytes: int = 1 << 20
    """Score held-out documents, in a fixed random order, of this many bytes; the last one is cut there."""
    batch_rows: int = 32

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation.", every_steps=FROM_0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run does."""

    name: str
    representation: str
    """Folder of a representation's artifact, made by 'toklab fit'."""
    data: DataConfig
    budget: Budget
    model: DecoderConfig | EncoderConfig = DecoderConfig()
    objective: Objective = Causal()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    deadlines: Deadlines = Deadlines()
    kernels: Literal["auto", "reference"] = "auto"
    """"reference": plain JAX in place of every kernel; the same numbers up to rounding, with logits and attention
    weights in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "", seed=SEED)
        if self.kernels not in (choices := typing.get_args(type(self).__annotations__["kernels"])):
            raise UserError(f"kernels is {self.kernels!r}; it is one of {', '.join(choices)}")
        if self.model.family != self.objective.model_family:
            raise UserError(
                f"objective {self.objective.kind!r} trains a model of kind {self.objective.model_family!r} and the"
                f" recipe's is of kind {self.model.family!r}; change one of the two in the recipe"
            )
        check_numbers(self.objective, "objective.")
        objective: AnyObjective = self.objective
        objective.check(self.model, self.data.sequence_length)
        if self.objective.layout is not CausalRow and self.data.piece_length:
            raise UserError(
                f"data.piece_length is {self.data.piece_length}, which is for causal objectives; objective"
                f" {self.objective.kind!r} sees whole rows, set it to 0"
            )
        if self.objective.layout is CausalRow and self.data.segment_pairs:
            raise UserError(
                f"data.segment_pairs is for encoders and the objective is {self.objective.kind!r}; leave it out"
            )

    @property
    def layout(self) -> type[Row]:
        """How rows are filled."""
        return PairRow if self.data.segment_pairs else self.objective.layout

    def check_devices(self, num_devices: int, num_slices: int = 1) -> None:
        """Raises UserError where the mesh does not cover so many devices in TPU slices, or the batch cannot be split
        over it."""
        sizes = mesh_sizes(self.mesh, num_devices, num_slices)
        check_batch(
            AbstractMesh(tuple(sizes.values()), tuple(sizes)),
            self.data.batch_rows,
            self.data.sequence_length,
            self.data.num_microbatches,
        )


# What may change when a run goes on: none of it decides which numbers come out.
MAY_CHANGE_ON_RESUME = (
    "mesh",
    "kernels",
    "checkpoint",
    "evaluation",
    "logging",
    "deadlines",
    "representation",  # of the representation, the fingerprint decides
    "data.corpora",
    "data.encoded",
    "data.num_microbatches",
    "data.num_workers",
    "data.num_processes",
    "data.prefetch_batches",
    "model.remat",  # of corpora, their content
)


# What may change too, from a step on: the run notes it as an amendment, as it decides about the steps that come.
MAY_BE_AMENDED = ("budget", "optimizer.skip_above", "optimizer.max_skipped_in_a_row")


def recipe_names() -> list[str]:
    """The recipes in `configs/`."""
    return config_names("recipe")


def config_names(function: str) -> list[str]:
    """The files in `configs/` that define a function of this name: recipes, or experiments."""
    return sorted(
        path.stem
        for path in _configs_folder().glob("*.py")
        if re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE)
    )


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of a name in `configs/`, of a Python file, or of a .json file with a resolved one, as a run's
    config.json. Raises UserError."""
    if name_or_path.endswith(".json"):
        return from_json(Recipe, read_json(name_or_path, "recipe"), name_or_path)
    return load_config(name_or_path, "recipe", Recipe)


def read_recipe(run: RunFolder) -> Recipe:
    """The recipe that a run was made with. Raises UserError where the folder is no run."""
    with remote_errors(run.path):
        is_run = run.config.exists()
    if not is_run:
        raise UserError(
            f"{run.path} is not a run: it has no config.json; make one with 'toklab train RECIPE --run-dir {run.path}'"
        )
    return from_json(Recipe, read_json(run.config, "run's config"), str(run.config))


def load_config(name_or_path: str, function: str, kind: type) -> Any:
    """What a function of a Python file gives, an object of a kind.

    Args:
      name_or_path: of a file in `configs/`, or the path of any.
      function: its name, which is also what people call such a file.
      kind: of what it returns.

    Raises:
      UserError: there is no such file, or it does not work.
    """
    names = config_names(function)
    path = _configs_folder() / f"{name_or_path}.py" if name_or_path in names else pathlib.Path(name_or_path)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"no {function} {name_or_path!r}{nearest(name_or_path, names)}; there are {', '.join(names)}, or give the"
            " path of a Python file"
        )
    what = (
        f"{'an' if function[0] in 'aeiou' else 'a'} {function} is a file with a function '{function}() ->"
        f" {kind.__module__}.{kind.__name__}'"
    )
    spec = importlib.util.spec_from_file_location(f"{function}_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = getattr(module, function)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}; {what}") from error
    if not isinstance(config, kind):
        raise UserError(f"{path}: {function}() gives a {type(config).__name__}; {what}")
    return config


def _configs_folder() -> pathlib.Path:
    spec = importlib.util.find_spec("configs")
    assert spec is not None and spec.submodule_search_locations, "the package `configs` is not installed"
    return pathlib.Path(spec.submodule_search_locations[0])


def to_json(config: Any) -> Any:
    """A config dataclass as JSON values."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return [to_json(value) for value in config] if isinstance(config, tuple) else config


def from_json(kind: Any, value: Any, where: str = "config") -> Any:
    """The inverse of `to_json` for a config of type `kind`. Raises UserError for a stranger's file that is none."""
    several: list[Any] = [choice for choice in typing.get_args(kind) if dataclasses.is_dataclass(choice)]
    if choices := {choice.kind: choice for choice in several}:  # its "kind" tells
        first = next(iter(choices))
        name = value.get("kind", first) if isinstance(value, dict) else first
        if not isinstance(name, str) or name not in choices:
            raise UserError(
                f"{where}: no {name!r}; it is one of {', '.join(choices)}. Was it written by another version?"
            )
        kind = choices[name]
    is_config: bool = dataclasses.is_dataclass(kind)
    if is_config:
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or (unknown := set(value) - set(hints)):
            what = (
                f"unknown {sorted(unknown)[0]!r}{nearest(sorted(unknown)[0], hints)}"
                if isinstance(value, dict)
                else f"a {type(value).__name__}"
            )
            raise UserError(f"{where}: {what} where a {kind.__name__} should be; was it written by another version?")
        missing = [
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in value
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise UserError(f"{where}: {missing[0]!r} is missing; was it written by another version?")
        return kind(**{name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(arguments[0], part, where) for part in value)
    if origin is typing.Literal:
        accepted = value in arguments
    else:
        options = arguments if origin in (types.UnionType, typing.Union) else (kind,)
        accepted = type(value) in options or (type(value) is int and float in options)
    if not accepted:
        raise UserError(f"{where} is {value!r}, which is no {kind}; was it written by another version?")
    return value


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"num_layers": 4}} -> {"model.num_layers": 4}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def refused_changes(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs between two configs (`to_json`) and may not when a run goes on, as 'field: stored -> wanted'."""
    old, new = flatten(stored), flatten(wanted)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not is_among(name, MAY_CHANGE_ON_RESUME + MAY_BE_AMENDED)
    ]


def amended(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> (old, new) of what differs between two configs (`to_json`) and is an amendment when a run goes on."""
    old, new = flatten(stored), flatten(wanted)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and is_among(name, MAY_BE_AMENDED)
    }


def is_among(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a field is one of some, or in a section that is."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)
