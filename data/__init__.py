"""Corpora, folds, audio, augmentation, and the batches made of them."""

from lascl.data.audio import SAMPLING_RATE, audio_duration_s, read_audio
from lascl.data.corpora import load_corpus
from lascl.data.dataset import SpeechCollator, SpeechDataset
from lascl.data.folds import Fold, make_folds
from lascl.data.sampling import UtteranceBatchSampler


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
