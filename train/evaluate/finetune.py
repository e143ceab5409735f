"""Fine-tuning: a trained model with a new head, on a task of labelled sentences or pairs.

The protocol is ELECTRA's (configure_finetuning.py of google-research/electra) and the same for every arm: AdamW without
bias correction, a rate that falls linearly after a warm-up and is lower the further a layer is from the head, a few
epochs, several seeds. An encoder is asked at `[CLS]`; a decoder, which sees to the left only, at the text's last
position. A run's own heads are not used: a causal run gets the same new head as a discriminator.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from etils import epath
from flax import nnx

from data.encoded import encode
from data.encoder_rows import MIN_LENGTH, RowBuilder
from models import encoder
from models.axes import parameter, parameter_axes
from models.config import ModelConfig
from models.dropout import Dropout, no_dropout, row_dropout
from models.encoder import Encoder, EncoderConfig, Heads
from models.initialization import published_normal
from models.next_id import NextIdModel
from tokenizer_lab.errors import POSITIVE, SHARE, Range, UserError, check_numbers
from tokenizer_lab.files import check_name, write_json
from tokenizer_lab.representation import NUM_ENCODER_IDS
from train.evaluate.tasks import Example, Task, metrics, read_task
from train.model_function import of_weights
from train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from train.run.folder import RunFolder
from train.setup import LoadedRun, load_run
from train.sharding import parameter_shardings, put_batch, replicated

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Fine-tune a run on a task, once for each seed, and say how good it became."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder; the results go into its `finetune/`."""
    task: pathlib.Path
    """Examples to learn from: .jsonl with 'label' and 'sentence', or 'sentence1' and 'sentence2'; or .tsv."""
    fields: tuple[str, ...] = ()
    """Names of the one or two texts of an example, e.g. question sentence; usual names are known."""
    dev: pathlib.Path | None = None
    """Examples to be judged by; a tenth of the others, chosen by their text, if none are given."""
    kind: Literal["auto", "classification", "regression"] = "auto"
    """What labels are; numbers that are not all whole are a regression, if nothing is said."""
    num_seeds: int = 5
    """Runs, whose median and range are given; published results are of 10."""
    num_epochs: int = 3
    batch_rows: int = 32
    """Examples of a step; more where the devices do not divide them, and the result says so."""
    sequence_length: int = 128
    """Positions an example has at most; the longer of a pair is cut first."""
    learning_rate: float = 1e-4
    layer_decay: float = 0.8
    """What the learning rate is multiplied by from a layer to the one below it."""
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    dropout: float = 0.1
    """Before the head, and inside an encoder of the form "bert"."""

    def __post_init__(self) -> None:
        above_0_to_1, share_below_1 = Range(above=0, most=1), Range(least=0, below=1)
        check_numbers(
            self,
            "--",
            sequence_length=Range(least=MIN_LENGTH),
            learning_rate=POSITIVE,
            layer_decay=above_0_to_1,
            warmup_share=SHARE,
            dropout=share_below_1,
        )
        if len(self.fields) > 2:
            raise UserError(f"--fields {' '.join(self.fields)} are {len(self.fields)}; an example has one text or two")


class Classifier(nnx.Module):
    """A trained model with a linear head on one position of each example."""

    def __init__(self, base: NextIdModel | Encoder, num_outputs: int, *, rngs: nnx.Rngs):
        width = base.config.embed_dim
        self.base = base
        self.kernel = parameter(published_normal(rngs, (width, num_outputs)), "embed", "norm")
        self.bias = parameter(jnp.zeros(num_outputs), "norm")

    def __call__(self, batch: dict[str, jax.Array], dropout: Dropout = no_dropout) -> jax.Array:
        """Examples of one row each -> f32[B, num_outputs]."""
        ids_bt, segment_ids_bt, positions_bt = (batch[name] for name in ("ids", "segment_ids", "positions"))
        if isinstance(self.base, Encoder):
            hidden_btd = self.base(ids_bt, segment_ids_bt, positions_bt, batch["types"], dropout)
        else:
            hidden_btd = self.base(ids_bt, segment_ids_bt, positions_bt)
        asked_bd = jnp.take_along_axis(hidden_btd, batch["asked"][:, None, None], axis=1)[:, 0].astype(jnp.float32)
        return dropout(asked_bd, 1 << 20) @ self.kernel[...] + self.bias[...]


