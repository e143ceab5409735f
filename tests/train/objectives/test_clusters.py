"""Clusters of ids: where they come from, how they are drawn from, and that confusions are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from models.encoder import Clusters, EncoderConfig
from tokenizer_lab.byte import ByteRepresentation
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.objectives import ClusteredSubstitution, clusters, substitutions
from train.objectives.clusters import TEXT_BYTES, cluster, cluster_of_id, neighbour_vectors
from train.optimizer import Budget
from train.setup import load_run
from train.summary import FINISHED


def test_ids_in_alike_places_are_in_one_cluster():
    rng = np.random.default_rng(3)
    # Ids 0-4 and 5-9 take turns, whichever of them it is.
    ids = np.ravel(np.stack([rng.integers(0, 5, 4000), rng.integers(5, 10, 4000)], axis=1)).astype(np.int32)
    found = cluster(neighbour_vectors([ids], 12), 2)
    assert len(set(found[:5])) == len(set(found[5:10])) == 1 and found[0] != found[5]


def test_vectors_tell_left_from_right_and_near_from_far():
    around = {5: (1, 2, 3, 4), 6: (1, 2, 3, 4), 7: (4, 3, 2, 1), 8: (2, 1, 4, 3)}  # two ids before and two behind
    rows = [np.array([*places[:2], id_, *places[2:]], np.int32) for id_, places in around.items()]
    vectors = neighbour_vectors(rows, 10)
    alike, mirrored, near_and_far_swapped, unseen = vectors[[6, 7, 8, 9]] @ vectors[5]
    assert alike == pytest.approx(1, abs=1e-6) and unseen == 0 and not vectors[9].any()
    assert abs(mirrored) < 0.5 and abs(near_and_far_swapped) < 0.5


def test_every_id_has_a_cluster_and_the_same_every_time():
    text = b"the quick brown fox jumps over the lazy dog; " * 50
    found = cluster_of_id(ByteRepresentation(), [text, b"", b"x"], 8)
    assert found.shape == (257,) and set(found) == set(range(8))
    np.testing.assert_array_equal(found, cluster_of_id(ByteRepresentation(), [text, b"", b"x"], 8))
    np.testing.assert_array_equal(
        cluster_of_id(ByteRepresentation(), [b"aa"], 4), np.arange(257) % 4
    )  # nothing to tell them apart by


def test_only_the_beginning_is_read():
    class Documents:
        def __len__(self):
            return 10**9

        def __getitem__(self, number):
            assert number * 1000 < TEXT_BYTES
            return b"x" * 1000

    cluster_of_id(ByteRepresentation(), Documents(), 4)


def test_of_a_long_document_only_the_beginning_is_read(monkeypatch):
    text, more = b"the quick brown fox jumps over the lazy dog; " * 50, b"0123456789" * 100
    whole = cluster_of_id(ByteRepresentation(), [text + more], 8)
    monkeypatch.setattr(clusters, "TEXT_BYTES", len(text))
    expected = cluster_of_id(ByteRepresentation(), [text], 8)
    np.testing.assert_array_equal(cluster_of_id(ByteRepresentation(), [text + more, more], 8), expected)
    assert not np.array_equal(whole, expected)


def test_clusters_are_drawn_by_their_confusions_and_ids_uniformly():
    clusters = Clusters(6, 4)
    clusters.of_id[...] = jnp.array([0.0, 0, 1, 2, 2, 2])  # cluster 3 is empty
    clusters.confusions[...] = jnp.array([[0.0, 5.0, 10.0, 99.0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    draw = jax.jit(lambda key, ids: clusters.draw(key, ids, 2.0))
    drawn = np.asarray(draw(jax.random.key(0), jnp.zeros(40_000, jnp.int32)))
    shares = np.exp(2 * np.array([0, 5 / 99, 10 / 99]))
    expected = np.repeat(shares / shares.sum() / [2, 1, 3], [2, 1, 3])
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 40_000, expected, atol=0.01)
    of_a_row_alike = (
        np.bincount(np.asarray(draw(jax.random.key(1), jnp.full(40_000, 2, jnp.int32))), minlength=6) / 40_000
    )
    np.testing.assert_allclose(of_a_row_alike, np.repeat(1 / 3 / np.array([2, 1, 3]), [2, 1, 3]), atol=0.01)


@pytest.mark.usefixtures("one_device")
def test_a_run_begins_with_the_clusters_of_its_text_and_reads_it_once(make_recipe, tmp_path, monkeypatch):
    model = EncoderConfig(
        num_layers=1,
        embed_dim=32,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=48,
        remat="none",
        compute_dtype="float32",
    )
    recipe, console = (
        make_recipe(model=model, objective=ClusteredSubstitution(num_clusters=5), budget=Budget(steps=2)),
        rich.console.Console(quiet=True),
    )
    assert train(recipe, tmp_path / "run", console, make_judge) == FINISHED
    monkeypatch.setattr(substitutions, "cluster_of_id", None)  # neither a load nor a resume looks at the text again
    assert (
        train(
            make_recipe(model=model, objective=recipe.objective, budget=Budget(steps=3)),
            tmp_path / "run",
            console,
            make_judge,
        )
        == FINISHED
    )
    loaded = load_run(str(tmp_path / "run"))
    setup, clusters = loaded.setup, loaded.params["clusters"]
    expected = cluster_of_id(setup.representation, loaded.open_corpora()[0].documents("train"), 5)
    assert len(set(expected.tolist())) == 5
    np.testing.assert_array_equal(clusters["of_id"], expected)
    assert np.any(np.asarray(clusters["confusions"]) != 1)
