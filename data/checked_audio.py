"""Every file of a corpus is decoded once before training, in parallel, and remembered.

A file that turns out to be broken in the middle of a run costs hours; one that is broken at the start costs a sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import soundfile
from tqdm.auto import tqdm

from lascl.data.audio import OVERHANG_S, decoded_duration_s, own_rate, read_blocks
from lascl.data.segments import Segment, path_of


PLAIN = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # of libsndfile's subtypes of WAV


def check_audio(
    sources: Iterable[str | Path | Segment], *, cache_dir: str | Path | None = None
) -> dict[str | Segment, float | str]:
    """Decodes files whole and tells how long they are, or what is wrong with them. Of segments every file is decoded
    once.

    How long a file is is remembered by path, size and modification time, so that a second call costs a look at its
    entry in its folder. What is wrong is not: another version, or ffmpeg, may read the file by then.

    Args:
        sources: audio files, and segments of such.
        cache_dir: where to remember; by default in the Hugging Face cache.

    Returns:
        For each path, as a string, and each segment, its length in seconds, or a sentence that names it and the remedy.
    """
    sources = [source if isinstance(source, Segment) else str(source) for source in sources]
    found = _remembered(map(path_of, sources), "lascl-checked-audio", cache_dir, _decode, "Checking audio")
    return {source: _length_of(source, found[path_of(source)]) for source in sources}


def _length_of(source: str | Segment, found: float | str) -> float | str:
    """What `check_audio` says of a recording or a segment, from what it found of the file."""
    if isinstance(found, str) or not isinstance(source, Segment):
        return found
    try:
        source.check()
    except ValueError as error:
        return str(error)
    if source.end_s > found + OVERHANG_S or source.start_s >= found:
        return f"{source}: the recording ends at {found:.3f} s. Correct the times, or leave the segment out."
    return min(source.end_s, found) - source.start_s


def content_hashes(
    sources: Iterable[str | Path | Segment], *, cache_dir: str | Path | None = None
) -> dict[str | Segment, str]:
    """BLAKE2b, 128 bits, of what is in each file, by path as a string: a copy elsewhere has the same. Of a segment, by
    itself, that of its file, and from where to where it reaches. Remembered as in `check_audio`.

    Raises:
        OSError: a file that cannot be read.
    """
    sources = [source if isinstance(source, Segment) else str(source) for source in sources]
    found = _remembered(map(path_of, sources), "lascl-hashed-audio", cache_dir, _content_hash, "Hashing audio")
    hashes = {}
    for source in sources:
        (hashed,) = found[path_of(source)]
        reach = f" {source.start_s!r} {source.end_s!r}" if isinstance(source, Segment) else ""
        hashes[source] = hashed + reach
    return hashes


def rates_of_plain_wavs(paths: Iterable[str | Path], *, cache_dir: str | Path | None = None) -> dict[str, int]:
    """By path as a string the rate (Hz) of each WAV file of one channel that is not compressed, which is read as fast
    as a copy of it would be; 0 of other audio, -1 of what is no file. Remembered as in `check_audio`."""
    found = _remembered(paths, "lascl-plain-wavs", cache_dir, _rate_of_plain_wav, "Looking at audio")
    return {path: -1 if isinstance(rate, str) else rate[0] for path, rate in found.items()}


def sample_hashes(paths: Iterable[str | Path], *, cache_dir: str | Path | None = None) -> dict[str, str | None]:
    """BLAKE2b, 128 bits, of the samples and the rate of each file, by path as a string: the same recording has the same
    as WAV and as FLAC. `None` for what cannot be read. Remembered as in `check_audio`."""
    found = _remembered(paths, "lascl-hashed-samples", cache_dir, _sample_hash, "Comparing audio")
    return {path: None if isinstance(hashed, str) else hashed[0] for path, hashed in found.items()}


def _remembered(paths, name: str, cache_dir: str | Path | None, compute: Callable[[str], object], told: str) -> dict:
    """What is computed of each file, or was, of the same path, size and modification time. A string, which says what is
    wrong with a file, is not remembered."""
    paths = [str(path) for path in paths]
    store = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / name)
    store.mkdir(parents=True, exist_ok=True)
    # One file for each set of folders: corpora do not rewrite each other's.
    folders = "\n".join([name, *sorted({os.path.dirname(path) for path in paths})])
    memory = store / f"{hashlib.blake2b(folders.encode(), digest_size=16).hexdigest()}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one
        known = {}

    stamps = {path: file_stamp(path) for path in paths}
    sound = {path for path, (stamp, found) in known.items() if stamp == stamps.get(path) and not isinstance(found, str)}
    new = [path for path, stamp in stamps.items() if stamp is None or path not in sound]
    if new:
        # Decoding and hashing happen outside Python's lock: threads are enough, and cost no start-up.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            hidden = True if len(new) < 1000 else None  # None: shown on a terminal
            found = list(tqdm(pool.map(compute, new), total=len(new), desc=told, disable=hidden))
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


def _content_hash(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]


def _rate_of_plain_wav(path: str) -> list[int] | str:
    if not os.path.isfile(path):
        return f"{path}: no such audio file."
    try:
        header = soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError, ValueError):  # ffmpeg may read it, or its name is no text
        return [0]
    is_plain = header.format.startswith("WAV") and header.channels == 1 and header.subtype.startswith(PLAIN)
    return [header.samplerate if is_plain else 0]


def _sample_hash(path: str) -> list[str] | str:
    try:
        rate = own_rate(path)
        hashed = hashlib.blake2b(str(rate).encode(), digest_size=16)
        for block in read_blocks(path, sampling_rate=rate):
            hashed.update(block.tobytes())
    except (ValueError, OSError) as error:
        return str(error)
    return [hashed.hexdigest()]
