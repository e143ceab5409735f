"""The GPU kernels of the vocabulary heads, as far as that goes without a GPU; what they compute is tested with each
head."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from tokenizer_lab.kernels.sample_replacements import tiles as sample_tiles
from tokenizer_lab.kernels.table_softmax import pallas_gpu

H100_REGISTERS = 65536  # of a core


def test_tiles_fit_into_a_core():
    num_threads, tile = 32 * pallas_gpu.NUM_WARPS, pallas_gpu.TILE_POSITIONS * pallas_gpu.TILE_IDS
    assert num_threads <= 1024 and tile <= H100_REGISTERS // 2
    assert pallas_gpu.shared_memory_bytes() <= pallas_gpu.SHARED_MEMORY_LIMIT_BYTES
    assert pallas_gpu.TILE_IDS == sample_tiles.ID_GROUP  # that it joins two halves of
    assert all(
        size & (size - 1) == 0 for size in (pallas_gpu.TILE_POSITIONS, pallas_gpu.TILE_IDS, pallas_gpu.PIECE_BYTES)
    ), "Triton takes powers of two"


def compile_for_h100s(*arguments: str) -> list[dict]:
    """What table_softmax_compile_gpu.py prints."""
    script = pathlib.Path(__file__).with_name("table_softmax_compile_gpu.py")
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason=(
        "JAX's CUDA plugin, which compiles for GPUs, is not installed: pip install 'tokenizer-lab[gpu]' (needs no GPU)"
    ),
)
@pytest.mark.parametrize(
    "operation, arguments",
    [
        ("linear_cross_entropy", ("--shapes", "8192x65536x768")),
        ("sample_replacements", ("--shapes", "2048x32768x256")),
        pytest.param(
            "linear_cross_entropy",
            ("--shapes", "8192x384x384", "8192x50304x768", "8192x65536x2048", "8192x128256x4096"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "linear_cross_entropy",
            ("--dtype", "float32", "--shapes", "8192x65536x768", "8192x128256x4096"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "linear_cross_entropy", ("--shapes", "1x96x64", "130x100x40", "1000x257x768"), marks=pytest.mark.slow
        ),  # unaligned
        pytest.param(
            "linear_cross_entropy", ("--mesh", "fsdp=2,tensor=2", "--shapes", "8192x16384x768"), marks=pytest.mark.slow
        ),
        pytest.param("sample_replacements", ("--mesh", "fsdp=4", "--shapes", "8192x65664x768"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_kernels_compile_for_an_h100(operation, arguments):
    """Results and gradients, ahead of time; nothing runs. In memory are two tiles and two sums by x at most, no
    logits."""
    for program in compile_for_h100s(operation, *arguments):
        num_positions, _, width = program["shape"]
        assert set(program["kernels"]) == {f"{operation}_forward", f"{operation}_backward"}, program
        assert program["temp_bytes"] < 2 * pallas_gpu.MAX_GRADIENT_BYTES + 8 * num_positions * width, program
