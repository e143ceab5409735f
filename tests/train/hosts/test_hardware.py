"""Where compiled programs are kept for the next start, and how well chips are used."""

import pathlib
from types import SimpleNamespace

import jax
import pytest

from train.hosts.hardware import CHIPS, keep_compiled_programs, model_flops_utilization


@pytest.fixture(autouse=True)
def no_folder_yet():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    "backend, caches, folder",
    [
        ("cpu", "/caches", None),
        ("tpu", "/caches", "/caches/tokenizer-lab/compiled"),
        ("gpu", "", str(pathlib.Path.home() / ".cache/tokenizer-lab/compiled")),
    ],
)
def test_on_accelerators_programs_are_kept_in_the_users_caches(monkeypatch, backend, caches, folder):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XDG_CACHE_HOME", caches)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == folder


@pytest.mark.parametrize("chosen", ["/elsewhere", ""])
def test_what_the_user_has_chosen_stays(monkeypatch, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", chosen)  # as JAX_COMPILATION_CACHE_DIR does
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == chosen


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA B200", 2250e12),
        ("AMD Instinct MI300X", 1307e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_utilization_is_of_the_peak_of_all_devices(kind, peak):
    devices = lambda count: [SimpleNamespace(device_kind=kind)] * count
    assert model_flops_utilization(0.4 * peak, devices(1)) == pytest.approx(0.4)
    assert model_flops_utilization(0.4 * 64 * peak, devices(64)) == pytest.approx(0.4)


def test_of_a_chip_that_is_not_known_nothing_is_said():
    assert model_flops_utilization(1e12, [SimpleNamespace(device_kind="abacus")]) is None
    assert all(model_flops_utilization(1e12, [SimpleNamespace(device_kind=c.device_kind)]) for c in CHIPS.values())
