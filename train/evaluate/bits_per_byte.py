"""Exact bits per byte over held-out documents.

Every byte is scored exactly once, which is asserted; sums are float64 on the host; bits per byte is the whole text's
nats over its bytes, never an average of averages. The nats of end-of-document ids count, although they carry no bytes.

A document longer than a row is scored in pieces that do not see each other, or by a sliding window (`stride`), under
which most bytes see more before them. These are two numbers of two names: they are not compared with each other.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.documents import Documents
from data.held_out import MAX_COMPARED_BYTES, HeldOut, digest, held_out_documents
from data.manifest import Split
from data.rows import CausalRow
from data.scoring_rows import scoring_batches
from data.split import key_is_held_out
from data.store import Corpus, corpora_hash
from models.axes import Kernels
from models.next_id import NextIdConfig
from tokenizer_lab import metrics
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote, write_json
from tokenizer_lab.representation import Representation, check_lossless
from train.evaluate import encoders
from train.evaluate.intervals import middle_95, resampled_bits_per_byte
from train.model_function import jit_of_weights
from train.objectives.losses import token_nats
from train.recipe import Recipe, read_recipe
from train.run.folder import RunFolder
from train.setup import LoadedRun, Setup, load_run
from train.sharding import check_batch, put_batch

_MODEL_ARRAYS = ("ids", "targets", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What held-out documents cost under a model, one entry a document."""

    nats: np.ndarray
    """f64[N]."""
    num_bytes: np.ndarray
    """i64[N], source bytes."""
    num_tokens: np.ndarray
    """i64[N], targets scored, ends of documents included."""
    id_counts: np.ndarray
    """i64[V], how often each id was a target, in all documents."""

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nats.sum(), self.num_bytes.sum())

    def of(self, chosen: np.ndarray) -> "Scores":
        """The scores of some of the documents."""
        return dataclasses.replace(
            self, nats=self.nats[chosen], num_bytes=self.num_bytes[chosen], num_tokens=self.num_tokens[chosen]
        )


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """nats / ln 2 / bytes, the code length of a text per byte of it."""
    if num_bytes == 0:
        raise UserError(
            "0 bytes were scored, so that there are no bits per byte; evaluate on a corpus with non-empty held-out"
            " documents"
        )
    return float(nats) / math.log(2) / int(num_bytes)


