import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Not here: first losses are those of programs as they are trained."""
