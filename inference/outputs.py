"""Rows that a killed run leaves whole: CSV, JSON lines or a table; embeddings beside them; annotations for Praat,
Audacity and subtitles."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from lascl.inference.windows import Window


FORMATS = ("csv", "jsonl", "table")
PATH_WIDTH = 60  # of a table, at most


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass
class RowFormat:
    """How an answer is written.

    Args:
        name: of FORMATS.
        labels: the K labels.
        has_times: whether a row is about a part of a recording.
        trained_labels: those that the model was trained on, if it answers others: every row then says that its labels
            were not trained.
        path_width: of a table.
    """

    name: str
    labels: list[str]
    has_times: bool = False
    trained_labels: list[str] | None = None
    path_width: int = PATH_WIDTH

    @property
    def columns(self) -> list[str]:
        """Of CSV; the other formats say the same."""
        times = ["start_s", "end_s"] if self.has_times else []
        trained = ["labels_trained"] if self.trained_labels else []
        return ["path", *times, "label", *trained, *(f"probability_{label}" for label in self.labels)]

    def header(self) -> bytes:
        """What stands before all rows."""
        if self.name == "jsonl":
            return b""
        if self.name == "csv":
            return _csv_line(self.columns)
        cells = ["path".ljust(self.path_width), *(["   start_s", "     end_s"] if self.has_times else [])]
        cells += ["label".ljust(self._label_width), *self.labels]
        note = f"These labels were not trained; {', '.join(self.trained_labels)} were.\n" if self.trained_labels else ""
        return _encoded(f"{note}{'  '.join(cells)}\n")

    def row(self, path: str, label: str, probabilities: np.ndarray, times: tuple[float, float] | None = None) -> bytes:
        """One answer, with its line end. An empty label is one that is not sure enough: null in JSON."""
        times = [] if times is None else [round(moment_s, 3) for moment_s in times]
        shares = [float(f"{share:.9g}") for share in probabilities]  # float32 exactly
        if self.name == "csv":
            trained = ["false"] if self.trained_labels else []
            return _csv_line([path, *(f"{moment_s:.3f}" for moment_s in times), label, *trained, *shares])
        if self.name == "jsonl":
            record = {"path": path, **dict(zip(("start_s", "end_s"), times)), "label": label or None}
            if self.trained_labels:
                record["labels_trained"] = False
            record["probabilities"] = dict(zip(self.labels, shares))
            stray_bytes = any("\ud800" <= character <= "\udfff" for character in path)  # they are no UTF-8
            return json.dumps(record, ensure_ascii=stray_bytes).encode() + b"\n"
        cells = [one_line(path).ljust(self.path_width), *(f"{moment_s:10.3f}" for moment_s in times)]
        cells += [(label or "-").ljust(self._label_width)]
        cells += [f"{share:.3f}".rjust(len(label)) for label, share in zip(self.labels, shares)]
        return _encoded("  ".join(cells) + "\n")

    @property
    def _label_width(self) -> int:
        return max(len(label) for label in ("label", *self.labels))

    def path_of(self, record: bytes) -> str:
        """The path of a row that `row` made.

        Raises:
            ValueError: another row than such.
        """
        if self.name == "csv":
            cells = next(csv.reader([record.decode(errors="surrogateescape")]), [])
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} columns")
            return cells[0]
        found = json.loads(record)
        times = {"start_s", "end_s"} if self.has_times else set()
        trained = {"labels_trained"} if self.trained_labels else set()
        if found.keys() != {"path", "label", "probabilities", *times, *trained}:
            raise ValueError(f"keys {', '.join(found)}")
        if list(found["probabilities"]) != self.labels:
            raise ValueError(f"labels {', '.join(found['probabilities'])}")
        return found["path"]


def one_line(text: str) -> str:
    """Text on one line, with what cannot be printed escaped: file names may hold line breaks and stray bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _csv_line(cells: list) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([f"{c:.9g}" if isinstance(c, float) else c for c in cells])
    return _encoded(text.getvalue())


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # a file name's bytes, whatever they are


