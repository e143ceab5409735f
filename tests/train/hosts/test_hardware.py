"""Where compiled programs are kept for the next start."""

import pathlib

import jax
import pytest

from train.hosts.hardware import keep_compiled_programs


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
