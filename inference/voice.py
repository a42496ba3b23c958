"""Whether somebody speaks: Google's WebRTC voice activity detector over a window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


FRAME_S = 0.03  # the longest that the detector takes
AGGRESSIVENESS = 2  # 0 to 3: how much of a doubt is enough for silence
LEAST_SHARE = 0.5  # of a window's frames


def speech_detector(sampling_rate: int) -> Callable[[np.ndarray], bool]:
    """Returns what `stream` takes as `is_speech`: whether at least half of the frames of some samples are voiced.

    It answers about each window anew, whatever was asked before. Less than a frame is no speech.

    Args:
        sampling_rate: of the samples, 8, 16, 32 or 48 kHz.

    Raises:
        ValueError: webrtcvad is not installed, or another sampling rate.
    """
    try:
        import webrtcvad
    except ImportError:
        raise ValueError(
            'Leaving out silence needs the voice activity detector: pip install "lascl[vad]", or do without --vad.'
        ) from None
    if not webrtcvad.valid_rate_and_frame_length(sampling_rate, round(FRAME_S * sampling_rate)):
        raise ValueError(f"The voice activity detector takes 8, 16, 32 or 48 kHz; this model wants {sampling_rate} Hz.")
    size = round(FRAME_S * sampling_rate)

    def is_speech(samples: np.ndarray) -> bool:
        detector = webrtcvad.Vad(AGGRESSIVENESS)  # it learns what noise is like: of the window before, it must not
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
        frames = [pcm[start : start + size].tobytes() for start in range(0, len(pcm) - size + 1, size)]
        voiced = sum(detector.is_speech(frame, sampling_rate) for frame in frames)
        return bool(frames) and voiced >= LEAST_SHARE * len(frames)

    return is_speech
