"""How much memory this process may still use: the machine's and its control group's (version 2), whichever is less."""

import contextlib
import math
import os


def free_memory(proc="/proc", groups="/sys/fs/cgroup") -> int:
    """Bytes that are free now, pages of files that may be dropped included. `proc`, `groups`: where the kernel says so."""
    return int(min(_of_the_machine(proc), _of_the_group(proc, groups)))


def _of_the_machine(proc) -> int:
    with contextlib.suppress(OSError), open(os.path.join(proc, "meminfo"), encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # a system that does not say


def _of_the_group(proc, groups) -> float:
    """What the group of this process and those above it leave; infinite without a limit, or without groups."""
    try:
        with open(os.path.join(proc, "self", "cgroup"), encoding="utf-8") as lines:
            names = [line.strip()[len("0::") :] for line in lines if line.startswith("0::")]
    except OSError:
        return math.inf
    free = math.inf
    for name in names:
        parts = [part for part in name.split("/") if part]
        for depth in range(len(parts) + 1):
            free = min(free, _left(os.path.join(groups, *parts[:depth])))
    return free


def _left(group) -> float:
    try:
        limit, used = (_text(os.path.join(group, name)) for name in ("memory.max", "memory.current"))
        statistics = _text(os.path.join(group, "memory.stat")).splitlines()
        droppable = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
        return math.inf if limit == "max" else max(int(limit) - int(used) + droppable, 0)
    except (OSError, ValueError):
        return math.inf


def _text(path) -> str:
    with open(path, encoding="ascii") as handle:
        return handle.read().strip()
