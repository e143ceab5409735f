"""What a plan knows of representations, and of pods, before anything is compiled."""

import dataclasses

import pytest

from tokenizer_lab.errors import UserError
from train.plan.pod import Pod, on_pod
from train.plan.representations import ASSUMED, compared, find_ids
from train.recipe import load_recipe
from train.sharding import MeshConfig


def test_a_slice_is_a_replica_unless_the_mesh_says_otherwise(small):
    assert on_pod(small, Pod("v5e:2x4", 2)).mesh == MeshConfig(replica=2)
    own = dataclasses.replace(small, mesh=MeshConfig(replica=4, fsdp=4))
    assert on_pod(own, Pod("v5e:2x4", 2)) == own
    assert (
        Pod("v5p:8x8x16", 2).num_devices == 2048
        and Pod("tpu7x:2x2x2").num_devices == 16
        and Pod("tpu7x:2x2x2").num_chips == 8
    )
    assert Pod("v5p:8x8x16", 2).num_chips == 2048 and str(Pod("v5e:4x4", 2)) == "2 x v5e:4x4"


def test_ids_come_from_the_artifact_the_name_or_the_options(small, byte_artifact):
    assert find_ids(small) == ASSUMED["subword"]
    of_artifact = find_ids(dataclasses.replace(small, representation=str(byte_artifact)))
    assert (of_artifact.vocab_size, of_artifact.bytes_per_id) == (257, 1.0)
    given = find_ids(dataclasses.replace(small, representation="none"), 1000, 3.5)
    assert (given.vocab_size, given.bytes_per_id, given.source) == (1000, 3.5, "given")
    assert find_ids(small, bytes_per_id=4.1) == dataclasses.replace(
        ASSUMED["subword"], bytes_per_id=4.1, source="given"
    )
    with pytest.raises(UserError, match="above 0"):
        find_ids(small, 1000, -1)


def test_rows_of_every_representation_hold_the_same_text():
    recipe = load_recipe("decoder_1b")
    found = {ids.name: (other.data.sequence_length, ids) for other, ids in compared(recipe, ASSUMED["subword"])}
    assert found.keys() == ASSUMED.keys()
    assert found["subword"][0] == 2048 and found["byte"][0] == 9216
    texts = [length * ids.bytes_per_id for length, ids in found.values()]
    assert all(length % 256 == 0 for length, _ in found.values()) and max(texts) / min(texts) < 1.1
