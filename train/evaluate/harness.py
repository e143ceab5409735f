"""EleutherAI's lm-evaluation-harness on a run: tasks from local files, without any network. See docs/export.md."""

import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train.evaluate.bits_per_byte import make_scorer, score_run_documents
from train.evaluate.likelihood import Likelihoods
from train.evaluate.sampling import sample_text
from train.run.folder import RunFolder
from train.setup import LoadedRun, load_run

_BOOTSTRAP_SAMPLES = 1000


def evaluate_tasks(
    run_dir: str, tasks: pathlib.Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Runs the harness's tasks in a YAML file, or in all of a folder, and writes `tasks.json` into the run's folder.

    Returns:
      The run's counters and `results`: task -> metric -> value, as the harness names them.

    Raises:
      UserError: the harness is not installed, there are no tasks, or a task cannot be read.
    """
    if not tasks.exists():
        raise UserError(f"{tasks} does not exist; give a task's .yaml file, or a folder of them")
    # The harness and its data sets would otherwise ask servers; its own processes for intervals would be forked from
    # this one.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "DISABLE_MULTIPROC": "1",
        "TQDM_DISABLE": "1",
    }
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("tasks need the harness: pip install 'tokenizer-lab[lm-eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(tasks if tasks.is_dir() else tasks.parent), include_defaults=False)
    names = manager.all_subtasks if tasks.is_dir() else [str(tasks)]
    if not names:
        raise UserError(
            f"{tasks} has no tasks; a task is a .yaml file with 'task', 'dataset_path: json' and what else the harness"
            " needs"
        )
    try:
        made = list(manager.load(names)["tasks"].values())
    except Exception as error:  # of the harness and of what reads its data, which have many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the harness cannot read {tasks}: {reason}; a task's data files are named as seen from the current folder"
        ) from error
    loaded = load_run(run_dir)
    found = lm_eval.simple_evaluate(
        model=language_model(loaded, on_progress),
        tasks=made,
        task_manager=manager,
        bootstrap_iters=_BOOTSTRAP_SAMPLES,
        log_samples=False,
    )
    results = {
        task: {
            metric: value for metric, value in values.items() if "," in metric and isinstance(value, int | float)
        }  # "metric,filter"
        for task, values in found["results"].items()
    }
    result = {**loaded.counters, "lm_eval_version": lm_eval.__version__, "results": results}
    write_json(RunFolder(run_dir).tasks, result)
    return result


def language_model(loaded: LoadedRun, on_progress: Callable[[int, int], None]) -> Any:
    """A run's decoder as the `lm_eval.api.model.LM` that the harness asks."""
    from lm_eval.api.model import LM

    setup, likelihoods = loaded.setup, Likelihoods(loaded)

    class Run(LM):
        def loglikelihood(self, requests):
            return likelihoods.continuations([as_the_harness_cuts(*request.args) for request in requests], on_progress)

        def loglikelihood_rolling(self, requests):
            score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels)
            return (
                -score_run_documents(
                    setup, [to_bytes(request.args[0]) for request in requests], score, loaded.params
                ).nats
            ).tolist()

        def generate_until(self, requests):
            texts = []
            for request in requests:
                texts.append(generate(loaded, *request.args))
                on_progress(len(texts), len(requests))
            return texts

    return Run()


def as_the_harness_cuts(context: str, continuation: str) -> tuple[bytes, bytes]:
    """Spaces at the context's end belong to the continuation (`TemplateLM._encode_pair`)."""
    kept = context.rstrip()
    return to_bytes(kept), to_bytes(context[len(kept) :] + continuation)


def generate(loaded: LoadedRun, context: str, options: dict[str, Any]) -> str:
    """What the run says behind a context, up to one of the texts in `until`."""
    until = options.get("until") or []
    temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
    text = sample_text(
        loaded.setup.program.model_def,
        loaded.params,
        loaded.setup.representation,
        to_bytes(context),
        max_tokens=int(options.get("max_gen_toks", 256)),
        temperature=temperature,
        top_k=int(options.get("top_k", 0)),
        top_p=float(options.get("top_p", 1.0)),
    ).decode("utf-8", "replace")
    ends = [text.find(end) for end in ([until] if isinstance(until, str) else until) if end and end in text]
    return text[: min(ends, default=len(text))]


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
