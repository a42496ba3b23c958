"""From what a user types to answers: recordings are found, read beside the computing, and answered in batches of like
length.

Letters: K labels, D width of the joint space.
"""

from __future__ import annotations

import csv
import glob
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lascl.inference.recogniser import Recogniser
from lascl.inference.recordings import FFMPEG_SUFFIXES, read_blocks
from lascl.inference.windows import cut_windows


# What is taken from a folder; a file that is named is always tried. MATLAB's and headerless files are seldom audio.
AUDIO_SUFFIXES = FFMPEG_SUFFIXES | {
    *(".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".mp3", ".nist", ".oga", ".ogg"),
    *(".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav"),
    *(".wave", ".wve", ".xi"),
}
HELD_S = 60.0  # longer recordings are read while they are answered, and never held
# Seconds of audio, padding included, that are answered at once: a CPU's caches want little, a GPU much.
BATCH_S = {"cpu": 24.0, "cuda": 240.0}
# Recordings are sorted by length within a group, whose answers then come in order: a larger one would pad less, but
# lose more work when killed.
GROUP_FILES, GROUP_S = 256, {"cpu": 300.0, "cuda": 1200.0}


# --------------------------------------------------------------------------------------------------------- finding


@dataclass
class Found:
    """What there is to answer.

    Args:
        paths: of recordings, each once, in the order of the inputs; a folder's are sorted.
        failures: why something else that was asked for is none, by its name.
    """

    paths: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def find_recordings(inputs: Iterable[str], read_list: Callable[[], bytes]) -> Found:
    """Looks up what a user typed; no audio is opened.

    Args:
        inputs: files; folders, with all that is in them; patterns such as `"calls/**/*.wav"`; CSV manifests with a
            column `path`, relative to the manifest; or `-` for a list.
        read_list: gives that list: paths, one a line, or, if it has NUL characters, ended by them.
    """
    found, seen = Found(), set()
    for name in inputs:
        for path in _look_up(name, read_list, found.failures):
            if (key := os.path.abspath(path)) not in seen:
                seen.add(key)
                found.paths.append(path)
    return found


def _look_up(name: str, read_list: Callable[[], bytes], failures: dict[str, str]) -> Iterator[str]:
    if name == "-":
        listed = read_list()
        lines = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
        for path in (os.fsdecode(line) for line in lines if line.strip()):
            yield from _in_folder(path, failures) if os.path.isdir(path) else [path]
    elif os.path.isdir(name):
        yield from _in_folder(name, failures)
    elif os.path.isfile(name) and name.lower().endswith(".csv"):
        yield from _in_manifest(name, failures)
    elif not os.path.lexists(name) and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            failures[name] = f"{name}: no file matches this pattern."
        for path in matches:
            if os.path.isdir(path):
                # `**` matches the folders on its way too; what is in them has matched already, or is not wanted.
                yield from [] if "**" in name else _in_folder(path, failures)
            elif not os.path.basename(path).startswith("._"):
                yield path
    else:
        yield name  # if it is not there, reading says so


def _in_folder(folder: str, failures: dict[str, str]) -> Iterator[str]:
    def complain(error: OSError):
        failures[error.filename] = f"{error.filename}: cannot be searched ({error.strerror})."

    is_empty = True
    for root, folders, names in os.walk(folder, onerror=complain):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith("._"):
                is_empty = False
                yield os.path.join(root, name)
    if is_empty and folder not in failures:
        failures[folder] = f"{folder}: no audio file in this folder."


def _in_manifest(manifest: str, failures: dict[str, str]) -> Iterator[str]:
    folder = os.path.dirname(manifest)
    try:
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or []):
                columns = ", ".join(reader.fieldnames or []) or "none"
                failures[manifest] = f"{manifest}: a manifest needs the column 'path'; found {columns}."
                return
            for row in reader:
                if row["path"]:
                    yield os.path.join(folder, row["path"])
                else:
                    where = f"{manifest}, line {reader.line_num}"
                    failures[where] = f"{where}: no value for 'path'."
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        failures[manifest] = f"{manifest}: cannot be read as a manifest ({error})."


# --------------------------------------------------------------------------------------------------------- reading


@dataclass
class Recording:
    """What became of reading a file: `samples` (n,), or none for one to be read again piece by piece, or why not."""

    path: str
    samples: np.ndarray | None = None
    failure: str | None = None


def read_recording(path: str, model: Recogniser) -> Recording:
    """Reads a file whole, unless it is longer than HELD_S; never raises for what is wrong with it."""
    blocks, held, num_samples = read_blocks(path, sampling_rate=model.sampling_rate), [], 0
    try:
        for block in blocks:
            held.append(block)
            num_samples += len(block)
            if num_samples > HELD_S * model.sampling_rate:
                blocks.close()
                return Recording(path)
    except (ValueError, OSError) as error:
        return Recording(path, failure=str(error))
    if (duration_s := num_samples / model.sampling_rate) < model.min_duration_s:
        return Recording(path, failure=f"{path}: {model.too_short(duration_s)}")
    return Recording(path, np.concatenate(held))


