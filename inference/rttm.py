"""Who speaks when, as pyannote and others write it (RTTM): one segment a line, of a recording named by its stem.

A line `SPEAKER call 1 12.34 2.5 <NA> <NA> ann <NA> <NA>` has type, recording, channel, onset and duration in seconds,
and as its eighth field the speaker (NIST, Rich Transcription 2009, appendix A). All channels are heard as one.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator

from lascl.data.audio import AUDIO_SUFFIXES, FFMPEG_SUFFIXES
from lascl.data.segments import Segment


RTTM = ".rttm"


def segments_of_rttm(file: str, data_dir: str | None, failures: dict[str, str]) -> Iterator[tuple[Segment, str]]:
    """The segments of a file, each with the name of its recording there; overlapping ones too.

    Args:
        file: RTTM. Lines of other types than SPEAKER are passed over.
        data_dir: where recordings are looked for, in folders or not, before they are beside the file.
        failures: gets what cannot be read, by its name.
    """
    lines = list(_speaker_lines(file, failures))
    count, places = Counter(stem for _, stem, *_ in lines), {}
    beside = os.path.dirname(file)
    where = [] if data_dir is None else [_by_name(os.path.join(root, name) for root, name in _below(data_dir))]
    where.append(_by_name(os.path.join(beside, name) for root, name in _below(beside or ".", only_here=True)))
    for line, stem, start_s, duration_s, speaker in lines:
        if stem not in places:
            try:
                places[stem] = _recording_of(stem, where, data_dir)
            except ValueError as error:
                more = f" Its {count[stem]} segments are left out." if count[stem] > 1 else ""
                places[stem], failures[f"{file}: {stem}"] = None, f"{file}, line {line}: {error}{more}"
        if places[stem] is not None:
            # To the microsecond: 0.1 + 0.2 is not to be another moment than 0.3.
            yield Segment(places[stem], start_s, round(start_s + duration_s, 6), speaker), stem


def _speaker_lines(file: str, failures: dict[str, str]) -> Iterator[tuple[int, str, float, float, str | None]]:
    """Line number, recording, onset and duration in seconds, and speaker of each SPEAKER line."""
    is_empty = True
    try:
        with open(file, encoding="utf-8-sig") as opened:
            for number, line in enumerate(opened, start=1):
                fields = line.split()
                if not fields or fields[0].startswith(";") or fields[0].upper() != "SPEAKER":
                    continue
                is_empty, where = False, f"{file}, line {number}"
                if len(fields) < 8:
                    failures[where] = f"{where}: has {len(fields)} fields, and a SPEAKER line has ten."
                    continue
                try:
                    times = float(fields[3]), float(fields[4])
                except ValueError:
                    told = f"onset and duration {fields[3]!r} and {fields[4]!r} are no numbers of seconds"
                    failures[where] = f"{where}: {told}."
                    continue
                yield number, fields[1], *times, None if fields[7] == "<NA>" else fields[7]
    except (OSError, UnicodeDecodeError) as error:
        failures[file] = f"{file}: cannot be read as RTTM ({error})."
        return
    if is_empty:
        failures[file] = f"{file}: has no SPEAKER line."


def _recording_of(stem: str, where: list[dict[str, list[str]]], data_dir: str | None) -> str:
    """The one recording of this name, in the first place that has it.

    Raises:
        ValueError: there is none, or several.
    """
    found = next((named[stem] for named in where if stem in named), [])
    if len(found) > 1:  # a video, and its sound beside it
        found = [path for path in found if os.path.splitext(path)[1].lower() not in FFMPEG_SUFFIXES] or found
    if not found:
        looked = "beside it" if data_dir is None else f"under {data_dir} or beside it"
        raise ValueError(f"there is no recording {stem!r} {looked}: say where with --data_dir.")
    if len(found) > 1:
        listed = " and ".join(sorted(found)[:2])
        raise ValueError(f"{len(found)} recordings are called {stem!r}, {listed} for two: keep one in --data_dir.")
    return found[0]


def _below(folder: str, *, only_here: bool = False) -> Iterator[tuple[str, str]]:
    """Folder and name of each file, in folders or not; what may not be read is passed over."""
    walk = os.walk(folder)
    return ((root, name) for root, _, names in (itertools.islice(walk, 1) if only_here else walk) for name in names)


def _by_name(paths: Iterable[str]) -> dict[str, list[str]]:
    """Those that are recordings by their ending, by name with and without it."""
    found = {}
    for path in paths:
        name, ending = os.path.splitext(os.path.basename(path))
        if ending.lower() in AUDIO_SUFFIXES and not name.startswith("._"):
            for told in (name, name + ending):
                found.setdefault(told, []).append(path)
    return found
