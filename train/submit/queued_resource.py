"""`toklab submit --to queued-resource`: the script that asks the Cloud TPU API for slices, trains on them, and asks
again when they are taken away."""

import dataclasses
import pathlib
import shlex

import rich.console

from tokenizer_lab.errors import UserError
from train.console import say
from train.recipe import Recipe
from train.submit.job import (
    Job,
    check_name,
    check_reachable_recipe,
    environment,
    record_from_afar,
    shell_values,
    write_script,
)
from train.submit.pod import OnPod, check_shared_run_dir

_BODY = pathlib.Path(__file__).with_name("queued_resource.sh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueuedResource(OnPod):
    """Write the gcloud script of a Cloud TPU queued resource."""

    project: str
    """Google Cloud project."""
    zone: str
    """Where the TPUs are, e.g. europe-west4-b."""
    spot: bool = False
    """Cheaper TPUs that may be taken away."""
    service_account: str | None = None
    """Whose rights on buckets and images the hosts have; the project's default one if none is given."""
    runtime_version: str | None = None
    """The hosts' image; that of the generation if none is given."""

    def place(self, recipe: Recipe) -> Recipe:
        if not self.pod.chip.hosting.accelerator_type:
            raise UserError(f"the Cloud TPU API has no {self.topology.partition(':')[0]}; use --to jobset")
        return super().place(recipe)

    def render(self, job: Job) -> str:
        check_name(job.name, 61 - len(str(self.slices)))  # the nodes are NAME-0, NAME-1, ...
        check_reachable_recipe(job)
        check_shared_run_dir(job)
        image, chips = self.check_image(), self.pod.chips_per_slice
        hosting = self.pod.chip.hosting
        create = [
            f"--accelerator-type={hosting.accelerator_type.format(chips=chips, cores=2 * chips)}",
            f"--runtime-version={self.runtime_version or hosting.runtime_version}",
            *(
                [f"--node-count={self.slices}", f"--node-prefix={job.name}"]
                if self.slices > 1
                else [f"--node-id={job.name}"]
            ),
            f"--labels=toklab-config={job.config_fingerprint[:16]},toklab-code={job.code[:16]}",
            *(["--spot"] if self.spot else []),
            *([f"--service-account={self.service_account}"] if self.service_account else []),
        ]
        registry = image.partition("/")[0]
        login = (
            f"sudo gcloud auth configure-docker --quiet {shlex.quote(registry)} && "
            if registry.endswith((".pkg.dev", "gcr.io"))
            else ""
        )
        environment_options = [
            option
            for name, value in ({"PYTHONUNBUFFERED": "1"} | environment(self.env)).items()
            for option in ("--env", f"{name}={value}")
        ]
        stop = f"sudo docker stop -t {self.grace_seconds} {job.name}"
        values = shell_values(
            name=job.name,
            at=[f"--project={self.project}", f"--zone={self.zone}"],
            create_options=create,
            max_restarts=self.max_restarts,
            prepare_host=f"{login}sudo docker pull --quiet {shlex.quote(image)}",
            stop_host=f"{stop} || true",
            train_host=(
                f"{{ {stop}; sudo docker rm --force {job.name}; }} >/dev/null 2>&1; exec sudo docker run --name"
                f" {job.name} --privileged --net host "
            )
            + shlex.join([*environment_options, image, *job.command("toklab")]),
        )
        head = (
            f"# {job.name}: {job.recipe_name} on {self.pod}, {self.slices * self.hosts_per_slice} hosts of"
            f" {self.chips_per_host} chips.\n# toklab config {job.config_fingerprint[:16]} code {job.code[:16]}\n"
            f"{job.note}\n"
        )
        return f"#!/usr/bin/env bash\n{head}{values}{_BODY.read_text()}"

    def submit(self, job: Job, console: rich.console.Console) -> int:
        script = self.render(job)
        record_from_afar(job, "queued-resource", console)
        file = write_script(job, script, ".sh")
        say(
            console,
            f"{file} is written; start the job with: bash {file}, and give the TPUs back with: bash {file} delete",
        )
        return 0
