"""The report: made-up run folders in, a page, a CSV and a JSON out."""

import csv
import html.parser
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.report import console_table, write_report
from train.report_page import si

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "\"'></pre></script><script>alert(1)</script><img src=http://x.example/ onerror=alert(1)>{{$title}}\ud800\u202e"


def make_run(folder: pathlib.Path, name: str, *, kind="byte", bits=2.0, bytes_per_token=1.0, bytes_seen=20_000_000, corpus="c" * 64,
             evaluated=True, state="finished", samples=True, steps=800) -> pathlib.Path:
    """A run folder as the trainer, `toklab eval` and `toklab sample` leave it; `bits` is where its curve ends."""
    vocab_size = 258 if kind == "byte" else 4096
    per_token = {"attention": 4.1e6, "mlp": 14.2e6, "embedding": 0.0, "softmax": 1536.0 * vocab_size}
    per_token["total"] = sum(per_token.values())
    per_byte = per_token["total"] / bytes_per_token
    parameters = {"embedding": 256 * vocab_size, "attention": 1_050_000, "mlp": 2_360_000, "norms": 2304}
    parameters["total"] = sum(parameters.values())

    def point(step):
        seen = bytes_seen * step // steps
        return {"step": step, "bytes_seen": seen, "flops": seen * per_byte, "bits_per_byte": bits + (8 - bits) * math.exp(-6 * step / steps) + 0.02}

    def score(number, num_bytes, num_documents):
        return {"bits_per_byte": number, "interval_95": [number - 0.04, number + 0.05], "num_bytes": num_bytes, "num_documents": num_documents}

    speed = {"bytes_per_second": 95_000.0 * bytes_per_token, "tokens_per_second": 95_000.0}
    summary = {
        "name": name, "state": state, "representation": {"kind": kind, "vocab_size": vocab_size, "fingerprint": "f" * 64, "bytes_per_token": bytes_per_token},
        "parameters": parameters, "flops_per_token": per_token, "flops_per_byte": per_byte, "steps": steps, **point(steps), **speed,
        "tokens_seen": int(bytes_seen / bytes_per_token), "seconds": 118.2, "outside_step_share": 0.021, "skipped_steps": 0,
        "corpora": [{"path": "demo/corpus/train", "content_hash": "a" * 64}], "device": "cpu x1", "versions": {"python": "3.11.2", "jax": "0.10.2"},
    }
    config = {"name": name, "seed": 0, "corpus": "demo/corpus/train", "representation": kind, "model": {"num_layers": 4, "embed_dim": 256}, "budget": {"bytes": bytes_seen}}
    metrics = [point(step) | speed | {"tokens_seen": 1, "loss": 1.4, "learning_rate": 1e-3, "grad_norm": 0.7, "step_seconds": 0.14, "data_wait_seconds": 0.001, "mfu": None}
               for step in range(5, steps + 1, 5)]
    metrics[3]["bits_per_byte"] = None
    folder.mkdir(parents=True)
    dump(folder / "config.json", config)
    dump(folder / "summary.json", summary)
    dump_lines(folder / "metrics.jsonl", metrics)
    dump_lines(folder / "eval.jsonl", [point(step) for step in range(steps // 10, steps + 1, steps // 10)])
    if evaluated:
        domains = {"code": score(bits - 0.2, 400_000, 60), "docs": score(bits + 0.2, 600_000, 80)}
        dump(folder / "eval.json", point(steps) | score(bits, 1_000_000, 140) | {
            "num_tokens": 7, "total_nats": 1.0, "corpus_content_hash": corpus, "by_domain": domains})
    if samples:
        text = "import os\n\ndef path_of(name):\n    return os.path.join(name, '<root>')\n"
        dump(folder / "samples.json", [{"prompt": "import os", "text": text[9:], "temperature": 0.8, "top_k": 40, "top_p": None, "seed": 0, "step": steps}])
    return folder


def dump(path, value):
    path.write_text(json.dumps(value))


def dump_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def edit(path, **changes):
    dump(path, json.loads(path.read_text()) | changes)


@pytest.fixture
def runs(tmp_path):
    """A byte arm, a clearly better subword arm, and one that is still training and not evaluated."""
    return [
        make_run(tmp_path / "runs/byte", "byte", bits=2.31),
        make_run(tmp_path / "runs/subword-4k", "subword-4k", kind="subword", bits=2.02, bytes_per_token=3.7),
        make_run(tmp_path / "runs/unigram-4k", "unigram-4k", kind="subword", bits=2.11, bytes_per_token=3.5, evaluated=False, state="running", samples=False),
    ]
