"""Several processes that train one model: how they find each other, what they decide together, and how they end
together.

A process that has not been told of others is alone, and everything here is as if it were not there. The others are
known from TOKLAB_COORDINATOR (host:port of process 0), TOKLAB_NUM_PROCESSES and TOKLAB_PROCESS_ID, or from what JAX
finds by itself on Cloud TPU VMs, GKE, Kubernetes, SLURM and Open MPI.

Process 0 decides and writes; the others follow. An error of one host ends all of them: it is put into the coordinator's
store, the first one there is shown by process 0, and every process leaves with its exit code.
"""

import concurrent.futures
import contextlib
import dataclasses
import faulthandler
import importlib.metadata
import json
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import (
    distributed,  # its store of keys and values has no public name yet; Orbax and jax.experimental use it too
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import sha256_of_parts
from train.exits import EXIT_BUG, EXIT_HUNG, EXIT_INTERRUPTED, EXIT_USER_ERROR, interruptible_import
from train.hosts.watchdog import Deadlines

_OURS = ("TOKLAB_COORDINATOR", "TOKLAB_NUM_PROCESSES", "TOKLAB_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_END_KEY, _ENDED_KEYS = "toklab/end", "toklab/ended/"
_LOST_WORDS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # of errors of collectives and of the coordinator
_POLL_SECONDS, _ANSWER_SECONDS = 0.5, 10.0
_FOREVER_MILLISECONDS = 7 * 24 * 3600 * 1000  # the watchdog's deadlines end what waits in vain
_PACKAGES = ("tokenizer_lab", "models", "data", "train")  # without configs, which are compared as what they come to


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who told this process that there are others."""

    named_by: str
    join_options: dict[str, Any]
    """Of `jax.distributed.initialize`."""
    num_processes: int | None = None
    """How many there are with this one, where its environment says so."""
    is_first: bool = True
    """Unless its environment says that another one is."""

    def waits_for(self, seconds: float) -> str:
        """What is about to happen, for people: a process that was started alone by mistake waits for nobody."""
        others = "the others" if self.num_processes is None else f"the {self.num_processes - 1} others"
        return (
            f"joining the processes named by {self.named_by}: waiting up to {seconds:g} s for {others}"
            " (--deadlines.start-seconds); set TOKLAB_NUM_PROCESSES=1 to train on this host alone"
        )


def recognize(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that a process with these environment variables is in; None where it is alone.

    What JAX would find is asked for here first, as it takes every SLURM allocation or TPU for a cluster. Raises
    UserError.
    """
    if any(name in environment for name in _OURS):
        return _told_by_variables(environment)
    if all(name in environment for name in _SLURM):
        return _step_of_slurm(environment)
    if (count := environment.get("OMPI_COMM_WORLD_SIZE", "1")) != "1":
        return Cluster(
            "Open MPI",
            {"cluster_detection_method": "ompi"},
            _number(count),
            _is_first(environment, "OMPI_COMM_WORLD_RANK"),
        )
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers or "TPU_PROCESS_ADDRESSES_PATH" in environment:
        several = "," in (workers or ",") or environment.get("MEGASCALE_NUM_SLICES", "1") != "1"
        return Cluster("TPUs of GKE", {"cluster_detection_method": "gketpu"}) if several else None
    if "TPU_SKIP_MDS_QUERY" not in environment and "tpu" in environment.get(
        "JAX_PLATFORMS", "tpu"
    ):  # JAX sets it where there is no TPU
        return Cluster("Cloud TPU VM", {"cluster_detection_method": "gcetpu"})
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return Cluster("a Kubernetes Job", {"cluster_detection_method": "k8s"})
    return None


def _step_of_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of a step. SLURM_NTASKS alone may be those of the whole allocation: in the shell that salloc opens it
    is, and that shell is alone."""
    count = _number(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"]))
    if count == 1:
        return None
    return Cluster(
        "SLURM",
        {"cluster_detection_method": "slurm", "num_processes": count},
        count,
        _is_first(environment, "SLURM_PROCID"),
    )


def _is_first(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "0") == "0"


def _number(count: str) -> int | None:
    return int(count) if count.isdecimal() else None


def _told_by_variables(environment: Mapping[str, str]) -> Cluster | None:
    if environment.get("TOKLAB_NUM_PROCESSES") == "1":
        return None
    given = {name: environment.get(name, "") for name in _OURS}
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
    address, count, number = given.values()
    host, _, port = address.rpartition(":")
    if not (
        host
        and port.isdecimal()
        and 0 < int(port) < 1 << 16
        and count.isdecimal()
        and number.isdecimal()
        and int(number) < int(count)
    ):
        raise UserError(
            f"{shown} name no process of several; set the address host:port of process 0, the number of processes, and"
            " which of them this is (from 0), or none of the three"
        )
    return Cluster(
        "TOKLAB_COORDINATOR",
        {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(number),
            "cluster_detection_method": "deactivate",
        },
        int(count),
        int(number) == 0,
    )


@contextlib.contextmanager
def joined(deadlines: Deadlines) -> Iterator[str]:
    """Inside, this process is one of its cluster's, if there is one; yields a line that says what was recognized.

    Inside a process of several, all is `ending_together`. Raises UserError where the cluster cannot be joined.
    """
    cluster = recognize(os.environ)
    if cluster is None:
        yield "one host"
        return
    faulthandler.enable()  # JAX aborts a process whose peers are gone: it shall say what it was doing
    _join(cluster, deadlines)
    left = threading.Event()
    listener = threading.Thread(target=_end_when_told, args=(left,), name="hosts", daemon=True)
    listener.start()
    with ending_together():
        yield f"{num_hosts()} processes, named by {cluster.named_by}"
        jax.distributed.shutdown()  # once all have come here
    left.set()
    listener.join()  # Python cannot end while a thread is in native code


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Of several processes, all end with what one of them raises inside. Nothing outside is left in order: the others
    cannot help with it."""
    try:
        yield
    except BaseException as error:
        if num_hosts() == 1:
            raise
        if _is_of_lost_host(error):
            _end_all(
                EXIT_HUNG,
                f"another host is lost: {' '.join(str(error).split())[:300]}; the same command goes on from the newest"
                " checkpoint",
            )
        if isinstance(error, UserError):
            _end_all(EXIT_USER_ERROR, str(error))
        if isinstance(error, KeyboardInterrupt):
            _end_all(EXIT_INTERRUPTED, "interrupted; what was committed before is whole")
        traceback.print_exc()
        _end_all(EXIT_BUG, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _join(cluster: Cluster, deadlines: Deadlines) -> None:
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it would take SIGTERM from the loop, which asks the others itself

    if cluster.is_first:
        print(cluster.waits_for(deadlines.start_seconds), flush=True)

    def initialize() -> None:
        jax.distributed.initialize(
            **cluster.join_options,
            initialization_timeout=int(deadlines.start_seconds),
            heartbeat_timeout_seconds=deadlines.heartbeat_seconds,
            shutdown_timeout_seconds=int(deadlines.save_seconds),
        )

    with (
        interruptible_import(),
        concurrent.futures.ThreadPoolExecutor(1, "join") as thread,
    ):  # a signal is heard only while Python waits
        try:
            thread.submit(initialize).result()
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            complaint = f"cannot join the processes named by {cluster.named_by} ({cluster.join_options}): {reason}"
            if isinstance(
                error, RuntimeError
            ):  # a port in use, a host that has not come in time: it may go better the next time
                print(f"toklab: {complaint}; start all of them again", file=sys.stderr)
                sys.exit(EXIT_HUNG)
            raise UserError(
                f"{complaint}; mend that, or set TOKLAB_NUM_PROCESSES=1 to train on this host alone"
            ) from error


def num_hosts() -> int:
    return distributed.global_state.num_processes


def this_host() -> int:
    """From 0; unlike `jax.process_index` it needs no devices."""
    return distributed.global_state.process_id


def _client() -> Any:
    """Of the coordinator, in whose store all processes read and write."""
    return distributed.global_state.client


def is_first() -> bool:
    """Whether this process decides and writes."""
    return this_host() == 0


def first_decides(name: str, value: Any) -> Any:
    """Process 0's value (JSON) in every process; `name` is this decision's alone."""
    if num_hosts() == 1:
        return value
    client, key = _client(), f"toklab/decided/{name}"
    if is_first():
        client.key_value_set(key, json.dumps(value))
    return json.loads(client.blocking_key_value_get(key, _FOREVER_MILLISECONDS))


def compare(name: str, facts: Mapping[str, Any]) -> None:
    """Raises UserError in every process whose facts (JSON) are not those of process 0; `name` is this comparison's
    alone."""
    facts, first = json.loads(json.dumps(facts)), first_decides(name, facts)
    differing = [name for name in sorted(first.keys() | facts.keys()) if first.get(name) != facts.get(name)]
    if differing:
        shown = "; ".join(
            f"{name} is {_short(facts.get(name))} here and {_short(first.get(name))} on host 0"
            for name in differing[:5]
        )
        raise UserError(f"{shown}; every host must run the same code and config on the same data")


def _short(fact: Any) -> str:
    text = json.dumps(fact)
    return text if len(text) <= 60 else text[:57] + "..."


def code_version() -> dict[str, str]:
    """What decides how this process computes: our source files, and the versions of what it uses most."""
    return {"code": code_fingerprint()} | {
        name: importlib.metadata.version(name) for name in ("tokenizer-lab", "jax", "jaxlib", "numpy")
    }


def code_fingerprint() -> str:
    """SHA-256 of the source of our packages, as it is installed here."""
    root = pathlib.Path(__file__).resolve().parents[2]
    files = sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py"))
    return sha256_of_parts(
        part for path in files for part in (path.relative_to(root).as_posix().encode(), path.read_bytes())
    )


def make_any_host(mesh: Mesh) -> Callable[[bool], Any]:
    """A function (asked) -> bool[] whether any process asked, which every process calls equally often.

    It is computed on the devices between two steps, so that nobody waits for it, and all processes find the same in it.
    """
    if num_hosts() == 1:
        return np.bool_
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    any_asked = jax.jit(jnp.any, out_shardings=_everywhere_the_same(mesh))
    return lambda asked: any_asked(jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.full(1, asked)))


def make_first_number(mesh: Mesh) -> Callable[[float], jax.Array]:
    """A function (number, at least 0) -> f32[] process 0's number on all devices, which every process calls equally
    often."""
    if num_hosts() == 1:
        return lambda number: jax.device_put(np.float32(number), _everywhere_the_same(mesh))
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=_everywhere_the_same(mesh))
    own = lambda number: np.full(1, number if is_first() else 0, np.float32)
    return lambda number: largest(jax.make_array_from_callback((mesh.size,), everywhere, lambda _: own(number)))


def _everywhere_the_same(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _is_of_lost_host(error: BaseException | None) -> bool:
    """Whether an error only says that another process is gone. On CPUs collectives say so at once, on TPUs the
    heartbeat does."""
    return error is not None and (any(word in str(error) for word in _LOST_WORDS) or _is_of_lost_host(error.__cause__))


def _end_all(code: int, line: str) -> None:
    """Ends every process. The first who asks for it is heard; the listeners do the rest."""
    with contextlib.suppress(Exception):  # somebody was first, or the coordinator is gone
        _client().key_value_set(_END_KEY, json.dumps([code, this_host(), line]))
    time.sleep(2 * _ANSWER_SECONDS)
    _say(this_host(), line)
    os._exit(code)


def _end_when_told(left: threading.Event) -> None:
    client, told = _client(), None
    while told is None:
        if left.wait(_POLL_SECONDS):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is nothing yet
            told = client.key_value_try_get(_END_KEY)
    code, host, line = json.loads(told)
    if is_first():
        _say(host, line)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_ENDED_KEYS}{this_host()}", "")
        give_up = time.monotonic() + (
            _POLL_SECONDS * 4 if code == EXIT_HUNG else _ANSWER_SECONDS
        )  # a lost one will not answer
        while is_first() and time.monotonic() < give_up and len(client.key_value_dir_get(_ENDED_KEYS)) < num_hosts():
            time.sleep(0.1)  # the store is in this process
        time.sleep(
            _POLL_SECONDS if is_first() else 0
        )  # on a busy machine the others need it for their last line of code, or JAX complains there
    os._exit(code)


def _say(host: int, line: str) -> None:
    sys.stdout.flush()
    os.write(2, f"toklab: host {host}: {line}\n".encode())
