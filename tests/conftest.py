"""Eight CPU devices for every test, and a corpus, a representation and a recipe so small that a whole run takes
seconds."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import contextlib
import json
import pathlib
import random

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from data.ingest import IngestOptions, ingest
from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteFit
from train.optimizer import Budget, OptimizerConfig
from train.recipe import DataConfig, EvaluationConfig, Recipe, to_json
from train.run.checkpoints import CheckpointConfig
from train.run.logs import LoggingConfig
from train.sharding import MeshConfig


def write_corpus(folder: pathlib.Path, num_documents: int = 40, seed: int = 0, domain: str = "text") -> pathlib.Path:
    """A corpus store of words in random order, some documents longer than a row, some of a few bytes."""
    source, random_ = folder.parent / f"{folder.name}-source", random.Random(seed)
    source.mkdir(parents=True)
    words = "the of and to in a is that it was for on are as with his they at be this from I have or by one".split()
    for number in range(num_documents):
        text = " ".join(random_.choice(words) for _ in range(random_.choice([1, 5, 40])))
        (source / f"{number:03}.txt").write_text(text)
    ingest(IngestOptions(sources=(str(source),), out=folder, domain=domain, test_fraction=0.2))
    return folder


@pytest.fixture(scope="session")
def make_corpus():
    """`write_corpus`, for tests that need another one."""
    return write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    return write_corpus(tmp_path_factory.mktemp("corpora") / "corpus")


@pytest.fixture(scope="session")
def byte_artifact(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("artifacts") / "byte"
    ByteFit().fit([], "").save(folder)
    return folder


@pytest.fixture(scope="session")
def make_recipe(corpus, byte_artifact):
    """make_recipe(**fields): a recipe so small that a run takes seconds."""
    return lambda **fields: Recipe(
        **dict(
            name="tiny",
            representation=str(byte_artifact),
            data=DataConfig(corpora=(str(corpus),), batch_rows=8, sequence_length=32),
            budget=Budget(steps=12),
            model=DecoderConfig(
                num_layers=2,
                embed_dim=32,
                num_heads=2,
                num_kv_heads=2,
                head_dim=16,
                mlp_dim=48,
                compute_dtype="float32",
                remat="none",
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2),
            mesh=MeshConfig(),
            checkpoint=CheckpointConfig(every_steps=5),
            evaluation=EvaluationConfig(every_steps=6, max_bytes=500, batch_rows=8),
            logging=LoggingConfig(every_steps=1, tensorboard=False),
        )
        | fields
    )


@pytest.fixture
def recipe(make_recipe) -> Recipe:
    return make_recipe()


RECIPE_FILE = """
import json, pathlib
from train.recipe import Recipe, from_json

def recipe():
    return from_json(Recipe, json.loads(pathlib.Path({path!r}).read_text()))
"""


@pytest.fixture
def write_recipe(tmp_path):
    """write_recipe(recipe): the path of a Python file that `toklab train` takes."""

    def write(recipe: Recipe) -> str:
        (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
        (tmp_path / "recipe.py").write_text(RECIPE_FILE.format(path=str(tmp_path / "recipe.json")))
        return str(tmp_path / "recipe.py")

    return write


@pytest.fixture
def one_device(monkeypatch, compiled_once):
    """The machine has one device: programs compile and run several times faster than for eight on the same cores."""
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    with compiled_once():
        yield


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """A context in which a program of one device that a test of this process has compiled before is not compiled
    again."""
    folder = tmp_path_factory.mktemp("compiled")

    @contextlib.contextmanager
    def remembering():
        options = {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.1,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in options}
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()

    return remembering


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling takes far longer than these small programs run: the compiler optimizes little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
