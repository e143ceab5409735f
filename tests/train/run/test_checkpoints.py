"""Checkpoints that are damaged in any way are told from whole ones, and what is restored is what was saved."""

import contextlib
import dataclasses
import hashlib
import pathlib
import random
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import replica_slices

from tokenizer_lab.errors import UserError
from train.run import checkpoints as checkpoints_module
from train.run.checkpoints import Checkpoints
from train.run.checksums import CHECKSUMS
from train.step import TrainState


def state_of(step: int) -> TrainState:
    number = jnp.asarray(step, jnp.int32)
    weights = {"layer": {"kernel": jnp.arange(24.0).reshape(4, 6) + step, "bias": jnp.full(3, step, jnp.bfloat16)}}
    return TrainState(
        params=weights,
        opt_state=(jax.tree.map(jnp.zeros_like, weights), number),
        step=number,
        bytes_seen=jnp.stack([number, number]),
        cursors=jnp.full((4, 4), step, jnp.int32),
        seconds=jnp.float32(step),
        mean_grad_norm=jnp.float32(step),
        skipped_steps=number,
        skipped_in_a_row=number,
        rng=jnp.zeros(2, jnp.uint32),
    )


SHAPES = jax.eval_shape(lambda: state_of(0))


def restored(checkpoints: Checkpoints, step: int) -> TrainState:
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return checkpoints.restore(step, SHAPES, jax.tree.map(lambda _: one_device, SHAPES))


def assert_saved(state: TrainState, step: int) -> None:
    for found, saved in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
        np.testing.assert_array_equal(found, saved)


@contextlib.contextmanager
def opened(folder: pathlib.Path, **options):
    with contextlib.closing(Checkpoints(folder, **options)) as checkpoints:
        yield checkpoints


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, state_of(step), {"step": step})
        checkpoints.wait()
    return folder


def flip(path: pathlib.Path, random_: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random_.choice([1, 3])):
        content[random_.randrange(len(content))] ^= random_.randrange(1, 256)
    path.write_bytes(content)


def truncate(path: pathlib.Path, random_: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: random_.randrange(path.stat().st_size)])


def remove(path: pathlib.Path, _: random.Random) -> None:
    path.unlink()


def append(path: pathlib.Path, random_: random.Random) -> None:
    path.write_bytes(path.read_bytes() + random_.randbytes(random_.randrange(1, 100)))


def add_beside(path: pathlib.Path, random_: random.Random) -> None:
    path.with_name(random_.choice(["zz", "core", ".hidden", "0~"])).write_bytes(random_.randbytes(9))


def overwrite(path: pathlib.Path, random_: random.Random) -> None:
    """As long as before: a block that a disk lost."""
    path.write_bytes(random_.choice([bytes, random_.randbytes])(path.stat().st_size))


KINDS = (flip, truncate, remove, append, add_beside, overwrite)


def damage_every_file(two_saved: pathlib.Path, tmp_path: pathlib.Path, num_times: int, random_: random.Random) -> None:
    """Each file of step 10 in turn: found, told in one line, and step 5 is used."""
    copy, files = (
        tmp_path / "checkpoints",
        sorted(path.relative_to(two_saved) for path in (two_saved / "10").rglob("*") if path.is_file()),
    )
    assert len(files) > 20
    shutil.copytree(two_saved / "5", copy / "5")
    for file, kind in [(file, random_.choice(KINDS)) for file in files * num_times]:
        shutil.copytree(two_saved / "10", copy / "10")
        kind(copy / file, random_)
        lines = []
        with opened(copy, read_only=True) as checkpoints:
            step = checkpoints.newest_whole(lines.append)
        if str(file) == "10/commit_success.txt" and kind is not add_beside:
            assert (step, lines) == (10, [])  # it says nothing
        else:
            assert (
                step == 5 and len(lines) == 1 and "checkpoints/10 is damaged: " in lines[0] and "\n" not in lines[0]
            ), (file, kind, lines)
        shutil.rmtree(copy / "10")


def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(two_saved, tmp_path):
    damage_every_file(two_saved, tmp_path, 1, random.Random(0))


@pytest.mark.slow
def test_damage_to_any_file_many_times(two_saved, tmp_path):
    damage_every_file(two_saved, tmp_path, 100, random.Random(1))


