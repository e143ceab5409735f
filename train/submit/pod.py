"""What the places that have TPUs share: slices by name, and what a recipe must be to fit them."""

import dataclasses

from tokenizer_lab.errors import FROM_0, UserError, check_numbers
from tokenizer_lab.files import is_remote
from train.hosts.hardware import CHIPS_PER_HOST
from train.plan.pod import Pod, on_pod
from train.recipe import Recipe
from train.submit.job import Job


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPod:
    """Options of a job on TPU slices."""

    topology: str
    """Generation and shape of a slice of TPUs, e.g. v5p:8x8x16."""
    slices: int = 1
    """Slices of that shape, joined by the data center's network."""
    image: str | None = None
    """Container image with tokenizer-lab[tpu] in it."""
    max_restarts: int = 10
    """After hosts that failed; stops and preemptions do not count."""
    grace_seconds: int = 300
    """That a host has to save and end once it is told to stop."""
    env: tuple[str, ...] = ()
    """NAME=VALUE of every host's environment."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", max_restarts=FROM_0, grace_seconds=FROM_0)

    @property
    def pod(self) -> Pod:
        return Pod(self.topology, self.slices)

    @property
    def hosts_per_slice(self) -> int:
        return self.pod.chip.num_hosts(self.pod.chips_per_slice)

    @property
    def chips_per_host(self) -> int:
        return self.pod.chips_per_slice // self.hosts_per_slice

    def place(self, recipe: Recipe) -> Recipe:
        """With a replica on each slice, if the mesh has not said otherwise. Raises UserError."""
        if self.hosts_per_slice > 1 and self.pod.chips_per_slice % CHIPS_PER_HOST:
            generation = self.topology.partition(":")[0]
            raise UserError(
                f"no topology {self.topology!r}: its {self.pod.chips_per_slice} chips do not divide over hosts of"
                f" {CHIPS_PER_HOST}; there are"
                f" {', '.join(f'{generation}:{shape}' for shape in self.pod.chip.topologies)}"
            )
        return on_pod(recipe, self.pod)

    def check_image(self) -> str:
        if not self.image:
            raise UserError(
                "no --image is given: the hosts run a container with tokenizer-lab[tpu] in it, e.g."
                " us-docker.pkg.dev/PROJECT/REPOSITORY/toklab:1"
            )
        return self.image


def check_shared_run_dir(job: Job, also: tuple[str, ...] = ()) -> None:
    """Raises UserError for a run folder that is not the same one on every host.

    Args:
      job: the job.
      also: folders that every host has.
    """
    if not is_remote(job.run_dir) and not any(job.run_dir.startswith(folder.rstrip("/") + "/") for folder in also):
        shared = f"gs://BUCKET/..., or a folder under {' or '.join(also)}" if also else "gs://BUCKET/..."
        raise UserError(
            f"--run-dir {job.run_dir} is a folder of one machine and {job.name} runs on many; give one that all of them"
            f" see: {shared}"
        )
