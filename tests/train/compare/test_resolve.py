"""Which runs an experiment stands for, and what is said against one that cannot be."""

import dataclasses

import pytest

from data.store import Corpus
from tokenizer_lab.equal_info import EqualInfoFit
from tokenizer_lab.subword import SubwordFit
from train.compare.resolve import Text, check, fit_of, open_text, resolve
from train.experiment import Experiment, Size
from train.optimizer import Budget


def names_of(experiment: Experiment, text: Text, measured) -> list[str]:
    problems = []
    runs = resolve(experiment, text, measured, problems)
    assert not problems
    return [run.folder_name for run in runs]


def test_every_arm_comes_once_before_any_comes_twice(experiment, text, measured):
    assert [name.rpartition("-")[0] for name in names_of(experiment, text, measured)] == [
        "byte-xs-s0",
        "subword-xs-s0",
        "byte-xs-s1",
        "subword-xs-s1",
    ]


def test_rows_hold_about_as_much_text_in_every_arm(experiment, text, measured):
    lengths = {run.arm: run.recipe.data.sequence_length for run in resolve(experiment, text, measured, [])}
    assert lengths == {"byte": 48, "subword": 24}  # 49.0 and 20.9 positions, to a multiple of 8
    own = resolve(dataclasses.replace(experiment, context_bytes=None), text, measured, [])
    assert {run.recipe.data.sequence_length for run in own} == {32}
    assert {run.recipe.model.num_layers for run in own} == {1} and {run.recipe.budget for run in own} == {
        Budget(bytes=4000)
    }


@pytest.mark.parametrize("what", ["optimizer", "artifact", "logging"])
def test_a_changed_arm_makes_new_runs_of_that_arm_only(experiment, text, what, measured, change):
    recipe, now = experiment.arms[1].recipe, measured
    if what == "artifact":
        now = measured | {"subword": dataclasses.replace(measured["subword"], fingerprint="another")}
    else:
        field = {"optimizer": {"learning_rate": 1e-3}, "logging": {"every_steps": 7}}[what]
        recipe = dataclasses.replace(recipe, **{what: dataclasses.replace(getattr(recipe, what), **field)})
    before, after = names_of(experiment, text, measured), names_of(change(experiment, 1, recipe=recipe), text, now)
    differing = [old.split("-")[0] for old, new in zip(before, after, strict=True) if old != new]
    assert differing == ([] if what == "logging" else ["subword", "subword"])


def test_a_run_is_known_by_content_and_not_by_path(experiment, text, corpus, make_corpus, tmp_path, measured):
    moved = Text((str(tmp_path / "moved"),), text.corpora)
    paths = {name: dataclasses.replace(of, path=f"elsewhere/{name}") for name, of in measured.items()}
    assert names_of(experiment, text, measured) == names_of(experiment, moved, paths)
    other = make_corpus(tmp_path / "other", seed=1)
    assert not set(names_of(experiment, text, measured)) & set(
        names_of(experiment, Text((str(other),), (Corpus.open(other),)), measured)
    )


def test_arms_with_the_same_options_share_a_fit(experiment, text):
    byte, subword = experiment.arms
    assert fit_of(subword, text) == fit_of(dataclasses.replace(subword, name="again"), text)
    other = fit_of(dataclasses.replace(subword, fit=SubwordFit(vocab_size=290)), text)
    assert (
        other != fit_of(subword, text)
        and other.words == ("subword", "--vocab-size", "290")
        and fit_of(byte, text).words == ("byte",)
    )


