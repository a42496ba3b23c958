"""A part of a recording: from one moment to another, and who speaks there."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass


# Columns of a list that have the two moments: as people write them, and as `lascl-predict` does.
TIMES = (("start", "end"), ("start_s", "end_s"))


@dataclass(frozen=True)
class Segment:
    """A part of a recording; whatever reads a file reads it too, and no more of the file than that.

    Args:
        path: of the recording.
        start_s, end_s: since the recording began, in seconds. Whether there is such a part is found when it is read.
        speaker: who speaks, where that is known; it decides nothing that is read.
    """

    path: str
    start_s: float
    end_s: float
    speaker: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "path", os.fspath(self.path))

    def __str__(self):
        return f"{self.path}, {self.start_s:.3f} to {self.end_s:.3f} s"

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def check(self):
        """Raises ValueError, in a sentence that begins with the segment, unless it ends after it begins, and begins no
        earlier than its recording."""
        if not 0 <= self.start_s < self.end_s < math.inf:
            raise ValueError(f"{self}: a segment begins at 0 s or later, and ends later than that.")


def path_of(source: str | os.PathLike | Segment) -> str:
    """The file that a recording, or a part of one, is in."""
    return source.path if isinstance(source, Segment) else os.fspath(source)


def recordings_of(corpus) -> list[str | Segment]:
    """What each row of a corpus's table is about: the file of the column `audio`, or, where the table has the columns
    `start_s` and `end_s` and the row is no whole file, a segment of it. A row with a `dialog` (IEMOCAP) is a whole
    file: its times are of that dialog, which it was cut out of."""
    paths = corpus["audio"][:]
    if "start_s" not in corpus.column_names:
        return paths
    times = (corpus[name][:] for name in ("start_s", "end_s", "speaker"))
    dialogs = corpus["dialog"][:] if "dialog" in corpus.column_names else [None] * len(paths)
    return [
        path if start_s is None or dialog is not None else Segment(path, start_s, end_s, speaker)
        for path, start_s, end_s, speaker, dialog in zip(paths, *times, dialogs)
    ]


def time_columns(file: str | os.PathLike, columns: Collection[str]) -> tuple[str, str] | None:
    """Which columns of a list, of this name, say where segments begin and end; `None`: it is one of whole files.

    Raises:
        ValueError: one of the two is there without the other.
    """
    for pair in TIMES:
        there = [name for name in pair if name in columns]
        if len(there) == 2:
            return pair
        if there:
            (absent,) = set(pair) - set(there)
            raise ValueError(f"{file}: the column {there[0]!r} needs {absent!r} beside it, both in seconds.")
    return None


def times_of(row: Mapping[str, str | None], pair: tuple[str, str]) -> tuple[float, float] | None:
    """Start and end, in seconds, of a row of a list; `None` where both are empty: the whole file.

    Raises:
        ValueError: one of them is empty, or no number.
    """
    cells = [(row[name] or "").strip() for name in pair]
    if not any(cells):
        return None
    for name, cell in zip(pair, cells):
        if not cell:
            raise ValueError(f"no value for {name!r}")
        try:
            float(cell)
        except ValueError:
            raise ValueError(f"the {name} {cell!r} is no number of seconds, such as 12.5") from None
    return float(cells[0]), float(cells[1])
