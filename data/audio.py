"""Reading audio, block by block or whole: what libsndfile knows, and the rest through the ffmpeg program, to mono
float32 at one rate."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from lascl.data.segments import Segment, path_of


SAMPLING_RATE = 16_000  # Hz; what every encoder that this project knows was trained on
# Containers that libsndfile does not know; anything else that it cannot read is damaged or no audio.
FFMPEG_SUFFIXES = frozenset(
    (
        *(".3gp", ".aac", ".ac3", ".amr", ".avi", ".flv", ".m4a", ".m4b", ".m4v", ".mka"),
        *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wma", ".wmv"),
    )
)
# What ffmpeg may take such a file for: its demuxers of these, and of plain audio under a wrong name. No playlist, which
# would have it read other files and addresses.
FFMPEG_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,flv,asf,mpeg,mpegts,aac,ac3,eac3,amr,wav,mp3,ogg,flac,aiff,caf"
# What is taken from a folder; a file that is named is always tried. MATLAB's and headerless files are seldom audio.
AUDIO_SUFFIXES = FFMPEG_SUFFIXES | {
    *(".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".mp3", ".nist", ".oga", ".ogg"),
    *(".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav"),
    *(".wave", ".wve", ".xi"),
}
OVERHANG_S = 0.1  # a segment may end so much later than its recording: who cuts by frames rounds up
BLOCK_S = 10.0
BLOCK_VALUES = 4_000_000  # samples times channels of a block: 16 MB
_CORRECTED = re.compile(r"^\s*data : (\d+) \(should be", re.MULTILINE)


# ------------------------------------------------------------------------------------------------------------ samples


def read_audio(
    path: str | Path | Segment, *, sampling_rate: int = SAMPLING_RATE, max_duration_s: float | None = None
) -> np.ndarray:
    """Reads a file, or a segment of one, whole: (samples,), the blocks of `read_blocks` one after the other, to the bit
    as if it had been resampled at once.

    Args:
        path, sampling_rate: as for `read_blocks`.
        max_duration_s: read only the first so many seconds; `None` reads all.

    Raises:
        FileNotFoundError, ValueError: as `read_blocks` does.
    """
    limit_s = math.inf if max_duration_s is None else max_duration_s
    return np.concatenate(list(read_blocks(path, sampling_rate=sampling_rate, max_duration_s=limit_s)))


def read_blocks(
    path: str | Path | Segment,
    *,
    sampling_rate: int = SAMPLING_RATE,
    max_duration_s: float = math.inf,
    max_values: float = math.inf,
) -> Iterator[np.ndarray]:
    """Yields a recording as blocks (samples,) of mono float32, nominally in [-1, 1], of at most some seconds each,
    never the whole of it, whatever its rate and the number of its channels.

    Channels are averaged, other rates resampled with soxr (high quality). The end of a damaged file raises when it is
    reached: what was yielded before is sound.

    Args:
        path: a file that libsndfile reads, or, where the ffmpeg program is installed, video, m4a and the like; or a
            segment of one, of which nothing else is decoded. It may end up to OVERHANG_S later than the recording.
        sampling_rate: of the blocks, in Hz.
        max_duration_s: the first so many seconds alone; they are cut before they are resampled.
        max_values: samples times channels of the file that are decoded at most.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, no permission, not audio, cut off, no samples, NaN or infinite samples, more than
            `max_values`, or ffmpeg is missing where it is needed; the message names the file. A segment that is none,
            or that the recording does not have; the message names the segment.
    """
    segment, start_s = (path, path.start_s) if isinstance(path, Segment) else (None, 0.0)
    if segment is not None:
        segment.check()
        max_duration_s = min(max_duration_s, segment.duration_s)
    path = Path(path_of(path))
    _check_file(path)
    blocks = _ffmpeg_blocks if path.suffix.lower() in FFMPEG_SUFFIXES else _soundfile_blocks
    num_samples = 0
    for block in blocks(path, sampling_rate, start_s, max_duration_s, max_values):
        if not np.isfinite(block).all():
            raise ValueError(f"{path}: holds NaN or infinite samples. Repair it or leave it out.")
        if block.size:
            num_samples += len(block)
            yield np.ascontiguousarray(block, dtype=np.float32)
    if segment is not None and num_samples / sampling_rate < max_duration_s - OVERHANG_S:
        ends = f"at {start_s + num_samples / sampling_rate:.3f} s" if num_samples else "before that"
        raise ValueError(f"{segment}: the recording ends {ends}.")
    if not num_samples:  # or less than one at the new rate
        raise ValueError(f"{segment or path}: holds no audio samples. Remove it or leave it out.")


def _check_file(path: Path):
    """Raises as `read_blocks` does for what is no file with content that may be read."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, not an audio file.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file.")
    try:
        with open(path, "rb") as file:
            has_content = bool(file.read(1))
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not has_content:
        raise ValueError(f"{path}: is an empty file, of 0 bytes.")


