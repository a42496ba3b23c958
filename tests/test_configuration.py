"""What a checkpoint's configuration accepts, refuses, keeps and writes."""

import ast
import copy
import inspect
import json
import re
from pathlib import Path

import pytest
from tiny import LABELS
from transformers import AutoConfig, PretrainedConfig

from lascl import LaSCLConfig, LaSCLForAudioClassification, LaSCLModel
from lascl import configuration_lascl as configuration
from lascl import encoders_lascl as encoders
from lascl import modeling_lascl as modeling


AUDIO = {"model_type": "hubert", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {"model_type": "bert", "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
# Every field of LaSCL's own at a value that is not its default.
OTHER_VALUES = {
    "audio_config": AUDIO,
    "text_config": TEXT,
    "text_encoder": "org/some-text-encoder",
    "text_encoder_revision": "v2",
    "label_template": "a person who sounds {label}",
    "projection_dim": 32,
    "audio_layers": "1,3",
    "audio_pooling": "max",
    "audio_window": "utterance",
    "audio_level": "equal",
    "pooled_frames": "active",
    "label_phrasings": {"calm": ["at ease", "calm"], "weary": ["tired"]},
    "standardise_audio": "corpus",
    "pooled_dropout": 0.3,
    "text_pooling": "first",
    "freeze_feature_encoder": False,
    "freeze_audio_encoder": True,
    "contrastive_temperature": 0.2,
    "label_temperatures": {"calm, tense": 0.3},
    "contrastive_weight": 0.25,
    "divergence_weight": 0.3,
    "contrastive_reduction": "bracket",
    "target_smoothing": 0.1,
    "class_weights": {"calm": 2.0, "tense": 0.5},
    "label_anchors": False,
    "prediction_head": "classifier",
    "classifier_labels": ["calm", "tense", "bored"],
}
DEFAULTS = LaSCLConfig.field_defaults()
AUTO_MAP = {
    "AutoConfig": "configuration_lascl.LaSCLConfig",
    "AutoModel": "modeling_lascl.LaSCLModel",
    "AutoModelForAudioClassification": "modeling_lascl.LaSCLForAudioClassification",
}


def labelled(*labels):
    return dict(enumerate(labels))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("audio_layers", "first", "audio_layers must be last, weighted or numbers such as 1,2,3; found 'first'"),
        ("audio_layers", "1,,2", "audio_layers must be last, weighted or numbers such as 1,2,3; found '1,,2'"),
        ("audio_layers", "-1", "audio_layers must be last, weighted or numbers such as 1,2,3; found '-1'"),
        ("audio_pooling", "sum", "audio_pooling must be one of mean, max, mean_std; found 'sum'"),
        ("audio_window", "whole", "audio_window must be one of fixed, utterance; found 'whole'"),
        ("audio_level", "loud", "audio_level must be one of recorded, equal; found 'loud'"),
        ("pooled_frames", "voiced", "pooled_frames must be one of valid, active; found 'voiced'"),
        ("pooled_dropout", 1.0, "pooled_dropout must lie in [0, 1); found 1.0"),
        ("pooled_dropout", -0.1, "pooled_dropout must lie in [0, 1); found -0.1"),
        ("pooled_dropout", float("nan"), "pooled_dropout must lie in [0, 1); found nan"),
        ("text_pooling", "cls", "text_pooling must be one of mean, first; found 'cls'"),
        ("prediction_head", "labels", "prediction_head must be one of label, classifier, both; found 'labels'"),
        ("label_template", "a label", "label_template must contain {label}; found 'a label'"),
        (
            "label_phrasings",
            {"joy": "glad"},
            "label_phrasings of 'joy' must be a list of at least one phrase; found 'glad'",
        ),
        ("label_phrasings", {"joy": []}, "label_phrasings of 'joy' must be a list of at least one phrase; found []"),
        ("label_phrasings", {"joy": ["glad", 3]}, "label_phrasings of 'joy' must be a list of phrases; found 3 in it"),
        ("label_phrasings", {"joy": [" "]}, "label_phrasings of 'joy' must be a list of phrases; found ' ' in it"),
        (
            "label_phrasings",
            {"joy": ["glad", "merry", "glad"]},
            "label_phrasings of 'joy' must differ from each other; found 'glad' more than once",
        ),
        ("label_phrasings", ["joy"], "label_phrasings must map words to lists of phrases, as"),
        ("label_phrasings", {False: ["no"]}, "label_phrasings must map words to lists of phrases; found the key False"),
        ("label_template", "{Label}", "label_template must contain {label}; found '{Label}'"),
        ("projection_dim", 0, "projection_dim must be at least 1; found 0"),
        ("projection_dim", -3, "projection_dim must be at least 1; found -3"),
        ("contrastive_temperature", 0.0, "contrastive_temperature must be above 0; found 0.0"),
        ("contrastive_temperature", -0.07, "contrastive_temperature must be above 0; found -0.07"),
        ("contrastive_temperature", float("nan"), "contrastive_temperature must be above 0; found nan"),
        ("label_temperatures", {"a, b": 0}, "label_temperatures must be above 0; found 0 for 'a, b'"),
        ("contrastive_weight", -0.01, "contrastive_weight must lie in [0, 1]; found -0.01"),
        ("contrastive_weight", 1.01, "contrastive_weight must lie in [0, 1]; found 1.01"),
        ("contrastive_weight", float("nan"), "contrastive_weight must lie in [0, 1]; found nan"),
        ("standardise_audio", "all", "standardise_audio must be one of none, training, corpus, speaker; found 'all'"),
        ("standardise_audio", None, "standardise_audio must be one of none, training, corpus, speaker; found None"),
        ("contrastive_reduction", "total", "contrastive_reduction must be one of mean, bracket, sum; found 'total'"),
        ("target_smoothing", -0.1, "target_smoothing must lie in [0, 1); found -0.1"),
        ("target_smoothing", 1.0, "target_smoothing must lie in [0, 1); found 1.0"),
        ("target_smoothing", float("nan"), "target_smoothing must lie in [0, 1); found nan"),
        ("class_weights", "balanced", "class_weights must map words to numbers, as {'anger': 2.0}; found 'balanced'"),
        ("class_weights", {"joy": 0}, "class_weights must map words to numbers above 0; found 0 for 'joy'"),
        ("class_weights", {"joy": True}, "class_weights must map words to numbers above 0; found True for 'joy'"),
        ("class_weights", {1: 2.0}, "class_weights must map words to numbers above 0; found 2.0 for 1"),
        ("class_weights", {"joy": float("nan")}, "class_weights must map words to numbers above 0; found nan"),
        ("divergence_weight", -0.1, "divergence_weight must be at least 0; found -0.1"),
        ("divergence_weight", float("nan"), "divergence_weight must be at least 0; found nan"),
        ("id2label", {1: "angry", 2: "sad"}, "id2label must have the keys 0 to K-1; found [1, 2]"),
        ("id2label", {0: "angry", 2: "sad"}, "id2label must have the keys 0 to K-1; found [0, 2]"),
        ("id2label", labelled("sad", "sad"), "Labels must differ from each other; found ['sad', 'sad']"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name_and_value(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LaSCLConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrastive_weight", 1.0),
        ("divergence_weight", 0.0),
        ("projection_dim", 1),
        ("contrastive_temperature", 1e-6),
        ("id2label", labelled("sad")),
        ("id2label", {"0": "angry", "1": "sad"}),  # as JSON has it
    ],
)
def test_a_value_at_the_edge_of_its_range_is_accepted(field, value):
    expected = {0: "angry", 1: "sad"} if value == {"0": "angry", "1": "sad"} else value
    assert getattr(LaSCLConfig(**{field: value}), field) == expected


@pytest.mark.parametrize(
    ("combination", "cause"),
    [
        ({"contrastive_weight": 0}, "contrastive_weight=0"),
        ({"contrastive_weight": 0.0}, "contrastive_weight=0"),
        ({"label_anchors": False}, "label_anchors=False"),
        ({"contrastive_weight": 0, "label_anchors": False}, "contrastive_weight=0"),
    ],
)
def test_a_label_head_that_nothing_trains_is_refused_with_the_cause_and_the_cure(combination, cause):
    with pytest.raises(ValueError, match=f"With {cause} no loss ties .* at random.* prediction_head='classifier'"):
        LaSCLConfig(**combination)
    assert LaSCLConfig(**combination, prediction_head="classifier").prediction_head == "classifier"


def test_a_classifier_that_nothing_trains_is_refused_with_the_cause_and_the_cure():
    with pytest.raises(ValueError, match="With contrastive_weight=1 there is no cross entropy.* at random.*below 1"):
        LaSCLConfig(contrastive_weight=1, prediction_head="classifier")
    assert LaSCLConfig(contrastive_weight=0.99, prediction_head="classifier").prediction_head == "classifier"


def test_an_encoder_type_that_transformers_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="no-such-encoder"):
        LaSCLConfig(audio_config={"model_type": "no-such-encoder"})


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_are_in_the_order_of_their_indices_whatever_the_order_of_the_dict():
    config = LaSCLConfig(id2label={2: "sad", 0: "angry", 1: "happy"})
    assert config.labels == ["angry", "happy", "sad"]
    assert config.num_labels == 3


@pytest.mark.parametrize(
    "label2id",
    [None, {"angry": 0, "happy": 1, "sad": 2}, {"other": 0, "words": 1}, {"angry": 2, "happy": 1, "sad": 0}],
    ids=["absent", "the inverse", "other labels", "other indices"],
)
def test_label2id_is_always_the_inverse_of_id2label(label2id):
    config = LaSCLConfig(id2label=labelled("angry", "happy", "sad"), label2id=label2id)
    assert config.label2id == {"angry": 0, "happy": 1, "sad": 2}


def test_label2id_alone_names_the_labels():
    config = LaSCLConfig(label2id={"angry": 0, "sad": 2, "happy": 1})
    assert config.id2label == {0: "angry", 1: "happy", 2: "sad"}


# --------------------------------------------------------------------------------------------------- round trips


def test_the_values_of_these_tests_are_none_of_the_defaults():
    assert set(OTHER_VALUES) == set(DEFAULTS)
    assert not [name for name, value in OTHER_VALUES.items() if DEFAULTS[name] == value]


@pytest.mark.parametrize("way", ["dict", "json", "folder", "auto", "copy"])
def test_a_round_trip_keeps_every_field_and_both_encoder_configurations(way, tmp_path):
    config = LaSCLConfig(**OTHER_VALUES, id2label=labelled(*LABELS))
    if way == "dict":
        again = LaSCLConfig.from_dict(config.to_dict())
    elif way == "json":
        again = LaSCLConfig.from_dict(json.loads(config.to_json_string()))
    elif way == "copy":
        again = copy.deepcopy(config)
    else:
        config.save_pretrained(tmp_path)
        again = (LaSCLConfig if way == "folder" else AutoConfig).from_pretrained(tmp_path)
    assert type(again) is LaSCLConfig
    for name, value in OTHER_VALUES.items():
        if name not in ("audio_config", "text_config"):
            assert getattr(again, name) == value, name
    assert again.id2label == dict(enumerate(LABELS))
    assert again.label2id == {label: index for index, label in enumerate(LABELS)}
    for ours, given in ((again.audio_config, AUDIO), (again.text_config, TEXT)):
        assert {name: getattr(ours, name) for name in given} == given
        stock = AutoConfig.for_model(**given)
        assert type(ours) is type(stock)
        assert {**ours.to_dict(), "transformers_version": None} == {**stock.to_dict(), "transformers_version": None}


def test_encoder_configurations_may_be_given_as_objects():
    config = LaSCLConfig(audio_config=AutoConfig.for_model(**AUDIO), text_config=AutoConfig.for_model(**TEXT))
    assert (config.audio_config.model_type, config.audio_config.hidden_size) == ("hubert", 24)
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("bert", 20)


@pytest.mark.parametrize("saved_class", [LaSCLConfig, LaSCLModel, LaSCLForAudioClassification])
def test_config_json_names_all_three_classes_whichever_class_was_saved(saved_class, audio_encoders, tmp_path):
    config = LaSCLConfig(audio_config=AutoConfig.from_pretrained(audio_encoders["wav2vec2-layer"]), text_config=TEXT)
    (config if saved_class is LaSCLConfig else saved_class(config)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP
    assert LaSCLConfig.from_pretrained(tmp_path).auto_map == AUTO_MAP


@pytest.mark.parametrize("text_encoder", [None, "org/some-text-encoder"])
@pytest.mark.parametrize("side", [{}, {"decoder": True}, {"encoder": True}])
def test_the_text_config_that_transformers_asks_for_is_the_config_itself(text_encoder, side):
    config = LaSCLConfig(text_encoder=text_encoder)
    assert config.get_text_config(**side) is config


# ------------------------------------------------------------------------------- the docstring and the code's reading


def documented_defaults():
    """Field -> the default its docstring states; `None` where it is optional without one."""
    text = inspect.cleandoc(configuration.LaSCLConfig.__doc__)  # Python 3.13 takes the indentation away itself
    entries = re.findall(r"^    (\w+) \(([^)]*)\):$", text, re.M)
    stated = {name: re.search(r"defaults to (.+)$", kind) for name, kind in entries}
    return {name: match and match[1] for name, match in stated.items()}


def test_the_docstring_names_every_field_and_its_default():
    documented = documented_defaults()
    assert set(documented) == set(DEFAULTS) | {"id2label", "label2id"}
    for name, default in DEFAULTS.items():
        stated = documented[name]
        if name in ("audio_config", "text_config"):  # stated in words; next test
            assert default is None
        else:
            assert (None if stated is None else ast.literal_eval(stated.strip("`"))) == default, name


def test_the_default_encoders_are_those_that_the_docstring_describes():
    config, documented = LaSCLConfig(), documented_defaults()
    assert documented["audio_config"] == "a wav2vec 2.0 base configuration"
    assert config.audio_config.to_diff_dict() == AutoConfig.for_model("wav2vec2").to_diff_dict()
    assert documented["text_config"] == "a RoBERTa base configuration"
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("roberta", 768)


def test_every_field_is_read_by_the_model():
    read = set()
    for module in (modeling, encoders):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                if getattr(owner, "id", None) == "config" or getattr(owner, "attr", None) == "config":
                    read.add(node.attr)
    assert "projection_dim" in read and "id2label" not in read  # the walk finds loads, and loads only
    assert set(DEFAULTS) - read == set()


def test_the_labels_that_the_model_reads_come_from_id2label():
    # The one inherited field that carries meaning for LaSCL: the model reads it as `labels` and `num_labels`.
    assert LaSCLConfig(id2label=labelled(*LABELS)).labels == LABELS
    assert LaSCLConfig(id2label=labelled(*LABELS)).num_labels == 4


def test_the_configuration_file_does_not_import_torch():
    names = []
    for node in ast.walk(ast.parse(Path(configuration.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    assert issubclass(LaSCLConfig, PretrainedConfig) and "transformers" in names
    assert not [name for name in names if name.split(".")[0] == "torch"]
