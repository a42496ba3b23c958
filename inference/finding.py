"""What a user types, looked up: files, folders, patterns, manifests, segments and lists; no audio is opened."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lascl.data.audio import AUDIO_SUFFIXES
from lascl.data.segments import Segment, time_columns, times_of
from lascl.inference.rttm import RTTM, segments_of_rttm


@dataclass
class Found:
    """What there is to answer.

    Args:
        paths: of recordings, and segments of such, each once, in the order of the inputs; a folder's are sorted.
        failures: why something else that was asked for is none, by its name.
        values: of the column that was asked for, by path or segment.
    """

    paths: list[str | Segment] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    values: dict[str | Segment, str] = field(default_factory=dict)

    @property
    def has_segments(self) -> bool:
        """Whether there are parts of recordings among them."""
        return any(isinstance(path, Segment) for path in self.paths)


def same(source: str | Segment) -> str | tuple:
    """What two names of the same recording, or of the same segment, have in common: rows have milliseconds."""
    if isinstance(source, Segment):
        times = (f"{moment_s:.3f}" for moment_s in (source.start_s, source.end_s))
        return os.path.abspath(source.path), *times, source.speaker or ""
    return os.path.abspath(source)


def find_recordings(
    inputs: Iterable[str], read_list: Callable[[], bytes], column: str | None = None, data_dir: str | None = None
) -> Found:
    """Looks up what a user typed; no audio is opened.

    Args:
        inputs: files; folders, with all that is in them; patterns such as `"calls/**/*.wav"`; CSV manifests with a
            column `path`, relative to the manifest, and, where a row is a segment, `start`, `end` and, if it is known,
            `speaker`; RTTM files; or `-` for a list.
        read_list: gives that list: paths, one a line, or, if it has NUL characters, ended by them.
        column: of the manifests, whose values are wanted. RTTM has `speaker`; that is one of its recording alone, so
            the recording's name stands in front.
        data_dir: where the recordings of RTTM files lie, if not beside them.

    Raises:
        ValueError: a `column` is wanted that a manifest lacks or has two values of for a path, or inputs beside
            manifests; `data_dir` is no folder, or there is no RTTM file.
    """
    inputs = list(inputs)
    if data_dir is not None and not any(map(_is_rttm, inputs)):
        raise ValueError(f"--data_dir {data_dir} is where the recordings of RTTM files lie, and none is given.")
    if data_dir is not None and not os.path.isdir(data_dir):
        raise ValueError(f"--data_dir {data_dir} is no folder.")
    found, seen = Found(), {}
    for name in inputs:
        if column is not None and not (os.path.isfile(name) and name.lower().endswith((".csv", RTTM))):
            raise ValueError(f"The column {column!r} can be read of CSV lists alone; found the input {name}.")
        for path, value in _look_up(name, read_list, found.failures, column, data_dir):
            if (key := same(path)) not in seen:
                seen[key] = value
                found.paths.append(path)
                if column is not None:
                    found.values[path] = value
            elif seen[key] != value:
                raise ValueError(f"{path} has two values of {column!r}, {seen[key]} and {value}: list it once.")
    return found


def read_segments(file: str | os.PathLike, *, data_dir: str | os.PathLike | None = None) -> list[str | Segment]:
    """What a list names, for `predict_files`: a CSV with the columns `path` (relative to it), `start`, `end`, in
    seconds, and, if it is known, `speaker`; or an RTTM file. A row without times is a whole file.

    Args:
        data_dir: where the recordings of an RTTM file lie, if not beside it.

    Raises:
        ValueError: no such list, a row that cannot be read, or a recording that is not found. Whether a recording has
            such a segment is found when it is read.
    """
    if not os.path.isfile(file) or not os.fspath(file).lower().endswith((".csv", RTTM)):
        raise ValueError(f"{file} is no list of segments: give a file that ends in .csv or {RTTM}.")
    found = find_recordings([os.fspath(file)], bytes, data_dir=None if data_dir is None else os.fspath(data_dir))
    if found.failures:
        first, *others = found.failures.values()
        raise ValueError(first + (f" The same goes for {len(others)} more." if others else ""))
    return found.paths


def _is_rttm(name: str) -> bool:
    return os.path.isfile(name) and name.lower().endswith(RTTM)


def _look_up(
    name: str, read_list: Callable[[], bytes], failures: dict[str, str], column: str | None, data_dir: str | None
) -> Iterator[tuple[str | Segment, str | None]]:
    """Paths and segments, each with its value of the column."""
    if os.path.isfile(name) and name.lower().endswith(".csv"):
        yield from _in_manifest(name, failures, column)
    elif _is_rttm(name):
        if column not in (None, "speaker"):
            raise ValueError(f"{name} has no column {column!r}: of RTTM there is 'speaker'.")
        for segment, stem in segments_of_rttm(name, data_dir, failures):
            yield segment, column and f"{stem}/{segment.speaker or ''}"
    else:
        yield from ((path, None) for path in _named(name, read_list, failures))


def _named(name: str, read_list: Callable[[], bytes], failures: dict[str, str]) -> Iterator[str]:
    if name == "-":
        listed = read_list()
        lines = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
        for path in (os.fsdecode(line) for line in lines if line.strip()):
            yield from _in_folder(path, failures) if os.path.isdir(path) else [path]
    elif os.path.isdir(name):
        yield from _in_folder(name, failures)
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


def _in_manifest(
    manifest: str, failures: dict[str, str], column: str | None = None
) -> Iterator[tuple[str | Segment, str | None]]:
    folder = os.path.dirname(manifest)
    try:
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or []):
                columns = ", ".join(reader.fieldnames or []) or "none"
                failures[manifest] = f"{manifest}: a manifest needs the column 'path'; found {columns}."
                return
            if column is not None and column not in reader.fieldnames:
                raise ValueError(f"{manifest} has no column {column!r}; found {', '.join(reader.fieldnames)}.")
            timed = time_columns(manifest, reader.fieldnames)
            for row in reader:
                try:
                    yield _in_row(row, folder, timed, column)
                except ValueError as error:
                    where = f"{manifest}, line {reader.line_num}"
                    failures[where] = f"{where}: {error}."
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        failures[manifest] = f"{manifest}: cannot be read as a manifest ({error})."


def _in_row(
    row: dict[str, str], folder: str, timed: tuple[str, str] | None, column: str | None
) -> tuple[str | Segment, str | None]:
    """The recording or the segment of a manifest's row, and its value of the column.

    Raises:
        ValueError: a value is missing, or a time is no number.
    """
    lacking = [name for name in ("path", column) if name is not None and not row[name]]
    if lacking:
        raise ValueError(f"no value for {lacking[0]!r}")
    path, times = os.path.join(folder, row["path"]), times_of(row, timed) if timed else None
    value = row[column] if column else None
    return path if times is None else Segment(path, *times, (row.get("speaker") or "").strip() or None), value
