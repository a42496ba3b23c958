"""Rows that a killed run leaves whole: CSV, JSON lines or a table; the record of what answered; embeddings beside them;
annotations for Praat, Audacity and subtitles.

Nothing here needs PyTorch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from lascl.console import held
from lascl.data.segments import Segment, path_of
from lascl.inference.windows import Window


FORMATS = ("csv", "jsonl", "table")
PATH_WIDTH = 60  # of a table, at most
SPEAKER_WIDTH = 12  # of a table; a longer name is written out
# What a spreadsheet takes a cell for a formula by, also in the width of East Asian letters.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
RECORD_VERSION = 1  # of the record; raised when the same checkpoint begins to answer otherwise


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass
class RowFormat:
    """How an answer is written.

    In CSV no cell is a formula to a spreadsheet: a path that would be one begins with `./`, which names the same file,
    and a label with an apostrophe, as does a label that begins with an apostrophe itself.

    Args:
        name: of FORMATS.
        labels: the K labels.
        has_times: whether a row is about a part of a recording.
        trained_labels: those that the model was trained on.
        untrained_labels: those of `labels` that were not trained; where there are any, every row says whether its own
            label was.
        path_width: of a table.
        of_segments: whether what was asked are segments, or some of it: then a row has their times and speaker, which
            are empty of a whole file.
    """

    name: str
    labels: list[str]
    has_times: bool = False
    trained_labels: list[str] = field(default_factory=list)
    untrained_labels: list[str] = field(default_factory=list)
    path_width: int = PATH_WIDTH
    of_segments: bool = False

    @property
    def columns(self) -> list[str]:
        """Of CSV; the other formats say the same."""
        times = ["start_s", "end_s"] if self.has_times or self.of_segments else []
        times += ["speaker"] if self.of_segments else []
        trained = ["labels_trained"] if self.untrained_labels else []
        return ["path", *times, "label", *trained, *(f"probability_{label}" for label in self.labels)]

    def header(self) -> bytes:
        """What stands before all rows."""
        if self.name == "jsonl":
            return b""
        if self.name == "csv":
            return _csv_line(self.columns)
        cells = ["path".ljust(self.path_width)]
        cells += ["   start_s", "     end_s"] if self.has_times or self.of_segments else []
        cells += ["speaker".ljust(SPEAKER_WIDTH)] if self.of_segments else []
        cells += ["label".ljust(self._label_width), *map(one_line, self.labels)]
        note = f"{one_line(self.note())}\n" if self.untrained_labels else ""
        return _encoded(f"{note}{'  '.join(cells)}\n")

    def note(self) -> str:
        """Which labels were not trained, and which were."""
        listed = ", ".join(self.untrained_labels)
        return f"These labels were not trained: {listed}. Trained were {', '.join(self.trained_labels)}."

    def row(
        self,
        source: str | Segment,
        label: str,
        probabilities: np.ndarray,
        times: tuple[float, float] | None = None,
    ) -> bytes:
        """One answer, with its line end. An empty label is one that is not sure enough: null in JSON."""
        path, speaker = path_of(source), []  # one, or none
        if isinstance(source, Segment):
            times, speaker = (source.start_s, source.end_s), [source.speaker]
        elif self.of_segments:
            times, speaker = (None, None), [None]
        times = [None if moment_s is None else round(moment_s, 3) for moment_s in times or ()]
        shares = [float(f"{share:.9g}") for share in probabilities]  # float32 exactly
        was_trained = label not in self.untrained_labels if label else None
        if self.name == "csv":
            trained = [{True: "true", False: "false", None: ""}[was_trained]] if self.untrained_labels else []
            moments = ["" if moment_s is None else f"{moment_s:.3f}" for moment_s in times]
            named = [label_cell(name or "") for name in speaker]
            return _csv_line([self.name_of(path), *moments, *named, label_cell(label), *trained, *shares])
        if self.name == "jsonl":
            about = dict(zip(("start_s", "end_s", "speaker"), [*times, *speaker]))
            record = {"path": path, **about, "label": label or None}
            if self.untrained_labels:
                record["labels_trained"] = was_trained
            record["probabilities"] = dict(zip(self.labels, shares))
            try:
                return json.dumps(record, ensure_ascii=False).encode() + b"\n"
            except UnicodeEncodeError:  # stray bytes of a name are no UTF-8
                return json.dumps(record).encode() + b"\n"
        cells = [one_line(path).ljust(self.path_width)]
        cells += [f"{'-':>10}" if moment_s is None else f"{moment_s:10.3f}" for moment_s in times]
        cells += [one_line(name or "-").ljust(SPEAKER_WIDTH) for name in speaker]
        cells += [(one_line(label) or "-").ljust(self._label_width)]
        cells += [f"{share:.3f}".rjust(len(one_line(label))) for label, share in zip(self.labels, shares)]
        return _encoded("  ".join(cells) + "\n")

    @property
    def _label_width(self) -> int:
        return max(len(one_line(label)) for label in ("label", *self.labels))

    def name_of(self, source: str | Segment) -> str | Segment:
        """A path as its row has it: the same file, and no formula in CSV; a segment in milliseconds."""
        if isinstance(source, Segment):
            times = (round(moment_s, 3) for moment_s in (source.start_s, source.end_s))
            return Segment(self.name_of(source.path), *times, source.speaker or None)
        return f"./{source}" if self.name == "csv" and source.startswith(FORMULA) else source

    def source_of(self, record: bytes) -> str | Segment:
        """What a row that `row` made is about, as the row has it.

        Raises:
            ValueError: another row than such.
        """
        if self.name == "csv":
            cells = next(csv.reader([record.decode(errors="surrogateescape")]), [])
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} columns")
            return self._segment(cells[0], *cells[1:3], cells[3].removeprefix("'")) if self.of_segments else cells[0]
        found = json.loads(record)
        times = {"start_s", "end_s"} if self.has_times or self.of_segments else set()
        times |= {"speaker"} if self.of_segments else set()
        trained = {"labels_trained"} if self.untrained_labels else set()
        if found.keys() != {"path", "label", "probabilities", *times, *trained}:
            raise ValueError(f"keys {', '.join(found)}")
        if list(found["probabilities"]) != self.labels:
            raise ValueError(f"labels {', '.join(found['probabilities'])}")
        named = (found.get(name) for name in ("start_s", "end_s", "speaker"))
        return self._segment(found["path"], *named) if self.of_segments else found["path"]

    def _segment(self, path: str, start_s: str | float | None, end_s: str | float | None, speaker: str | None):
        whole = start_s in (None, "")
        return path if whole else Segment(path, float(start_s), float(end_s), speaker or None)


def label_cell(label: str) -> str:
    """A label in CSV: behind an apostrophe where it would be a formula to a spreadsheet, or begins with one."""
    return f"'{label}" if label.startswith((*FORMULA, "'")) else label


def one_line(text: str) -> str:
    """Text on one line, with what cannot be printed escaped: file names may hold line breaks and stray bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _csv_line(cells: list) -> bytes:
    text = io.StringIO()
    # The writer quotes what its own line end has: of "\n" alone, a carriage return in a name would end a row.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([f"{c:.9g}" if isinstance(c, float) else c for c in cells])
    return _encoded(text.getvalue().removesuffix("\r\n") + "\n")


