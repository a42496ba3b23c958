"""No variant of a recipe trains on what a frozen encoder made of another's audio: every field of a recipe is tried."""

import copy
import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys

import pytest
import soundfile
import tiny
import torch
from tiny import RATE, recording
from transformers import AutoFeatureExtractor, TrainingArguments

from lascl import LaSCLForAudioClassification, LaSCLTrainingArguments, load_corpus, make_folds, train
from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.data.augmentation import AUGMENTATIONS
from lascl.modeling_lascl import LaSCLModel
from lascl.studies import forecast
from lascl.studies.forecast import views_heard_once
from lascl.studies.plan import Study, plan_runs, read_corpora
from lascl.studies.run import begin_fold
from lascl.training import fold as fold_module
from lascl.training import pooled
from lascl.training.prepare import read_corpus
from lascl.training.protocol import describe
from lascl.training.random_encoders import save_random_audio_encoder
from lascl.training.recipe import HUB, RECORDED, Recipe
from lascl.training.start import Weights


# What each field is changed to, from the recipe below. 0.1 s cuts other recordings than 0.15 s, in the same second.
CHANGED = {
    "max_duration_s": 0.1,
    "labels": {"joy": "joy", "fear": "rage"},
    "audio_encoder": "wav2vec2 with other weights",
    "text_encoder": "another folder",
    "label_template": "this is {label}",
    "phrasings": {"fear": ["afraid", "scared"]},
    "projection_dim": 4,
    "audio_layers": "1,2",
    "audio_pooling": "max",
    "standardise_audio": True,
    "pooled_dropout": 0.5,
    "text_pooling": "first",
    "freeze_feature_encoder": False,
    "contrastive_temperature": 0.2,
    "contrastive_weight": 0.3,
    "divergence_weight": 1.0,
    "contrastive_reduction": "sum",
    "target_smoothing": 0.2,
    "class_weights": "balanced",
    "label_anchors": False,
    "prediction_head": "classifier",
    "objective": "ce",
    "split_seed": 7,
    "validation": "speaker",
    "selection": "best_validation",
    "folds": "2",
    "protocol": "leave_one_speaker_out",
    "num_folds": 3,
    "augmentation": "polarity_inversion",
    "augmentation_edition": 1,  # noise is the same in both: for others, see below
    "augmentation_period": 3,
    "seed": 43,
    "augmentation_seed": 44,
    "data_seed": 43,
    "num_views": 3,
    "bucket_by_length": True,
    "utterances_per_class": 1,
    "learning_rate": 1e-2,
    "encoder_learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "global_batch_size": 14,
    "num_train_epochs": 3,
    "warmup_steps": 0.2,
    "weight_decay": 0.1,
    "contrastive_chunk_size": 2,
    "contrastive_chunk_s": 2.5,
    "bf16": True,
    "per_device_eval_batch_size": 70,
}
# Needed by others of these, or they mean nothing.
WITH = {
    "label_anchors": {"prediction_head": "classifier"},
    "selection": {"validation": "speaker"},
    "utterances_per_class": {"global_batch_size": 7},
}
# Fields that are not changed here, and why.
UNTRIED = {
    "corpus": "other files: see the test of those",
    "corpora": "other files, of each corpus its own views: see tests/test_corpora_views.py",
    "corpus_exponent": "which utterances share a batch",
    "final_model": "one more training, of the same views",
    "data_dir": "other files: see the test of those",
    "targets": "other labels of the same files, or fewer files, as labels does",
    "ties": "as targets",
    "corpus_options": "other files: see the test of those",
    "on_bad_audio": "leaves utterances out, as labels does",
    "allow_partial": "refuses a corpus or takes it as it is",
    "audio_window": "of Whisper alone: see tests/test_audio_window.py",
    **dict.fromkeys(("audio_level", "pooled_frames"), "of Whisper alone: see tests/test_audio_level.py"),
    "audio_encoder_revision": "other weights, as audio_encoder",
    "init_from": "other weights and another configuration, as audio_encoder and audio_layers",
    "init_from_revision": "as init_from",
    "text_encoder_revision": "hears nothing, as text_encoder",
    "freeze_audio_encoder": "without it nothing is kept",
    "lora_rank": "trains the encoder: nothing is kept",
    "views_dir": "where they are kept",
    "views_gb": "how much is kept",
    "decoded_dir": "where samples are kept that are the same",
    "decoded_gb": "how much of them is kept",
    **dict.fromkeys(HUB, "said when a fold is finished"),
}
# The same blocks, of which other rows are trained on, or in another scale.
SAME_BLOCKS = ("standardise_audio", "split_seed", "validation", "selection", "folds", "protocol", "num_folds")
OTHER_BLOCKS = (
    *("max_duration_s", "labels", "audio_encoder", "audio_layers", "audio_pooling"),
    *("augmentation", "seed", "augmentation_seed"),
)
MORE_BLOCKS = ("augmentation_period", "num_views")


