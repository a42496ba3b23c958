"""Corpora, folds, audio, augmentation, and the batches made of them.

Names load when first used: who only reads audio does not wait for pandas, pyarrow and scikit-learn.
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lascl.data.audio import SAMPLING_RATE, audio_duration_s, read_audio
    from lascl.data.corpora import load_corpus
    from lascl.data.dataset import SpeechCollator, SpeechDataset
    from lascl.data.folds import Fold, make_folds
    from lascl.data.sampling import UtteranceBatchSampler

_HOMES = {
    "SAMPLING_RATE": "audio",
    "Fold": "folds",
    "SpeechCollator": "dataset",
    "SpeechDataset": "dataset",
    "UtteranceBatchSampler": "sampling",
    "audio_duration_s": "audio",
    "load_corpus": "corpora",
    "make_folds": "folds",
    "read_audio": "audio",
}
__all__ = [
    "SAMPLING_RATE",
    "Fold",
    "SpeechCollator",
    "SpeechDataset",
    "UtteranceBatchSampler",
    "audio_duration_s",
    "load_corpus",
    "make_folds",
    "read_audio",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
