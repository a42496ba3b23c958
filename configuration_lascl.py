"""What a LaSCL checkpoint is: `LaSCLConfig`. No torch here; one of the three files that travel with a checkpoint."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


REDUCTIONS = ("mean", "bracket", "sum")  # what becomes of eq. 4's sum over anchors, see `joint_loss`


class LaSCLConfig(PreTrainedConfig):
    r"""Configuration of a LaSCL model: an audio encoder, a text encoder for the labels, and what joins them.

    Args:
        audio_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a wav2vec 2.0 base configuration):
            Configuration of the audio encoder, of any `model_type` that transformers knows.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a RoBERTa base configuration):
            Configuration of the text encoder. Only its width (`hidden_size`) is needed until new labels are set.
        text_encoder (`str`, *optional*):
            Hub name or path of the text encoder that embeds label words. It is loaded by `set_labels` only.
        text_encoder_revision (`str`, *optional*):
            Branch, tag or commit of `text_encoder` on the Hub.
        label_template (`str`, *optional*, defaults to `"{label}"`):
            What the text encoder reads for a label; must contain `{label}`.
        projection_dim (`int`, *optional*, defaults to 256):
            Width D of the joint space (paper: d, eq. 3).
        audio_layers (`str`, *optional*, defaults to `"last"`):
            `"last"`: the last hidden state (eq. 1); `"weighted"`: a learned softmax-weighted sum of all layers; or
            numbers of hidden states such as `"1,2,3"` (0 is the embedding), pooled each for itself and concatenated.
        audio_pooling (`str`, *optional*, defaults to `"mean"`):
            How frames become one vector: `"mean"` or `"max"`, over valid frames only.
        standardise_audio (`bool`, *optional*, defaults to `False`):
            Whether the pooled audio is centred and scaled by the mean and standard deviation of the training
            utterances, found once before training. Pooled states of a pre-trained encoder lie in a narrow cone, where
            all cosines are near 1 and eq. 4 has little to work with.
        text_pooling (`str`, *optional*, defaults to `"mean"`):
            How tokens become one vector: `"mean"` over the attention mask, or `"first"` (the token BERT calls CLS).
        freeze_feature_encoder (`bool`, *optional*, defaults to `True`):
            Whether the convolutional front end of the audio encoder stays as it was pre-trained (paper, 3.2).
        freeze_audio_encoder (`bool`, *optional*, defaults to `False`):
            Whether the whole audio encoder stays as it was pre-trained: projections and classifier alone are trained.
        contrastive_temperature (`float`, *optional*, defaults to 0.07):
            tau of eq. 4, above 0. Also scales the label logits.
        contrastive_weight (`float`, *optional*, defaults to 0.5):
            lambda_1 of eq. 9, in [0, 1]. 0 leaves cross entropy alone, 1 leaves it out.
        divergence_weight (`float`, *optional*, defaults to 0.1):
            lambda_2 of eq. 9, at least 0.
        contrastive_reduction (`str`, *optional*, defaults to `"mean"`):
            What lambda_1 and lambda_2 weigh, with A the anchors of a batch that have a positive: `"mean"`, eq. 4 as a
            mean over them beside eq. 6 as a sum; `"bracket"`, the bracket of eq. 9 divided by A, so that lambda_2 is
            the paper's; `"sum"`, as printed. See `joint_loss`.
        label_anchors (`bool`, *optional*, defaults to `True`):
            Whether the label embeddings take part in eq. 4. `False` is the paper's "w/o label embedding".
        prediction_head (`str`, *optional*, defaults to `"label"`):
            Which head `logits` come from: `"label"` (nearest label embedding, eq. 10) or `"classifier"` (eq. 7).
        classifier_labels (`list[str]`, *optional*):
            The labels the classifier was trained on, written by `set_labels` once the model answers other words.
            `None` means `id2label`.
        id2label (`dict[int, str]`, *optional*):
            The labels, by index 0..K-1.
        label2id (`dict[str, int]`, *optional*):
            Its inverse, always derived from `id2label` when that is given.

    Raises:
        ValueError: a field outside its range, or a combination that leaves the prediction head untrained.
    """

    model_type = "lascl"
    keys_to_ignore_at_inference = ["audio_embeds", "label_embeds", "pooled_audio", "terms"]
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="wav2vec2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_encoder: str | None = None
    text_encoder_revision: str | None = None
    label_template: str = "{label}"
    projection_dim: int = 256
    audio_layers: str = "last"
    audio_pooling: str = "mean"
    standardise_audio: bool = False
    text_pooling: str = "mean"
    freeze_feature_encoder: bool = True
    freeze_audio_encoder: bool = False
    contrastive_temperature: float = 0.07
    contrastive_weight: float = 0.5
    divergence_weight: float = 0.1
    contrastive_reduction: str = "mean"
    label_anchors: bool = True
    prediction_head: str = "label"
    classifier_labels: list | None = None

    def __post_init__(self, **kwargs: Any):
        # A checkpoint must load through all three Auto classes, whichever class saved it; stock saving writes the
        # entry of the saved class alone.
        kwargs["auto_map"] = {
            "AutoConfig": "configuration_lascl.LaSCLConfig",
            "AutoModel": "modeling_lascl.LaSCLModel",
            "AutoModelForAudioClassification": "modeling_lascl.LaSCLForAudioClassification",
        }
        if self.id2label is None and self.label2id is not None:
            self.id2label = {index: label for label, index in self.label2id.items()}
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}
        self.validate_architecture()

    @property
    def labels(self) -> list[str]:
        """The K label words in the order of their indices."""
        return [self.id2label[index] for index in range(len(self.id2label))]

    @property
    def audio_layer_numbers(self) -> list[int]:
        """The hidden states that are concatenated; empty for `last` and `weighted`."""
        return [] if self.audio_layers in ("last", "weighted") else [int(n) for n in self.audio_layers.split(",")]

    @property
    def pooled_size(self) -> int:
        """Width of the pooled audio."""
        return self.audio_config.hidden_size * max(1, len(self.audio_layer_numbers))

    def get_text_config(self, decoder=None, encoder=None) -> LaSCLConfig:
        """Returns itself: `text_config` beside a `text_encoder` name makes the stock search ambiguous, and neither
        describes text that this model reads at inference."""
        return self

    def validate_architecture(self):
        """Checks every field and the combinations that would leave the chosen prediction head untrained."""
        for field, allowed in (
            ("audio_pooling", ("mean", "max")),
            ("text_pooling", ("mean", "first")),
            ("contrastive_reduction", REDUCTIONS),
            ("prediction_head", ("label", "classifier")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; found {getattr(self, field)!r}.")
        if not re.fullmatch(r"last|weighted|\d+(,\d+)*", self.audio_layers):
            raise ValueError(
                f"audio_layers must be last, weighted or numbers such as 1,2,3; found {self.audio_layers!r}."
            )
        if "{label}" not in self.label_template:
            raise ValueError(f"label_template must contain {{label}}; found {self.label_template!r}.")
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1; found {self.projection_dim}.")
        if not self.contrastive_temperature > 0:
            raise ValueError(f"contrastive_temperature must be above 0; found {self.contrastive_temperature}.")
        if not 0 <= self.contrastive_weight <= 1:
            raise ValueError(f"contrastive_weight must lie in [0, 1]; found {self.contrastive_weight}.")
        if not self.divergence_weight >= 0:
            raise ValueError(f"divergence_weight must be at least 0; found {self.divergence_weight}.")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must have the keys 0 to K-1; found {sorted(self.id2label)}.")
        if len(set(self.id2label.values())) != len(self.id2label):
            raise ValueError(f"Labels must differ from each other; found {self.labels}.")
        if self.prediction_head == "label" and (self.contrastive_weight == 0 or not self.label_anchors):
            cause = "contrastive_weight=0" if self.contrastive_weight == 0 else "label_anchors=False"
            raise ValueError(
                f"With {cause} no loss ties the audio to the label embeddings, so the label head would answer at "
                "random. Set prediction_head='classifier'."
            )
        if self.prediction_head == "classifier" and self.contrastive_weight == 1:
            raise ValueError(
                "With contrastive_weight=1 there is no cross entropy, so the classifier would answer at random. "
                "Set prediction_head='label' or contrastive_weight below 1."
            )


__all__ = ["LaSCLConfig"]
