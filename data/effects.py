"""Effects that audiomentations computes slowly, as pure functions: it draws what they are given.

Letters: n samples of a clip.
"""

from __future__ import annotations

import math

import numpy as np
import soxr


# Of SoX's `pitch`, in seconds: a segment, how far the best place of the next one is searched for, and how long the two
# are blended.
SEGMENT_S, SEARCH_S, OVERLAP_S = 0.082, 0.01468, 0.012


def shift_pitch(samples: np.ndarray, sampling_rate: int, semitones: float) -> np.ndarray:
    """Higher or lower by so many semitones at the same tempo, as SoX's `pitch` does, which torchaudio-augmentations
    uses: `stretched` to `2 ** (semitones / 12)` times its length, then resampled to n (soxr, high quality).

    `samples` has shape (n,), and so has the float32 result. Formants move along. Silence stays silent, and a clip that
    is shorter than a segment is resampled alone, its end being cut off or silent.
    """
    ratio = 2.0 ** (semitones / 12)
    longer = stretched(samples, sampling_rate, ratio)
    shifted = soxr.resample(longer, ratio * sampling_rate, sampling_rate)[: len(samples)]
    return np.pad(shifted, (0, len(samples) - len(shifted)))


def stretched(samples: np.ndarray, sampling_rate: int, ratio: float) -> np.ndarray:
    """`ratio` times as long at the same pitch: (round(ratio n),) float32, by overlapping segments whose waves fit
    (WSOLA: Verhelst and Roelands, 1993).

    Segments of `SEGMENT_S` are taken from the clip, `ratio` times closer than they are laid down. Each begins, within
    `SEARCH_S` around its place, where the squared difference to the end of the one before is least over `OVERLAP_S`,
    and is blended in there.
    """
    segment, search, overlap = (max(int(s * sampling_rate + 0.5), 1) for s in (SEGMENT_S, SEARCH_S, OVERLAP_S))
    hop, length = segment - overlap, round(ratio * len(samples))
    num_segments = max(1, math.ceil((length - overlap) / hop))
    places = np.round(np.arange(num_segments) * hop / ratio).astype(int)  # where the search for each segment begins
    source = np.zeros(max(places[-1] + search + segment, search // 2 + len(samples)), dtype=np.float32)
    source[search // 2 : search // 2 + len(samples)] = samples  # so that its own place is in the middle
    energy = np.concatenate([[0.0], np.cumsum(np.square(source, dtype=np.float64))])  # of the samples before each
    energy = energy[overlap:] - energy[:-overlap]  # of `overlap` samples from each on
    rising = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
    falling = 1 - rising
    laid = np.empty(num_segments * hop + overlap, dtype=np.float32)
    laid[:segment] = source[search // 2 : search // 2 + segment]
    for number in range(1, num_segments):
        start, place = number * hop, places[number]
        end = laid[start : start + overlap].copy()
        fits = np.correlate(source[place : place + search + overlap - 1], end, "valid")  # (search,)
        best = place + int(np.argmin(energy[place : place + search] - 2 * fits))
        laid[start : start + segment] = source[best : best + segment]
        laid[start : start + overlap] *= rising
        laid[start : start + overlap] += falling * end
    return laid[:length]


def pass_filter(samples: np.ndarray, sampling_rate: int, cutoff_hz: float, kind: str) -> np.ndarray:
    """A Butterworth filter of order 4 (24 dB an octave, -3 dB at the cut-off), `kind` being `lowpass` or `highpass`:
    (n,) float32 from (n,), as if the first sample had gone on for ever before.

    `scipy.signal.butter` and `sosfilt_zi` find the same numbers in ten times as long. Of the analogue prototype's two
    pairs of poles, of quality Q = 1 / (2 cos(pi / 8)) and 1 / (2 cos(3 pi / 8)), the bilinear transform makes

        (1 + z)^2 K^2 / ((1 + K / Q + K^2) + 2 (K^2 - 1) z + (1 - K / Q + K^2) z^2),  K = tan(pi cutoff / rate),

    z being a delay; a high-pass has `(1 - z)^2` above.
    """
    from scipy.signal import sosfilt  # here, because it would double the time that importing this module takes

    k, is_low = math.tan(math.pi * cutoff_hz / sampling_rate), kind == "lowpass"
    sections, states = [], []
    level = float(samples[0])  # what comes into a section before the clip begins
    for angle in (math.pi / 8, 3 * math.pi / 8):
        whole = 1 + 2 * math.cos(angle) * k + k * k
        gain = (k * k if is_low else 1) / whole
        a1, a2 = 2 * (k * k - 1) / whole, (1 - 2 * math.cos(angle) * k + k * k) / whole
        sections.append([gain, 2 * gain if is_low else -2 * gain, gain, 1.0, a1, a2])
        after = level if is_low else 0.0
        states.append([after - gain * level, gain * level - a2 * after])
        level = after
    return sosfilt(np.array(sections), samples, zi=np.array(states))[0].astype(np.float32)