def _encoded(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")  # a file name's bytes, whatever they are
    except UnicodeEncodeError:  # a label of a configuration may hold half a character, which no encoding has
        return text.encode(errors="backslashreplace")


# ----------------------------------------------------------------------------------------------------------- record


@contextmanager
def sole_writer(path: Path | None) -> Iterator[None]:
    """Holds a file for this process, however long it runs; a kill leaves nothing that would have to be removed.

    Raises:
        ValueError: another process writes it, or nothing can be written where it lies.
    """
    if path is None:
        yield
        return
    real = Path(os.path.realpath(path))
    busy = f"another lascl-predict is writing {path} at this moment: wait until it has ended, or choose another."
    with ExitStack() as stack:
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(real.with_name(f".{real.name}.lock"), busy))
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror or error}): choose another place.") from None
        yield


def differences(found: dict, wanted: dict) -> str:
    """In which fields of a record two runs differ, what is there, and what is here; empty if in none. The text encoder
    is known only of runs that were given labels: where one was not, `labels` says it."""
    wanted = json.loads(json.dumps(wanted))
    if not ("text_encoder" in found and "text_encoder" in wanted):
        found, wanted = ({k: v for k, v in record.items() if k != "text_encoder"} for record in (found, wanted))
    return ", ".join(
        f"{name} ({found.get(name)!r} there, {wanted.get(name)!r} here)"
        for name in [*wanted, *(found.keys() - wanted.keys())]
        if found.get(name) != wanted.get(name)
    )


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to be written that is whole or absent, whenever the process dies."""
    # A short name, since the file's own may be as long as names can be.
    temporary = path.with_name(f".lascl-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name points to it: a lost machine must not leave an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RowFile:
    """Rows that go to a file, where an earlier run's are kept, or to the standard output.

    Beside a file NAME lies `NAME.lascl.json`, the record of what answered and whether it was finished: a file is
    continued by the same only, so that no row of another model stands among its rows. A kill leaves at most the last
    row torn, which is dropped, and the last recording with too few rows, which are dropped too.

    Args:
        path: of the file; `None` is the standard output.
        row_format: of the rows.
        answered_by: by name, all that decides the rows.
        overwrite: whether what is there goes, whatever it is.

    Raises:
        ValueError: what is there was answered otherwise, has no record, has other columns, or is no such file.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | None, row_format: RowFormat, answered_by: dict, *, overwrite: bool = False):
        self.format, self.path, self.overwrite = row_format, path, overwrite
        self.answered_by = {"version": RECORD_VERSION, **answered_by}
        self.paths, self._size = [], 0  # of the rows that are there: their files or segments, and where they end
        self.statistics = None  # by which recordings are standardised, where they are their own, as JSON
        if path is None:
            return
        self._record = path.with_name(f"{path.name}.lascl.json")
        if path.exists() and not overwrite:
            record = self._read_record()
            if record is not None and (changed := differences(record["answered_by"], self.answered_by)):
                raise ValueError(f"{path} was answered otherwise; different are: {changed}. {self._remedy}")
            with open(path, "rb") as file:
                self._read(file, drop_last=row_format.has_times and record is not None and not record["finished"])
            if self.paths and record is not None:
                self.statistics = record.get("statistics")
            if self.paths and record is None:
                raise ValueError(
                    f"{path} has rows, but {self._record.name} beside it, which says what answered them, is missing or "
                    f"damaged: an older LaSCL wrote them, or something else. {self._remedy}"
                )

    _remedy = "Choose another --output, or have all answered again with --overwrite."

    def begin(self):
        """Makes the file ready for more rows; until here nothing was touched."""
        if self.path is None:
            self._file = sys.stdout.buffer
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.overwrite and self.path.exists():
                os.truncate(self.path, 0)  # before the record says otherwise
            self._write_record(finished=False)
            self._file = open(self.path, "ab")  # noqa: SIM115, it stays open
            self._file.truncate(self._size)
        if self._size == 0:
            self._file.write(self.format.header())
            self._file.flush()

    def _read_record(self) -> dict | None:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            return record if isinstance(record["answered_by"], dict) and isinstance(record["finished"], bool) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _write_record(self, *, finished: bool):
        content = {"finished": finished, "answered_by": self.answered_by}
        if self.statistics is not None:
            content["statistics"] = self.statistics
        with whole_file(self._record) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def _read(self, file: BinaryIO, *, drop_last: bool):
        """Takes note of what is kept of the rows that are there."""
        again = f"it was made with other labels or another --window, or by something else. {self._remedy}"
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
                name = self.format.source_of(record)
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{self.path} has a row of another kind ({error}): {again}") from None
            if not self.paths or self.paths[-1] != name:
                last_began = self._size
            self.paths.append(name)
            self._size = end
        if drop_last and self.paths:
            self.paths = [name for name in self.paths if name != self.paths[-1]]
            self._size = last_began

    def write(self, source: str | Segment, rows: bytes):
        """Appends what `RowFormat.row` made of a file, or a segment; a kill behind this loses none of it."""
        self.paths.append(self.format.name_of(source))
        self._file.write(rows)
        self._file.flush()

    def finish(self):
        """Says that nothing is missing any more."""
        if self.path is not None:
            self._file.close()
            self._write_record(finished=True)


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
    """Audio embeddings, one a row of a `RowFile`: gathered beside the rows until all are there, then one `.npz` with
    `path` (N,), `audio_embeds` (N, D) float32, and `answered_by`, the record of the rows as JSON; of segments also
    `start_s` and `end_s` (N,) float64, NaN of whole files, and `speaker` (N,).

    An embedding is added before its row is written, so that a kill leaves rather one too many than one too few.

    Args:
        path: of the `.npz`.
        size: D.
        rows: the rows that they belong to; not yet begun.

    Raises:
        ValueError: an `.npz` of another run is there, or rows that are there have no embeddings.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: int, rows: RowFile):
        self._path, self._size, self._rows = path, size, rows
        beside = path if rows.path is None else rows.path
        self._gathered = beside.with_name(f".{beside.name}.embeddings")
        self._kept = rows.paths[:]
        if path.exists() and not rows.overwrite:
            self._refuse_another_run()
        has_all = self._gathered.is_file() and self._gathered.stat().st_size >= len(self._kept) * 4 * size
        if self._kept and not has_all and not self._is_whole():
            raise ValueError(
                f"{path} lacks the embeddings of {len(self._kept)} rows that are done already. Choose another --output "
                "to have them made, have all answered again with --overwrite, or leave --embeddings out."
            )
        self._from_npz = bool(self._kept) and not has_all

    def _refuse_another_run(self):
        remedy = "Choose another --embeddings, or replace it with --overwrite."
        if not self._rows.paths:
            raise ValueError(f"{self._path} exists, and is of another run. {remedy}")
        try:
            with np.load(self._path) as saved:
                found = json.loads(str(saved["answered_by"]))
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{self._path} exists, and says not of which run it is. {remedy}") from None
        if changed := differences(found, self._rows.answered_by):
            raise ValueError(f"{self._path} is of another run; different are: {changed}. {remedy}")

    def _is_whole(self) -> bool:
        """Whether the `.npz` has the embeddings of the rows that are there."""
        if not self._path.is_file():
            return False
        with np.load(self._path) as saved:
            of_rows = self._about(self._kept)
            same = all(
                name in saved and np.array_equal(saved[name], found, equal_nan=found.dtype.kind == "f")
                for name, found in of_rows.items()
            )
            return same and saved["audio_embeds"].shape[1] == self._size

    def _about(self, sources: list[str | Segment]) -> dict[str, np.ndarray]:
        """What the rows are about, by name."""
        arrays = {"path": np.array([path_of(source) for source in sources], dtype=str)}
        if self._rows.format.of_segments:
            whole = Segment("", np.nan, np.nan)
            parts = [source if isinstance(source, Segment) else whole for source in sources]
            arrays |= {name: np.array([getattr(part, name) for part in parts]) for name in ("start_s", "end_s")}
            arrays["speaker"] = np.array([part.speaker or "" for part in parts], dtype=str)
        return arrays

    def begin(self):
        """Makes ready for more; until here nothing was touched."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._from_npz:
            with np.load(self._path) as saved:
                saved["audio_embeds"].astype("<f4").tofile(self._gathered)
        elif self._rows.overwrite:
            self._path.unlink(missing_ok=True)
        self._file = open(self._gathered, "ab")  # noqa: SIM115, it stays open
        self._file.truncate(len(self._kept) * 4 * self._size)

    def add(self, audio_embeds: np.ndarray):
        """Appends (D,)."""
        self._file.write(audio_embeds.astype("<f4").tobytes())
        self._file.flush()

    def finish(self):
        """Writes the `.npz`, whole or absent."""
        self._file.close()
        paths = self._rows.paths
        with whole_file(self._path) as file:
            np.savez(
                file,
                **self._about(paths),
                audio_embeds=np.fromfile(self._gathered, dtype="<f4").reshape(len(paths), self._size),
                answered_by=np.array(json.dumps(self._rows.answered_by)),
            )
        self._gathered.unlink()


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
