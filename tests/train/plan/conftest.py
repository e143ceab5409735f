"""A recipe to plan for, and what a compiler might say of its step."""

import pytest

from train.recipe import DataConfig

GIB = 2**30
PROGRAM = {
    "flops": 197e12,
    "attention_flops": 0.0,
    "loops_counted_once": 1e12,
    "uncounted_kernels": [],
    "hbm_bytes": 0.4 * 819e9,
    "collectives": [
        {"kind": "all-gather", "network": "ici", "count": 3, "bytes": 0.2 * 200e9},
        {"kind": "all-reduce", "network": "dcn", "count": 1, "bytes": 0.1 * 3.125e9},
    ],
}


@pytest.fixture(autouse=True)
def compiled_anew(new_programs):
    """What is said while a program is traced and compiled counts here."""


@pytest.fixture
def small(make_recipe):
    return make_recipe(representation="subword", data=DataConfig(corpora=("none",), batch_rows=32, sequence_length=256))


@pytest.fixture(scope="session")
def program():
    """What a made-up compiler says of its program."""
    return PROGRAM


@pytest.fixture(scope="session")
def compiled():
    """compiled(temp_gib=..., fits=..., **fields): an answer of `compile_step` of a state of 3 GiB."""
    return _compiled


def _compiled(*, temp_gib: float = 4.0, fits: bool = True, **fields) -> dict:
    """An answer of `compile_step` of a state of 3 GiB."""
    answer = {
        "mesh": {"replica": 1, "fsdp": 4, "tensor": 1, "sequence": 1},
        "slices_of_replicas": [[0]],
        "compile_seconds": 1.0,
        "warnings": [],
        "bytes": {"parameters": GIB, "optimizer": 2 * GIB, "state": 3 * GIB, "batch": 1000},
    }
    if not fits:
        return (
            answer
            | {
                "out_of_memory": {
                    "needed": round((3 + temp_gib) * GIB),
                    "available": round(15.75 * GIB),
                    "temporaries_only": False,
                }
            }
            | fields
        )
    return (
        answer
        | {
            "memory": {
                "argument": 3 * GIB + 1000,
                "output": 3 * GIB + 8,
                "alias": 3 * GIB,
                "temp": round(temp_gib * GIB),
                "generated_code": 5000,
            },
            "program": PROGRAM,
        }
        | fields
    )
