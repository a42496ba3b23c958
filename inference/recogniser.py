"""A checkpoint and its feature extractor, ready to be asked.

Letters: B utterances, K labels, D width of the joint space.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.data.features import extract_features
from lascl.encoders_lascl import samples_of_one_frame
from lascl.inference.checkpoints import checkpoint_of
from lascl.modeling_lascl import mean_of_heads, not_standardised


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Recogniser:
    """A model in evaluation mode and what turns audio into its inputs.

    Args:
        model: on the device that answers.
        feature_extractor: of the same checkpoint.
        trained_labels: those that it was trained on, where it answers other words or another template; else `None`.
        untrained_labels: those of `labels` that it was not trained on: each word by itself, but all of them where the
            text encoder read them in another template.
    """

    model: LaSCLForAudioClassification
    feature_extractor: object
    trained_labels: list[str] | None = None
    untrained_labels: list[str] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        labels: Sequence[str] | None = None,
        label_template: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
    ) -> Recogniser:
        """A checkpoint from a folder or the Hub.

        Args:
            name_or_path: folder or Hub name of a LaSCL checkpoint; or a run directory with `full-data/checkpoint`.
            revision: branch, tag or commit on the Hub: `fold-3`, for one.
            labels: other label words than its own, see `LaSCLForAudioClassification.set_labels`; its own in another
                order are no other words.
            label_template: what the text encoder reads for a label, for these words.
            device: by default a GPU if there is one.
            dtype: of the audio encoder, `float32`, `bfloat16` or `float16`; pooling, embeddings and scores are in
                float32 whatever it is.

        Raises:
            ValueError: no LaSCL checkpoint, or a run directory of folds; a template without labels; labels that cannot
                be set; no such device or dtype.
            OSError: not found, or a text encoder for other labels that cannot be loaded.
        """
        if label_template is not None and labels is None:
            raise ValueError("A label template needs labels: give both.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
            raise ValueError(f"The device {str(device)!r} cannot be used ({str(error).splitlines()[0]}).") from None
        dtype = DTYPES.get(str(dtype).removeprefix("torch."))
        if dtype is None:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}.")
        name_or_path = checkpoint_of(name_or_path)
        where = {"revision": revision or "main"}
        config = AutoConfig.from_pretrained(name_or_path, **where)
        if not isinstance(config, LaSCLConfig):
            raise ValueError(f"{name_or_path} is of the type {config.model_type!r}, not a LaSCL checkpoint.")
        model = LaSCLForAudioClassification.from_pretrained(name_or_path, dtype=torch.float32, **where).eval()
        model.lascl.takes_odd_audio = True  # one recording of a batch must not keep the others from their answers
        feature_extractor = AutoFeatureExtractor.from_pretrained(name_or_path, **where)
        # A checkpoint may have been saved with other words.
        trained, template = config.classifier_labels or config.labels, config.label_template
        if labels is not None:
            model.set_labels(list(labels), label_template)
        known = set(trained) if model.config.label_template == template else set()
        untrained = [label for label in model.config.labels if label not in known]
        same = not untrained and len(known) == len(model.config.labels)
        if dtype != torch.float32:
            _compute_in(model.lascl.audio_encoder, dtype)
        return cls(model.to(device), feature_extractor, None if same else list(trained), untrained)

    @property
    def labels(self) -> list[str]:
        """The K labels, in the order of the probabilities."""
        return self.model.config.labels

    @property
    def sampling_rate(self) -> int:
        """Of the audio that it wants, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def max_duration_s(self) -> float:
        """The longest audio that it hears at once, in seconds: Whisper's window; infinite for the others."""
        return float(getattr(self.feature_extractor, "chunk_length", math.inf))

    @property
    def min_duration_s(self) -> float:
        """The shortest audio that it answers, in seconds: one frame of the encoder. Less would be mere padding."""
        samples = samples_of_one_frame(self.model.lascl.audio_encoder)
        return (self.feature_extractor.hop_length if samples is None else samples) / self.sampling_rate

    @property
    def heard_at_once_s(self) -> float:
        """Audio that is longer, in seconds, is better heard in windows of `window_s`; see `predict_files`."""
        return min(self.max_duration_s, 30.0)

    @property
    def window_s(self) -> float:
        """What the paper trains on at most, 10 s; of Whisper all it hears."""
        return self.max_duration_s if math.isfinite(self.max_duration_s) else 10.0

    def heard_s(self, duration_s: float) -> float:
        """Seconds that the encoder computes for so long an audio alone: of Whisper its window, or, of a checkpoint with
        `audio_window` utterance, the whole seconds that it lasts."""
        if math.isinf(self.max_duration_s):
            return duration_s
        follows = self.model.config.audio_window == "utterance"
        return min(max(math.ceil(duration_s), 1.0), self.max_duration_s) if follows else self.max_duration_s

    def too_short(self, duration_s: float) -> str:
        """What to say of audio shorter than `min_duration_s`."""
        return (
            f"is too short, {1000 * duration_s:.3g} ms: this model needs {1000 * self.min_duration_s:.3g} ms, one "
            "frame of its encoder."
        )

    def __call__(self, audio: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Answers a batch, padded to its longest. What else is in the batch changes nothing, and the order of the
        labels changes nothing but the order of the probabilities. A batch too large for the memory is halved.

        Args:
            audio: B arrays (samples,), float32, at `sampling_rate`; at least one.

        Returns:
            (B, K) probabilities of `labels`, the softmax of the model's own head, and (B, D) audio embeddings of unit
            length; float32 both.

        Raises:
            ValueError: audio shorter than `min_duration_s`, or longer than `max_duration_s`, which the feature
                extractor would cut in silence.
        """
        return self._in_halves(self._answer, audio)

    def pool(self, audio: Sequence[np.ndarray]) -> tuple[np.ndarray]:
        """(B, d_a), alone in a tuple: the pooled audio of a batch before it is standardised, float32, for
        `answer_pooled`. Arguments and errors as of a call."""
        return self._in_halves(self._pool, audio)

    @torch.inference_mode()
    def answer_pooled(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As a call, of pooled audio (B, d_a) that is standardised already, by whosesoever statistics."""
        return self._answers_of(self.model(pooled_audio=torch.from_numpy(pooled).to(self.model.device)))

    def _in_halves(self, ask: Callable, audio: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What `ask` gives for a batch, which is halved where the memory is too small for it."""
        for samples in audio:
            duration_s = len(samples) / self.sampling_rate
            if duration_s < self.min_duration_s:
                raise ValueError(f"Audio {self.too_short(duration_s)}")
            if duration_s > self.max_duration_s:
                raise ValueError(
                    f"This model hears {self.max_duration_s:g} s at once; found {duration_s:g} s. Give it in windows, "
                    "as lascl.inference.stream does."
                )
        try:
            return ask(audio)
        except RuntimeError as error:
            if len(audio) == 1 or not should_reduce_batch_size(error):
                raise
        half = len(audio) // 2
        parts = zip(self._in_halves(ask, audio[:half]), self._in_halves(ask, audio[half:]))
        return tuple(np.concatenate(part) for part in parts)

    @torch.inference_mode()
    def _answer(self, audio: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._answers_of(self._hear(self.model, audio))

    @torch.inference_mode()
    def _pool(self, audio: Sequence[np.ndarray]) -> tuple[np.ndarray]:
        with not_standardised(self.model.config):
            return (self._hear(self.model.lascl, audio).pooled_audio.float().cpu().numpy(),)

    def _hear(self, model: nn.Module, audio: Sequence[np.ndarray]):
        """The outputs of the model, or of its backbone alone, for a batch."""
        with np.errstate(over="ignore", invalid="ignore"):  # of samples far too large, the answer is NaN
            inputs = extract_features(self.feature_extractor, audio)
        lengths = inputs["attention_mask"].sum(dim=-1).tolist()  # here, so that no GPU is asked for them
        with _knowing_that_nothing_is_cut():
            return model(**inputs.to(self.model.device), lengths=lengths)

    def _answers_of(self, outputs) -> tuple[np.ndarray, np.ndarray]:
        """(B, K) probabilities and (B, D) embeddings."""
        embeds = outputs.audio_embeds.cpu()  # (B, D)
        if self.model.config.prediction_head != "classifier":
            # Again, label by label: a kernel over all of them sums in an order that depends on where a label stands.
            label_embeds = self.model.get_label_embeddings().cpu().double()  # (K, D)
            cosines = [(embeds.double() * label).sum(dim=-1) for label in label_embeds]  # K times (B,)
            logits = [cosine / self.model.label_temperature for cosine in cosines]
        else:
            logits = outputs.logits.cpu().double().unbind(dim=-1)
        highest = torch.stack(logits).amax(dim=0)  # (B,)
        odds = torch.stack([(logit - highest).exp() for logit in logits], dim=-1)  # (B, K)
        probabilities = odds / odds.sort(dim=-1).values.sum(dim=-1, keepdim=True)  # sorted: whatever the labels' order
        if self.model.config.prediction_head == "both":
            class_logits = outputs.class_logits  # none of other labels than the classifier's, of which it may know some
            if class_logits is None:
                class_logits = self.model._classify(outputs.pooled_audio)
            probabilities = mean_of_heads(probabilities, class_logits.cpu().double(), self.model.config.known_classes)
        return probabilities.float().numpy(), embeds.numpy()


def _compute_in(audio_encoder: nn.Module, dtype: torch.dtype):
    """Lets an encoder compute in a shorter type between float32 inputs and float32 hidden states."""

    def shorten(module, args, kwargs):
        return _cast(args, dtype), _cast(kwargs, dtype)

    audio_encoder.to(dtype)
    audio_encoder.register_forward_pre_hook(shorten, with_kwargs=True)
    audio_encoder.register_forward_hook(lambda module, args, outputs: _cast(outputs, torch.float32))


def _cast(content, dtype: torch.dtype):
    """The floating tensors in tuples and mappings, in another type."""
    if isinstance(content, torch.Tensor):
        return content.to(dtype) if content.is_floating_point() else content
    if isinstance(content, tuple):
        return tuple(_cast(part, dtype) for part in content)
    if isinstance(content, dict):  # transformers' outputs are such
        return type(content)(**{name: _cast(part, dtype) for name, part in content.items()})
    return content


@contextlib.contextmanager
def _knowing_that_nothing_is_cut() -> Iterator[None]:
    """Without the encoder's warning that what fills Whisper's window may have been cut: longer audio was refused."""
    logger = logging.getLogger("lascl.encoders_lascl")

    def is_of_use(record: logging.LogRecord) -> bool:
        return "fills the whole window" not in record.getMessage()

    logger.addFilter(is_of_use)
    try:
        yield
    finally:
        logger.removeFilter(is_of_use)
