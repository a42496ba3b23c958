"""Reading audio: any format and rate that libsndfile knows, to mono float32 at one rate."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr


_CORRECTED = re.compile(r"^\s*data : (\d+) \(should be", re.MULTILINE)
SAMPLING_RATE = 16_000  # Hz; what every encoder that this project knows was trained on


def read_audio(
    path: str | Path, *, sampling_rate: int = SAMPLING_RATE, max_duration_s: float | None = None
) -> np.ndarray:
    """Reads a file as mono float32 at `sampling_rate`.

    Channels are averaged, other rates resampled with soxr (high quality).

    Args:
        path: an audio file.
        sampling_rate: of the result, in Hz.
        max_duration_s: read only the first so many seconds; `None` reads all.

    Returns:
        (samples,) float32, nominally in [-1, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not audio, cut off, no samples, or samples that are NaN or infinite; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file.")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            frames = -1 if max_duration_s is None else round(max_duration_s * rate)
            samples = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            wanted = file.frames if frames < 0 else min(frames, file.frames)
            cut_off = is_cut_off(file, len(samples), wanted)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be read as audio ({error}). Convert it to WAV or FLAC.") from error
    if cut_off:
        raise ValueError(f"{path}: is cut off: it holds less audio than its header says. Copy it again, or remove it.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: holds NaN or infinite samples. Repair it or remove it from the corpus.")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    if samples.size == 0:  # or less than one at the new rate
        raise ValueError(f"{path}: holds no audio samples. Remove it from the corpus.")
    return np.ascontiguousarray(samples, dtype=np.float32)


def is_cut_off(file: soundfile.SoundFile, num_read: int, num_wanted: int) -> bool:
    """Whether an open file gave fewer frames than its header promised, of which `num_wanted` were read for."""
    # The length of an MP3 is an estimate. That of a WAV is corrected silently, and only noted; a program that wrote
    # into a pipe left the largest number there, which is no damage.
    corrected = _CORRECTED.search(file.extra_info)
    is_short = num_read < (0.95 if file.format == "MP3" else 1) * num_wanted
    return is_short or (corrected is not None and 0 < int(corrected[1]) < 2_000_000_000)


def audio_duration_s(path: str | Path) -> float:
    """Length of an audio file in seconds, from its header; raises as `audio_header` does."""
    header = audio_header(path)
    return header.frames / header.samplerate


def audio_header(path: str | Path):
    """What soundfile reads from a file's header: `frames`, `samplerate` in Hz, and more.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not audio; the message names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such audio file.")
    try:
        return soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be read as audio ({error}). Convert it to WAV or FLAC.") from error