def test_a_good_experiment_has_nothing_said_against_it(experiment, corpus):
    problems = check(experiment)
    assert open_text(experiment, (), problems).paths == (str(corpus),) and problems == []


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda e, change: change(e, 1, name="byte"), "2 arms are named 'byte'; give each a name of its own"),
        (lambda e, change: change(e, 1, name="a/b"), "arm name 'a/b' is not a plain name"),
        (lambda e, change: dataclasses.replace(e, seeds=(1, 1)), "2 seeds are named 1"),
        (lambda e, change: dataclasses.replace(e, arms=()), "the experiment has no arms"),
        (lambda e, change: dataclasses.replace(e, context_bytes=0), "context_bytes is 0"),
        (
            lambda e, change: dataclasses.replace(e, sizes=(Size(name="s", budget=Budget(steps=5)),)),
            "the budgets are in steps (s); they must all be in FLOPs",
        ),
        (
            lambda e, change: dataclasses.replace(e, sizes=(*e.sizes, Size(name="l", budget=Budget(flops=1e9)))),
            "in bytes (xs), flops (l)",
        ),
        (
            lambda e, change: dataclasses.replace(
                e, sizes=(Size(name="s", budget=Budget(bytes=5), model={"depth": 3}),)
            ),
            "arm byte: its model has no field 'depth', which size s sets",
        ),
        (
            lambda e, change: change(
                e,
                0,
                recipe=dataclasses.replace(
                    e.arms[0].recipe, data=dataclasses.replace(e.arms[0].recipe.data, batch_rows=16)
                ),
            ),
            "data.batch_rows differs (byte: 16, subword: 8), so that rows would not read the same documents",
        ),
        (
            lambda e, change: change(
                e, 0, fit=None, recipe=dataclasses.replace(e.arms[0].recipe, representation="nowhere")
            ),
            "arm byte: nowhere/manifest.json does not exist",
        ),
        (lambda e, change: change(e, 0, fit="bytes"), "arm byte: its fit is a str"),
        (lambda e, change: change(e, 0, fit=EqualInfoFit()), "arm byte: its fit names no lm_recipe"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said(experiment, make, said, change):
    problems = check(make(experiment, change))
    open_text(make(experiment, change), (), problems)
    assert any(said in problem for problem in problems), problems


def test_a_corpus_that_has_moved_is_told_with_what_can_be_done(experiment, corpus, make_corpus, tmp_path, change):
    moved = dataclasses.replace(experiment.arms[0].recipe.data, corpora=(str(tmp_path / "before"),))
    arms = [dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, data=moved)) for arm in experiment.arms]
    experiment, problems = dataclasses.replace(experiment, arms=tuple(arms)), []
    assert open_text(experiment, (), problems) is None
    [problem] = problems
    assert "before is not a corpus" in problem and "name its folder with --corpus, and of runs" in problem
    assert open_text(experiment, (str(corpus),), []).paths == (str(corpus),)


def test_arms_of_other_corpora_are_told_apart_by_content(experiment, corpus, make_corpus, tmp_path, change):
    other, same = make_corpus(tmp_path / "other", seed=1), make_corpus(tmp_path / "same")
    read = lambda folder: dataclasses.replace(
        experiment.arms[1].recipe, data=dataclasses.replace(experiment.arms[1].recipe.data, corpora=(str(folder),))
    )
    problems = []
    assert open_text(change(experiment, 1, recipe=read(other)), (), problems) is None
    assert "the arms' corpora differ" in problems[0] and "give all arms the same ones, with --corpus" in problems[0]
    assert open_text(change(experiment, 1, recipe=read(same)), (), []) is not None
    assert open_text(change(experiment, 1, recipe=read(other)), (str(other),), []).paths == (str(other),)
    problems = []
    open_text(experiment, (str(corpus), str(other)), problems)
    assert "is to be fitted on 2 corpora, and a fit reads one" in problems[0]


def test_a_budget_that_the_fit_has_spent_is_refused(experiment, text, measured):
    problems = []
    resolve(
        dataclasses.replace(experiment, sizes=(Size(name="xs", budget=Budget(flops=1e9)),)), text, measured, problems
    )
    assert (
        len(problems) == 1
        and "arm subword, size xs: its budget of 1e+09 FLOPs is no more than the 1e+09 that fitting" in problems[0]
    )
