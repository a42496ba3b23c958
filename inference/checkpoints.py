"""The folder of a checkpoint, before anything is loaded from it: which one is meant, and what makes it itself."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path


WEIGHTS = ("*.safetensors", "*.bin")
CONFIGURATION = ("config.json", "preprocessor_config.json", "processor_config.json")


def checkpoint_of(name_or_path: str | Path) -> str:
    """The checkpoint that a name stands for: itself, or of a run directory the model of all its data.

    Raises:
        ValueError: a run directory, or a folder of one, without such a model; the message names its checkpoints. Or no
            folder, where there are others beside it: a name on the Hub would be sought there for half a minute.
    """
    name, folder = str(name_or_path), Path(name_or_path)
    if folder.name != name and folder.parent.is_dir() and not folder.exists():
        beside = sorted(path.name for path in folder.parent.iterdir() if _is_of_a_run(path))
        if beside:
            near = difflib.get_close_matches(folder.name, beside, n=1)
            hint = f"; did you mean {folder.parent / near[0]}?" if near else f". There are {', '.join(beside)}."
            raise ValueError(f"There is no folder {name}{hint}")
    if not folder.is_dir() or (folder / "config.json").is_file():
        return name
    if (folder / "full-data" / "checkpoint" / "config.json").is_file():
        return str(folder / "full-data" / "checkpoint")
    inside = sorted(
        file.parent for pattern in ("", "fold-*/") for file in folder.glob(f"{pattern}checkpoint/config.json")
    )
    if not inside:
        return name
    listed = ", ".join(str(checkpoint) for checkpoint in inside)
    if len(inside) == 1:
        raise ValueError(f"{name} holds checkpoints, and is none itself: give {listed}.")
    raise ValueError(f"{name} holds checkpoints, and is none itself: give one of {listed}.")


def _is_of_a_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("recipe.yaml", "config.json", "checkpoint/config.json"))


def fingerprint(folder: str | Path, *, with_text_encoder: bool = False) -> dict[str, str]:
    """What decides the answers of a checkpoint in a folder, as hashes of its files: `weights`, `configuration` and
    `text_encoder`.

    Args:
        folder: of a checkpoint.
        with_text_encoder: whether its own text encoder decides too, as for other words than its own.
    """
    folder = Path(folder)
    text_encoder = [file for file in (folder / "text_encoder").rglob("*") if file.is_file()]
    return {
        "weights": _hash(folder, [file for pattern in WEIGHTS for file in folder.glob(pattern)]),
        "configuration": _hash(folder, [folder / name for name in CONFIGURATION if (folder / name).is_file()]),
        **({"text_encoder": _hash(folder, text_encoder)} if with_text_encoder and text_encoder else {}),
    }


def _hash(folder: Path, files: list[Path]) -> str:
    total = hashlib.blake2b(digest_size=12)
    for file in sorted(files):
        content = hashlib.blake2b()
        with open(file, "rb") as opened:
            while block := opened.read(2**22):
                content.update(block)
        total.update(os.fsencode(file.relative_to(folder)) + b"\0" + content.digest())
    return total.hexdigest()
