"""Peak matrix rates of accelerators, for model FLOPs utilization (MFU)."""

import jax

# bf16 FLOP/s of one device as JAX names it (`device_kind`), dense, from the vendors' data sheets.
PEAK_FLOPS_PER_SECOND = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
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
