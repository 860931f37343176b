"""How much memory a node has for us: by the kernel, by control groups of either version, by ulimit."""

import resource

import pytest

from engine.pipeline.memory import available_memory, check_memory


def kernel(root, group, files, free=8 * 2**20):
    """A root with the kernel's files: MemAvailable in kB, the process's control group, and files of groups."""
    for path, text in {"proc/meminfo": f"MemAvailable: {free} kB\n", "proc/self/cgroup": group, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_the_least_limit_of_a_group_and_of_those_above_it_counts(tmp_path):
    first = {"memory.limit_in_bytes": "3000000000", "memory.usage_in_bytes": "500", "memory.stat": "cache 1\n"}
    second = {"memory.max": "2000", "memory.current": "900", "memory.stat": "inactive_file 100\nactive_file 50\n"}
    open_ = {"memory.max": "max", "memory.current": "900"}
    one = kernel(tmp_path / "1", "4:memory:/a/b\n0::/\n", {f"sys/fs/cgroup/memory/a/{k}": v for k, v in first.items()})
    two = kernel(
        tmp_path / "2",
        "0::/a/b\n",
        {f"sys/fs/cgroup/a/b/{k}": v for k, v in open_.items()} | {f"sys/fs/cgroup/{k}": v for k, v in second.items()},
    )
    assert available_memory(one) == 3_000_000_000 - 500
    assert available_memory(two) == 2000 - 900 + 150
    assert available_memory(kernel(tmp_path / "3", "0::/../../x\n", {})) == 2**33
    assert available_memory(tmp_path / "nothing") is None


def test_a_group_that_is_full_has_no_memory_and_is_refused_all_the_same(tmp_path, monkeypatch):
    full = {"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "2000"}
    root = kernel(tmp_path, "0::/\n", full)
    assert available_memory(root) == 0
    monkeypatch.setattr("engine.pipeline.memory.available_memory", lambda: available_memory(root))
    with pytest.raises(ValueError, match=r"0\.0 GiB are free"):
        check_memory(2**20, 1)


def test_a_limit_on_addresses_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**30, 2**30))
    with pytest.raises(ValueError, match=r"ulimit -v.* allows 1.0 GiB"):
        check_memory(2**20, 1)
