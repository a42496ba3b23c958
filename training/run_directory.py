"""The run directory: what makes a run itself, and files that are whole or absent."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

import datasets
import numpy as np
import torch
import yaml
from accelerate import PartialState

from lascl.console import held
from lascl.data.segments import Segment, recordings_of
from lascl.training.recipe import NOT_IDENTITY, Recipe, recorded_recipe, with_absent, without_places


@contextmanager
def claimed(run_dir: str | Path, parts: Iterable[str]) -> Iterator[None]:
    """Makes the run directory and holds parts of it, such as `fold-1`, for the processes of one command: two commands
    may share a run, but no fold. A kill leaves nothing that would have to be removed.

    Raises:
        ValueError: another command trains one of them, or the directory cannot be written.
    """
    run_dir = Path(run_dir)
    with ExitStack() as stack:
        if PartialState().is_main_process:
            _make(run_dir)
            for part in parts:
                busy = (
                    f"Another command is training {part} in {run_dir} at this moment. Wait until it has ended, or "
                    "choose other folds or another output_dir."
                )
                stack.enter_context(held(run_dir / f".{part}.lock", busy))
        yield


def open_run(run_dir: str | Path, recipe: Recipe, corpus: datasets.Dataset) -> bool:
    """Begins a run in its directory, or goes on in one whose recipe is the same; from its first second a run is itself,
    whatever of it is done.

    A field that the run's recipe lacks, because older code wrote it, has the value by which that code acted
    (`lascl.training.recipe.WHEN_ABSENT`).

    Writes `recipe.yaml` and `environment.json`.

    Returns:
        Whether the run is new.

    Raises:
        ValueError: the directory holds a run of another recipe (the fields that differ are named) or of the same
            corpus with other utterances, labels or speakers, or cannot be written.
    """
    run_dir, wanted = Path(run_dir), recipe.to_dict()
    _make(run_dir)
    path = run_dir / "recipe.yaml"
    if is_continued := path.is_file():
        found = without_places(with_absent(recorded_recipe(run_dir)))
        # Through YAML, so that 1 and 1.0, lists and tuples compare as they were written.
        wanted_again = without_places(yaml.safe_load(yaml.safe_dump(wanted)))
        changed = [
            f"{name} ({found.get(name)!r} there, {wanted_again.get(name)!r} here)"
            for name in sorted(found.keys() | wanted_again.keys())
            if name not in NOT_IDENTITY and found.get(name) != wanted_again.get(name)
        ]
        if changed:
            raise ValueError(
                f"{run_dir} holds a run of another recipe; different are: {'; '.join(changed)}. Choose another "
                "output_dir, or delete that one."
            )
        begun = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
        if begun["corpus_fingerprint"] != corpus_fingerprint(corpus):
            raise ValueError(
                f"The corpus has changed since {run_dir} was begun: other utterances, labels, speakers or folds. "
                "Choose another output_dir, or delete that one."
            )
    else:
        shutil.rmtree(run_dir / "encoders", ignore_errors=True)  # of an earlier start that came to nothing
        # Of the start only: a fold that is trained later carries its own commit in `metrics.json`.
        begun = {**environment(), "corpus_fingerprint": corpus_fingerprint(corpus)}
        write_json(run_dir / "environment.json", begun)
        write_text(path, yaml.safe_dump(wanted, sort_keys=True, allow_unicode=True))
    return not is_continued


def forget_run(run_dir: Path):
    """Takes back what `open_run` and its callers noted of a run that could not begin: another recipe may be tried."""
    for name in ("recipe.yaml", "environment.json", "protocol.json", "skipped.csv"):
        (run_dir / name).unlink(missing_ok=True)


def _make(run_dir: Path):
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {run_dir} cannot be written ({error.strerror}). Choose another.") from None
    if not os.access(run_dir, os.W_OK):
        raise ValueError(f"output_dir {run_dir} cannot be written (no permission). Choose another.")


def corpus_fingerprint(corpus: datasets.Dataset) -> str:
    """A hash of what decides folds and scores: each row's id, label, speaker, session, fold and corpus, the times of a
    segment, and, where votes are learned, its shares; not where files lie."""
    names = ("id", "label", "speaker", "session", "fold", "corpus", "shares")
    columns = [name for name in names if name in corpus.column_names]
    content = [corpus.features["label"].names, *(corpus[name][:] for name in columns)]
    recordings = recordings_of(corpus)
    if any(isinstance(recording, Segment) for recording in recordings):
        content += [[getattr(recording, end, None) for recording in recordings] for end in ("start_s", "end_s")]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def environment() -> dict:
    """Versions, machine and commit: what a reader needs to repeat a number."""
    packages = ("lascl", "torch", "transformers", "accelerate", "datasets", "audiomentations", "numpy")
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _commit() -> str | None:
    """The commit of this package's own checkout, with `-dirty` if tracked files other than results differ; `None`
    outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top) != root:
            return None
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain", "-uno", "--", ".", ":!results") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_json(path: str | Path, content):
    """Writes JSON so that the file is whole or absent, whenever the process dies."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, rows: list[dict]):
    """Writes rows with equal keys, whole or absent; numbers with 9 significant digits, which is float32 exactly."""
    lines = []
    for row in [dict(zip(rows[0], rows[0])), *rows]:
        text = io.StringIO()
        # The writer quotes what its own line end has: of "\n" alone, a carriage return in an id would end a row.
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\r\n")
        writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    write_text(path, "".join(lines))


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]):
    """Writes an `.npz`, whole or absent."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def write_text(path: str | Path, text: str):
    """Writes text so that the file is whole or absent, whenever the process dies."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes):
    """Writes bytes so that the file is whole or absent, whenever the process dies."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # before the name points to it: a lost machine must not leave an empty file
    os.replace(temporary, path)


def link_or_copy(source: str | Path, target: str | Path):
    """A hard link to a file, or a copy where there can be none. What is linked must only ever be replaced, never
    written to."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that a file could not be written for want of space, quota or allowed size.

    Only Python's own files raise OSError; safetensors and torch have words of their own.
    """
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    words = ("No space left on device", "quota exceeded", "File too large", "PytorchStreamWriter", "inline_container")
    return any(word in str(error) for word in words)
