"""Intermediate checkpoints that are known to be whole, so that an interruption while one is written costs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from lascl.training.run_directory import write_json


MARKER = "whole.json"


class MarkWholeCheckpoints(TrainerCallback):
    """Writes into every checkpoint, once all processes have finished theirs, the names and sizes of its files."""

    def on_save(self, args, state, control, **kwargs):
        process = PartialState()
        process.wait_for_everyone()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if process.is_main_process and folder.is_dir():
            # DeepSpeed keeps the optimiser's state in a folder of its own.
            files = [path for path in folder.rglob("*") if path.is_file()]
            sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
            write_json(folder / MARKER, sizes)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint under `folder` whose files all have the sizes they were written with; `None` if there is
    none. What was cut off while being written, or later, is passed over, and so is what refers to a best checkpoint
    that was."""
    return next((str(path) for path in _newest_first(folder) if _is_whole(path) and _has_its_best(path)), None)


def remove_damaged_checkpoints(folder: str | Path):
    """Makes room, and keeps half a checkpoint from being completed with files of another attempt."""
    for path in _newest_first(folder):
        if not _is_whole(path):
            shutil.rmtree(path)


def _newest_first(folder) -> list[Path]:
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _has_its_best(path: Path) -> bool:
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    return best is None or _is_whole(path.parent / Path(best).name)