def test_what_is_whole_is_restored_as_it_was_saved(two_saved):
    with opened(two_saved, read_only=True) as checkpoints:
        assert checkpoints.newest_whole(pytest.fail) == 10
        for step in (5, 10):
            assert_saved(restored(checkpoints, step), step)
            assert checkpoints.read_meta(step) == {"step": step}


def test_the_checksums_are_those_that_sha256sum_knows(two_saved):
    lines = (two_saved / "10" / CHECKSUMS).read_text().splitlines()
    assert {"meta/metadata", "params/manifest.ocdbt", "_CHECKPOINT_METADATA"} < {line.split("  ")[1] for line in lines}
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256((two_saved / "10" / name).read_bytes()).hexdigest() == digest
    assert len(list((two_saved / "10").rglob(CHECKSUMS))) == 1  # the files of a part are not read twice
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=two_saved / "10", check=True)


def test_a_damaged_step_is_set_aside_and_saved_again(two_saved, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_saved, copy)
    for _ in range(2):  # also where it was set aside before
        remove(copy / "10" / "params" / "manifest.ocdbt", random.Random())
        lines = []
        with opened(copy) as checkpoints:
            step = checkpoints.newest_whole(lines.append)
            checkpoints.set_aside_after(step)
            assert_saved(restored(checkpoints, 5), 5)
            checkpoints.save(10, state_of(10), {})
            checkpoints.wait()
            assert checkpoints.newest_whole(pytest.fail) == 10
        assert lines == [
            f"checkpoint {copy}/10 is damaged: params/manifest.ocdbt is missing; the one before, of step 5, is used"
        ]
        assert sorted(path.name for path in copy.iterdir()) == ["10", "10.damaged", "5"]
        with opened(copy) as checkpoints:
            assert_saved(restored(checkpoints, checkpoints.newest_whole(pytest.fail)), 10)


def test_where_none_is_whole_that_is_said_and_nothing_is_changed(two_saved, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_saved, copy)
    for step in ("5", "10"):
        flip(copy / step / "meta" / "metadata", random.Random())
    for read_only in (True, False):
        with (
            opened(copy, read_only=read_only) as checkpoints,
            pytest.raises(UserError, match="no checkpoint in .* is whole") as error,
        ):
            checkpoints.newest_whole(pytest.fail)
        assert "10: meta/metadata is not what was saved" in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in copy.iterdir()) == ["10", "5"]


def test_reading_leaves_a_save_of_another_process_alone(two_saved, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_saved, copy)
    shutil.copytree(two_saved / "10", copy / "15.orbax-checkpoint-tmp")
    with opened(copy, read_only=True) as checkpoints:
        assert checkpoints.newest_whole(pytest.fail) == 10
        checkpoints._manager._maybe_await_cleanup_tmp_directory()
    assert (copy / "15.orbax-checkpoint-tmp").exists()
    with opened(copy) as checkpoints:
        checkpoints.save(20, state_of(20), {})  # waits until what a run that was cut off has left is cleared away
        checkpoints.wait()
    assert not (copy / "15.orbax-checkpoint-tmp").exists()


