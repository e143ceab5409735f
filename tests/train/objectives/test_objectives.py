"""Objectives of encoders: what is drawn, what is learned from it, and that chance belongs to the row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.axes import use_placement
from models.decoder import DecoderConfig
from models.dropout import no_dropout
from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import CLS, MASK, SEP
from train.objectives import (
    ClusteredSubstitution,
    Masked,
    RandomSubstitution,
    Replaced,
    chosen_positions,
    heads,
    replaced,
)
from train.objectives.chosen_positions import max_chosen
from train.objectives.heads import detected
from train.objectives.objective import per_row
from train.optimizer import Budget
from train.recipe import DataConfig, Recipe
from train.sharding import placement

VOCAB, ROWS, LENGTH = 60, 8, 32
MODEL = EncoderConfig(
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=32,
    remat="none",
    compute_dtype="float32",
)
BERT = dataclasses.replace(MODEL, form="bert", table_dim=16, dropout=0.1)
OBJECTIVES = [Masked(), Replaced(generator_share=0.5, with_replacement=True), RandomSubstitution()]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=["masked", "replaced", "random"])


def make_batch(rows=ROWS, seed=0):
    """Rows of two segments, the later rows with less in them, the last one with marks only."""
    rng = np.random.default_rng(seed)
    batch = {name: np.zeros((rows, LENGTH), np.int32) for name in ("ids", "segment_ids", "positions", "types")}
    for row in range(rows):
        for segment, (start, end) in enumerate([(0, 10), (10, max(12, LENGTH - 3 * row))]):
            end = start + 2 if row == rows - 1 else end
            where = slice(start, end)
            ids = np.r_[VOCAB + CLS, rng.integers(0, VOCAB, end - start - 2), VOCAB + SEP]
            batch["ids"][row, where], batch["segment_ids"][row, where] = ids, segment + 1
            batch["positions"][row, where] = np.arange(end - start)
    return {name: jnp.asarray(value) for name, value in batch.items()} | {
        "row_seeds": jnp.arange(rows, dtype=jnp.uint32) + 100 * seed
    }


@functools.cache
def split(objective, config=MODEL):
    return nnx.split(objective.build(config, VOCAB, nnx.Rngs(0)))


@functools.cache
def value_and_gradients(objective, config=MODEL):
    model_def, _ = split(objective, config)

    def mean(state, batch):
        model = nnx.merge(model_def, state)
        loss, weight, sums = objective(model, objective.draw(model, batch), jax.random.key(0))
        return loss / weight, sums

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


def drawn(objective, batch):
    model_def, state = split(objective)
    return jax.jit(lambda state, batch: objective.draw(nnx.merge(model_def, state), batch))(state, batch)


@pytest.mark.parametrize("with_replacement", [False, True])
def test_as_many_positions_are_chosen_as_the_share_says_and_no_marks(with_replacement):
    batch, num_repeated = make_batch(rows=64), 0
    out = drawn(Masked(with_replacement=with_replacement), batch)
    limit = max_chosen(0.15, LENGTH)
    assert out["chosen"].shape == (64, limit) == (64, 4)
    for row in range(64):
        chosen = np.asarray(out["chosen"])[row, np.asarray(out["chosen_weights"])[row] > 0]
        ids, num_real = np.asarray(batch["ids"])[row], int((batch["segment_ids"][row] > 0).sum())
        assert (
            len(set(chosen)) == len(chosen)
            and (ids[chosen] < VOCAB).all()
            and (batch["segment_ids"][row][chosen] > 0).all()
        )
        wanted = 0 if row == 63 else min(max(1, round(0.15 * num_real)), limit)
        assert set(chosen) == set(np.asarray(out["chosen"])[row, :wanted]), "each that was drawn, once"
        num_repeated += wanted - len(chosen)
        np.testing.assert_array_equal(
            out["labels"][row, : len(chosen)] if not with_replacement else ids[chosen], ids[chosen]
        )
    assert (num_repeated > 0) == with_replacement


def test_as_many_positions_may_be_chosen_as_in_electra():
    """What its published configurations work out for rows of 128 and of 512."""
    assert [max_chosen(share, length) for share, length in ((0.15, 128), (0.15, 512), (0.25, 512))] == [19, 79, 130]
    assert max_chosen(1.0, 8) == 8


def test_draws_of_one_row_are_kept_apart(monkeypatch):
    """Two draws by one key would depend on each other."""
    places = []

    def remembering_per_row(row_seeds_b, place, function):
        places.append(place)
        return per_row(row_seeds_b, place, function)

    for module in (chosen_positions, heads, replaced):
        monkeypatch.setattr(module, "per_row", remembering_per_row)
    for objective in OBJECTIVES:
        places.clear()
        model_def, state = nnx.split(nnx.eval_shape(lambda: objective.build(BERT, VOCAB, nnx.Rngs(0))))

        def run(state, batch, objective=objective, model_def=model_def):
            model = nnx.merge(model_def, state)
            return objective(model, objective.draw(model, batch), None)

        jax.eval_shape(run, state, make_batch())
        assert len(places) > 3 and len(set(places)) == len(places), (objective.kind, places)


def test_confusions_between_clusters_are_counted():
    """Up where the detector was wrong about a replacement, down where it was right; nothing else of a step's parameters
    changes."""
    objective, batch = ClusteredSubstitution(num_clusters=4), make_batch()
    of_id = np.arange(VOCAB) % 4
    model = objective.build(MODEL, VOCAB, nnx.Rngs(0))
    model.clusters.of_id[...] = jnp.asarray(of_id, jnp.float32)
    model_def, state = nnx.split(model)

    @jax.jit
    def run(state, batch):
        model = nnx.merge(model_def, state)
        out = objective.draw(model, batch)
        return out, objective(model, out, None)[2], detected(model, out, out["inputs"], no_dropout)

    out, sums, logits = jax.device_get(run(state, batch))
    expected = np.zeros((4, 4))
    for row, slot in zip(*np.nonzero(out["chosen_weights"])):
        position, label = out["chosen"][row, slot], out["labels"][row, slot]
        new = out["inputs"][row, position]
        wrong = (logits[row, position] > 0) != (new != label)
        expected[of_id[label], of_id[new]] += 1 if wrong else -1
    np.testing.assert_array_equal(sums["confusions"], expected)
    assert np.abs(expected).sum() > 5
    params = nnx.to_pure_dict(state)
    learned = objective.learn(params, sums)
    np.testing.assert_array_equal(learned["clusters"]["confusions"], 1 + expected)
    assert learned["body"] is params["body"]


def test_positions_are_drawn_uniformly():
    batch = {name: jnp.repeat(value[:1], 4000, axis=0) for name, value in make_batch().items()} | {
        "row_seeds": jnp.arange(4000, dtype=jnp.uint32)
    }
    counts = np.bincount(np.asarray(drawn(Masked(), batch)["chosen"]).ravel(), minlength=LENGTH)
    ordinary = np.asarray(batch["ids"][0] < VOCAB)
    assert not counts[~ordinary].any()
    expected = counts.sum() / ordinary.sum()
    assert (
        (counts[ordinary] - expected) ** 2 / expected
    ).sum() < 60  # chi-square, 27 degrees of freedom: p < 0.001 is 55


def test_what_is_shown_at_chosen_positions():
    batch = {name: jnp.repeat(value[:1], 4000, axis=0) for name, value in make_batch().items()} | {
        "row_seeds": jnp.arange(4000, dtype=jnp.uint32)
    }
    for objective, masked, kept in (
        (Masked(), 0.8, 0.1 + 0.1 / VOCAB),
        (Replaced(), 0.85, 0.15),
        (RandomSubstitution(), 0, 1 / VOCAB),
    ):
        out = drawn(objective, batch)
        shown = np.take_along_axis(np.asarray(out["inputs"]), np.asarray(out["chosen"]), axis=1)
        assert (shown == VOCAB + MASK).mean() == pytest.approx(masked, abs=0.01)
        assert (shown == out["labels"]).mean() == pytest.approx(kept, abs=0.01)
        assert ((shown < VOCAB) | (shown == VOCAB + MASK)).all()
        untouched = np.ones(out["inputs"].shape, bool)
        np.put_along_axis(untouched, np.asarray(out["chosen"]), False, axis=1)
        np.testing.assert_array_equal(np.asarray(out["inputs"])[untouched], np.asarray(batch["ids"])[untouched])


def test_replaced_means_that_the_sample_differs():
    objective, batch = Replaced(generator_share=0.5), make_batch()
    model_def, state = split(objective)

    @jax.jit
    def replace(state, batch):
        model = nnx.merge(model_def, state)
        out = objective.draw(model, batch)
        return out, objective._replace(model, out, no_dropout), objective.score(model, out)

    out, (weights, _, samples, replaced), scored = replace(state, batch)
    changed = np.asarray(replaced != batch["ids"])
    expected = np.zeros_like(changed)
    for row, slot in zip(*np.nonzero(np.asarray(weights))):
        expected[row, out["chosen"][row, slot]] = samples[row, slot] != out["labels"][row, slot]
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(scored["replaced"], expected)
    assert expected.any() and (np.asarray(samples) < VOCAB).all()


def test_the_discriminators_loss_moves_nothing_of_the_generator_but_the_shared_embedding():
    batch = make_batch()
    norms = {}
    for weight in (0.0, 50.0):
        objective = Replaced(generator_share=0.5, detection_weight=weight)
        (_, _), gradients = value_and_gradients(objective)(split(objective)[1], batch)
        norms[weight] = jax.tree.map(np.asarray, nnx.to_pure_dict(gradients))
    for part in ("generator", "vocab_head"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), norms[0.0][part], norms[50.0][part]
        )
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(norms[0.0][part]) if leaf.shape)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(norms[0.0]["body"]))
    both, alone = norms[50.0]["embeddings"]["table"], norms[0.0]["embeddings"]["table"]
    assert np.abs(alone).max() > 0 and np.abs(both - alone).max() > 1e-3


def test_the_loss_is_a_mean_over_chosen_and_a_mean_over_all_positions():
    objective, batch = Replaced(generator_share=0.5), make_batch()
    (loss, sums), _ = value_and_gradients(objective)(split(objective)[1], batch)
    predicted, detected = sums["predicted_nats"] / sums["num_predicted"], sums["detection_nats"] / sums["num_detected"]
    assert float(loss) == pytest.approx(float(predicted + 50 * detected), rel=1e-5)
    assert int(sums["num_detected"]) == int((batch["segment_ids"] > 0).sum())
    assert int(sums["num_replaced"] + sums["num_sampled_right"]) == int(sums["num_predicted"]), "one or the other"
    only = Replaced(generator_share=0.5, detect_chosen_only=True)
    (loss, sums), _ = value_and_gradients(only)(split(only)[1], batch)
    assert int(sums["num_detected"]) == int(sums["num_predicted"])
    assert float(loss) == pytest.approx(
        float((sums["predicted_nats"] + 50 * sums["detection_nats"]) / sums["num_predicted"]), rel=1e-5
    )


def test_the_loss_of_hidden_ids_is_what_they_cost_on_average():
    """`score` works their nats out by itself, from all logits of a row. By its biases the model is nearly sure of one
    id, and surer of ids that are no text, which do not count. Three ids are asked for in all rows but the last."""
    objective, batch = Masked(), make_batch()
    real = int((batch["segment_ids"] > 0).sum())
    out = batch | {"inputs": batch["ids"], "labels": batch["ids"][:, 1:4] % VOCAB}
    out |= {"chosen": jnp.tile(jnp.arange(1, 4), (ROWS, 1)), "chosen_weights": jnp.ones((ROWS, 3)).at[-1].set(0)}
    out["chosen_scale"] = jnp.full(ROWS, real / (3 * (ROWS - 1)))
    model = objective.build(MODEL, VOCAB, nnx.Rngs(0))
    likeliest = int(batch["ids"][0, 1])
    bias = jax.random.normal(jax.random.key(0), model.vocab_head.bias.shape)
    model.vocab_head.bias[...] = bias.at[likeliest].set(20).at[VOCAB:].set(90)
    model_def, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(model_def, state)
        return objective(model, out, None), objective.score(model, out)

    (loss, num_positions, sums), scored = jax.device_get(run(state))
    nats, right = scored["predicted_nats"][:-1], scored["predicted_right"][:-1]
    np.testing.assert_array_equal(right, out["labels"][:-1] == likeliest)
    assert 0 < right.sum() < right.size and nats[right].max() < 0.01 and 10 < nats[~right].min() < nats.max() < 40
    assert sums["num_predicted"] == nats.size and num_positions == real
    assert sums["predicted_nats"] == pytest.approx(nats.sum(), rel=1e-5)
    assert loss / num_positions == pytest.approx(nats.mean(), rel=1e-5)


@every_objective
def test_a_batch_of_marks_only_teaches_nothing_and_breaks_nothing(objective):
    batch = make_batch()
    marks_only = {name: jnp.repeat(value[-1:], 2, axis=0) for name, value in batch.items()}
    (loss, sums), gradients = value_and_gradients(objective, BERT)(split(objective, BERT)[1], marks_only)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(
        value is None or np.isfinite(value) for value in objective.figures(jax.tree.map(float, sums), 0).values()
    )


@pytest.mark.parametrize(
    "objective", [OBJECTIVES[1], *(pytest.param(one, marks=pytest.mark.slow) for one in (OBJECTIVES[0], OBJECTIVES[2]))]
)
def test_devices_do_not_change_what_is_drawn_nor_the_loss(objective):
    """One, two and eight devices; dropout is on."""
    model_def, state = split(objective, BERT)
    batch, results = make_batch(), []
    for num_devices in (1, 2, 8):
        mesh = Mesh(
            np.array(jax.devices()[:num_devices]).reshape(1, num_devices, 1, 1),
            ("replica", "fsdp", "tensor", "sequence"),
        )

        @jax.jit
        def run(state, batch, mesh=mesh):
            with use_placement(placement(mesh)):
                model = nnx.merge(model_def, state)
                out = objective.draw(model, batch)
                return out, objective(model, out, jax.random.key(0))

        rows = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))
        results.append(
            jax.device_get(
                run(jax.device_put(state, NamedSharding(mesh, PartitionSpec())), jax.device_put(batch, rows))
            )
        )
    for out, (loss, weight, sums) in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, out, results[0][0])
        np.testing.assert_allclose(loss, results[0][1][0], rtol=1e-5)
        assert weight == results[0][1][1]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums, results[0][1][2])


def recipe(**changes):
    values = (
        dict(
            name="r",
            representation="byte",
            data=DataConfig(corpora=("corpus",), sequence_length=LENGTH),
            budget=Budget(steps=1),
            model=MODEL,
            objective=Replaced(generator_share=0.5),
        )
        | changes
    )
    return Recipe(**values)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": Masked(chosen_share=0.01)}, "leaves nothing to learn from"),
        ({"objective": Masked(chosen_share=0.0)}, "a share of the positions"),
        ({"objective": Masked(masked_share=0.8, random_share=0.3)}, "at most 1 together"),
        ({"objective": Replaced(generator_share=0.3)}, "is no whole number"),
        ({"objective": Replaced(generator_share=1.5)}, "at most 1"),
        ({"model": DecoderConfig()}, "objective 'replaced' trains a model of kind 'encoder'"),
        ({"model": dataclasses.replace(BERT, max_positions=16)}, "16 learned positions"),
        ({"data": DataConfig(corpora=("corpus",), sequence_length=4)}, "at least 8 positions"),
        ({"data": DataConfig(corpora=("corpus",), sequence_length=32, piece_length=8)}, "sees whole rows"),
    ],
)
def test_bad_recipes_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as error:
        recipe(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": Masked(chosen_share=1.0, masked_share=0.0, random_share=1.0)},
        {"objective": Replaced(generator_share=1.0, masked_share=1.0)},
        {"model": dataclasses.replace(BERT, max_positions=LENGTH)},
        {"data": DataConfig(corpora=("corpus",), sequence_length=8)},
    ],
    ids=["all chosen", "as wide", "no row longer", "shortest row"],
)
def test_recipes_at_the_bounds_are_taken(changes):
    assert recipe(**changes).name == "r"
