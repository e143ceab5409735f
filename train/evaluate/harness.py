"""EleutherAI's lm-evaluation-harness on a run: tasks from local files, without any network. See docs/export.md."""

import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train.evaluate.bits_per_byte import make_scorer, score_run_documents
from train.evaluate.generation import Draw, Sampler
from train.evaluate.likelihood import Likelihoods
from train.run.folder import RunFolder
from train.setup import LoadedRun, load_run

_BOOTSTRAP_SAMPLES = 1000
_GENERATED_TOKENS = 256  # where a task does not say


def evaluate_tasks(
    run_dir: str,
    tasks: pathlib.Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    batch_rows: int | None = None,
) -> dict[str, Any]:
    """Runs the harness's tasks in a YAML file, or in all of a folder, and writes `tasks.json` into the run's folder.

    Returns:
      The run's counters; `results`: task -> metric -> value, as the harness names them; and how many of its requests
      were cut from the left, as they have more ids than `trained_length`, the positions that the run was trained on.

    Raises:
      UserError: the harness is not installed, there are no tasks, or a task cannot be read.
    """
    if not tasks.exists():
        raise UserError(f"{tasks} does not exist; give a task's .yaml file, or a folder of them")
    lm_eval = _harness()
    manager, made = _read_tasks(tasks)
    answers = Answers(load_run(run_dir, batch_rows), on_progress)
    found = lm_eval.simple_evaluate(
        model=language_model(answers),
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
    result = {
        **answers.loaded.counters,
        "lm_eval_version": lm_eval.__version__,
        "results": results,
        "num_requests": answers.num_requests,
        "num_cut": answers.num_cut,
        "trained_length": answers.loaded.setup.recipe.data.trained_length,
    }
    write_json(RunFolder(run_dir).tasks, result)
    return result


def _harness() -> Any:
    """The module `lm_eval`; it asks no server and starts no process."""
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
    except ImportError as error:
        raise UserError("tasks need the harness: pip install 'tokenizer-lab[lm-eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _read_tasks(tasks: pathlib.Path) -> tuple[Any, list[Any]]:
    """The harness's manager of a file's or folder's tasks, and the tasks."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks if tasks.is_dir() else tasks.parent), include_defaults=False)
    names = manager.all_subtasks if tasks.is_dir() else [str(tasks)]
    if not names:
        raise UserError(
            f"{tasks} has no tasks; a task is a .yaml file with 'task', 'dataset_path: json' and what else the harness"
            " needs"
        )
    try:
        return manager, list(manager.load(names)["tasks"].values())
    except Exception as error:  # of the harness and of what reads its data, which have many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the harness cannot read {tasks}: {reason}; a task's data files are named as seen from the current folder"
        ) from error


class Answers:
    """What a run's decoder answers to the harness.

    Attributes:
      loaded: the run.
      num_requests: that were answered.
    """

    def __init__(self, loaded: LoadedRun, on_progress: Callable[[int, int], None] = lambda done, total: None):
        self.loaded, self.num_requests, self._num_cut = loaded, 0, 0
        self._on_progress = on_progress
        self._likelihoods, self._sampler = Likelihoods(loaded), Sampler.of_run(loaded)

    @property
    def num_cut(self) -> int:
        """Of the requests, how many the model has not seen from their beginning."""
        return self._num_cut + self._likelihoods.num_cut

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each continuation of a context: its log-likelihood, and whether it is what the model would say."""
        self.num_requests += len(pairs)
        return self._likelihoods.continuations([as_the_harness_cuts(*pair) for pair in pairs], self._on_progress)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Of each text: its log-likelihood, in pieces of a row's length."""
        setup = self.loaded.setup
        score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels)
        scores = score_run_documents(setup, [to_bytes(text) for text in texts], score, self.loaded.params)
        self.num_requests += len(texts)
        return (-scores.nats).tolist()

    def generate(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """What the run says behind each context, up to one of the texts in `until`; requests with the same options are
        answered together."""
        texts: dict[int, str] = {}
        by_options: dict[tuple[int, Draw], list[int]] = {}
        for number, (_, options) in enumerate(requests):
            by_options.setdefault(_drawing(options), []).append(number)
        for (max_tokens, draw), numbers in by_options.items():
            prompts = [to_bytes(requests[number][0]) for number in numbers]
            done = len(texts)
            drawn, how = self._sampler.draw(
                prompts, max_tokens, draw, lambda more, _: self._on_progress(done + more, len(requests))
            )
            texts |= {
                number: _up_to(text.decode("utf-8", "replace"), requests[number][1].get("until") or [])
                for number, text in zip(numbers, drawn)
            }
            self._num_cut += sum(text.was_cut for text in how)
        self.num_requests += len(requests)
        return [texts[number] for number in range(len(requests))]


def language_model(answers: Answers) -> Any:
    """A run's decoder as the `lm_eval.api.model.LM` that the harness asks."""
    from lm_eval.api.model import LM

    class Run(LM):
        def loglikelihood(self, requests):
            return answers.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests):
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests):
            return answers.generate([request.args for request in requests])

    return Run()


def as_the_harness_cuts(context: str, continuation: str) -> tuple[bytes, bytes]:
    """Spaces at the context's end belong to the continuation (`TemplateLM._encode_pair`)."""
    kept = context.rstrip()
    return to_bytes(kept), to_bytes(context[len(kept) :] + continuation)


def _drawing(options: dict[str, Any]) -> tuple[int, Draw]:
    """How many ids a task asks for at most, and how they are drawn."""
    temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
    draw = Draw(temperature=temperature, top_k=int(options.get("top_k", 0)), top_p=float(options.get("top_p", 1.0)))
    max_tokens = int(options.get("max_gen_toks", _GENERATED_TOKENS))
    if max_tokens < 1:
        raise UserError(f"a task's max_gen_toks is {max_tokens}; it must be at least 1")
    return max_tokens, draw


def _up_to(text: str, until: str | Sequence[str]) -> str:
    ends = [text.find(end) for end in ([until] if isinstance(until, str) else until) if end and end in text]
    return text[: min(ends, default=len(text))]


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