def finetune(
    options: FinetuneOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Fine-tunes a run and writes `finetune/TASK.json` into its folder.

    Returns:
      What was written: the task, `metrics` with values, median, low and high over the seeds, FLOPs of one seed, and the
        settings.

    Raises:
      UserError: the run or the task is none, or a label is unknown.
    """
    task = read_task(options.task, options.dev, options.kind, options.fields)
    name, loaded = check_name(task.name, "task"), load_run(str(options.run))
    train, dev = (encode_examples(examples, loaded, options.sequence_length) for examples in (task.train, task.dev))
    train_targets, dev_targets = task.targets(task.train), task.targets(task.dev)
    batch_rows = -(-options.batch_rows // loaded.setup.mesh.size) * loaded.setup.mesh.size
    steps_per_epoch = -(-len(train_targets) // batch_rows)
    num_steps = options.num_epochs * steps_per_epoch
    trainer = _Trainer(loaded, task, options, num_steps)
    by_seed: list[dict[str, float]] = []
    for seed in range(options.num_seeds):
        state = trainer.start(seed)
        for step, chosen in enumerate(_shuffled(len(train_targets), batch_rows, options.num_epochs, seed)):
            batch = trainer.put(
                _take(train, chosen) | {"targets": train_targets[chosen], "row_seeds": _seeds(seed, step, batch_rows)}
            )
            state = trainer.step(state, batch, step)
            on_progress(seed * num_steps + step + 1, options.num_seeds * num_steps)
        outputs = np.concatenate(
            [
                trainer.predict(state, trainer.put(_take(dev, chosen)))
                for chosen in _in_order(len(dev_targets), batch_rows)
            ]
        )
        outputs = outputs[: len(dev_targets)]
        predicted = outputs.argmax(axis=1) if task.labels else outputs[:, 0] * trainer.scale + trainer.center
        by_seed.append(metrics(predicted, dev_targets, len(task.labels)))
    result = {
        "task": name,
        "labels": list(task.labels),
        "num_train": len(task.train),
        "num_dev": len(task.dev),
        **loaded.counters,
        "metrics": {metric: spread([values[metric] for values in by_seed]) for metric in by_seed[0]},
        "finetune_flops": (
            num_steps * batch_rows * train["ids"].shape[1] * trainer.flops_per_token(train["ids"].shape[1])
        ),
        "settings": {
            key: value for key, value in dataclasses.asdict(options).items() if key not in ("run", "task", "dev")
        }
        | {"batch_rows": batch_rows, "fields": list(options.fields)},
    }
    write_json(RunFolder(options.run).finetuned / f"{name}.json", result)
    return result


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range over seeds, and all of them."""
    return {"median": float(np.median(values)), "low": min(values), "high": max(values), "values": list(values)}


def encode_examples(examples: Sequence[Example], loaded: LoadedRun, sequence_length: int) -> Batch:
    """One row an example, as wide as the longest: `RowBuilder`'s arrays i32[n, T], and the position that is `asked`
    i32[n]."""
    representation, model = loaded.setup.representation, loaded.setup.recipe.model
    is_encoder = isinstance(model, EncoderConfig)
    flat = iter(
        [ids for ids, _ in encode(representation, [text.encode() for example in examples for text in example.texts])]
    )
    segments = [
        cut([next(flat) for _ in example.texts], sequence_length - 1 - len(example.texts)) for example in examples
    ]
    longest = max(sum(map(len, parts)) + len(parts) + 1 for parts in segments)
    length = min(sequence_length, -(-longest // 16) * 16)
    if isinstance(model, EncoderConfig) and model.published and length > model.max_positions:
        raise UserError(
            f"examples have up to {length} positions and the model has {model.max_positions}; "
            f"lower --sequence-length to {model.max_positions}"
        )
    rows = []
    for parts in segments:
        row = RowBuilder(representation.vocab_size, length)
        row.add(*parts)
        last = int(row.arrays["segment_ids"].sum()) - 1
        rows.append(row.arrays | {"asked": np.int32(0 if is_encoder else last)})
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if not is_encoder:  # which knows no marks: the end of a document stands for them
        batch["ids"] = np.where(batch["ids"] >= representation.vocab_size, representation.eod_id, batch["ids"])
    return batch


def cut(parts: list[np.ndarray], length: int) -> list[np.ndarray]:
    """The first ids of each part, at most `length` in all; the longer part loses first."""
    while (excess := sum(map(len, parts)) - length) > 0:
        longest = max(range(len(parts)), key=lambda number: len(parts[number]))
        others = max((len(part) for number, part in enumerate(parts) if number != longest), default=0)
        drop = min(excess, max(1, len(parts[longest]) - others))
        parts[longest] = parts[longest][: len(parts[longest]) - drop]
    return parts


class _Trainer:
    """The jitted parts of fine-tuning one run on one task."""

    def __init__(self, loaded: LoadedRun, task: Task, options: FinetuneOptions, num_steps: int):
        self._loaded, self._mesh, setup = loaded, loaded.setup.mesh, loaded.setup
        vocab_size, self._model = setup.representation.vocab_size, setup.recipe.model
        if isinstance(self._model, EncoderConfig):
            self._model = dataclasses.replace(self._model, dropout=options.dropout if self._model.published else 0.0)
        build = lambda rngs: Classifier(self._base(vocab_size, rngs), task.num_outputs, rngs=rngs)
        self._definition, abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
        axes = parameter_axes(abstract)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(abstract))
        self._shardings = parameter_shardings(self._mesh, shapes, axes)
        config = OptimizerConfig(
            learning_rate=options.learning_rate,
            schedule="linear",
            warmup_share=options.warmup_share,
            final_share=0.0,
            beta2=0.999,
            epsilon=1e-6,
            bias_correction=False,
            weight_decay=options.weight_decay,
        )
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), make_optimizer(config, axes))
        rates = layer_rates(shapes, self._model, options.layer_decay)
        targets = task.targets(task.train)
        self.center, self.scale = (0.0, 1.0) if task.labels else (float(targets.mean()), float(targets.std()) or 1.0)

        outputs = of_weights(Classifier.__call__, self._definition, self._mesh, setup.recipe.kernels)

        def loss(params, batch):
            found = outputs(params, batch, row_dropout(batch["row_seeds"], options.dropout))
            if task.labels:
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, batch["targets"]))
            return jnp.mean(jnp.square(found[:, 0] - (batch["targets"] - self.center) / self.scale))

        def step(state, batch, number):
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
            rate = learning_rate(config, number / num_steps)
            return (
                jax.tree.map(lambda param, update, scale: param + rate * scale * update, params, updates, rates),
                opt_state,
            )

        self._init_head = jax.jit(
            lambda key: nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param)), out_shardings=self._shardings
        )
        self._init_optimizer = jax.jit(optimizer.init)
        self._step = jax.jit(step, donate_argnums=0)
        self._predict = jax.jit(
            lambda params, batch: outputs(params, batch, no_dropout), out_shardings=replicated(self._mesh)
        )

    def _base(self, vocab_size: int, rngs: nnx.Rngs) -> NextIdModel | Encoder:
        if isinstance(self._model, EncoderConfig):
            return Encoder(self._model, vocab_size, Heads(), rngs=rngs)
        return self._model.build(vocab_size, rngs)

    def start(self, seed: int) -> Any:
        """The trained weights with a new head."""
        params = self._init_head(jax.random.key(seed))
        trained = {name: self._loaded.params[name] for name in params["base"]}
        params["base"] = jax.tree.map(jnp.copy, trained)  # a step gives its own up
        return params, self._init_optimizer(params)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        return put_batch(self._mesh, batch)

    def step(self, state: Any, batch: dict[str, jax.Array], number: int) -> Any:
        return self._step(state, batch, jnp.float32(number))

    def predict(self, state: Any, batch: dict[str, jax.Array]) -> np.ndarray:
        return np.asarray(self._predict(state[0], batch))

    def flops_per_token(self, length: int) -> float:
        """Of the body; what one head's output an example takes is left out."""
        vocab_size = self._loaded.setup.representation.vocab_size
        if isinstance(self._model, EncoderConfig):
            num_ids = vocab_size + NUM_ENCODER_IDS
            return encoder.training_flops_per_token(self._model, num_ids, length, Heads(), 0.0)["total"]
        found = self._model.training_flops_per_token(vocab_size, length)
        return found["total"] - found.get("softmax", 0.0)


