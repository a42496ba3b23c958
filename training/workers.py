"""How many processes read and augment audio beside the training: what the machine has; none where they cannot help."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path


MOST = 4  # a worker makes more views than an encoder of this kind hears
CORES_A_WORKER = 4  # of a CPU that trains too
FEWEST_ROWS = 256  # of fewer, starting a worker takes as long as reading them
SHARED_BYTES = 2**30  # through which batches come; containers often have less, and a worker would be killed
SHARED, QUOTA = Path("/dev/shm"), Path("/sys/fs/cgroup/cpu.max")


def default_workers(*, has_accelerator: bool) -> int:
    """How many workers a data loader of each process has unless it is said: beside an accelerator all cores but one, at
    most `MOST`; on a CPU, whose cores train, one in `CORES_A_WORKER`, at least one. None on a single core, where
    workers are not forked (each would import torch in every epoch), and where little memory can be shared."""
    started = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    cores = cores_of_process()
    is_shared_scarce = SHARED.is_dir() and shutil.disk_usage(SHARED).free < SHARED_BYTES
    if cores < 2 or started != "fork" or is_shared_scarce:
        return 0
    return min(MOST, cores - 1 if has_accelerator else max(1, cores // CORES_A_WORKER))


def cores_of_process() -> int:
    """Cores that this process may use: of those it may run on, what its container's quota allows, divided by the
    processes that were launched on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such thing here, or no limit ("max")
        pass
    return cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
