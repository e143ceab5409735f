"""Clusters of ids that stand in alike places, from a little text."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.encoded import encode
from tokenizer_lab.representation import Representation

TEXT_BYTES = 1 << 20  # of the train split, from its beginning
_WIDTH, _WINDOW, _NUM_ROUNDS = 64, 2, 10


def cluster_of_id(representation: Representation, documents: Sequence[bytes] | Any, num_clusters: int) -> np.ndarray:
    """i32[V], the cluster of each id: k-means of vectors of what stands around it. The same every time."""
    return cluster(neighbour_vectors(_ids(representation, documents), representation.vocab_size), num_clusters)


def _ids(representation: Representation, documents: Any) -> Iterable[np.ndarray]:
    left = TEXT_BYTES
    for number in range(len(documents)):
        document = documents[number]
        if len(document) > left:
            document = document[:left]
        left -= len(document)
        yield encode(representation, [document])[0][0]
        if left <= 0:
            return


def neighbour_vectors(documents: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    """f32[V, 64]: the sum of fixed random vectors of an id's neighbours, each rolled by where it stands, of length 1; 0
    for an id that was not seen (random indexing with permutations; Sahlgren et al. 2008, "Permutations as a means to
    encode order in word space").
    """
    random = np.random.default_rng(0).standard_normal((vocab_size, _WIDTH)).astype(np.float32)
    vectors = np.zeros((vocab_size, _WIDTH), np.float32)
    for ids in documents:
        for distance in range(1, _WINDOW + 1):
            np.add.at(vectors, ids[distance:], np.roll(random, -distance, axis=1)[ids[:-distance]])
            np.add.at(vectors, ids[:-distance], np.roll(random, distance, axis=1)[ids[distance:]])
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def cluster(vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """i32[n]: k-means by the cosine, begun with vectors far from each other. Vectors of 0 are dealt out one after the
    other."""
    seen = np.flatnonzero(vectors.any(axis=1))
    result = (np.arange(len(vectors)) % num_clusters).astype(np.int32)
    if len(seen) <= num_clusters:
        return result
    centers = vectors[seen[:1]]
    nearest_by = vectors[seen] @ centers[0]
    while len(centers) < num_clusters:
        centers = np.concatenate([centers, vectors[seen[[nearest_by.argmin()]]]])
        nearest_by = np.maximum(nearest_by, vectors[seen] @ centers[-1])
    for _ in range(_NUM_ROUNDS):
        nearest = (vectors[seen] @ centers.T).argmax(axis=1)
        sums = np.zeros_like(centers)
        np.add.at(sums, nearest, vectors[seen])
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(length > 0, sums / np.where(length > 0, length, 1), centers)
    result[seen] = nearest
    return result
