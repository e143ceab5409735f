"""The runs that an experiment stands for, and what is wrong with it before any of them begins."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data.store import Corpus, corpora_hash
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import check_name
from tokenizer_lab.representation import KINDS, fit_options, read_manifest
from train.experiment import Arm, Experiment, Size
from train.recipe import MAY_CHANGE_ON_RESUME, Recipe, flatten, is_among, load_config, load_recipe, to_json
from train.submit.job import option_words

LENGTH_MULTIPLE = 8
"""Matched sequence lengths are a multiple of this; 128 would be too coarse for short rows of large vocabularies."""


@dataclasses.dataclass(frozen=True)
class Text:
    """What is trained on and held out."""

    paths: tuple[str, ...]
    corpora: tuple[Corpus, ...]

    @property
    def content_hash(self) -> str:
        return corpora_hash(self.corpora)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """An arm's representation, and what it makes of the text."""

    path: str
    fingerprint: str
    vocab_size: int
    costs: Mapping[str, float]
    bytes_per_position: float
    """Source bytes that a position of a row holds on average, ends of documents counted."""

    def matched_length(self, context_bytes: int) -> int:
        """Positions of a row that hold so much text."""
        return max(1, round(context_bytes / self.bytes_per_position / LENGTH_MULTIPLE)) * LENGTH_MULTIPLE


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs of an experiment, with all that decides its numbers."""

    arm: str
    size: str
    seed: int
    recipe: Recipe
    identity: str
    """Hash of that: of the recipe, of the artifact and of the corpora, by content and not by path."""

    @property
    def folder_name(self) -> str:
        return f"{self.recipe.name}-{self.identity}"


def load_experiment(name_or_path: str) -> Experiment:
    """The experiment of a name in `configs/` or of a Python file. Raises UserError."""
    return load_config(name_or_path, "experiment", Experiment)


def resolve(experiment: Experiment, text: Text, measured: Mapping[str, Measured], problems: list[str]) -> list[Run]:
    """The runs, in the order in which they are done: seed after seed, so that every arm has one before any has two.

    Args:
      experiment: what is compared.
      text: its corpora.
      measured: of each arm.
      problems: gets a line for every run that cannot be.
    """
    runs = []
    for size in experiment.sizes:
        for seed in experiment.seeds:
            for arm in experiment.arms:
                try:
                    runs.append(_resolve(experiment, arm, size, seed, text, measured[arm.name]))
                except UserError as error:
                    problems.append(f"arm {arm.name}, size {size.name}: {error}")
    problems[:] = dict.fromkeys(problems)  # once, not once a seed
    return runs


def _resolve(experiment: Experiment, arm: Arm, size: Size, seed: int, text: Text, measured: Measured) -> Run:
    recipe = of_size(arm, size)
    length = (
        measured.matched_length(experiment.context_bytes) if experiment.context_bytes else recipe.data.sequence_length
    )
    data = dataclasses.replace(recipe.data, corpora=text.paths, sequence_length=length)
    recipe = dataclasses.replace(
        recipe, name=f"{arm.name}-{size.name}-s{seed}", representation=measured.path, data=data, seed=seed
    )
    fit_flops = measured.costs.get("fit_flops", 0.0)
    if size.budget.flops is not None and size.budget.flops <= fit_flops:
        raise UserError(
            f"its budget of {size.budget.flops:.3g} FLOPs is no more than the {fit_flops:.3g} that fitting its"
            " representation has spent; raise it"
        )
    return Run(arm.name, size.name, seed, recipe, _identity(recipe, measured.fingerprint, text.content_hash))


def of_size(arm: Arm, size: Size) -> Recipe:
    """An arm's recipe with a size's model, optimizer and budget. Raises UserError."""
    parts = {}
    for section in ("model", "optimizer"):
        config, changes = getattr(arm.recipe, section), getattr(size, section)
        if unknown := sorted(set(changes) - {field.name for field in dataclasses.fields(config)}):
            raise UserError(
                f"its {section} has no field {unknown[0]!r}, which size {size.name} sets; take it out of the size"
            )
        parts[section] = dataclasses.replace(config, **changes)
    return dataclasses.replace(arm.recipe, budget=size.budget, **parts)


def _identity(recipe: Recipe, fingerprint: str, corpus_hash: str) -> str:
    """Of the fields of a recipe, those that may not change when a run goes on decide its numbers, and amendments."""
    fields = {
        name: value for name, value in flatten(to_json(recipe)).items() if not is_among(name, MAY_CHANGE_ON_RESUME)
    }
    return _short_hash([fields, fingerprint, corpus_hash])


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


# ---- Fits ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted artifact: its folder's name, and how `toklab fit` makes it."""

    folder_name: str
    words: tuple[str, ...]


def fit_of(arm: Arm, text: Text) -> Fit:
    """How an arm's representation is fitted: arms with the same options share the artifact. Raises UserError."""
    kind = _fit_kind(arm.fit)
    options = {field.name: getattr(arm.fit, field.name) for field in dataclasses.fields(arm.fit)}
    recipes = {
        name: to_json(load_recipe(value))
        for name, value in options.items()
        if name == "lm_recipe" and options["lm"] is None
    }
    changed = {
        field.name: options[field.name] for field in dataclasses.fields(arm.fit) if options[field.name] != field.default
    }
    words = [word for name, value in changed.items() for word in option_words(name, value)]
    return Fit(f"{kind}-{_short_hash([kind, options, recipes, text.content_hash])}", (kind, *words))