class Begun(Exception):
    """Carries what a trainer was given out of `cross_validate`, which need not train for that."""


def see(model, args, *, train_dataset, **kwargs):
    seen = {}
    for epoch in range(3):
        train_dataset.set_epoch(epoch)
        for index in range(len(train_dataset)):
            seen[train_dataset[index]["id"], epoch] = train_dataset[index]["pooled_audio"]
    raise Begun(seen)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of each of six speakers, 0.06 to 0.2 s, and their manifest."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["path,label,speaker"]
    for number in range(18):
        soundfile.write(folder / f"{number}.wav", recording(number, 0.06 + 0.008 * number), RATE)
        lines.append(f"{number}.wav,{('joy', 'fear', 'calm')[number % 3]},{'abcdef'[number // 3]}")
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def fields(audio_encoders, text_encoder, clips):
    fields = {"corpus": "csv", "data_dir": str(clips), "projection_dim": 8, "folds": "1", "max_duration_s": 0.15}
    fields |= {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
    fields |= {"freeze_audio_encoder": True, "augmentation": "noise", "augmentation_period": 2, "num_views": 2}
    return {**fields, "seed": 42, "disable_tqdm": True, "use_cpu": True}


@pytest.fixture(scope="module")
def begin(fields, tmp_path_factory):
    """The views (V, d_a) that a fold trains on by utterance and epoch, and how many an encoder was asked for; with what
    earlier calls left in `encoded`."""
    heard, forward = [], LaSCLModel.forward

    def counted(*args, **kwargs):
        output = forward(*args, **kwargs)
        heard.append(len(output.pooled_audio))
        return output

    def begin(encoded, **changes):
        values = {**fields, **changes}
        own = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(**{name: value for name, value in values.items() if name in own})
        recipe.training = {name: value for name, value in values.items() if name not in own}
        corpus, _ = read_corpus(recipe)
        division = {"protocol": recipe.protocol, "validation": recipe.validation, "seed": recipe.split_seed}
        folds = make_folds(corpus, recipe.num_folds, **division)
        heard.clear()
        run_dir = tmp_path_factory.mktemp("run")
        described = describe(recipe, corpus, folds, num_skipped=0)
        (run_dir / "protocol.json").write_text(json.dumps(described), encoding="utf-8")
        with pytest.raises(Begun) as begun:
            weights = Weights(recipe.audio_encoder, recipe.text_encoder)
            train.cross_validate(recipe, run_dir, corpus, folds, weights, view_cache=encoded)
        return begun.value.args[0], sum(heard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaSCLModel, "forward", counted)
        patch.setattr(fold_module, "LaSCLTrainer", see)
        yield begin


@pytest.fixture(scope="module")
def first(begin):
    """What the recipe encodes, what it trains on, and how many views that are."""
    encoded = {}
    return encoded, *begin(encoded)


@pytest.fixture(scope="module")
def others(tmp_path_factory, text_encoder):
    """The folders that CHANGED names."""
    folder = tmp_path_factory.mktemp("others")
    weights = save_random_audio_encoder(tiny.AUDIO_ENCODERS["wav2vec2-layer"], folder / "audio", seed=9)
    text = shutil.copytree(text_encoder, folder / "text")
    return {"wav2vec2 with other weights": str(weights), "another folder": str(text)}


def are_alike(views, others):
    return views.keys() == others.keys() and all(
        views[key].shape == others[key].shape and torch.equal(views[key], others[key]) for key in views
    )


@pytest.mark.slow
@pytest.mark.parametrize("field", CHANGED)
def test_a_variant_trains_on_its_own_views_whatever_was_encoded_before(begin, first, others, field):
    change = CHANGED[field]
    change = {field: others.get(change, change) if isinstance(change, str) else change, **WITH.get(field, {})}
    encoded, views, all_views = first
    shared, heard = begin(copy.deepcopy(encoded), **change)
    alone, heard_alone = begin({}, **change)
    if field == "per_device_eval_batch_size":  # which only rounds otherwise
        assert heard == 0 and shared.keys() == alone.keys()
        assert all(torch.allclose(shared[key], alone[key], rtol=1e-4, atol=1e-5) for key in alone)
        return
    assert are_alike(shared, alone), f"{field}: another recipe's audio"
    sees_the_same = field not in (*SAME_BLOCKS, *OTHER_BLOCKS, *MORE_BLOCKS)
    assert are_alike(alone, views) == sees_the_same, f"{field}: say above what it changes"
    if sees_the_same:
        assert heard == 0, f"{field} changes no view, yet {heard} were encoded again"
    elif field in MORE_BLOCKS:
        assert 0 < heard < heard_alone
    elif field == "standardise_audio":
        assert heard <= heard_alone == all_views
    elif field in SAME_BLOCKS:
        assert heard == 0 and heard_alone == all_views
    else:
        assert heard > 0


def test_every_field_of_a_recipe_is_tried_or_declared():
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {field.name for field in dataclasses.fields(Recipe) if field.init}
    own |= {field.name for field in dataclasses.fields(LaSCLTrainingArguments)} - stock | set(RECORDED)
    assert own - {*CHANGED, *UNTRIED} == set(), "Say in this file how it changes a view, or why it does not."


class Watched:
    """Notes which attributes are read."""

    def __init__(self, watched):
        self.watched, self.read = watched, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.watched, name)


