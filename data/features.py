"""What a checkpoint's own feature extractor makes of waveforms; without a corpus, and what reads one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def extract_features(feature_extractor, audio: Sequence[np.ndarray]):
    """Inputs of a model for some waveforms (samples,) and their mask, as torch tensors: padded to the longest row, or,
    of Whisper's extractor, to its window."""
    return feature_extractor(
        list(audio),
        sampling_rate=feature_extractor.sampling_rate,
        padding="max_length" if "input_features" in feature_extractor.model_input_names else "longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