def _fit_kind(options: Any) -> str:
    if getattr(options, "lm_recipe", "") is None and options.lm is None:
        raise UserError("its fit names no lm_recipe, and the default is the machine's; name one, e.g. demo_compressor")
    for kind in KINDS:
        if fit_options(kind) is type(options):
            return kind
    raise UserError(
        f"its fit is a {type(options).__name__}; it must be the options of a kind that 'toklab fit' has:"
        f" {', '.join(KINDS)}"
    )


# ---- What can be said before anything is fitted --------------------------------------------------


def check(experiment: Experiment) -> list[str]:
    """What is wrong with an experiment as it is written, a line each."""
    problems = [
        f"the experiment has no {what}; give at least one"
        for what in ("arms", "sizes", "seeds")
        if not getattr(experiment, what)
    ]
    names: dict[str, list[Any]] = {
        "arms": [arm.name for arm in experiment.arms],
        "sizes": [size.name for size in experiment.sizes],
        "seeds": list(experiment.seeds),
    }
    for what, given in names.items():
        for name, times in collections.Counter(given).items():
            if times > 1:
                problems.append(f"{times} {what} are named {name!r}; give each a name of its own")
    problems += [
        line
        for what in ("arm", "size")
        for name in names[f"{what}s"]
        for line in _complaint(check_name, name, f"{what} name")
    ]
    if experiment.context_bytes is not None and experiment.context_bytes < 1:
        problems.append(f"context_bytes is {experiment.context_bytes}; it must be at least 1, or None")
    kinds = {size.name: size.budget.kind for size in experiment.sizes}
    if "steps" in kinds.values() or len(set(kinds.values())) > 1:
        problems.append(
            f"the budgets are in {', '.join(f'{kind} ({name})' for name, kind in kinds.items())}; they must all be in"
            " FLOPs, all in bytes or all in seconds, as equal steps are not equal anything"
        )
    problems += _differences(experiment.arms, "data.batch_rows", "data.weights")
    for arm in experiment.arms:
        found = [line for size in experiment.sizes for line in _complaint(of_size, arm, size)]
        if arm.fit is None:
            found += _complaint(read_manifest, arm.recipe.representation)
        problems += [f"arm {arm.name}: {line}" for line in found]
    return problems


def open_text(experiment: Experiment, paths: Sequence[str], problems: list[str]) -> Text | None:
    """The corpora that are named, or else those of the arms' recipes; None where `problems` says why there are none."""
    by_arm = {arm.name: tuple(paths) or arm.recipe.data.corpora for arm in experiment.arms}
    texts, found = {}, []
    for folders in dict.fromkeys(by_arm.values()):
        try:
            texts[folders] = Text(folders, tuple(Corpus.open(epath.Path(folder)) for folder in folders))
        except UserError as error:
            found.append(
                f"{error}; where it has moved, name its folder with --corpus, and of runs that are done already"
                " toklab report OUT/runs/* tells"
            )
    if len({text.content_hash for text in texts.values()}) > 1:
        shown = "; ".join(
            f"{name}: {'+'.join(folders)} ({texts[folders].content_hash[:12]})"
            for name, folders in by_arm.items()
            if folders in texts
        )
        found.append(f"the arms' corpora differ ({shown}); give all arms the same ones, with --corpus")
    text = next(iter(texts.values()), None)
    if text is not None:
        found += [line for arm in experiment.arms for line in _misfits(arm, text)]
    problems += found
    return None if found else text


def _misfits(arm: Arm, text: Text) -> Iterator[str]:
    """Why an arm cannot be trained on a text."""
    if arm.fit is not None:
        yield from (f"arm {arm.name}: {line}" for line in _complaint(fit_of, arm, text))
    if arm.fit is not None and len(text.paths) > 1:
        yield (
            f"arm {arm.name} is to be fitted on {len(text.paths)} corpora, and a fit reads one; ingest them into"
            " one corpus as its domains, or fit it before and name the artifact in its recipe"
        )
    if arm.recipe.data.weights and len(arm.recipe.data.weights) != len(text.paths):
        yield (
            f"arm {arm.name}: data.weights {arm.recipe.data.weights} do not fit {len(text.paths)} corpora; give one"
            " for each, or none"
        )


def _differences(arms: Sequence[Arm], *fields: str) -> Iterator[str]:
    """Fields of the recipes that decide which documents a row reads, and have to be the same."""
    for field in fields:
        by_arm = {arm.name: flatten(to_json(arm.recipe))[field] for arm in arms}
        if len({str(value) for value in by_arm.values()}) > 1:
            yield (
                f"{field} differs ({', '.join(f'{name}: {value}' for name, value in by_arm.items())}), so that rows"
                " would not read the same documents; give all arms the same"
            )


def _complaint(check: Callable[..., Any], *arguments: Any) -> list[str]:
    """What a check says against its arguments."""
    try:
        check(*arguments)
    except UserError as error:
        return [str(error)]
    return []
