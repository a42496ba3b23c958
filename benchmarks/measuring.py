"""What the benchmarks share: times taken in turns, bytes kept for backward, a table on screen and under `results/`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from lascl.training.run_directory import environment, write_json


RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
MIB = 2**20


def median_seconds(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate. They take turns within every round, so that a machine that is slow for a while
    is slow for all; one round before is not counted."""
    seconds = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_saved(forward: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """Bytes that autograd keeps from a forward pass until its backward pass, parameters not counted."""
    storages = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    kept = sum(storages.values())
    del output  # only now: a storage that is freed earlier could give its address to another
    return kept


def peak_cuda_mib(run: Callable[[], None]) -> float | None:
    """Highest memory allocated on the GPU during a run; `None` without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / MIB


def save_table(name: str, title: str, columns: list[str], rows: list[list], notes: str = "", **measured):
    """Prints a table and writes it with machine, versions and commit to `results/benchmarks/NAME.json`, from where
    `make readme` takes it. `measured` are the unrounded numbers behind it."""
    cells = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)
    print(f"\n{title}\n\n{table}\n\n{notes}\n", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "table": table, "notes": notes, **environment(), **measured}
    write_json(RESULTS / f"{name}.json", {**content, "threads": torch.get_num_threads()})