@contextlib.contextmanager
def _what_libsndfile_says(path: Path) -> Iterator[None]:
    """Its exceptions as ValueError, in a sentence that names the file."""
    try:
        yield
    except TypeError as error:  # so soundfile says that it would have to be told the rate
        raise ValueError(
            f"{path}: is taken for headerless audio by its ending, {path.suffix}, which says neither rate nor format. "
            "Convert it to WAV or FLAC."
        ) from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(" .")
        raise ValueError(f"{path}: cannot be read as audio ({reason}). Convert it to WAV or FLAC.") from error


def _for_libsndfile(path: Path) -> Path | bytes:
    """As bytes, since a name may have some that are no UTF-8."""
    return path if os.name == "nt" else os.fsencode(path)


def _soundfile_blocks(
    path: Path, sampling_rate: int, start_s: float, max_duration_s: float, max_values: float
) -> Iterator[np.ndarray]:
    with _what_libsndfile_says(path), soundfile.SoundFile(_for_libsndfile(path)) as file:
        resampler = None
        if file.samplerate != sampling_rate:
            resampler = soxr.ResampleStream(file.samplerate, sampling_rate, 1, dtype="float32")
        # Of a segment both ends are rounded, so that two that touch share no sample and lose none.
        first = round(start_s * file.samplerate)
        limit = math.inf if math.isinf(max_duration_s) else round((start_s + max_duration_s) * file.samplerate) - first
        num_read = 0
        if first and not _is_reached(file, first):
            return
        block_size = max(1, min(round(BLOCK_S * file.samplerate), BLOCK_VALUES // file.channels))
        # Not `file.blocks`, which fills up what a damaged file lacks with whatever it read before.
        while len(block := file.read(min(block_size, limit - num_read), dtype="float32", always_2d=True)):
            num_read += len(block)  # of (samples, channels)
            if num_read * file.channels > max_values:
                raise ValueError(f"{path}: {too_many_values(max_values)}")
            mono = block.mean(axis=1)
            yield resampler.resample_chunk(mono) if resampler else mono
        if resampler:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        if _is_cut_off(file, first, num_read, limit):
            raise ValueError(
                f"{path}: is cut off: it holds less audio than its header says. Copy it again, or leave it out."
            )


def _is_reached(file: soundfile.SoundFile, first: int) -> bool:
    """Whether an open file has this frame; if so, it is read next. What cannot be jumped to is decoded and dropped."""
    if first >= file.frames:
        return False
    if file.seekable():
        return file.seek(first) == first
    while first and (num_read := len(file.read(min(first, BLOCK_VALUES // file.channels), dtype="float32"))):
        first -= num_read
    return first == 0


def _is_cut_off(file: soundfile.SoundFile, first: int, num_read: int, limit: float) -> bool:
    """Whether an open file gave fewer frames than its header promised, of at most `limit` from the first."""
    # The length of an MP3 is an estimate. That of a WAV is corrected silently, and only noted; a program that wrote
    # into a pipe left the largest number there, which is no damage.
    is_short = num_read < (0.95 if file.format == "MP3" else 1) * min(limit, file.frames - first)
    corrected = _CORRECTED.search(file.extra_info)
    is_noted = corrected is not None and 0 < int(corrected[1]) < 2_000_000_000
    return is_short or (is_noted and (first == 0 or num_read < limit))


def too_many_values(max_values: float) -> str:
    """What to say of a file with more samples times channels than are decoded."""
    return (
        f"holds more than {max_values / 1e6:.0f} million samples in all its channels. Convert it to mono, or to a "
        "lower sampling rate."
    )


def _ffmpeg_blocks(
    path: Path, sampling_rate: int, start_s: float, max_duration_s: float, max_values: float
) -> Iterator[np.ndarray]:
    """As mono at the wanted rate, so both limits count samples of that."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ValueError(
            f"{path}: {path.suffix} files are read through the ffmpeg program, which is not installed. Install it, or "
            "convert the file to WAV or FLAC."
        )
    # Whoever made the file says what is in it: nothing but this file is opened, and as nothing but audio or video.
    only = ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS]
    # An absolute path is never taken for an option or a protocol.
    command = [ffmpeg, "-nostdin", "-v", "error", *only, *(["-ss", f"{start_s:.6f}"] if start_s else [])]
    command += ["-i", f"file:{path.resolve()}", "-vn", "-ac", "1"]
    command += ["-ar", str(sampling_rate), "-f", "f32le", "-"]
    block_size = round(BLOCK_S * sampling_rate)
    limit = math.inf if math.isinf(max_duration_s) else round(max_duration_s * sampling_rate)
    num_read = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said)
        try:
            while block := process.stdout.read(4 * min(block_size, limit - num_read)):
                num_read += len(block) // 4
                if num_read > max_values:
                    raise ValueError(f"{path}: {too_many_values(max_values)}")
                yield np.frombuffer(block[: len(block) // 4 * 4], dtype="<f4")
            if num_read < limit and process.wait():
                said.seek(0)
                reason = said.read().decode(errors="replace").strip().splitlines()
                raise ValueError(f"{path}: ffmpeg cannot read it ({reason[-1] if reason else 'no reason given'}).")
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------------------- length


def decoded_duration_s(path: str | Path) -> float:
    """Seconds of audio that a file truly holds: all of it is decoded, and none kept. Raises as `read_blocks` does, also
    where nothing would be left at `SAMPLING_RATE`."""
    rate = own_rate(path)
    duration_s = sum(map(len, read_blocks(path, sampling_rate=rate))) / rate
    if duration_s * SAMPLING_RATE < 1:
        read_audio(path)  # says what is wrong if nothing is left after resampling
    return duration_s


def own_rate(path: str | Path) -> int:
    """The rate at which a file is read without being resampled, in Hz: its own, or `SAMPLING_RATE` of what ffmpeg
    decodes. Raises as `audio_duration_s`."""
    return SAMPLING_RATE if Path(path).suffix.lower() in FFMPEG_SUFFIXES else _header(path).samplerate


def audio_duration_s(path: str | Path) -> float:
    """Seconds of audio that a file holds by its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing that libsndfile reads; the message names the file.
    """
    header = _header(path)
    return header.frames / header.samplerate


def stated_size(path: str | Path) -> tuple[float, int] | None:
    """Seconds, and samples times channels, that a file holds by its header; `None` if that does not tell, or libsndfile
    does not know the file. Nothing is decoded."""
    if Path(path).suffix.lower() in FFMPEG_SUFFIXES:
        return None
    try:
        header = _header(path)
    except (ValueError, OSError):  # `read_blocks` says what is wrong
        return None
    if not 0 < header.frames < 2**62:  # a stream, whose end nobody had seen
        return None
    return header.frames / header.samplerate, header.frames * header.channels


def _header(path: str | Path):
    """What soundfile reads from a file's header: `frames`, `samplerate` in Hz, `channels`, and more."""
    path = Path(path)
    _check_file(path)
    with _what_libsndfile_says(path):
        return soundfile.info(_for_libsndfile(path))
