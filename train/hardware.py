"""What accelerators can do: peaks for model FLOPs utilization (MFU), and for plans what a TPU has of everything."""

import dataclasses
import os
import pathlib

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, per chip.

    Peak, HBM bandwidth and networks are of docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("System architecture", read in November
    2026); `hbm_bytes` is what libtpu 0.0.42 lets a program have of the HBM (its own message where one needs more).
    """

    device_kind: str
    """As JAX names it."""
    peak_flops_per_second: float
    """bf16, dense."""
    hbm_bytes: int
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    """That a chip sends when all its links are busy: half of the bidirectional bandwidth."""
    dcn_bytes_per_second: float
    """That a chip sends between slices: its share of its host's or pod's network."""
    topologies: tuple[str, ...]
    """Common ones; libtpu knows more."""


CHIPS = {
    "v5e": Chip("TPU v5 lite", 197e12, round(15.75 * 2**30), 819e9, 200e9, 3.125e9, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    "v5p": Chip("TPU v5", 459e12, round(95.74 * 2**30), 2765e9, 600e9, 6.25e9,
                ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24")),
    "v6e": Chip("TPU v6 lite", 918e12, round(31.25 * 2**30), 1600e9, 400e9, 12.5e9, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
}

# bf16 FLOP/s of one device as JAX names it (`device_kind`), dense, from the vendors' data sheets.
PEAK_FLOPS_PER_SECOND = {chip.device_kind: chip.peak_flops_per_second for chip in CHIPS.values()} | {
    "TPU v4": 275e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def model_flops_utilization(flops_per_second: float, devices: list[jax.Device]) -> float | None:
    """MFU (PaLM, arXiv 2204.02311, appendix B), or None where the chip's peak is not known."""
    peak = PEAK_FLOPS_PER_SECOND.get(devices[0].device_kind)
    return flops_per_second / (peak * len(devices)) if peak else None


def keep_compiled_programs() -> None:
    """Lets later processes load what this one compiles, from $XDG_CACHE_HOME/tokenizer-lab/compiled or where JAX_COMPILATION_CACHE_DIR says.

    JAX's keys hold its version, the program, the chips and the compiler's options, so that nothing is loaded that would not be compiled
    the same. Not on CPUs, unless asked for: there compiling takes seconds, and a program may not run on another model that shares the folder.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(caches) / "tokenizer-lab" / "compiled"))
