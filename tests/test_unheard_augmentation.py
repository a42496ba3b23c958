"""An augmentation that cannot change what the model hears is said at the start of training, and no other."""

import logging

import pytest
from tiny import RATE
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus
from lascl.data import SpeechCollator, SpeechDataset
from lascl.data import dataset as module
from lascl.data.augmentation import AUGMENTATIONS


EXTRACTORS = {
    "normalised waveform": Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
    "waveform": Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
    "log-mel": WhisperFeatureExtractor(feature_size=16, chunk_length=1),
    "normalised log-mel": WhisperFeatureExtractor(feature_size=16, chunk_length=1, do_normalize=True),
}
# A spectrogram has no polarity; what is normalised has no loudness.
UNHEARD = {
    "normalised waveform": {"none", "gain"},
    "waveform": {"none"},
    "log-mel": {"none", "polarity_inversion"},
    "normalised log-mel": {"none", "polarity_inversion"},
}


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_what_is_heard_is_found_by_listening(kind):
    assert hasattr(module, "is_heard")
    assert {name for name in AUGMENTATIONS if not module.is_heard(name, EXTRACTORS[kind])} == UNHEARD[kind]


@pytest.mark.parametrize("family, name, is_said", [
    ("wav2vec2-layer", "gain", True),
    ("wav2vec2-layer", "polarity_inversion", False),
    ("whisper", "polarity_inversion", True),
])  # fmt: skip
def test_training_says_so_at_its_start(audio_encoders, text_encoder, emodb_like, tmp_path, family, name, is_said):
    set_seed(1)
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    names, folder = corpus.features["label"].names, audio_encoders[family]
    model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, names, projection_dim=8, window_s=1)
    seconds = {"chunk_length": 1} if family == "whisper" else {}
    extractor = AutoFeatureExtractor.from_pretrained(folder, **seconds)
    heard = SpeechDataset(corpus, range(7), sampling_rate=RATE, max_duration_s=0.2, augmentation=name, num_views=2)
    args = LaSCLTrainingArguments(str(tmp_path), global_batch_size=7, max_steps=1, use_cpu=True, disable_tqdm=True)
    collator = SpeechCollator(extractor)
    trainer = LaSCLTrainer(model, args, train_dataset=heard, data_collator=collator, processing_class=extractor)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    model.register_forward_pre_hook(lambda *inputs: messages.append("forward"))
    logger = logging.getLogger("lascl.training.trainer")
    logger.addHandler(handler)
    trainer.train()
    logger.removeHandler(handler)
    before = messages[: messages.index("forward")]
    said = [message for message in before if f"The augmentation {name} changes nothing" in message]
    assert bool(said) == is_said, messages
