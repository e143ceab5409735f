import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling takes far longer than these small programs run: the compiler optimizes little. Recipes' goldens are computed with all of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
