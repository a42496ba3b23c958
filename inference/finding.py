"""What a user types, looked up: files, folders, patterns, manifests and lists; no audio is opened."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lascl.data.audio import FFMPEG_SUFFIXES


# What is taken from a folder; a file that is named is always tried. MATLAB's and headerless files are seldom audio.
AUDIO_SUFFIXES = FFMPEG_SUFFIXES | {
    *(".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".mp3", ".nist", ".oga", ".ogg"),
    *(".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav"),
    *(".wave", ".wve", ".xi"),
}


@dataclass
class Found:
    """What there is to answer.

    Args:
        paths: of recordings, each once, in the order of the inputs; a folder's are sorted.
        failures: why something else that was asked for is none, by its name.
        values: of the column that was asked for, by path.
    """

    paths: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


def find_recordings(inputs: Iterable[str], read_list: Callable[[], bytes], column: str | None = None) -> Found:
    """Looks up what a user typed; no audio is opened.

    Args:
        inputs: files; folders, with all that is in them; patterns such as `"calls/**/*.wav"`; CSV manifests with a
            column `path`, relative to the manifest; or `-` for a list.
        read_list: gives that list: paths, one a line, or, if it has NUL characters, ended by them.
        column: of the manifests, whose values are wanted.

    Raises:
        ValueError: a `column` is wanted that a manifest lacks or has two values of for a path, or inputs beside
            manifests.
    """
    found, seen = Found(), {}
    for name in inputs:
        if column is not None and not (os.path.isfile(name) and name.lower().endswith(".csv")):
            raise ValueError(f"The column {column!r} can be read of CSV lists alone; found the input {name}.")
        for path, value in _look_up(name, read_list, found.failures, column):
            if (key := os.path.abspath(path)) not in seen:
                seen[key] = value
                found.paths.append(path)
                if column is not None:
                    found.values[path] = value
            elif seen[key] != value:
                raise ValueError(f"{path} has two values of {column!r}, {seen[key]} and {value}: list it once.")
    return found


def _look_up(
    name: str, read_list: Callable[[], bytes], failures: dict[str, str], column: str | None
) -> Iterator[tuple[str, str | None]]:
    """Paths, each with its value of the column."""
    if os.path.isfile(name) and name.lower().endswith(".csv"):
        yield from _in_manifest(name, failures, column)
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
) -> Iterator[tuple[str, str | None]]:
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
            for row in reader:
                lacking = [name for name in ("path", column) if name is not None and not row[name]]
                if not lacking:
                    yield os.path.join(folder, row["path"]), row[column] if column else None
                else:
                    where = f"{manifest}, line {reader.line_num}"
                    failures[where] = f"{where}: no value for {lacking[0]!r}."
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        failures[manifest] = f"{manifest}: cannot be read as a manifest ({error})."
