"""Figures of encoders on held-out text."""

import numpy as np
import pytest

from train.evaluate.encoders import area_under_curve, figures, only_real
from train.objectives.losses import binary_entropy


@pytest.mark.parametrize(
    "scores, labels, expected",
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1, 1, 1], [0, 1, 1], 0.5),
        ([3, 2, 1], [1, 1, 0], 1.0),
        ([1, 2], [1, 1], None),
    ],
)
def test_area_under_curve(scores, labels, expected):
    assert area_under_curve(np.array(scores, float), np.array(labels, bool)) == expected


def test_padding_and_slots_without_a_choice_are_left_out():
    scored = {
        "weights": np.array([[1.0, 0.0], [1.0, 1.0]]),
        "segment_ids": np.array([[1, 2, 0], [1, 0, 0]]),
        "predicted_nats": np.array([[3.0, 99.0], [4.0, 5.0]]),
        "logits": np.array([[0.5, -0.5, 99.0], [0.25, 99.0, 99.0]]),
    }
    real = only_real(scored)
    assert {name: value.tolist() for name, value in real.items()} == {
        "predicted_nats": [3, 4, 5],
        "logits": [0.5, -0.5, 0.25],
    }


def test_figures_of_held_out_text():
    logits, replaced = np.array([2.0, -1.0, 0.5, -3.0]), np.array([True, False, False, False])
    found = figures(
        {
            "logits": logits,
            "replaced": replaced,
            "predicted_nats": np.array([1.0, 3.0]),
            "predicted_right": np.array([True, False]),
        }
    )
    nats = -np.log(1 / (1 + np.exp(-np.where(replaced, logits, -logits)))).mean()
    assert found == pytest.approx(
        {
            "detection_nats": nats,
            "always_real_nats": binary_entropy(0.25),
            "replaced_share": 0.25,
            "auc": 1.0,
            "predicted_nats": 2.0,
            "predicted_right": 0.5,
        }
    )
    assert (
        binary_entropy(0.25) == pytest.approx(0.5623351446)
        and binary_entropy(1.0) == binary_entropy(0.0) == 0
        and binary_entropy(None) is None
    )