def make_scorer(
    model_def: Any, mesh: Mesh, kernels: Kernels = "auto"
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """The jitted function (params, batch) -> -log p(target) f32[B, T], the whole of it on every host."""
    return jit_of_weights(lambda model, batch: token_nats(model, batch)[0], model_def, mesh, kernels)


def score_documents(
    documents: Sequence[bytes] | Documents,
    representation: Representation,
    score: Callable[..., Any],
    params: Any,
    mesh: Mesh,
    *,
    batch_rows: int,
    sequence_length: int,
    piece_length: int = 0,
    stride: int = 0,
    num_workers: int = 1,
    on_progress: Callable[[int], None] = lambda num_bytes: None,
) -> Scores:
    """Scores every byte of every document once.

    Args:
      documents: N documents.
      representation: the one the model was trained on.
      score: of `make_scorer`.
      params: the model's weights.
      mesh: the mesh of `score`; every host goes through all documents and computes its own rows of each batch.
      batch_rows: rows scored at a time, a multiple of the mesh's replica x fsdp.
      sequence_length: of a row; a longer document is cut into pieces that do not see each other.
      piece_length: as in training; see `data.rows.RowStreams`.
      stride: if not 0, of a sliding window; see `data.scoring_rows`.
      num_workers: threads that encode.
      on_progress: called with the number of bytes scored so far.
    """
    check_batch(mesh, batch_rows, sequence_length)
    count, true_bytes = len(documents), []
    nats, num_bytes, num_tokens = np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    id_counts = np.zeros(representation.vocab_size, np.int64)

    def read():
        for number in range(count):
            document = documents[number]
            true_bytes.append(len(document))
            yield number, document

    shape = dict(batch_rows=batch_rows, sequence_length=sequence_length, piece_length=piece_length, stride=stride)
    batches = scoring_batches(read(), representation, **shape, num_workers=num_workers)
    on_device = lambda batch: score(params, put_batch(mesh, {name: batch[name] for name in _MODEL_ARRAYS}))
    for batch, result in _one_ahead((batch, on_device(batch)) for batch in batches):
        scored = batch["documents"] >= 0
        owner = batch["documents"][scored]
        nats += np.bincount(owner, np.asarray(result, np.float64)[scored], count)
        num_bytes += np.bincount(owner, batch["target_bytes"][scored], count).astype(np.int64)
        num_tokens += np.bincount(owner, minlength=count)
        id_counts += np.bincount(batch["targets"][scored], minlength=len(id_counts))
        on_progress(int(num_bytes.sum()))
    if not np.array_equal(num_bytes, true_bytes):  # not an assert, which `python -O` leaves out
        raise AssertionError("not every byte of every document was scored exactly once")
    return Scores(nats, num_bytes, num_tokens, id_counts)


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each when the next one is made: the device computes while the host makes rows and adds up."""
    items = iter(items)
    for before in itertools.islice(items, 1):
        for item in items:
            yield before
            before = item
        yield before


def make_judge(setup: Setup) -> Callable[..., dict[str, Any]]:
    """A function (documents, params) -> the figures of held-out text and its `num_bytes`, of what the run's objective
    is about."""
    if setup.recipe.objective.layout is not CausalRow:
        return encoders.make_judge(setup)
    score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels)

    def judge(documents: Sequence[bytes] | Documents, params: Any) -> dict[str, Any]:
        scores = score_run_documents(setup, documents, score, params)
        return {"bits_per_byte": scores.bits_per_byte, "num_bytes": int(scores.num_bytes.sum())}

    return judge


def score_run_documents(
    setup: Setup, documents: Sequence[bytes] | Documents, score: Callable[..., Any], params: Any, **keywords: Any
) -> Scores:
    """`score_documents` with a run's own sizes."""
    recipe = setup.recipe
    return score_documents(
        documents,
        setup.representation,
        score,
        params,
        setup.mesh,
        batch_rows=recipe.evaluation.batch_rows,
        sequence_length=recipe.data.sequence_length,
        piece_length=recipe.data.piece_length,
        num_workers=recipe.data.num_workers,
        **keywords,
    )


def text_statistics(id_counts: np.ndarray, num_bytes: int, eod_id: int) -> dict[str, float]:
    """What the ids are like, whatever the model: the code lengths of two that know no context, in bits per byte.

    "uniform" takes all ids but the end of document for equally likely, "unigram" each as often as it is in the text
    itself.
    """
    counts = np.delete(id_counts, eod_id)
    return {
        "bytes_per_id": metrics.bytes_per_token(num_bytes, int(counts.sum())),
        "uniform_bits_per_byte": metrics.uniform_bits_per_byte(counts, num_bytes),
        "unigram_bits_per_byte": metrics.unigram_bits_per_byte(counts, num_bytes),
    }


def bootstrap_interval(scores: Scores, seed: int = 0) -> tuple[float, float]:
    """95 % interval of bits per byte: percentiles over documents drawn again with replacement."""
    return middle_95(resampled_bits_per_byte(scores.nats[None], scores.num_bytes, seed)[:, 0])


def summarize(scores: Scores, domains: Sequence[str]) -> dict[str, Any]:
    """The numbers of `eval.json`: the whole, and each domain; `domains` names the domain of each document."""

    def numbers(part: Scores) -> dict[str, Any]:
        return {
            "bits_per_byte": part.bits_per_byte,
            "interval_95": list(bootstrap_interval(part)),
            "num_bytes": int(part.num_bytes.sum()),
            "num_documents": len(part.nats),
            "num_tokens": int(part.num_tokens.sum()),
            "total_nats": float(part.nats.sum()),
        }

    by_domain = {domain: scores.of(np.array([name == domain for name in domains])) for domain in sorted(set(domains))}
    return numbers(scores) | {
        "by_domain": {domain: numbers(part) for domain, part in by_domain.items() if part.num_bytes.sum()}
    }


def costs(setup: Setup, bytes_per_id: float) -> dict[str, float | None]:
    """What a byte of held-out text costs, by the ids it takes: FLOPs to train and to generate it, and of its keys and
    values the bytes that are kept.

    None where the model generates nothing. Windows of a compressor are read by walking its model again, as when they
    were written.
    """
    recipe, per_id = setup.recipe, setup.flops_per_token
    generation = cache = None
    if isinstance(recipe.model, NextIdConfig):
        generation = (
            recipe.model.generation_flops_per_token(setup.representation.vocab_size, recipe.data.sequence_length)
            + per_id["encode"]
        )
        cache = recipe.model.kv_cache_bytes_per_token
    each = {
        "train_flops": per_id["total"],
        "generator_flops": per_id.get("generator", 0.0),
        "encode_flops": per_id["encode"],
        "generate_flops": generation,
        "kv_cache_bytes": cache,
    }
    return {f"{name}_per_byte": None if count is None else count / bytes_per_id for name, count in each.items()}


def held_out_text(
    runs: Sequence[LoadedRun], corpora: Sequence[Corpus], whole_corpus: bool = False, split: Split = "test"
) -> HeldOut:
    """What runs are judged by together: test documents (or valid ones) of corpora that all of them hold out.

    With `whole_corpus` all of them, of which a run may have seen copies. Raises UserError where there are none.
    """
    known = [run.scored_below for run in runs if run.scored_below is not None]
    return held_out_documents(corpora, None if whole_corpus else min(known, default=None), split)


def count_in_training(documents: HeldOut, run: RunFolder, scored_below: float | None) -> int | None:
    """How many held-out documents are, byte for byte, among those that a run is trained on; None where that is too much
    text to read, far away, or cannot be read any more, which does not concern what is evaluated."""
    paths = read_recipe(run).data.corpora
    held_out = [digest(documents[number]) for number in range(len(documents))]
    if any(map(is_remote, paths)):
        return None
    try:
        training = [Corpus.open(path).documents("train") for path in paths]
        if sum(part.num_bytes for part in training) > MAX_COMPARED_BYTES:
            return None
        both = set(held_out).intersection(
            digest(part[number])
            for part in training
            for number in range(len(part))
            if not key_is_held_out(part.key(number), scored_below or 0.0)
        )
    except UserError:
        return None
    return sum(each in both for each in held_out)


def evaluate_run(
    run_dir: str,
    corpus: str | None,
    on_progress: Callable[[int, int], None],
    batch_rows: int | None = None,
    whole_corpus: bool = False,
    split: Split = "test",
    stride: int = 0,
) -> dict[str, Any]:
    """Scores all held-out documents with a run's newest checkpoint; writes `eval.json`, and document by document
    `eval_documents.json`. With a stride, `eval_stride.json` alone, whose figures are other ones.

    Args:
      run_dir: the run's folder.
      corpus: a corpus store in place of the run's.
      on_progress: called with the bytes scored and the bytes there are.
      batch_rows: see `train.setup.load_run`.
      whole_corpus: score also documents that the run does not hold out.
      split: which documents are scored.
      stride: if not 0, of a sliding window as long as the run's rows.

    Raises:
      UserError: the folder is no run, nothing is held out, texts do not come back from the run's ids, or the run cannot
        be scored by a sliding window.
    """
    loaded = load_run(run_dir, batch_rows)
    setup, recipe, corpora = loaded.setup, loaded.setup.recipe, loaded.open_corpora(corpus)
    check_lossless(setup.representation)
    if stride:
        _check_stride(recipe, stride)
    documents = held_out_text([loaded], corpora, whole_corpus, split)
    total_bytes = sum(part.num_bytes for part in documents.parts)
    num_left_out = len(held_out_documents(corpora, split=split)) - len(documents)
    scored = f" below {loaded.scored_below}" if num_left_out else ""
    scored += "" if split == "test" else f" {split}"
    content = {"corpus_content_hash": corpora_hash(corpora) + scored}
    advance = lambda num_bytes: on_progress(num_bytes, total_bytes)
    if recipe.objective.layout is CausalRow:
        result, id_counts, num_bytes = _score_causal(loaded, documents, RunFolder(run_dir), content, advance, stride)
    else:
        result = encoders.summarize(setup, documents, loaded.params, advance)
        id_counts, num_bytes = result.pop("id_counts"), result["num_bytes"]
    result = loaded.counters | result | content
    result["text"] = text_statistics(id_counts, num_bytes, setup.representation.eod_id)
    result["costs"] = costs(setup, result["text"]["bytes_per_id"])
    result["num_documents_in_training"] = count_in_training(documents, RunFolder(run_dir), loaded.scored_below)
    result["num_documents_left_out"] = num_left_out
    run = RunFolder(run_dir)
    write_json(run.evaluation_by_window if stride else run.evaluation, result)
    return result


def _check_stride(recipe: Recipe, stride: int) -> None:
    """Raises UserError for a run that cannot be scored by a sliding window of this stride."""
    if recipe.objective.layout is not CausalRow:
        raise UserError("--stride is for decoders, and the run is an encoder, which has no bits per byte; leave it out")
    if recipe.data.piece_length:
        raise UserError(
            f"--stride gives each byte more context, and the run was trained on pieces of {recipe.data.piece_length}"
            " positions that see nothing before them (data.piece_length); leave --stride out"
        )
    if not 0 < stride <= recipe.data.sequence_length:
        raise UserError(
            f"--stride is {stride}; give 1 to {recipe.data.sequence_length}, the positions of a row: the window moves"
            " on by so many"
        )


def _score_causal(
    loaded: LoadedRun,
    documents: HeldOut,
    run: RunFolder,
    content: dict[str, str],
    advance: Callable[[int], None],
    stride: int,
) -> tuple[dict[str, Any], np.ndarray, int]:
    """The summary of a decoder's scores, how often each id came, and the bytes; writes `eval_documents.json`, unless
    the documents were scored by a sliding window."""
    setup = loaded.setup
    score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels)
    scores = score_run_documents(setup, documents, score, loaded.params, stride=stride, on_progress=advance)
    domains = [documents.domain(number) for number in range(len(documents))]
    if stride:
        window = {"stride": stride, "window": setup.recipe.data.sequence_length}
        return summarize(scores, domains) | window, scores.id_counts, int(scores.num_bytes.sum())
    by_document = {
        "step": loaded.counters["step"],
        **content,
        "nats": scores.nats.tolist(),
        "num_bytes": scores.num_bytes.tolist(),
        "domains": domains,
        "scripts": [documents.script(number) for number in range(len(documents))],
    }
    write_json(run.evaluated_documents, by_document)
    return summarize(scores, domains), scores.id_counts, int(scores.num_bytes.sum())
