"""Eight CPU devices for every test, programs that are compiled once, and a corpus, a representation and a recipe so
small that a whole run takes seconds."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and the processes that tests start share the first one's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-by-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import functools
import json
import pathlib
import random
import sys

import jax
import pytest
from jax._src import compiler  # options for all programs of a process are nowhere else

from data.ingest import IngestOptions, ingest
from data.local_engine import LocalEngine
from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteFit
from train import optimizer, setup, step
from train.evaluate import bits_per_byte, encoders
from train.optimizer import Budget, OptimizerConfig
from train.recipe import DataConfig, EvaluationConfig, Recipe, to_json
from train.run.checkpoints import CheckpointConfig
from train.run.logs import LoggingConfig
from train.sharding import MeshConfig

gc.set_threshold(50_000, 20, 50)  # tracing makes objects by the million, and looking through them takes a twentieth
SHIPPED_COMPILE_OPTIONS = compiler.get_compile_options
QUICK_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}  # of XLA on CPUs
# Not by XLA_FLAGS: those are part of the key of a compiled program, and processes that tests start have one device.
jax.config.update("jax_num_cpu_devices", 8)


PROGRAMS: dict = {}  # what `remember` has seen: (a function's name, its key) -> what it gave


def remember(
    module, name: str, key=lambda *arguments, **keywords: (arguments, tuple(sorted(keywords.items())))
) -> None:
    """A function of `module` gives for equal keys what it gave before: a run of a recipe that another test has trained
    is traced and lowered no second time. Only for functions whose result `key` decides."""
    function = getattr(module, name)

    @functools.wraps(function)
    def remembered(*arguments, **keywords):
        asked = (module.__name__, name, key(*arguments, **keywords))
        if asked not in PROGRAMS:
            PROGRAMS[asked] = function(*arguments, **keywords)
        return PROGRAMS[asked]

    for importer in [module, *sys.modules.values()]:
        if importer.__dict__.get(name) is function:
            setattr(importer, name, remembered)


# What of a recipe is no part of its layout; of its data two numbers are.
BESIDE_THE_LAYOUT = "name representation data budget seed checkpoint evaluation logging deadlines".split()


def layout_key(recipe: Recipe, vocab_size: int, mesh):
    parts = tuple(value for name, value in vars(recipe).items() if name not in BESIDE_THE_LAYOUT)
    return parts, recipe.data.batch_rows, len(recipe.data.corpora), vocab_size, mesh


remember(optimizer, "make_meter")
# A step holds its program, so that no other one gets its id.
remember(
    step, "make_train_step", lambda program, *rest, **keywords: (id(program), rest, tuple(sorted(keywords.items())))
)
remember(setup, "lay_out", layout_key)
remember(bits_per_byte, "make_scorer")
remember(encoders, "make_scorer", lambda of: (of.program.model_def, of.recipe.objective, of.mesh, of.recipe.kernels))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: tests wait for processes, deadlines and disks."""
    return (os.cpu_count() or 1) + 1


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


class _Interrupted(LocalEngine):
    """Ends after some results, as a process that is killed does."""

    def __init__(self, num_results):
        self.num_left = num_results

    def stream(self, function, items, devices=None):
        for result in super().stream(function, items, devices):
            if self.num_left == 0:
                raise KeyboardInterrupt
            self.num_left -= 1
            yield result


@pytest.fixture(scope="session")
def interrupted():
    """interrupted(num_results): an engine that does not get further."""
    return _Interrupted


@pytest.fixture
def one_device(monkeypatch):
    """The machine has one device: programs compile and run several times faster than for eight on the same cores."""
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)


@pytest.fixture
def new_programs():
    """Nothing that `remember` has seen is used, nor used later: for tests that change what is traced or compiled."""
    PROGRAMS.clear()
    yield
    PROGRAMS.clear()


@pytest.fixture(scope="session", autouse=True)
def quick_options() -> dict[str, bool | int]:
    """Those of QUICK_OPTIONS that this jaxlib has: from 0.12 on there are no other emitters.

    QUICK_XLA_FLAGS has them for processes that tests start.
    """

    def is_known(name, value):
        try:
            jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:
            return False
        return True

    known = {name: value for name, value in QUICK_OPTIONS.items() if is_known(name, value)}
    os.environ["QUICK_XLA_FLAGS"] = " ".join(f"--{name}={str(value).lower()}" for name, value in known.items())
    return known


@pytest.fixture(scope="module", autouse=True)
def quick_compiles(quick_options):
    """Compiling takes far longer than these small programs run: the compiler optimizes little, and on CPUs goes by its
    former emitters of fused loops and in one thread, which takes it a third of the time.
    """

    def get_compile_options(*args, env_options_overrides=None, backend=None, **keywords):
        quick = quick_options if backend is not None and backend.platform == "cpu" else {}
        return SHIPPED_COMPILE_OPTIONS(
            *args, env_options_overrides=quick | (env_options_overrides or {}), backend=backend, **keywords
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", get_compile_options)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def as_shipped(quick_compiles, new_programs, monkeypatch):
    """In one test programs are compiled as outside of the suite, with everything that `quick_compiles` leaves out.

    Only new functions are: what was compiled before stays as it is.
    """
    monkeypatch.setattr(compiler, "get_compile_options", SHIPPED_COMPILE_OPTIONS)
    jax.config.update("jax_disable_most_optimizations", False)
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    assert options.executable_build_options.debug_options.xla_backend_optimization_level > 0
    yield
    jax.config.update("jax_disable_most_optimizations", True)
