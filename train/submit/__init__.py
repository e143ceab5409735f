"""`toklab submit`: starts `toklab train` somewhere, on one host or many, and again whenever it can go on.

`job.py` says what a job is; the other files are one place each where it can run. May import `train.plan`, the spine and
what is below them.
"""

import importlib

from tokenizer_lab.errors import UserError
from train.nearest import nearest

TARGETS = {
    "local": "local.Local",
    "jobset": "jobset.JobSet",
    "queued-resource": "queued_resource.QueuedResource",
    "slurm": "slurm.Slurm",
}


def target_class(kind: str, option: str = "--to") -> type:
    """The options of a place to run, of TARGETS; a `train.submit.job.Target`. Raises UserError for another `kind`,
    which `option` has named."""
    if kind not in TARGETS:
        raise UserError(f"no {option} {kind!r}{nearest(kind, TARGETS)}; there are {', '.join(TARGETS)}")
    module, _, name = TARGETS[kind].partition(".")
    return getattr(importlib.import_module(f"train.submit.{module}"), name)