class RowFile:
    """Rows that go to a file, where an earlier run's are kept, or to the standard output.

    Beside a file that is not finished lies `.NAME.unfinished`, which says how it was begun. A kill leaves at most the
    last row torn, which is dropped, and the last recording with too few rows, which are dropped too.

    Args:
        path: of the file; `None` is the standard output.
        row_format: of the rows.
        begun: by name, what decides the rows; a file that is not finished is continued with the same only.

    Raises:
        ValueError: the file was begun otherwise, has other columns, or is no such file.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | None, row_format: RowFormat, begun: dict):
        self.format, self.begun, self.path = row_format, begun, path
        self.paths, self._size = [], 0  # of the rows that are there: their files, and where they end
        if path is not None:
            self._marker = path.with_name(f".{path.name}.unfinished")
            was_killed = self._marker.is_file()
            if path.exists():
                if was_killed:
                    self._check_begun(path, begun)
                with open(path, "rb") as file:
                    self._read(file, drop_last=was_killed and row_format.has_times)

    def begin(self):
        """Makes the file ready for more rows; until here nothing was touched."""
        if self.path is None:
            self._file = sys.stdout.buffer
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._marker.write_text(json.dumps(self.begun), encoding="utf-8")
            self._file = open(self.path, "ab")  # noqa: SIM115, it stays open
            self._file.truncate(self._size)
        if self._size == 0:
            self._file.write(self.format.header())
            self._file.flush()

    def _check_begun(self, path: Path, begun: dict):
        try:
            found = json.loads(self._marker.read_text(encoding="utf-8"))
        except ValueError:  # killed while it was written: nothing followed
            return
        wanted = json.loads(json.dumps(begun))
        changed = [
            f"{name} ({found.get(name)!r} there, {wanted.get(name)!r} here)"
            for name in wanted
            if found.get(name) != wanted[name]
        ]
        if changed:
            raise ValueError(
                f"{path} was begun otherwise and is not finished; different are: {', '.join(changed)}. Choose another "
                "--output, or delete that one."
            )

    def _read(self, file: BinaryIO, *, drop_last: bool):
        """Takes note of what is kept of the rows that are there."""
        again = "it was made with other labels or another --window, or by something else. Choose another --output."
        records = _records(file, may_span_lines=self.format.name == "csv")
        header, last_began = self.format.header(), 0
        if header:
            self._size, found = next(records, (0, b""))
            if self._size == 0:
                file.seek(0)
                found = file.read()
            whole = found.rstrip(b"\r\n") == header.rstrip(b"\n")
            if not whole and (self._size or not header.startswith(found)):  # a torn header is no other header
                raise ValueError(f"{self.path} has other columns than {','.join(self.format.columns)}: {again}")
        for end, record in records:
            try:
                name = self.format.path_of(record)
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{self.path} has a row of another kind ({error}): {again}") from None
            if not self.paths or self.paths[-1] != name:
                last_began = self._size
            self.paths.append(name)
            self._size = end
        if drop_last and self.paths:
            self.paths = [name for name in self.paths if name != self.paths[-1]]
            self._size = last_began

    def write(self, path: str, rows: bytes):
        """Appends what `RowFormat.row` made of a file; a kill behind this loses none of it."""
        self.paths.append(path)
        self._file.write(rows)
        self._file.flush()

    def finish(self):
        """Says that nothing is missing any more."""
        if self.path is not None:
            self._file.close()
            self._marker.unlink(missing_ok=True)


def _records(file: BinaryIO, *, may_span_lines: bool) -> Iterator[tuple[int, bytes]]:
    """Where each whole record of a file ends, and the record; what is torn at the end is left out."""
    record, end, is_open = [], 0, False  # open: within the quotes of CSV
    for line in file:
        record.append(line)
        end += len(line)
        is_open ^= may_span_lines and line.count(b'"') % 2 == 1
        if line.endswith(b"\n") and not is_open:
            yield end, b"".join(record)
            record = []


# ------------------------------------------------------------------------------------------------------- embeddings


class EmbeddingFile:
    """Audio embeddings, one a row of a `RowFile`: gathered in `.NAME.rows` until all are there, then one `.npz` with
    `path` (N,) and `audio_embeds` (N, D) float32.

    An embedding is added before its row is written, so that a kill leaves rather one too many than one too few.

    Args:
        path: of the `.npz`.
        size: D.
        paths: of the rows that are there already.

    Raises:
        ValueError: these rows have no embeddings here.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: int, paths: list[str]):
        self._path, self._size = path, size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = path.with_name(f".{path.name}.rows")
        row_bytes = 4 * size
        if paths and not self._rows.is_file() and path.is_file():
            with np.load(path) as saved:
                same = saved["path"].tolist() == paths and saved["audio_embeds"].shape[1] == size
                if same:
                    saved["audio_embeds"].astype("<f4").tofile(self._rows)
        kept = self._rows.stat().st_size // row_bytes if self._rows.is_file() else 0
        if kept < len(paths):
            raise ValueError(
                f"{path} lacks the embeddings of {len(paths) - kept} rows that are done already. Choose another "
                "--output to have them made, or leave --embeddings out."
            )
        self._file = open(self._rows, "ab")  # noqa: SIM115, it stays open
        self._file.truncate(len(paths) * row_bytes)

    def add(self, audio_embeds: np.ndarray):
        """Appends (D,)."""
        self._file.write(audio_embeds.astype("<f4").tobytes())
        self._file.flush()

    def finish(self, paths: list[str]):
        """Writes the `.npz`, whole or absent; `paths` are those of all rows."""
        self._file.close()
        embeds = np.fromfile(self._rows, dtype="<f4").reshape(len(paths), self._size)
        temporary = self._path.with_name(f".{self._path.name}.whole")
        with open(temporary, "wb") as file:
            np.savez(file, path=np.array(paths, dtype=str), audio_embeds=embeds)
        os.replace(temporary, self._path)
        self._rows.unlink()


