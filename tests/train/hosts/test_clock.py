"""The clock that several processes share, where one process stands for eight of one device each."""

import jax
import pytest

from train.hosts import processes
from train.sharding import MeshConfig, make_mesh


@pytest.fixture
def eight_processes(monkeypatch):
    """Each device's process is asked in turn whether it is the first."""
    turns = iter(range(len(jax.devices())))
    monkeypatch.setattr(processes, "num_hosts", lambda: 8)
    monkeypatch.setattr(processes, "is_first", lambda: next(turns) == 0)


@pytest.mark.parametrize("seconds", [0.0, 1.5, 86_400.0])
def test_the_first_process_tells_all_devices_its_clock(eight_processes, seconds):
    everywhere = processes.make_first_number(make_mesh(MeshConfig()))(seconds)
    assert len(everywhere.addressable_shards) == 8
    assert [float(shard.data) for shard in everywhere.addressable_shards] == [seconds] * 8
