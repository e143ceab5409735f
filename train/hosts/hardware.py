"""What accelerators can do: peaks for model FLOPs utilization (MFU), and for plans what a TPU has of everything."""

import dataclasses
import os

import jax

from tokenizer_lab.files import cache_folder


@dataclasses.dataclass(frozen=True)
class Hosting:
    """How Google Cloud rents a generation out (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus,
    cloud.google.com/tpu/docs/runtimes)."""

    gke_accelerator: str
    """The node label cloud.google.com/gke-tpu-accelerator."""
    max_chips_of_one_host: int
    """Slices of more chips have several hosts, of CHIPS_PER_HOST each."""
    accelerator_type: str = ""
    """The Cloud TPU API's name of a slice, of its {chips} or TensorCores ({cores}); none where that API does not know
    the generation."""
    runtime_version: str = ""
    """The Cloud TPU API's image of a host."""


CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, per device as JAX counts them: a chip, or where `devices_per_chip` is 2 one of its
    TensorCores.

    Peak, HBM bandwidth and networks are of docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e and /tpu7x ("System
    architecture", read in November 2026); `hbm_bytes` is what libtpu 0.0.42 lets a program have of the HBM (its own
    message where one needs more).
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
    hosting: Hosting
    devices_per_chip: int = 1

    def num_hosts(self, num_chips: int) -> int:
        """Hosts of a slice."""
        return 1 if num_chips <= self.hosting.max_chips_of_one_host else num_chips // CHIPS_PER_HOST


_TORUS_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TORUS_3D = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
    "16x16x24",
)

CHIPS = {
    "v5e": Chip(
        "TPU v5 lite",
        197e12,
        round(15.75 * 2**30),
        819e9,
        200e9,
        3.125e9,
        _TORUS_2D,
        Hosting("tpu-v5-lite-podslice", 8, "v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
    ),
    "v5p": Chip(
        "TPU v5",
        459e12,
        round(95.74 * 2**30),
        2765e9,
        600e9,
        6.25e9,
        _TORUS_3D,
        Hosting("tpu-v5p-slice", 4, "v5p-{cores}", "v2-alpha-tpuv5"),
    ),
    "v6e": Chip(
        "TPU v6 lite",
        918e12,
        round(31.25 * 2**30),
        1638e9,
        400e9,
        12.5e9,
        _TORUS_2D,
        Hosting("tpu-v6e-slice", 8, "v6e-{chips}", "v2-alpha-tpuv6e"),
    ),
    "tpu7x": Chip(
        "TPU7x",
        1153.5e12,
        round(94.75 * 2**30),
        3690e9,
        300e9,
        6.25e9,
        _TORUS_3D,
        Hosting("tpu7x", 4),
        devices_per_chip=2,
    ),
}

# bf16 FLOP/s of one device as JAX names it (`device_kind`), dense. NVIDIA's data sheets (A100, H100, H200, DGX B200 and
# GB200 NVL72) give figures with sparsity from H100 on, of which these are half; AMD's of the MI300X gives both.
PEAK_FLOPS_PER_SECOND = {chip.device_kind: chip.peak_flops_per_second for chip in CHIPS.values()} | {
    "TPU v4": 275e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "AMD Instinct MI300X": 1307e12,
}


def model_flops_utilization(flops_per_second: float, devices: list[jax.Device]) -> float | None:
    """MFU (PaLM, arXiv 2204.02311, appendix B), or None where the chip's peak is not known."""
    peak = PEAK_FLOPS_PER_SECOND.get(devices[0].device_kind)
    return flops_per_second / (peak * len(devices)) if peak else None


def keep_compiled_programs() -> None:
    """Lets later processes load what this one compiles, from $XDG_CACHE_HOME/tokenizer-lab/compiled or where
    JAX_COMPILATION_CACHE_DIR says.

    JAX's keys hold its version, the program, the chips and the compiler's options, so that nothing is loaded that would
    not be compiled the same. Not on CPUs, unless asked for: there compiling takes seconds, and a program may not run on
    another model that shares the folder.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if folder is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder("compiled")))
