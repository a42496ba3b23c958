"""Encoders with random weights, saved as stock checkpoints: for the demo, for tests, for studies of an architecture."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)


def save_random_audio_encoder(config: dict, folder: str | Path, *, seed: int = 0) -> Path:
    """Saves an audio encoder with random weights and its feature extractor.

    Args:
        config: `model_type` and any other field of that encoder's configuration.
        folder: where to.
        seed: of the weights; torch's own generator is left as it was.

    Returns:
        The folder.

    Raises:
        ValueError: no `model_type`, or one that transformers does not know.
    """
    folder = _save_random_model(config, folder, seed)
    if config["model_type"] == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=config.get("num_mel_bins", 80))
    else:
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(folder)
    return folder


def save_random_text_encoder(config: dict, folder: str | Path, *, seed: int = 0) -> Path:
    """Saves a text encoder with random weights and a tokenizer whose tokens are bytes, so that any word has tokens.

    Arguments, result and errors as for `save_random_audio_encoder`; `vocab_size` and `pad_token_id` are the
    tokenizer's. Its embeddings carry no meaning: they only tell words apart.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, **{byte: index for index, byte in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = _save_random_model({**config, "vocab_size": len(vocabulary), "pad_token_id": 0}, folder, seed)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


def _save_random_model(config: dict, folder: str | Path, seed: int) -> Path:
    if "model_type" not in config:
        raise ValueError(f"An encoder's configuration needs model_type; found only {', '.join(config) or 'nothing'}.")
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    return folder
