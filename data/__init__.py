"""Corpora, folds, audio, augmentation, and the batches made of them.

Names load when first used: who only reads audio does not wait for pandas, pyarrow and scikit-learn.
"""

from typing import TYPE_CHECKING

from lascl.lazy import lazily


if TYPE_CHECKING:
    from lascl.data.audio import SAMPLING_RATE, audio_duration_s, read_audio
    from lascl.data.corpora import load_corpora, load_corpus
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
    "load_corpora": "corpora",
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
    "load_corpora",
    "load_corpus",
    "make_folds",
    "read_audio",
]

__getattr__ = lazily(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