# ------------------------------------------------------------------------------------------------------ annotations

SUFFIXES = {"textgrid": ".TextGrid", "srt": ".srt", "audacity": ".txt"}


def annotation_names(paths: Iterable[str]) -> dict[str, str]:
    """A name without suffix for each recording's annotations, none of them twice, also where case does not count.

    Folders are kept below the one that all recordings have in common; the suffix is, where two recordings of a folder
    differ in nothing else.
    """
    paths = list(paths)
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath(folders) if folders else ""
    whole = [os.path.relpath(os.path.abspath(path), root) for path in paths]
    stems = [str(PurePath(name).with_suffix("")) for name in whole]
    count = Counter(stem.casefold() for stem in stems)
    taken = {stem.casefold() for stem, times in count.items() if times == 1}
    names = {}
    for path, name, stem in zip(paths, whole, stems):
        if count[stem.casefold()] > 1:
            stem, number = name, 2
            while stem.casefold() in taken:
                stem, number = f"{name}-{number}", number + 1
            taken.add(stem.casefold())
        names[path] = stem
    return names


def annotation(kind: str, segments: list[Window], duration_s: float) -> str:
    """The content of a file of SUFFIXES: Praat's TextGrid, SRT subtitles, or a label track for Audacity.

    Args:
        kind: of SUFFIXES.
        segments: in order, none overlapping; those without a label are left out.
        duration_s: of the recording.
    """
    labelled = [segment for segment in segments if segment.label]
    if kind == "textgrid":
        return _textgrid(labelled, duration_s)
    if kind == "srt":
        cues = (
            f"{number}\n{_srt_time(s.start_s)} --> {_srt_time(s.end_s)}\n{one_line(s.label)}\n"
            for number, s in enumerate(labelled, start=1)
        )
        return "\n".join(cues)
    return "".join(f"{s.start_s:.6f}\t{s.end_s:.6f}\t{one_line(s.label)}\n" for s in labelled)


def _textgrid(segments: list[Window], duration_s: float) -> str:
    """One interval tier over the whole recording: Praat wants no gap, so there is an empty interval in each."""
    intervals, reached_s = [], 0.0
    for segment in segments:
        if segment.start_s > reached_s:
            intervals.append((reached_s, segment.start_s, ""))
        intervals.append((segment.start_s, segment.end_s, segment.label))
        reached_s = segment.end_s
    if duration_s > reached_s:
        intervals.append((reached_s, duration_s, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {duration_s:.6f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "emotion"',
        "        xmin = 0",
        f"        xmax = {duration_s:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (start_s, end_s, text) in enumerate(intervals, start=1):
        quoted = one_line(text).replace('"', '""')
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {start_s:.6f}",
            f"            xmax = {end_s:.6f}",
            f'            text = "{quoted}"',
        ]
    return "\n".join(lines) + "\n"


def _srt_time(moment_s: float) -> str:
    milliseconds = round(1000 * moment_s)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{milliseconds:03}"