def layer_rates(shapes: Any, model: ModelConfig, decay: float) -> Any:
    """What each parameter's learning rate is multiplied by: 1 in the head, and below it decay, once more for each layer
    that is between."""

    def rate(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        names = [key.key for key in path]
        if names[0] != "base":
            return 1.0
        rates = np.asarray(decay ** (1.0 + model.layers_above(names[1:])), np.float32)
        return rates.reshape(-1, *[1] * (len(leaf.shape) - 1)) if rates.ndim else rates

    return jax.tree_util.tree_map_with_path(rate, shapes)


def _shuffled(count: int, batch_rows: int, num_epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the examples in each batch; the last batch of an epoch is filled up with examples of its beginning."""
    rng = np.random.default_rng(seed)
    for _ in range(num_epochs):
        order = rng.permutation(count)
        order = np.resize(order, -(-count // batch_rows) * batch_rows)
        yield from order.reshape(-1, batch_rows)


def _in_order(count: int, batch_rows: int) -> Iterator[np.ndarray]:
    return iter(np.resize(np.arange(count), -(-count // batch_rows) * batch_rows).reshape(-1, batch_rows))


def _take(batch: Batch, chosen: np.ndarray) -> Batch:
    return {name: value[chosen] for name, value in batch.items()}


def _seeds(seed: int, step: int, batch_rows: int) -> np.ndarray:
    return np.random.default_rng((seed, step)).integers(0, 2**32, batch_rows, np.uint32)
