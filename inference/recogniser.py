"""A checkpoint and its feature extractor, ready to be asked.

Letters: B utterances, K labels, D width of the joint space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification


@dataclass
class Recogniser:
    """A model in evaluation mode and what turns audio into its inputs.

    Args:
        model: on the device that answers.
        feature_extractor: of the same checkpoint.
        trained_labels: those that it was trained on, where `labels` replaced them; else `None`.
    """

    model: LaSCLForAudioClassification
    feature_extractor: object
    trained_labels: list[str] | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        labels: Sequence[str] | None = None,
        label_template: str | None = None,
        device: str | torch.device | None = None,
    ) -> Recogniser:
        """A checkpoint from a folder or the Hub, in float32.

        Args:
            name_or_path: folder or Hub name of a LaSCL checkpoint.
            revision: branch, tag or commit on the Hub: `fold-3`, for one.
            labels: other label words than its own, see `LaSCLForAudioClassification.set_labels`.
            label_template: what the text encoder reads for a label, for these words.
            device: by default a GPU if there is one.

        Raises:
            ValueError: no LaSCL checkpoint; a template without labels; labels that cannot be set.
            OSError: not found, or a text encoder for other labels that cannot be loaded.
        """
        if label_template is not None and labels is None:
            raise ValueError("A label template needs labels: give both.")
        where = {"revision": revision or "main"}
        config = AutoConfig.from_pretrained(name_or_path, **where)
        if not isinstance(config, LaSCLConfig):
            raise ValueError(f"{name_or_path} is of the type {config.model_type!r}, not a LaSCL checkpoint.")
        model = LaSCLForAudioClassification.from_pretrained(name_or_path, dtype=torch.float32, **where).eval()
        feature_extractor = AutoFeatureExtractor.from_pretrained(name_or_path, **where)
        trained_labels = None
        if labels is not None:
            before = (model.config.labels, model.config.label_template)
            model.set_labels(list(labels), label_template)
            changed = (model.config.labels, model.config.label_template) != before
            trained_labels = before[0] if changed else None
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), feature_extractor, trained_labels)

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

    @torch.inference_mode()
    def __call__(self, audio: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Answers a batch, padded to its longest. What else is in the batch changes nothing.

        Args:
            audio: B arrays (samples,), float32, at `sampling_rate`.

        Returns:
            (B, K) probabilities of `labels`, the softmax of the model's own head, and (B, D) audio embeddings of unit
            length; float32 both.
        """
        inputs = self.feature_extractor(
            list(audio),
            sampling_rate=self.sampling_rate,
            padding="max_length" if "input_features" in self.feature_extractor.model_input_names else "longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        outputs = self.model(**inputs.to(self.model.device))
        return outputs.logits.softmax(dim=-1).cpu().numpy(), outputs.audio_embeds.cpu().numpy()
