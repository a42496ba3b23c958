"""Every file of a corpus is decoded once before training, in parallel, and remembered.

A file that turns out to be broken in the middle of a run costs hours; one that is broken at the start costs a sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
from tqdm.auto import tqdm

from lascl.data.audio import decoded_duration_s


def check_audio(paths: Iterable[str | Path], *, cache_dir: str | Path | None = None) -> dict[str, float | str]:
    """Decodes files whole and tells how long they are, or what is wrong with them.

    How long a file is is remembered by path, size and modification time, so that a second call costs a look at its
    entry in its folder. What is wrong is not: another version, or ffmpeg, may read the file by then.

    Args:
        paths: audio files.
        cache_dir: where to remember; by default in the Hugging Face cache.

    Returns:
        For each path, as a string, its length in seconds, or a sentence that names the file and the remedy.
    """
    paths = [str(path) for path in paths]
    store = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "lascl-checked-audio")
    store.mkdir(parents=True, exist_ok=True)
    # One file for each set of folders: corpora do not rewrite each other's.
    folders = "\n".join(sorted({os.path.dirname(path) for path in paths}))
    memory = store / f"{hashlib.blake2b(folders.encode(), digest_size=16).hexdigest()}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one
        known = {}

    stamps = {path: file_stamp(path) for path in paths}
    sound = {path for path, (stamp, found) in known.items() if stamp == stamps.get(path) and not isinstance(found, str)}
    new = [path for path, stamp in stamps.items() if stamp is None or path not in sound]
    if new:
        # Decoding happens outside Python's lock: threads are enough, and cost no start-up.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            found = list(tqdm(pool.map(_decode, new), total=len(new), desc="Checking audio", disable=len(new) < 1000))
        known |= {path: [stamps[path], result] for path, result in zip(new, found)}
        temporary = memory.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        os.replace(temporary, memory)
    return {path: known[path][1] for path in paths}


def file_stamp(path: str | Path) -> list[int] | None:
    """Size in bytes and time of the last change in nanoseconds, by which a file is known again; `None` without it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _decode(path: str) -> float | str:
    try:
        return decoded_duration_s(path)
    except (ValueError, OSError) as error:
        return str(error)