def read_beside(items: Iterator) -> Iterator:
    """The same items; while one is used, the next is made in a thread."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _groups(model: Recogniser, paths: list[str], num_workers: int, stopped: threading.Event) -> Iterator[list]:
    """Lists of recordings in the order of `paths`, each of at most GROUP_FILES and about GROUP_S."""
    most_s = _of_device(model, GROUP_S)
    group, held_s, pending, rest = [], 0.0, deque(), iter(paths)
    with ThreadPoolExecutor(num_workers) as threads:
        while not stopped.is_set():
            for path in itertools.islice(rest, 4 * num_workers - len(pending)):
                pending.append(threads.submit(read_recording, path, model))
            if not pending:
                break
            group.append(pending.popleft().result())
            held_s += 0 if group[-1].samples is None else len(group[-1].samples) / model.sampling_rate
            if len(group) == GROUP_FILES or held_s >= most_s:
                yield group
                group, held_s = [], 0.0
    if group:
        yield group


# ------------------------------------------------------------------------------------------------------- answering


@dataclass
class Answer:
    """What a model says to a file.

    Args:
        path: of the file.
        probabilities: (K,) float32; `None` if it failed.
        audio_embeds: (D,) float32, of unit length; `None` if it failed.
        num_windows: in how many it was heard, of which these are the means.
        failure: why there is no answer, in a sentence.
    """

    path: str
    probabilities: np.ndarray | None = None
    audio_embeds: np.ndarray | None = None
    num_windows: int = 1
    failure: str | None = None


def answer_files(
    model: Recogniser, paths: list[str], *, batch_size: int | None = None, num_workers: int = 2
) -> Iterator[Answer]:
    """Yields one answer a file, in the order of `paths`.

    The next group of files is read while one is answered; within a group, batches are of like length, and the answers
    of a group come together. A file longer than `Recogniser.heard_at_once_s` is heard in windows of
    `Recogniser.window_s`, side by side, whose probabilities are averaged; the last one ends with the file. Memory
    depends neither on the number of files nor on their length.

    Args:
        model: what answers.
        paths: files.
        batch_size: files or windows at once; by default as many as BATCH_S has room for.
        num_workers: threads that read.
    """
    stopped = threading.Event()
    groups = read_beside(_groups(model, paths, num_workers, stopped))
    try:
        for group in groups:
            yield from _answer_group(model, group, batch_size)
    finally:
        stopped.set()
        groups.close()


def windows_at_once(model: Recogniser, window_s: float, batch_size: int | None) -> int:
    """How many windows make a batch; see `answer_files`."""
    return batch_size or max(1, int(_of_device(model, BATCH_S) / window_s))


def _of_device(model: Recogniser, values: dict[str, float]) -> float:
    return values.get(model.model.device.type, values["cuda"])


def length_buckets(lengths_s: list[float], *, most_rows: float, most_s: float) -> list[list[int]]:
    """Indices in batches of like length, the shortest first: each of at most so many rows, and of at most so many
    seconds, padding included, unless it is a single row."""
    buckets = []
    for index in sorted(range(len(lengths_s)), key=lengths_s.__getitem__):
        num_rows = len(buckets[-1]) + 1 if buckets else 0
        if not buckets or num_rows > most_rows or num_rows * lengths_s[index] > most_s:
            buckets.append([])
        buckets[-1].append(index)
    return buckets


def _answer_group(model: Recogniser, group: list[Recording], batch_size: int | None) -> Iterator[Answer]:
    pieces, owners = [], []  # samples, and the number of their recording
    for number, recording in enumerate(group):
        if recording.samples is None:
            continue
        is_whole = len(recording.samples) <= model.heard_at_once_s * model.sampling_rate
        cut = [recording.samples] if is_whole else _side_by_side(model, [recording.samples])
        for samples in cut:
            pieces.append(samples)
            owners.append(number)
    lengths_s = [len(samples) / model.sampling_rate for samples in pieces]
    if math.isfinite(model.max_duration_s):  # Whisper computes its whole window, whatever is in it
        lengths_s = [model.max_duration_s] * len(pieces)
    means = {number: _Mean() for number in owners}
    most = {"most_rows": batch_size or len(pieces), "most_s": math.inf if batch_size else _of_device(model, BATCH_S)}
    for bucket in length_buckets(lengths_s, **most):
        for index, *answer in zip(bucket, *model([pieces[index] for index in bucket])):
            means[owners[index]].add(*answer)
    for number, recording in enumerate(group):
        if recording.failure:
            yield Answer(recording.path, failure=recording.failure)
        elif recording.samples is None:
            yield _answer_long(model, recording.path, batch_size)
        else:
            yield means[number].answer(recording.path)


def _answer_long(model: Recogniser, path: str, batch_size: int | None) -> Answer:
    """Of a recording that is read again, piece by piece."""
    mean, at_once = _Mean(), windows_at_once(model, model.window_s, batch_size)
    windows = read_beside(_side_by_side(model, read_blocks(path, sampling_rate=model.sampling_rate)))
    try:
        while batch := list(itertools.islice(windows, at_once)):
            for answer in zip(*model(batch)):
                mean.add(*answer)
    except (ValueError, OSError) as error:
        return Answer(path, failure=str(error))
    return mean.answer(path)


def _side_by_side(model: Recogniser, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    size = round(model.window_s * model.sampling_rate)
    return (samples for _, samples in cut_windows(blocks, size, size))


class _Mean:
    """Of the answers to the windows of a recording, in whatever order they come."""

    def __init__(self):
        self.num_windows, self.probabilities, self.audio_embeds = 0, 0.0, 0.0

    def add(self, probabilities: np.ndarray, audio_embeds: np.ndarray):
        self.num_windows += 1
        self.probabilities = self.probabilities + probabilities.astype(np.float64)
        self.audio_embeds = self.audio_embeds + audio_embeds.astype(np.float64)

    def answer(self, path: str) -> Answer:
        probabilities = (self.probabilities / self.num_windows).astype(np.float32)
        if not np.isfinite(probabilities).all():
            return Answer(path, failure=f"{path}: gives no finite probabilities: its samples are far too large.")
        embeds = self.audio_embeds
        if self.num_windows > 1:
            embeds = embeds / max(np.linalg.norm(embeds), np.finfo(np.float32).tiny)
        return Answer(path, probabilities, embeds.astype(np.float32), self.num_windows)
