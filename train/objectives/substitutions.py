"""Detection of ids that no generator has drawn: uniformly random ones (RTS), or ones from confusable clusters (C-RTS).

Legend: B batch, T positions, N positions chosen in a row, V ids.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from models.encoder import Encoder, Heads
from tokenizer_lab.representation import Representation
from train.objectives.chosen_positions import OnChosenPositions, masked_or_random
from train.objectives.clusters import cluster_of_id
from train.objectives.heads import detected, dropout_of
from train.objectives.losses import detection_figures, detection_loss
from train.objectives.objective import Batch, Sums, num_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSubstitution(OnChosenPositions):
    """Tell which ids were replaced by uniformly drawn ones: RTS, ELECTRA without a generator (Di Liello et al. 2022,
    arXiv 2210.13536).

    An id that is drawn in its own place counts as real, as in `Replaced`; the published code counts it as replaced.
    """

    kind: Literal["random_substitution"] = "random_substitution"

    @property
    def heads(self) -> Heads:
        return Heads(detects=True)

    def _changed(self, model, labels_bn, row_seeds_b):
        return masked_or_random(labels_bn, row_seeds_b, model.vocab_size, 0.0, 1.0)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums over positions: the loss, positions, and what `figures` takes."""
        del rng
        logits_bt = detected(model, batch, batch["inputs"], dropout_of(model, batch, 3))
        loss, sums = detection_loss(logits_bt, batch["inputs"], batch, False)
        return loss, num_positions(batch), sums | self._observed(model, batch, logits_bt)

    def _observed(self, model: Encoder, batch: Batch, logits_bt: jax.Array) -> Sums:
        """More sums, that are no figures."""
        del model, batch, logits_bt
        return {}

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return detection_figures(sums)

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """`logits` f32[B, T] for what is `replaced` bool[B, T]."""
        logits_bt = detected(model, batch, batch["inputs"], dropout_of(model, None, 0))
        return {"logits": logits_bt, "replaced": batch["inputs"] != batch["ids"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusteredSubstitution(RandomSubstitution):
    """`RandomSubstitution` from clusters that were hard to tell apart so far: C-RTS (Di Liello et al. 2022, arXiv
    2210.13536)."""

    kind: Literal["clustered_substitution"] = "clustered_substitution"  # type: ignore[assignment]  # each has its own
    num_clusters: int = 100
    sharpness: float = 2.0
    """Of the softmax over clusters (the paper's beta); 0: all clusters are equally likely."""

    @property
    def heads(self) -> Heads:
        return Heads(detects=True, num_clusters=self.num_clusters)

    def learn_from_text(self, params: Any, representation: Representation, documents: Any) -> Any:
        clusters = params["clusters"]
        of_id_v = cluster_of_id(representation, documents, self.num_clusters).astype(np.float32)
        return params | {"clusters": clusters | {"of_id": jax.device_put(of_id_v, clusters["of_id"].sharding)}}

    def _changed(self, model, labels_bn, row_seeds_b):
        def change(seed, labels_n):
            return model.clusters.draw(jax.random.fold_in(jax.random.key(seed), 6), labels_n, self.sharpness)

        return jax.vmap(change)(row_seeds_b, labels_bn)

    def _observed(self, model: Encoder, batch: Batch, logits_bt: jax.Array) -> Sums:
        """How often each pair of clusters was told wrong, less how often right."""
        assert model.clusters is not None
        of_id_v = model.clusters.of_id.astype(jnp.int32)
        labels_bn, weights_bn = batch["labels"], batch["chosen_weights"]
        new_bn, logits_bn = (jnp.take_along_axis(x, batch["chosen"], axis=1) for x in (batch["inputs"], logits_bt))
        wrong_bn = (logits_bn > 0) != (new_bn != labels_bn)
        new_bn = jnp.where(weights_bn > 0, new_bn, 0)
        confusions = (
            jnp.zeros_like(model.clusters.confusions[...])
            .at[of_id_v[labels_bn], of_id_v[new_bn]]
            .add(weights_bn * (2.0 * wrong_bn - 1))
        )
        return {"confusions": jax.lax.stop_gradient(confusions)}

    def learn(self, params: Any, sums: Sums) -> Any:
        clusters = params["clusters"]
        return params | {"clusters": clusters | {"confusions": clusters["confusions"] + sums["confusions"]}}
