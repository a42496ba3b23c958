"""Audio that was decoded and resampled once, kept on disk for every later epoch, fold, run and process.

A file `KEY.f32` holds a CRC-32 of four bytes and then samples in float32, little-endian; `decoding_keys` says what its
name follows from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from lascl.data.checked_audio import content_hashes, rates_of_plain_wavs
from lascl.data.segments import Segment, path_of


# What is kept, and what a process left that was killed while it wrote.
OURS = re.compile(r"\.?[0-9a-f]{32}(-\d+)?\.f32(\.\w+)?")
ABANDONED_AFTER_S = 3600.0  # an unfinished file to which nothing was written for so long
UNCUT_S = 0.01  # what is shorter than a limit by so much was not cut there, however lengths were rounded
LOOKED_AT_AGAIN_S = 60.0  # a folder that was full of what is in use
PROCESSES = 8  # as many may fill the room that is left before they look again


def decoding_keys(sources: Sequence[str | Path | Segment], sampling_rate: int) -> list[str | None]:
    """By what the samples of each recording, or of a segment of one, are known again: a hash of what is in the file,
    wherever it lies, of the segment's times, the rate (Hz) and the versions of what decodes and resamples. `None` of
    what needs no copy: a WAV file, not compressed, of one channel at this rate; and of a file that cannot be read, of
    which reading says what is wrong."""
    plain = rates_of_plain_wavs(sorted({str(path_of(source)) for source in sources}))
    needed = [source for source in sources if plain[str(path_of(source))] not in (sampling_rate, -1)]
    hashes = content_hashes(needed)
    versions = [soundfile.__version__, soundfile.__libsndfile_version__, soxr.__version__]
    return [
        None
        if (content := hashes.get(source if isinstance(source, Segment) else str(source))) is None
        else hashlib.blake2b(json.dumps([content, sampling_rate, *versions]).encode(), digest_size=16).hexdigest()
        for source in sources
    ]


class DecodedAudio:
    """Samples by their key in a folder. Any number of processes may use it at once: a file is whole or absent, and what
    two decode at the same time is written twice.

    Args:
        folder: is made if need be.
        most_bytes: at about so many, what was not used for longest is deleted; what was used since this object was made
            is not, and once there is no room beside it nothing more is kept. So a corpus that is larger than the bound
            is decoded in part, instead of being written anew in every epoch.
    """

    def __init__(self, folder: str | Path, most_bytes: float):
        # Files are dated by a clock that is a few milliseconds late.
        self.folder, self.most_bytes, self.began = Path(folder), most_bytes, time.time() - 0.1
        with contextlib.suppress(OSError):  # said where something is to be kept
            self.folder.mkdir(parents=True, exist_ok=True)
        self._room, self._next_look = 0.0, 0.0  # bytes that may be written before, and the time from which, one looks

    def read(
        self, key: str, decode: Callable[[], np.ndarray], *, most_samples: float, sampling_rate: int
    ) -> np.ndarray:
        """(samples,) float32, kept or decoded now.

        Args:
            decode: what reads the recording, at most so many samples of it. One that is cut has a file of its own, one
                that is whole the same under every limit.
        """
        least_cut = most_samples - UNCUT_S * sampling_rate
        cut = f"{key}-{most_samples:.0f}"
        samples = self._find(key)
        if samples is None or len(samples) >= least_cut:
            samples = self._find(cut)
        if samples is None:
            samples = decode()
            self._keep(key if len(samples) < least_cut else cut, samples)
        return samples

    def files(self) -> list[tuple[float, int, Path]]:
        """When each file was last used, its bytes and its path; the longest ago first."""
        return sorted((status.st_mtime, status.st_size, path) for path, status in self._ours() if path.name[0] != ".")

    def shrink(self, most_bytes: float, *, unused_since: float = float("inf")):
        """Deletes what was last used before a time, the longest ago first, until no more than `most_bytes` are left;
        and what killed processes left."""
        files = self.files()
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if total <= most_bytes or used >= unused_since:
                break
            _delete(path)
            total -= size
        for path, status in self._ours():
            if path.name[0] == "." and time.time() - status.st_mtime > ABANDONED_AFTER_S:
                _delete(path)

    def _ours(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*/*"):
            if OURS.fullmatch(path.name):
                with contextlib.suppress(OSError):  # deleted beside us
                    yield path, path.stat()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.f32"

    def _find(self, name: str) -> np.ndarray | None:
        """The samples of this name; `None` if there are none. A damaged file is deleted, so that it is made anew."""
        path = self._path(name)
        try:
            used = path.stat().st_mtime
            content = np.fromfile(path, dtype="<f4")
        except OSError:
            return None
        if len(content) < 2 or zlib.crc32(content[1:]) != int(content[:1].view("<u4")[0]):
            _delete(path)
            return None
        if used < self.began:
            with contextlib.suppress(OSError):  # deleted beside us, or of a folder that may only be read
                os.utime(path)
        return content[1:].astype(np.float32, copy=False)

    def _keep(self, name: str, samples: np.ndarray):
        if self._room < samples.nbytes and not self._has_room(samples.nbytes):
            return
        path, temporary = self._path(name), None
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                temporary = Path(file.name)
                file.write(zlib.crc32(samples.astype("<f4", copy=False)).to_bytes(4, "little"))
                file.write(samples.astype("<f4", copy=False).tobytes())
            os.replace(temporary, path)
            self._room -= samples.nbytes
        except OSError as error:  # the disk is full, or the folder may only be read: it goes without
            if temporary is not None:
                _delete(temporary)
            self._room, self._next_look = 0.0, float("inf")
            warnings.warn(
                f"{self.folder}: decoded audio is not kept there ({error.strerror or error}); it is decoded in every "
                "epoch. Give another --decoded_dir, or --decoded_gb 0.",
                stacklevel=2,
            )

    def _has_room(self, num_bytes: int) -> bool:
        """Looks how much is there, makes room if there is none, and says whether so many bytes may be written."""
        if time.time() < self._next_look:
            return False
        room = self.most_bytes - sum(size for _, size, _ in self.files())
        if room / PROCESSES < max(num_bytes, self.most_bytes / 1000):
            self.shrink(0.9 * self.most_bytes, unused_since=self.began)
            room = self.most_bytes - sum(size for _, size, _ in self.files())
        self._room = room / PROCESSES
        if self._room >= num_bytes:
            return True
        self._next_look = time.time() + LOOKED_AT_AGAIN_S
        return False


def _delete(path: Path):
    with contextlib.suppress(OSError):  # deleted beside us, or read by somebody, on Windows
        path.unlink()