def test_stock_s_other_fields_are_not_read_where_views_are_made(fields, tmp_path):
    recipe = Recipe(**{name: fields[name] for name in ("corpus", "data_dir", "audio_encoder", "text_encoder")})
    args = Watched(LaSCLTrainingArguments(str(tmp_path), augmentation_period=1, use_cpu=True, disable_tqdm=True))
    corpus, _ = read_corpus(recipe)
    model = LaSCLForAudioClassification.from_encoders(recipe.audio_encoder, recipe.text_encoder, ["a", "b"])
    extractor = AutoFeatureExtractor.from_pretrained(recipe.audio_encoder)
    speech = fold_module.training_data(recipe, corpus, Fold(1, [0, 1, 2], []), args, extractor)
    pooled.embed_views(model, speech, SpeechCollator(extractor), {}, args)
    assert args.read - CHANGED.keys() == {"disable_tqdm", "workers_for"}


# ------------------------------------------------------------------------------------------------------- what is heard


def test_a_recording_that_was_replaced_is_heard_anew(begin, first, clips, tmp_path):
    """Same name, same length."""
    encoded, views, _ = first
    folder = shutil.copytree(clips, tmp_path / "clips")
    before, heard = begin(encoded, data_dir=str(folder))
    assert are_alike(before, views) and heard == 0  # the same samples elsewhere
    soundfile.write(folder / "5.wav", recording(99, 0.06 + 0.008 * 5), RATE)
    os.utime(folder / "5.wav", ns=(1, 1))
    shared, _ = begin(encoded, data_dir=str(folder))
    alone, _ = begin({}, data_dir=str(folder))
    assert are_alike(shared, alone) and not are_alike(shared, before)