def test_saving_does_not_wait_for_checksums_and_older_ones_stay_until_then(tmp_path, monkeypatch):
    asked, go_on, write_checksums = threading.Event(), threading.Event(), checkpoints_module.write_checksums

    def waiting(*arguments):
        asked.set()
        assert go_on.wait(60)
        write_checksums(*arguments)

    with opened(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(5, state_of(5), {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints_module, "write_checksums", waiting)
        checkpoints.save(10, state_of(10), {})
        assert asked.wait(60)
        checkpoints.check()
        assert not (tmp_path / "checkpoints" / "10").exists() and (tmp_path / "checkpoints" / "5").exists()
        go_on.set()
        checkpoints.wait()
        assert (tmp_path / "checkpoints" / "10" / CHECKSUMS).exists() and not (tmp_path / "checkpoints" / "5").exists()


def test_a_save_that_fails_in_the_background_is_raised_by_the_next_check(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    with opened(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(5, state_of(5), {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints_module, "write_checksums", no_space)
        checkpoints.save(10, state_of(10), {})
        with pytest.raises(UserError, match="No space left on device; the newest there is of step 5; ") as error:
            for _ in range(6000):
                checkpoints.check()
                time.sleep(0.01)
        assert "\n" not in str(error.value)
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest_whole(pytest.fail) == 5


@pytest.mark.parametrize("host_gigabytes, portions_bytes", [(1, None), (0.004, 2e6), (0.0005, 1e6)])
def test_a_state_larger_than_the_hosts_memory_may_take_is_copied_in_portions(
    tmp_path, monkeypatch, host_gigabytes, portions_bytes
):
    large = {str(number): jnp.full((250, 1000), number, jnp.float32) for number in range(8)}  # 8 MB
    state, portions, transfer = (
        dataclasses.replace(state_of(5), params=large),
        [],
        replica_slices.transfer_arrays_to_host,
    )

    def recording(arrays, *arguments, **keywords):
        portions.append(sum(array.nbytes for array in arrays))
        return transfer(arrays, *arguments, **keywords)

    monkeypatch.setattr(replica_slices, "transfer_arrays_to_host", recording)
    with opened(tmp_path / "checkpoints", host_gigabytes=host_gigabytes) as checkpoints:
        checkpoints.save(5, state, {})
        for array in jax.tree.leaves(state):  # as a step does that gets the state's memory
            array.delete()
        checkpoints.wait()
        assert max(portions) <= (portions_bytes or 8e6) and checkpoints.memory_growth_bytes > 0
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        weights = checkpoints.restore_params(
            5,
            jax.eval_shape(lambda: {name: jnp.zeros((250, 1000)) for name in large}),
            dict.fromkeys(large, one_device),
        )
        assert all((np.asarray(weights[name]) == int(name)).all() for name in large)


PRINTABLE = "".join(chr(code) for code in range(32, 127) if chr(code) not in "/\\")


@pytest.mark.parametrize("name", [PRINTABLE, "[a]", "*", "-x", "~", "%41 {b}#?", "a//b", "日本 ü\u0301", "line\nend"])
def test_a_folder_of_any_name_holds_checkpoints_that_can_be_read(tmp_path, name):
    folder = f"{tmp_path}/{name}/checkpoints"
    with opened(folder) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, state_of(step), {"name": name})
        checkpoints.wait()
    with opened(folder, read_only=True) as checkpoints:
        assert checkpoints.newest_whole(pytest.fail) == 10 and checkpoints.read_meta(10) == {"name": name}
        assert_saved(restored(checkpoints, 10), 10)


def test_a_name_that_tensorstore_refuses_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="backslash; choose another --run-dir"):
        Checkpoints(tmp_path / "a\\b" / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_not_committed(tmp_path, monkeypatch):
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(5, state_of(5), {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints_module._Folder, "glob", lambda *_: iter(()))  # Orbax finds nothing to merge
        checkpoints.save(10, state_of(10), {})
        with pytest.raises(UserError, match="saving a checkpoint .* failed: .*; the newest there is of step 5; "):
            checkpoints.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()] == ["5"]


def test_nobody_is_told_to_remove_the_only_checkpoint(two_saved, tmp_path):
    other_shapes, one_device = {"other": jax.ShapeDtypeStruct((3,), jnp.float32)}, jax.local_devices()[0]
    sharding = {"other": jax.sharding.SingleDeviceSharding(one_device)}
    with opened(two_saved, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=f"move that folder out of {two_saved} to go on from step 5$"):
            checkpoints.restore_params(10, other_shapes, sharding)
        with pytest.raises(UserError, match="cannot be read: .* put a copy in its place, or .*; .* keep it$") as error:
            checkpoints.restore_params(5, other_shapes, sharding)
        assert "remove" not in str(error.value).replace(str(two_saved), "")
    shutil.copytree(two_saved / "5", tmp_path / "5")
    remove(tmp_path / "5" / "meta" / "metadata", random.Random())
    with opened(tmp_path, read_only=True) as checkpoints, pytest.raises(UserError, match="is whole") as error:
        checkpoints.newest_whole(pytest.fail)
    assert "remove" not in str(error.value).replace(str(tmp_path), "")
