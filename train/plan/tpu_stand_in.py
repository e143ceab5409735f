"""TPUs that are not there, as libtpu knows them ahead of time.

Importing this module tells JAX and libtpu what they stand in for, which they read once: it comes before JAX, in a
process of its own.
"""

import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
from jax.experimental import topologies

from tokenizer_lab.errors import UserError


def topology_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """The chips of a topology such as "v5e:4x4" that need not exist. Raises UserError where libtpu knows none of the
    name."""
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **slices).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(f"libtpu has no topology {topology}: {str(error).splitlines()[0]}") from error