def test_an_extractor_that_was_changed_gives_other_views(begin, fields, tmp_path):
    encoder = shutil.copytree(fields["audio_encoder"], tmp_path / "encoder")
    encoded = {}
    before, _ = begin(encoded, audio_encoder=str(encoder))
    assert begin(encoded, audio_encoder=str(encoder))[1] == 0
    settings = json.loads((encoder / "preprocessor_config.json").read_text())
    (encoder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    shared, _ = begin(encoded, audio_encoder=str(encoder))
    alone, _ = begin({}, audio_encoder=str(encoder))
    assert are_alike(shared, alone) and not are_alike(shared, before)


def test_an_edition_whose_samples_are_others_has_other_views(fields, clips):
    assert "augmentation_edition" in inspect.signature(SpeechDataset).parameters
    corpus = load_corpus("csv", clips)
    model = LaSCLForAudioClassification.from_encoders(fields["audio_encoder"], fields["text_encoder"], ["a", "b"]).lascl
    extractor = AutoFeatureExtractor.from_pretrained(fields["audio_encoder"])
    others = set()
    for name in AUGMENTATIONS[1:]:
        of_name = {"augmentation": name, "num_views": 2, "augmentation_period": 1}
        of_name |= {"sampling_rate": RATE, "max_duration_s": 1.0}
        old, new = (
            pooled.view_keys(
                model, SpeechDataset(corpus, [0, 1], augmentation_edition=edition, **of_name), extractor, weights="w"
            )
            for edition in (1, 2)
        )
        assert old[0, 0] == new[0, 0]
        others |= {name} if old[1, 0] != new[1, 0] else set()
    assert others == {"high_low_pass", "pitch_shift", "reverberation", "mixed"}


NAMING = """
import sys, torch
from transformers import AutoFeatureExtractor
from lascl import LaSCLConfig, load_corpus
from lascl.data import SpeechDataset
from lascl.encoders_lascl import load_audio_encoder
from lascl.modeling_lascl import LaSCLModel
from lascl.studies import forecast
from lascl.studies.forecast import views_heard_once
from lascl.studies.plan import Study, plan_runs, read_corpora
from lascl.studies.run import begin_fold
from lascl.training.pooled import view_keys
clips, folder = sys.argv[1:]
views = {"augmentation": "mixed", "num_views": 2, "augmentation_period": 2}
speech = SpeechDataset(load_corpus("csv", clips), [0, 17], sampling_rate=16000, max_duration_s=1.0, **views)
encoder = load_audio_encoder(folder)
model = LaSCLModel(LaSCLConfig(audio_config=encoder.config, projection_dim=4))
model.audio_encoder = encoder
extractor = AutoFeatureExtractor.from_pretrained(folder)
for again in range(2):
    print(*view_keys(model, speech, extractor).values())
    speech[0]
"""


@pytest.mark.slow
def test_names_of_views_are_those_of_every_other_process(clips, fields, monkeypatch, capsys):
    """Whatever Python's hash seed is, whatever the heads started from, and whatever was drawn before."""
    command = [sys.executable, "-c", NAMING, str(clips), fields["audio_encoder"]]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(sys, "argv", command[2:])
    exec(NAMING, {})
    here, there = capsys.readouterr().out.splitlines()[-2:], done.stdout.splitlines()
    assert here == there and here[0] == here[1]
    keys = here[0].split()
    assert len(set(keys)) == 3 and all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_a_setting_that_nobody_has_named_counts(fields, clips):
    """As the next one will."""
    corpus = load_corpus("csv", clips)
    model = LaSCLForAudioClassification.from_encoders(fields["audio_encoder"], fields["text_encoder"], ["a", "b"]).lascl
    extractor = AutoFeatureExtractor.from_pretrained(fields["audio_encoder"])
    speech = SpeechDataset(corpus, [0, 1], sampling_rate=RATE, max_duration_s=1.0)

    def name():
        return pooled.view_keys(model, speech, extractor)[0, 0]

    names = [name()]
    speech.loudness = "as it is"
    names.append(name())
    model.config.audio_window = "utterance"
    names.append(name())
    extractor.emphasis = 0.97
    names.append(name())
    model.register_buffer("gate", torch.ones(1))
    names.append(name())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        names.append(name())
    assert len(set(names)) == len(names)


def test_a_limit_in_whole_seconds_is_the_same_however_it_is_written(fields, clips):
    """A recipe's 10 is the default's 10.0."""
    corpus, extractor = load_corpus("csv", clips), AutoFeatureExtractor.from_pretrained(fields["audio_encoder"])
    model = LaSCLForAudioClassification.from_encoders(fields["audio_encoder"], fields["text_encoder"], ["a", "b"]).lascl
    names = set()
    for limit_s in (10, 10.0):
        speech = SpeechDataset(corpus, [0, 1], sampling_rate=RATE, max_duration_s=limit_s)
        names |= {pooled.view_keys(model, speech, extractor)[0, 0]}
    assert len(names) == 1


def test_a_dry_run_names_as_many_views_as_a_study_encodes(begin, fields, tmp_path):
    """Of four variants, one changes nothing that is heard, and one the drawn views alone."""
    options = [f"--{name}={value}" for name, value in fields.items() if name not in ("seed", "max_duration_s")]
    runs = []
    for seed, variant in ((1, {}), (1, {"divergence_weight": 1.0}), (1, {"max_duration_s": 0.1}), (2, {})):
        name = f"{seed}, {variant}"
        runs += plan_runs(Study("s", "csv", {}, {name: variant}, [seed], name), options, tmp_path)
    read_corpora(runs)
    assert hasattr(forecast, "view_keys")
    names = {}
    told = set().union(*(views_heard_once(run, 1, names) for run in runs))
    encoded = {}
    for run in runs:
        weights = begin_fold(tmp_path, run, run.run_dir, 1)
        with pytest.raises(Begun):
            train.cross_validate(run.recipe, run.run_dir, run.corpus, run.folds, weights, view_cache=encoded)
    assert set(encoded) == told and len(told) == 3 + 3 + 2
    assert len(names) == 3  # of the variant that changes nothing that is heard, no weights are loaded
