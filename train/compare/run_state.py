"""How far a run has come, read from its folder."""

from collections.abc import Sequence

from etils import epath

from tokenizer_lab.files import read_json
from train.compare.resolve import Run
from train.recipe import refused_changes, to_json
from train.run.folder import RunFolder
from train.submit.local import newest_step
from train.summary import FINISHED

DONE, UNSCORED, CUT_OFF, MISSING = "done", "to evaluate", "cut off", "missing"


def folder_of(run: Run, out: epath.Path) -> RunFolder:
    return RunFolder(out / "runs" / run.folder_name)


def state_of(folder: RunFolder) -> tuple[str, int]:
    """How far a run has come, and the step of its newest checkpoint."""
    if not folder.config.exists():
        return MISSING, 0
    summary = read_json(folder.summary, "run's summary") if folder.summary.exists() else {}
    if summary.get("state") != FINISHED:
        return CUT_OFF, max(0, newest_step(str(folder.path)))
    scored = (
        folder.evaluation.exists() and read_json(folder.evaluation, "run's evaluation").get("step") == summary["steps"]
    )
    return DONE if scored else UNSCORED, summary["steps"]


def other_runs_there(runs: Sequence[Run], out: epath.Path) -> list[str]:
    """Names folders that hold another run than the experiment's: somebody has trained something else in them."""
    problems = []
    for run in runs:
        folder, wanted = folder_of(run, out), to_json(run.recipe)
        if not folder.config.exists():
            continue
        stored = read_json(folder.config, "run's config")
        differing = refused_changes(stored, wanted)
        if stored.get("budget") != wanted["budget"]:
            differing.append(f"budget: {stored.get('budget')} -> {wanted['budget']}")
        if differing:
            problems.append(
                f"{folder.path} holds another run than the experiment's ({'; '.join(differing)}); remove or rename the"
                " folder"
            )
    return problems
