import types

import psutil
import pytest

from tokenizer_lab.memory import available_bytes

MACHINE = 20 << 30
V2 = {"memory.max": "{limit}", "memory.current": str(6 << 30), "memory.stat": f"anon 5\ninactive_file {2 << 30}"}
V1 = {
    "memory.limit_in_bytes": "{limit}",
    "memory.usage_in_bytes": str(6 << 30),
    "memory.stat": f"inactive_file 1\ntotal_inactive_file {2 << 30}",
}


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/", "", V2),
        ("0::/job/step", "job/step", V2),
        ("0::/job/step", "job", V2),  # a limit of the group above
        ("0::/not/shown/in/a/container", "", V2),
        ("7:cpu:/x\n9:memory:/slurm/job", "memory/slurm", V1),
    ],
)
@pytest.mark.parametrize(("limit", "left"), [(10 << 30, 6 << 30), (4 << 30, 0), (1 << 60, MACHINE), ("max", MACHINE)])
def test_memory_is_what_the_machine_and_the_limits_leave(line, folder, files, limit, left, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=MACHINE))
    (tmp_path / "cgroups" / folder).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "cgroups" / folder / name).write_text(content.format(limit=limit) + "\n")
    (tmp_path / "own").write_text(line + "\n")
    assert available_bytes(tmp_path / "cgroups", tmp_path / "own") == left


def test_without_control_groups_it_is_the_machine_s(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=MACHINE))
    assert available_bytes(tmp_path / "none", tmp_path / "none") == MACHINE
