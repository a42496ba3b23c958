"""Recordings standardised by their own statistics: those of one microphone, one room, one language, or one speaker.

A checkpoint that standardises knows the mean and the standard deviation of the utterances that it was trained on. Of
other recordings they may be others by far. Here they are taken of the recordings that are to be answered: all are heard
first, their pooled audio waits on disk, and is answered when the statistics are known. No label is used; but an answer
then depends on which recordings were given with it.

A piece is what is heard at once: a recording, or of a longer one a window of it (see `predict_files`), since the
checkpoint's statistics are of utterances that were heard whole.

Letters: n recordings, N pieces of them, B pieces of a batch, G groups, d_a the width of pooled audio, K labels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lascl.data.segments import Segment
from lascl.inference.files import Answer, Mean, hear_files, why_not
from lascl.inference.recogniser import Recogniser
from lascl.modeling_lascl import pooled_statistics


FEWEST = 5  # recordings, with fewer of which statistics would be of what is said rather than of how
FEW = 30  # with fewer they are rough
EVERYTHING = ""  # the group of all recordings
AT_ONCE = 256  # recordings that are answered from their pooled audio
PART = 4096  # pieces that are read at once
NEVER_VARIES = 1e-6  # of its mean: less than that is rounding


@dataclass
class GroupStatistics:
    """By what recordings are standardised.

    Args:
        num_recordings: of which it was taken.
        mean, std: (d_a,) float32; `std` is 1 where a feature never varies, so that it is only centred.
    """

    num_recordings: int
    mean: np.ndarray
    std: np.ndarray


@dataclass
class _Heard:
    """Where the pieces of a recording, or of a segment of one, lie, or why there are none."""

    source: str | Segment
    pieces: slice
    failure: str | None


class _Pieces:
    """Of a recording, in whatever order they come; one that failed fails them all. For `hear_files`."""

    def __init__(self):
        self.pooled, self.error = [], None

    def add(self, answer: tuple[np.ndarray] | Exception):
        if isinstance(answer, Exception):
            self.error = answer
        else:
            self.pooled.append(answer[0])

    def answer(self, source: str | Segment, labels: list[str]) -> Answer | PooledRecording:
        if self.error is not None:
            return Answer.to(source, failure=why_not(source, self.error))
        pooled = np.stack(self.pooled)
        if not np.isfinite(pooled).all():
            return Answer.to(source, failure=f"{source}: gives no finite values: its samples are far too large.")
        return PooledRecording(source, pooled)


@dataclass
class PooledRecording:
    """What was heard of a recording, (pieces, d_a), before it is standardised."""

    source: str | Segment
    pooled: np.ndarray
    failure: None = None


class PooledRecordings:
    """The pooled audio of recordings, float32, in a file that is gone when this is closed.

    Args:
        model: that standardises.
        folder: where the file is; by default the system's for temporary files.

    Raises:
        ValueError: a model that does not.
    """

    def __init__(self, model: Recogniser, folder: Path | None = None):
        _check_standardises(model)
        self.model, self.heard, self.num_pieces = model, [], 0
        self._file = tempfile.TemporaryFile(prefix=".lascl-pooled-", dir=folder)  # noqa: SIM115, until `close`

    def close(self):
        self._file.close()

    def hear(
        self, paths: Sequence[str | Segment], *, batch_size: int | None = None, num_workers: int = 2
    ) -> Iterator[str | Segment]:
        """Hears files, or segments of such, and yields each when it is done."""
        model = self.model
        found = hear_files(model, paths, model.pool, _Pieces, batch_size=batch_size, num_workers=num_workers)
        with closing(found):
            for recording in found:
                count = 0 if recording.failure else len(recording.pooled)
                if count:
                    self._file.write(np.ascontiguousarray(recording.pooled, dtype="<f4").tobytes())
                pieces = slice(self.num_pieces, self.num_pieces + count)
                self.heard.append(_Heard(recording.source, pieces, recording.failure))
                self.num_pieces = pieces.stop
                yield recording.source
        self._file.flush()

    def statistics(self, groups: Sequence[str] | None = None) -> dict[str, GroupStatistics]:
        """Those of all recordings that were heard, under EVERYTHING; and, given the group of each that was to be heard,
        those of every group with FEWEST recordings or more.

        Raises:
            ValueError: fewer than FEWEST recordings could be heard.
        """
        usable = [number for number, heard in enumerate(self.heard) if not heard.failure]
        if len(usable) < FEWEST:
            raise ValueError(too_few(len(usable)))
        members = {EVERYTHING: usable}
        for number in usable if groups is not None else []:
            members.setdefault(groups[number], []).append(number)
        return {name: self._statistics(some) for name, some in members.items() if len(some) >= FEWEST}

    def _statistics(self, some: list[int]) -> GroupStatistics:
        pooled, pieces = self._pooled(), [self.heard[number].pieces for number in some]
        rows = np.concatenate([np.arange(part.start, part.stop) for part in pieces])
        parts = (torch.from_numpy(pooled[rows[start : start + PART]]) for start in range(0, len(rows), PART))
        mean, std = (values.numpy() for values in pooled_statistics(parts))
        # The same recording again and again differs by rounding alone, which must not be made large.
        std = np.where(std > NEVER_VARIES * np.abs(mean), std, 1.0)
        return GroupStatistics(len(some), mean.astype(np.float32), std.astype(np.float32))

    def _pooled(self) -> np.ndarray:
        """(N, d_a), read where it is needed."""
        width = self.model.model.config.pooled_size
        if not self.num_pieces:
            return np.zeros((0, width), "<f4")
        return np.memmap(self._file, dtype="<f4", mode="r", shape=(self.num_pieces, width))

    def answers(self, statistics: dict[str, GroupStatistics], groups: Sequence[str] | None = None) -> Iterator[Answer]:
        """One answer a recording, in the order in which they were heard, as `predict_files` gives them; of a group that
        has no statistics of its own, by those of EVERYTHING."""
        pooled = self._pooled()
        for start in range(0, len(self.heard), AT_ONCE):
            some = self.heard[start : start + AT_ONCE]
            means, owners, rows = [Mean() for _ in some], [], []
            for place, heard in enumerate(some):
                name = EVERYTHING if groups is None else groups[start + place]
                by = statistics.get(name, statistics[EVERYTHING])
                rows.append((pooled[heard.pieces] - by.mean) / by.std)
                owners += [place] * len(rows[-1])
            rows = np.concatenate(rows)
            for first in range(0, len(rows), AT_ONCE):
                answers = zip(*self.model.answer_pooled(rows[first : first + AT_ONCE]))
                for place, answer in zip(owners[first:], answers):
                    means[place].add(answer)
            for heard, mean in zip(some, means):
                source, failure = heard.source, heard.failure
                yield Answer.to(source, failure=failure) if failure else mean.answer(source, self.model.labels)


def check_own_statistics(model: Recogniser, count: int):
    """Raises ValueError for a model that does not standardise, or for fewer than FEWEST recordings."""
    _check_standardises(model)
    if count < FEWEST:
        raise ValueError(too_few(count))


def _check_standardises(model: Recogniser):
    if not model.model.config.standardises:
        raise ValueError(
            "This model does not standardise what it hears (standardise_audio none), so there is nothing that own "
            "statistics could replace: leave --standardise out."
        )


def of_another_kind(model: Recogniser, count: int) -> str:
    """What is to be said of so many answers by the training utterances' statistics; nothing where own ones would not
    do."""
    if not model.model.config.standardises or count < FEWEST:
        return ""
    return (
        "standardised by the statistics of the training utterances. Recordings of another microphone, room or language "
        "are answered better by their own: --standardise recordings."
    )


def too_few(count: int) -> str:
    """Why no statistics are taken."""
    return (
        f"Own statistics need {FEWEST} recordings or more; found {count}. Give more of the same kind, or leave "
        "--standardise out."
    )


def what_is_rough(statistics: dict[str, GroupStatistics], groups: Sequence[str] | None) -> list[str]:
    """Sentences on statistics of few recordings."""
    count = statistics[EVERYTHING].num_recordings
    if groups is None:
        told = f"the statistics are of {count} recordings: with fewer than {FEW} they are rough."
        return [told] if count < FEW else []
    without = sorted({group for group in groups if group not in statistics})
    few = sorted(name for name, by in statistics.items() if name != EVERYTHING and by.num_recordings < FEW)
    said = []
    if without:
        said.append(
            f"{_listed(without)} have fewer than {FEWEST} recordings: the statistics of all {count} are used for them."
        )
    if few:
        said.append(f"{_listed(few)} have fewer than {FEW} recordings: their statistics are rough.")
    return said


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def answer_by_own_statistics(
    model: Recogniser,
    paths: Sequence[str | Segment],
    groups: Sequence[str] | None = None,
    *,
    batch_size: int | None = None,
    num_workers: int = 2,
) -> Iterator[Answer]:
    """`lascl.predict_files` with `standardise`; here for its two passes.

    Raises:
        ValueError: fewer than FEWEST recordings, a model that does not standardise, or another number of groups.
    """
    if groups is not None and len(groups) != len(paths):
        raise ValueError(f"standardise_by needs a value for each path; found {len(groups)} for {len(paths)}.")
    check_own_statistics(model, len(paths))
    with closing(PooledRecordings(model)) as pooled:
        for _ in pooled.hear(paths, batch_size=batch_size, num_workers=num_workers):
            pass
        yield from pooled.answers(pooled.statistics(groups), groups)


# ------------------------------------------------------------------------------------------------------------- record


def as_record(statistics: dict[str, GroupStatistics]) -> list[dict]:
    """Statistics in JSON, float32 exactly."""
    return [
        {
            "group": name,
            "num_recordings": by.num_recordings,
            **{part: [float(f"{value:.9g}") for value in getattr(by, part)] for part in ("mean", "std")},
        }
        for name, by in statistics.items()
    ]


def from_record(record: list[dict]) -> dict[str, GroupStatistics]:
    """What `as_record` wrote."""
    return {
        by["group"]: GroupStatistics(
            by["num_recordings"], *(np.array(by[part], dtype=np.float32) for part in ("mean", "std"))
        )
        for by in record
    }
