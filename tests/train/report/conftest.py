"""Made-up run folders, as the trainer, `toklab eval` and `toklab sample` leave them, and what a page says."""

import dataclasses
import html
import json
import math
import pathlib
import re

import pytest

from train.compare.results import Design

STEPS = 800
HOSTILE = (
    "x" * 80 + "[red]`\"'></pre></td></script><script>window.stung = 1</script>"
    "<img src=http://x.example/ onerror=alert(1)>$title{{ title }}{% raw %}\ud800\u202e\x1b[2J"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeRun:
    """A run; `bits` is where its curve ends."""

    name: str
    kind: str = "byte"
    bits: float = 2.0
    bytes_per_token: float = 1.0
    bytes_seen: int = 20_000_000
    corpus: str = "c" * 64
    state: str = "finished"

    @property
    def vocab_size(self) -> int:
        return 258 if self.kind == "byte" else 4096

    @property
    def flops_per_token(self) -> dict[str, float]:
        per_token = {"attention": 4.1e6, "mlp": 14.2e6, "embedding": 0.0, "softmax": 1536.0 * self.vocab_size}
        return per_token | {"total": sum(per_token.values())}

    @property
    def flops_per_byte(self) -> float:
        return self.flops_per_token["total"] / self.bytes_per_token

    @property
    def speed(self) -> dict[str, float]:
        return {"bytes_per_second": 95_000.0 * self.bytes_per_token, "tokens_per_second": 95_000.0}

    def point(self, step: int) -> dict:
        seen, above = self.bytes_seen * step // STEPS, (8 - self.bits) * math.exp(-6 * step / STEPS) + 0.02
        return {
            "step": step,
            "bytes_seen": seen,
            "flops": seen * self.flops_per_byte,
            "bits_per_byte": self.bits + above,
        }

    def config(self) -> dict:
        return {
            "name": self.name,
            "seed": 0,
            "corpus": "demo/corpus/train",
            "representation": self.kind,
            "model": {"num_layers": 4, "embed_dim": 256},
            "budget": {"bytes": self.bytes_seen},
        }

    def summary(self) -> dict:
        parameters = {"embedding": 256 * self.vocab_size, "attention": 1_050_000, "mlp": 2_360_000, "norms": 2304}
        fitted = self.kind != "byte"
        return {
            "name": self.name,
            "state": self.state,
            "steps": STEPS,
            **self.point(STEPS),
            **self.speed,
            "representation": {
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "fingerprint": "f" * 64,
                "bytes_per_token": self.bytes_per_token,
                "costs": {"fit_flops": 2e12, "encode_flops_per_id": 0.0} if fitted else {},
                "statistics": {"stop_bits_per_byte": 0.05, "closing_bits_per_byte": 0.25} if fitted else {},
            },
            "parameters": parameters | {"total": sum(parameters.values())},
            "flops_per_token": self.flops_per_token,
            "flops_per_byte": self.flops_per_byte,
            "tokens_seen": int(self.bytes_seen / self.bytes_per_token),
            "seconds": 118.2,
            "outside_step_share": 0.021,
            "skipped_steps": 0,
            "corpora": [{"path": "demo/corpus/train", "content_hash": self.corpus}],
            "device": "cpu x1",
            "versions": {"python": "3.11.2", "jax": "0.10.2"},
        }

    def metrics(self) -> list[dict]:
        of_step = {
            "tokens_seen": 1,
            "loss": 1.4,
            "learning_rate": 1e-3,
            "grad_norm": 0.7,
            "step_seconds": 0.14,
            "data_wait_seconds": 0.001,
            "mfu": None,
        }
        metrics = [self.point(step) | self.speed | of_step for step in range(5, STEPS + 1, 5)]
        metrics[3]["bits_per_byte"] = None
        return metrics

    def evaluation(self) -> dict:
        def score(number, num_bytes, num_documents):
            size = {"num_bytes": num_bytes, "num_documents": num_documents}
            return {"bits_per_byte": number, "interval_95": [number - 0.04, number + 0.05], **size}

        return (
            self.point(STEPS)
            | score(self.bits, 1_000_000, 140)
            | {
                "num_tokens": 7,
                "total_nats": 1.0,
                "corpus_content_hash": self.corpus,
                "by_domain": {"code": score(self.bits - 0.2, 400_000, 60), "docs": score(self.bits + 0.2, 600_000, 80)},
                "text": {
                    "bytes_per_id": self.bytes_per_token,
                    "uniform_bits_per_byte": 8.0,
                    "unigram_bits_per_byte": 4.6,
                },
            }
        )

    def write(self, folder: pathlib.Path, evaluated: bool, samples: bool) -> pathlib.Path:
        folder.mkdir(parents=True)
        _dump(folder / "config.json", self.config())
        _dump(folder / "summary.json", self.summary())
        _dump_lines(folder / "metrics.jsonl", self.metrics())
        curve = [self.point(step) | {"num_bytes": 65_536} for step in range(80, STEPS + 1, 80)]
        _dump_lines(folder / "eval.jsonl", curve)
        if evaluated:
            _dump(folder / "eval.json", self.evaluation())
        if samples:
            text = "import os\n\ndef path_of(name):\n    return os.path.join(name, '<root>')\n"
            settings = {"temperature": 0.8, "top_k": 40, "top_p": None, "seed": 0, "step": STEPS}
            _dump(folder / "samples.json", [{"prompt": text[:9], "text": text[9:], **settings}])
        return folder


def _make_run(folder: pathlib.Path, name: str, *, evaluated=True, samples=True, **fields) -> pathlib.Path:
    return MadeRun(name=name, **fields).write(folder, evaluated, samples)


def _dump(path, value):
    path.write_text(json.dumps(value))


def _dump_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _edit(path, **changes):
    _dump(path, json.loads(path.read_text()) | changes)


@pytest.fixture(scope="session")
def make_run():
    """make_run(folder, name, evaluated=True, samples=True, **fields of MadeRun): the folder."""
    return _make_run


@pytest.fixture(scope="session")
def dump():
    """dump(path, value): writes JSON."""
    return _dump


@pytest.fixture(scope="session")
def dump_lines():
    """dump_lines(path, records): writes JSON, a line each."""
    return _dump_lines


@pytest.fixture(scope="session")
def edit():
    """edit(path, **changes): changes fields of a JSON file."""
    return _edit


@pytest.fixture(scope="session")
def text_of():
    """text_of(report): what its page says, without its markup and script."""

    def text_of(report) -> str:
        text = re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(script|style)>.*?</\1>", "", report.index.read_text()))
        return html.unescape(text).replace("\N{NARROW NO-BREAK SPACE}", " ")

    return text_of


@pytest.fixture
def runs(tmp_path):
    """A byte arm, a clearly better subword arm, and one that was stopped and not evaluated."""
    begun = {"evaluated": False, "state": "stopped", "samples": False}
    folder = tmp_path / "runs"
    return [
        _make_run(folder / "byte", "byte", bits=2.31),
        _make_run(folder / "subword-4k", "subword-4k", kind="subword", bits=2.02, bytes_per_token=3.7),
        _make_run(folder / "unigram-4k", "unigram-4k", kind="subword", bits=2.11, bytes_per_token=3.5, **begun),
    ]


@pytest.fixture
def experiment(tmp_path):
    """(folders, design) of two arms x two sizes x two seeds, evaluated document by document and under noise."""
    folders, places = [], []
    for arm, kind, bits in (("byte", "byte", 2.3), ("subword-4k", "subword", 2.0)):
        for size, gain in (("small", 0.0), ("large", 0.4)):
            for seed in (0, 1):
                folder = _make_run(
                    tmp_path / "runs" / f"{arm}-{size}-s{seed}",
                    f"{arm}-{size}-s{seed}",
                    kind=kind,
                    bits=bits - gain + 0.01 * seed,
                    bytes_per_token=1.0 if kind == "byte" else 3.7,
                    bytes_seen=20_000_000 if size == "small" else 80_000_000,
                )
                _add_documents_and_noise(folder, bits - gain + 0.01 * seed)
                folders.append(folder)
                places.append((arm, size, seed))
    return folders, Design(
        name="mine",
        budget="bytes",
        arms=("byte", "subword-4k"),
        sizes=("small", "large"),
        num_seeds=2,
        places=tuple(places),
    )


def _add_documents_and_noise(folder: pathlib.Path, bits: float):
    """What `toklab eval --noise` leaves besides: 140 documents, the later the harder."""
    evaluation = json.loads((folder / "eval.json").read_text())
    of = {key: evaluation[key] for key in ("step", "corpus_content_hash")}
    sizes = [7142] * 140
    _dump(
        folder / "eval_documents.json",
        of
        | {
            "nats": [(bits + 0.001 * (number - 69.5)) * math.log(2) * size for number, size in enumerate(sizes)],
            "num_bytes": sizes,
            "domains": ["code"] * 60 + ["docs"] * 80,
            "scripts": ["Latin"] * 100 + ["Cyrillic"] * 40,
        },
    )
    _dump(
        folder / "noise.json",
        of
        | {
            "levels": [
                {"rate": rate, "bits_per_byte": bits + rate, "accuracy": 0.7 - rate} for rate in (0.0, 0.05, 0.15)
            ]
        },
    )
    _dump(
        folder / "eval.json",
        evaluation
        | {
            "costs": {
                "train_flops_per_byte": 3e6,
                "generate_flops_per_byte": 1e6 / bits,
                "kv_cache_bytes_per_byte": 1000.0,
                "encode_flops_per_byte": 0.0,
                "generator_flops_per_byte": 0.0,
            },
            "num_documents_in_training": 0,
        },
    )


def _hostile(value):
    """`value` with every text in it, keys of open-ended objects included, turned against the page."""
    if isinstance(value, dict):
        open_ended = {"docs", "code", "python", "jax", "attention", "mlp", "softmax"}
        return {HOSTILE + key if key in open_ended else key: _hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hostile(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


@pytest.fixture
def hostile_runs(tmp_path) -> list[pathlib.Path]:
    """Three runs, every text of which is turned against the page."""
    folders = [_make_run(tmp_path / name, name, evaluated=name != "c") for name in "abc"]
    for path in (path for folder in folders for path in folder.glob("*.json")):
        _dump(path, _hostile(json.loads(path.read_text())))
    return folders
