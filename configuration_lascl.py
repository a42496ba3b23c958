"""What a LaSCL checkpoint is: `LaSCLConfig`. No torch here; one of the three files that travel with a checkpoint.

The three use only what transformers has had since 4.57, so that a checkpoint loads wherever transformers is installed.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig


OLDEST_TRANSFORMERS = "4.57"
# A checkpoint must load through all three Auto classes, whichever class saved it; stock saving writes the entry of the
# saved class alone.
AUTO_MAP = {
    "AutoConfig": "configuration_lascl.LaSCLConfig",
    "AutoModel": "modeling_lascl.LaSCLModel",
    "AutoModelForAudioClassification": "modeling_lascl.LaSCLForAudioClassification",
}
REDUCTIONS = ("mean", "bracket", "sum")  # what becomes of eq. 4's sum over anchors, see `joint_loss`
# By whose statistics pooled audio is standardised; and what older code said of the first two, as it may be typed.
STANDARDISINGS = ("none", "training", "corpus", "speaker")
OLD_STANDARDISINGS = {
    **dict.fromkeys(("no", "false", "f", "n", "0"), "none"),
    **dict.fromkeys(("yes", "true", "t", "y", "1"), "training"),
}


def check_transformers(version: str):
    """Refuses a transformers on which a checkpoint would load in part, or not at all.

    Raises:
        ImportError: `version` is older than `OLDEST_TRANSFORMERS`.
    """
    needed, found = ([int(number) for number in re.findall(r"\d+", v)[:2]] for v in (OLDEST_TRANSFORMERS, version))
    if found < needed:
        raise ImportError(
            f"LaSCL needs transformers {OLDEST_TRANSFORMERS} or newer; found {version}. "
            "Upgrade it: pip install --upgrade transformers"
        )


# `name` or `owner/name`; a folder elsewhere has a longer path, a leading dot or a leading slash.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def standardising(value: str | bool) -> str:
    """The value of `standardise_audio` that is meant: of checkpoints, recipes and commands of older code, true means
    `training` and false `none`.

    Raises:
        ValueError: another value.
    """
    mode = OLD_STANDARDISINGS.get(str(value).lower(), value)
    if mode not in STANDARDISINGS:
        raise ValueError(f"standardise_audio must be one of {', '.join(STANDARDISINGS)}; found {value!r}.")
    return mode


def checked_phrasings(phrasings: Mapping | None, name: str = "label_phrasings") -> dict[str, list[str]] | None:
    """Phrases by label word, as `label_phrasings` has them; `None` if there are none.

    Raises:
        ValueError: no mapping from words to lists of different phrases, each at least one; the message names `name`.
    """
    if phrasings is None:
        return None
    if not isinstance(phrasings, Mapping):
        raise ValueError(
            f"{name} must map words to lists of phrases, as {{'anger': ['angry', 'furious']}}; found {phrasings!r}."
        )
    for word, phrases in phrasings.items():
        if not isinstance(word, str) or not word:
            raise ValueError(f"{name} must map words to lists of phrases; found the key {word!r}.")
        if not isinstance(phrases, (list, tuple)) or not phrases:
            raise ValueError(f"{name} of {word!r} must be a list of at least one phrase; found {phrases!r}.")
        odd = [phrase for phrase in phrases if not isinstance(phrase, str) or not phrase.strip()]
        if odd:
            raise ValueError(f"{name} of {word!r} must be a list of phrases; found {odd[0]!r} in it.")
        repeated = sorted({phrase for phrase in phrases if list(phrases).count(phrase) > 1})
        if repeated:
            raise ValueError(f"{name} of {word!r} must differ from each other; found {repeated[0]!r} more than once.")
    return {word: list(phrases) for word, phrases in phrasings.items()} or None


def checked_weights(weights: Mapping | None) -> dict[str, float] | None:
    """Weights by label word, as `class_weights` has them; `None` if there are none.

    Raises:
        ValueError: no mapping from words to numbers above 0.
    """
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        raise ValueError(f"class_weights must map words to numbers, as {{'anger': 2.0}}; found {weights!r}.")
    for word, weight in weights.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(word, str) or not is_number or not 0 < weight < float("inf"):
            raise ValueError(f"class_weights must map words to numbers above 0; found {weight!r} for {word!r}.")
    return {word: float(weight) for word, weight in weights.items()} or None


def words_key(words: Iterable[str]) -> str:
    """Under what `label_temperatures` has a set of words."""
    return ", ".join(sorted(words))


def is_folder_name(name: str) -> bool:
    """Whether this names a folder, there or not, rather than a repository on the Hub."""
    return os.path.isdir(name) or HUB_NAME.fullmatch(name) is None


# Here, because this file is the first of a checkpoint that is imported.
check_transformers(transformers.__version__)


class LaSCLConfig(PretrainedConfig):
    r"""Configuration of a LaSCL model: an audio encoder, a text encoder for the labels, and what joins them.

    Args:
        audio_config (`dict` or `PretrainedConfig`, *optional*, defaults to a wav2vec 2.0 base configuration):
            Configuration of the audio encoder, of any `model_type` that transformers knows.
        text_config (`dict` or `PretrainedConfig`, *optional*, defaults to a RoBERTa base configuration):
            Configuration of the text encoder. Only its width (`hidden_size`) is needed until new labels are set.
        text_encoder (`str`, *optional*):
            Hub name or path of the text encoder that embeds label words. It is loaded by `set_labels` only. A path is
            not saved: the encoder itself is, as `text_encoder/` beside the model.
        text_encoder_revision (`str`, *optional*):
            Branch, tag or commit of `text_encoder` on the Hub.
        label_template (`str`, *optional*, defaults to `"{label}"`):
            What the text encoder reads for a label; must contain `{label}`.
        label_phrasings (`dict[str, list[str]]`, *optional*):
            By label word, the phrases whose embeddings' mean stands for it, each read through the template: `{"anger":
            ["angry", "furious", "rage"]}`. The word itself is among them only if it is listed. A word without an entry
            is embedded as itself; an entry for a word that is no label waits for it to become one.
        projection_dim (`int`, *optional*, defaults to 256):
            Width D of the joint space (paper: d, eq. 3).
        audio_layers (`str`, *optional*, defaults to `"last"`):
            `"last"`: the last hidden state (eq. 1); `"weighted"`: a learned softmax-weighted sum of all layers; or
            numbers of hidden states such as `"1,2,3"` (0 is the embedding), pooled each for itself and concatenated.
        audio_pooling (`str`, *optional*, defaults to `"mean"`):
            How frames become one vector, over valid frames only: `"mean"`, `"max"`, or `"mean_std"`, the mean and the
            standard deviation side by side.
        audio_window (`str`, *optional*, defaults to `"fixed"`):
            What a Whisper encoder hears of an utterance: `"fixed"`, always its whole window, silence behind the
            utterance included; or `"utterance"`, the last second that has signal and all before it (at least 1 s, at
            most the window). It attends to that silence, so this belongs to the weights that were trained with it.
            Other encoders hear no padding, whatever stands here.
        audio_level (`str`, *optional*, defaults to `"recorded"`):
            How loud a Whisper encoder hears an utterance: `"recorded"`, as its recording has it; or `"equal"`, all
            equally loud (`encoders_lascl.at_equal_level`), whatever the distance and the gain of the microphone. Other
            encoders hear it as `"recorded"`: where level shall not count, their feature extractors normalise.
        pooled_frames (`str`, *optional*, defaults to `"valid"`):
            Which of a Whisper encoder's frames are pooled: `"valid"`, all that the utterance lasts; or `"active"`,
            those of them in which there is a voice (`encoders_lascl.active_frames`), silence at its edges and in pauses
            left out. Other encoders pool `"valid"`.
        standardise_audio (`str`, *optional*, defaults to `"none"`):
            By whose mean and standard deviation the pooled audio is centred and scaled, found once before training:
            `"none"`, as it is; `"training"`, those of all training utterances. Pooled states of a pre-trained encoder
            lie in a narrow cone, where all cosines are near 1 and eq. 4 has little to work with. `"corpus"` and
            `"speaker"`: while it was trained and tested, those of the utterance's corpus or speaker (see
            `lascl.training.pooled`); the checkpoint itself knows those of all training utterances, which recordings of
            unknown origin get. Checkpoints of older code say `true` for `"training"` and `false` for `"none"`.
        pooled_dropout (`float`, *optional*, defaults to 0.0):
            Share of the pooled audio, standardised, that each of the two heads goes without in training, in [0, 1).
        text_pooling (`str`, *optional*, defaults to `"mean"`):
            How tokens become one vector: `"mean"` over the attention mask, or `"first"` (the token BERT calls CLS).
        freeze_feature_encoder (`bool`, *optional*, defaults to `True`):
            Whether the convolutional front end of the audio encoder stays as it was pre-trained (paper, 3.2).
        freeze_audio_encoder (`bool`, *optional*, defaults to `False`):
            Whether the whole audio encoder stays as it was pre-trained: projections and classifier alone are trained.
        contrastive_temperature (`float`, *optional*, defaults to 0.07):
            tau of eq. 4, above 0. Also scales the label logits.
        label_temperatures (`dict[str, float]`, *optional*):
            What divides the cosines of the label head instead of `contrastive_temperature` when it answers certain
            words, by these words, sorted and joined by ", ": as `lascl-words` fits it to labelled recordings. It
            changes probabilities, never which word the label head takes for the likeliest, and nothing in training.
        contrastive_weight (`float`, *optional*, defaults to 0.5):
            lambda_1 of eq. 9, in [0, 1]. 0 leaves cross entropy alone, 1 leaves it out.
        divergence_weight (`float`, *optional*, defaults to 0.1):
            lambda_2 of eq. 9, at least 0.
        contrastive_reduction (`str`, *optional*, defaults to `"mean"`):
            What lambda_1 and lambda_2 weigh, with A the anchors of a batch that have a positive: `"mean"`, eq. 4 as a
            mean over them beside eq. 6 as a sum; `"bracket"`, the bracket of eq. 9 divided by A, so that lambda_2 is
            the paper's; `"sum"`, as printed. See `joint_loss`.
        target_smoothing (`float`, *optional*, defaults to 0.0):
            Share of each label, or of the shares of votes, that is spread over the words of its corpus in training, in
            [0, 1). What it weighs in eq. 4 and in the cross entropy: see `joint_loss`.
        class_weights (`dict[str, float]`, *optional*):
            By label word, what its utterances and itself weigh in both losses, above 0; words that are not named weigh
            1. See `joint_loss`.
        label_anchors (`bool`, *optional*, defaults to `True`):
            Whether the label embeddings take part in eq. 4. `False` is the paper's "w/o label embedding".
        prediction_head (`str`, *optional*, defaults to `"label"`):
            Which head `logits` come from: `"label"` (nearest label embedding, eq. 10), `"classifier"` (eq. 7) or
            `"both"`, their mean over the words that the classifier knows; of other words the label head's
            (`mean_of_heads`).
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
    keys_to_ignore_at_inference = ["audio_embeds", "label_embeds", "pooled_audio", "hidden_states", "terms"]
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}
    # Fields that the first checkpoints lack. Written only where they are not the default, so that a checkpoint which
    # needs none of them still loads under the code of the first ones.
    _later_fields = (
        *("contrastive_reduction", "audio_window", "audio_level", "pooled_frames", "pooled_dropout"),
        *("label_phrasings", "label_temperatures", "target_smoothing", "class_weights"),
    )

    # Long: each field has a line among the arguments and one where it is kept.
    def __init__(
        self,
        *,
        audio_config: dict | PretrainedConfig | None = None,
        text_config: dict | PretrainedConfig | None = None,
        text_encoder: str | None = None,
        text_encoder_revision: str | None = None,
        label_template: str = "{label}",
        label_phrasings: Mapping[str, list[str]] | None = None,
        projection_dim: int = 256,
        audio_layers: str = "last",
        audio_pooling: str = "mean",
        audio_window: str = "fixed",
        audio_level: str = "recorded",
        pooled_frames: str = "valid",
        standardise_audio: str | bool = "none",
        pooled_dropout: float = 0.0,
        text_pooling: str = "mean",
        freeze_feature_encoder: bool = True,
        freeze_audio_encoder: bool = False,
        contrastive_temperature: float = 0.07,
        label_temperatures: dict[str, float] | None = None,
        contrastive_weight: float = 0.5,
        divergence_weight: float = 0.1,
        contrastive_reduction: str = "mean",
        target_smoothing: float = 0.0,
        class_weights: Mapping[str, float] | None = None,
        label_anchors: bool = True,
        prediction_head: str = "label",
        classifier_labels: list[str] | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        **kwargs: Any,
    ):
        # All of LaSCL's own before `super`, which sets what it finds in the encoders' configurations, and checks.
        self.audio_config = _sub_config("audio_config", audio_config, default_type="wav2vec2")
        self.text_config = _sub_config("text_config", text_config, default_type="roberta")
        self.text_encoder, self.text_encoder_revision = text_encoder, text_encoder_revision
        self.label_template = label_template
        self.label_phrasings = checked_phrasings(label_phrasings)
        self.projection_dim = projection_dim
        self.audio_layers = audio_layers
        self.audio_pooling = audio_pooling
        self.audio_window, self.audio_level, self.pooled_frames = audio_window, audio_level, pooled_frames
        self.standardise_audio = standardise_audio
        self.pooled_dropout = pooled_dropout
        self.text_pooling = text_pooling
        self.freeze_feature_encoder = freeze_feature_encoder
        self.freeze_audio_encoder = freeze_audio_encoder
        self.contrastive_temperature = contrastive_temperature
        self.label_temperatures = label_temperatures or None
        self.contrastive_weight = contrastive_weight
        self.divergence_weight = divergence_weight
        self.contrastive_reduction = contrastive_reduction
        self.target_smoothing = target_smoothing
        self.class_weights = checked_weights(class_weights)
        self.label_anchors = label_anchors
        self.prediction_head = prediction_head
        self.classifier_labels = classifier_labels
        if id2label is None and label2id is not None:
            id2label = {index: label for label, index in label2id.items()}
        super().__init__(id2label=id2label, **{**kwargs, "auto_map": dict(AUTO_MAP)})
        self.label2id = {label: index for index, label in self.id2label.items()}
        self.validate_architecture()

    @classmethod
    def field_defaults(cls) -> dict[str, Any]:
        """The fields of LaSCL's own, all but the labels, with their defaults."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        fields = {field.name: field.default for field in parameters if field.kind is field.KEYWORD_ONLY}
        return {name: default for name, default in fields.items() if name not in ("id2label", "label2id")}

    def __setattr__(self, name: str, value: Any):
        # Here, because `from_pretrained(..., standardise_audio=True)` sets what it is given.
        super().__setattr__(name, standardising(value) if name == "standardise_audio" else value)

    def __eq__(self, other: object) -> bool:
        # Some versions of transformers would compare the fields of their own class alone.
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes. As in transformers, and the same from every version of it: of the encoders'
        configurations the fields of their own class, and what differs from the default."""
        written = super().to_diff_dict()
        for name in self.sub_configs:
            encoder = getattr(self, name)
            written[name] = encoder.to_diff_dict()
            written[name].pop("transformers_version", None)
            if encoder._name_or_path and not is_folder_name(encoder._name_or_path):
                written[name]["_name_or_path"] = encoder._name_or_path
        defaults = self.field_defaults()
        for name in self._later_fields:
            if written[name] == defaults[name]:
                del written[name]
        # Older code takes the field for a boolean, of which every string is true.
        mode = self.standardise_audio
        written["standardise_audio"] = {"none": False, "training": True}.get(mode, mode)
        return written

    @property
    def standardises(self) -> bool:
        """Whether pooled audio is standardised, by whosesoever statistics."""
        return self.standardise_audio != "none"

    @property
    def labels(self) -> list[str]:
        """The K label words in the order of their indices."""
        return [self.id2label[index] for index in range(len(self.id2label))]

    @property
    def known_classes(self) -> list[int | None]:
        """Of each label its class of the classifier; `None` for a word that the classifier was not trained on."""
        classes = {word: place for place, word in enumerate(self.classifier_labels or self.labels)}
        return [classes.get(label) for label in self.labels]

    @property
    def audio_layer_numbers(self) -> list[int]:
        """The hidden states that are concatenated; empty for `last` and `weighted`."""
        return [] if self.audio_layers in ("last", "weighted") else [int(n) for n in self.audio_layers.split(",")]

    @property
    def pooled_size(self) -> int:
        """Width of the pooled audio."""
        vectors = 2 if self.audio_pooling == "mean_std" else 1
        return vectors * self.audio_config.hidden_size * max(1, len(self.audio_layer_numbers))

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without names of folders: it is saved, and they tell of the author's computer, and on
        another one find nothing or, worse, something else."""
        content = super().to_dict()
        if content.get("text_encoder") and is_folder_name(content["text_encoder"]):
            content["text_encoder"] = content["text_encoder_revision"] = None
        for named in (content, content["audio_config"], content["text_config"]):
            if named.get("_name_or_path") and is_folder_name(named["_name_or_path"]):
                named["_name_or_path"] = ""
        return content

    def get_text_config(self, decoder=None, encoder=None) -> LaSCLConfig:
        """Returns itself: `text_config` beside a `text_encoder` name makes the stock search ambiguous, and neither
        describes text that this model reads at inference."""
        return self

    def validate_architecture(self):
        """Checks every field and the combinations that would leave the chosen prediction head untrained."""
        for field, allowed in (
            ("audio_pooling", ("mean", "max", "mean_std")),
            ("audio_window", ("fixed", "utterance")),
            ("audio_level", ("recorded", "equal")),
            ("pooled_frames", ("valid", "active")),
            ("text_pooling", ("mean", "first")),
            ("contrastive_reduction", REDUCTIONS),
            ("prediction_head", ("label", "classifier", "both")),
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
        if not 0 <= self.pooled_dropout < 1:
            raise ValueError(f"pooled_dropout must lie in [0, 1); found {self.pooled_dropout}.")
        if not self.contrastive_temperature > 0:
            raise ValueError(f"contrastive_temperature must be above 0; found {self.contrastive_temperature}.")
        for words, temperature in (self.label_temperatures or {}).items():
            if not temperature > 0:
                raise ValueError(f"label_temperatures must be above 0; found {temperature} for {words!r}.")
        if not 0 <= self.contrastive_weight <= 1:
            raise ValueError(f"contrastive_weight must lie in [0, 1]; found {self.contrastive_weight}.")
        if not self.divergence_weight >= 0:
            raise ValueError(f"divergence_weight must be at least 0; found {self.divergence_weight}.")
        if not 0 <= self.target_smoothing < 1:
            raise ValueError(f"target_smoothing must lie in [0, 1); found {self.target_smoothing}.")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must have the keys 0 to K-1; found {sorted(self.id2label)}.")
        if len(set(self.id2label.values())) != len(self.id2label):
            raise ValueError(f"Labels must differ from each other; found {self.labels}.")
        if self.prediction_head != "classifier" and (self.contrastive_weight == 0 or not self.label_anchors):
            cause = "contrastive_weight=0" if self.contrastive_weight == 0 else "label_anchors=False"
            raise ValueError(
                f"With {cause} no loss ties the audio to the label embeddings, so the label head would answer at "
                "random. Set prediction_head='classifier'."
            )
        if self.prediction_head != "label" and self.contrastive_weight == 1:
            raise ValueError(
                "With contrastive_weight=1 there is no cross entropy, so the classifier would answer at random. "
                "Set prediction_head='label' or contrastive_weight below 1."
            )


def _sub_config(field: str, given: dict | PretrainedConfig | None, *, default_type: str) -> PretrainedConfig:
    if isinstance(given, PretrainedConfig):
        return given
    if given is not None and not isinstance(given, dict):
        raise TypeError(f"{field} must be a dict or a configuration of transformers; found {type(given).__name__}.")
    values = dict(given or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)


__all__ = ["LaSCLConfig"]
