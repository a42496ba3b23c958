"""From files to answers: they are read beside the computing, and answered in batches of like length.

What goes wrong with one file, whatever it is, becomes that file's sentence and reaches no other.

Letters: K labels, D width of the joint space.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lascl.data.audio import read_blocks
from lascl.data.segments import Segment, path_of
from lascl.inference.recogniser import Recogniser
from lascl.inference.windows import cut_windows, loaded


HELD_S = 60.0  # longer recordings are read while they are answered, and never held
# Seconds of audio, padding included, that are answered at once: a CPU's caches want little, a GPU much.
BATCH_S = {"cpu": 24.0, "cuda": 240.0}
# Recordings are sorted by length within a group, whose answers then come in order: a larger one would pad less, but
# lose more work when killed.
GROUP_FILES, GROUP_S = 256, {"cpu": 300.0, "cuda": 1200.0}


# --------------------------------------------------------------------------------------------------------- reading


@dataclass
class Recording:
    """What became of reading a file or a segment of one: `samples` (n,), or none for one to be read again piece by
    piece, or why not."""

    source: str | Segment
    samples: np.ndarray | None = None
    failure: str | None = None


def why_not(source: str | Segment, error: Exception) -> str:
    """A sentence that begins with the name of a file, about whatever was raised because of it; of a segment with the
    segment's, unless it is about the file."""
    text, path = str(error).strip(), path_of(source)
    if text.startswith((path, str(Path(path)))):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: cannot be read ({error.strerror})."
    if isinstance(error, ValueError) and text:
        return f"{source}: {text}"
    return f"{source}: cannot be answered ({type(error).__name__}{f': {text}' if text else ''})."


def read_recording(source: str | Segment, model: Recogniser) -> Recording:
    """Reads a file, or a segment of one, whole, unless it is longer than HELD_S; never raises for what is wrong with
    it."""
    held, num_samples = [], 0
    try:
        with closing(read_blocks(source, sampling_rate=model.sampling_rate)) as blocks:
            for block in blocks:
                held.append(block)
                num_samples += len(block)
                if num_samples > HELD_S * model.sampling_rate:
                    return Recording(source)
        if (duration_s := num_samples / model.sampling_rate) < model.min_duration_s:
            return Recording(source, failure=f"{source}: {model.too_short(duration_s)}")
        return Recording(source, np.concatenate(held))
    except Exception as error:
        return Recording(source, failure=why_not(source, error))


def read_beside(items: Iterator) -> Iterator:
    """The same items; while one is used, the next is made in a thread."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _groups(
    model: Recogniser, sources: Iterable[str | Segment], num_workers: int, stopped: threading.Event
) -> Iterator[list[Recording]]:
    """Lists of recordings in the order of `sources`, each of at most GROUP_FILES and about GROUP_S."""
    most_s = _of_device(model, GROUP_S)
    group, held_s, pending, rest = [], 0.0, deque(), iter(sources)
    with ThreadPoolExecutor(num_workers) as threads:
        while not stopped.is_set():
            for source in itertools.islice(rest, 4 * num_workers - len(pending)):
                pending.append(threads.submit(read_recording, source, model))
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
    """What a model says to a file, or to a segment of one.

    Args:
        path: of the file.
        label: the most probable; `None` if the file failed.
        probabilities: (K,) float32, in the order of `Recogniser.labels`; `None` if it failed.
        audio_embeds: (D,) float32, of unit length; `None` if it failed.
        num_windows: in how many it was heard, of which these are the means.
        failure: why there is no answer, in a sentence that begins with the path; `None` if there is one.
        start_s, end_s, speaker: of the segment, as it was given; `None` of a whole file.
    """

    path: str
    label: str | None = None
    probabilities: np.ndarray | None = None
    audio_embeds: np.ndarray | None = None
    num_windows: int = 1
    failure: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    speaker: str | None = None

    @classmethod
    def to(cls, source: str | Segment, *said, **named) -> Answer:
        """An answer about a file or a segment; the rest is what the class takes after `path`."""
        if isinstance(source, Segment):
            named |= {"start_s": source.start_s, "end_s": source.end_s, "speaker": source.speaker}
        return cls(path_of(source), *said, **named)

    @property
    def source(self) -> str | Segment:
        """What was asked."""
        return self.path if self.start_s is None else Segment(self.path, self.start_s, self.end_s, self.speaker)


def predict_files(
    model: Recogniser | str | Path,
    paths: Iterable[str | Path | Segment] | str | Path | Segment,
    *,
    labels: Sequence[str] | None = None,
    standardise: str = "training",
    standardise_by: Sequence[str] | None = None,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> Iterator[Answer]:
    """Yields one answer a file, in the order of `paths`, as soon as its group of files is answered:

        for answer in lascl.predict_files("path/to/checkpoint", sorted(Path("calls").glob("*.wav"))):
            print(answer.path, answer.failure or answer.label)

    The next group of files is read while one is answered; within a group, batches are of like length, and the answers
    of a group come together. A file longer than `Recogniser.heard_at_once_s` is heard in windows of
    `Recogniser.window_s`, side by side, whose probabilities are averaged; the last one ends with the file. Memory
    depends neither on the number of files nor on their length.

    Args:
        model: a recogniser, or the folder or Hub name of a checkpoint.
        paths: audio files, or segments of such (`lascl.inference.read_segments` has those of a list or an RTTM file),
            taken one by one as they are needed; a single one is one answer. Of a segment nothing else is decoded.
        labels: other words than the checkpoint's own; only with a folder or name.
        standardise: `training`, by the statistics that the checkpoint has; or `recordings`, by those of these very
            recordings, which are all heard before the first answer. See `lascl.inference.own_statistics`.
        standardise_by: of each path whose it is, such as its speaker: then by the statistics of each one's recordings.
        batch_size: files or windows at once; by default as many as BATCH_S has room for.
        num_workers: threads that read.

    Raises:
        ValueError: no LaSCL checkpoint, labels that cannot be set, or labels for a recogniser, which has its own; own
            statistics of fewer than five recordings, or of a model that does not standardise.
        OSError: the checkpoint is not found. What is wrong with a file is never raised: its answer has `failure`.
    """
    if isinstance(model, Recogniser) and labels is not None:
        raise ValueError("A recogniser has its labels: give them to Recogniser.load.")
    if standardise not in ("training", "recordings"):
        raise ValueError(f"standardise must be training or recordings; found {standardise!r}.")
    model = loaded(model, labels=labels)
    paths = [paths] if isinstance(paths, str | Path | Segment) else paths
    if standardise == "recordings" or standardise_by is not None:
        from lascl.inference.own_statistics import answer_by_own_statistics

        yield from answer_by_own_statistics(
            model, list(map(_as_given, paths)), standardise_by, batch_size=batch_size, num_workers=num_workers
        )
        return
    yield from hear_files(model, paths, model, Mean, batch_size=batch_size, num_workers=num_workers)


def _as_given(source: str | Path | Segment) -> str | Segment:
    return source if isinstance(source, Segment) else os.fspath(source)


def hear_files(
    model: Recogniser,
    paths: Iterable[str | Path | Segment],
    ask: Callable,
    collector: Callable[[], Mean],
    *,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> Iterator[Answer]:
    """What `predict_files` does, whatever is asked.

    Args:
        ask: of pieces of audio, a tuple of arrays with a row for each.
        collector: makes what takes the rows of a recording's pieces, or what was raised, in any order (`add`), and says
            in the end what became of it (`answer`, of path or segment, and labels).
    """
    stopped = threading.Event()
    groups = read_beside(_groups(model, map(_as_given, paths), num_workers, stopped))
    try:
        for group in groups:
            yield from _answer_group(model, group, batch_size, ask, collector)
    finally:
        stopped.set()
        groups.close()


def windows_at_once(model: Recogniser, window_s: float, batch_size: int | None) -> int:
    """How many windows make a batch; see `predict_files`."""
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


def _answer_group(
    model: Recogniser, group: list[Recording], batch_size: int | None, ask: Callable, collector: Callable[[], Mean]
) -> Iterator[Answer]:
    pieces, owners = [], []  # samples, and the number of their recording
    for number, recording in enumerate(group):
        if recording.samples is None:
            continue
        is_whole = len(recording.samples) <= model.heard_at_once_s * model.sampling_rate
        cut = [recording.samples] if is_whole else _side_by_side(model, [recording.samples])
        for samples in cut:
            pieces.append(samples)
            owners.append(number)
    lengths_s = [model.heard_s(len(samples) / model.sampling_rate) for samples in pieces]
    collected = {number: collector() for number in owners}
    most = {"most_rows": batch_size or len(pieces), "most_s": math.inf if batch_size else _of_device(model, BATCH_S)}
    for bucket in length_buckets(lengths_s, **most):
        for index, answer in zip(bucket, _answer_each(ask, [pieces[index] for index in bucket])):
            collected[owners[index]].add(answer)
    for number, recording in enumerate(group):
        if recording.failure:
            yield Answer.to(recording.source, failure=recording.failure)
        elif recording.samples is None:
            yield _answer_long(model, recording.source, batch_size, ask, collector())
        else:
            yield collected[number].answer(recording.source, model.labels)


def _answer_each(ask: Callable, pieces: list[np.ndarray]) -> list[tuple | Exception]:
    """What is asked of each piece, or what it raised: a batch that fails is answered one by one."""
    try:
        return list(zip(*ask(pieces)))
    except Exception as error:
        return [error] if len(pieces) == 1 else [_answer_each(ask, [piece])[0] for piece in pieces]


def _answer_long(
    model: Recogniser, source: str | Segment, batch_size: int | None, ask: Callable, collected: Mean
) -> Answer:
    """Of a recording that is read again, piece by piece."""
    at_once = windows_at_once(model, model.window_s, batch_size)
    try:
        windows = read_beside(_side_by_side(model, read_blocks(source, sampling_rate=model.sampling_rate)))
        while batch := list(itertools.islice(windows, at_once)):
            for answer in zip(*ask(batch)):
                collected.add(answer)
    except Exception as error:
        return Answer.to(source, failure=why_not(source, error))
    return collected.answer(source, model.labels)


def _side_by_side(model: Recogniser, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    size = round(model.window_s * model.sampling_rate)
    return (samples for _, samples in cut_windows(blocks, size, size))


class Mean:
    """Of the answers to the windows of a recording, in whatever order they come; one that failed fails them all."""

    def __init__(self):
        self.num_windows, self.probabilities, self.audio_embeds, self.error = 0, 0.0, 0.0, None

    def add(self, answer: tuple[np.ndarray, np.ndarray] | Exception):
        if isinstance(answer, Exception):
            self.error = answer
            return
        probabilities, audio_embeds = answer
        self.num_windows += 1
        self.probabilities = self.probabilities + probabilities.astype(np.float64)
        self.audio_embeds = self.audio_embeds + audio_embeds.astype(np.float64)

    def answer(self, source: str | Segment, labels: list[str]) -> Answer:
        if self.error is not None:
            return Answer.to(source, failure=why_not(source, self.error))
        probabilities = (self.probabilities / self.num_windows).astype(np.float32)
        if not np.isfinite(probabilities).all():
            failure = f"{source}: gives no finite probabilities: its samples are far too large."
            return Answer.to(source, failure=failure)
        embeds = self.audio_embeds
        if self.num_windows > 1:
            embeds = embeds / max(np.linalg.norm(embeds), np.finfo(np.float32).tiny)
        label = labels[int(probabilities.argmax())]
        return Answer.to(source, label, probabilities, embeds.astype(np.float32), self.num_windows)
