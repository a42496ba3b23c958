"""Where a model's weights come from: encoders by name, from folders or at random; another checkpoint; another run."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, set_seed

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.configuration_lascl import checked_weights
from lascl.data import Fold
from lascl.data.folds import train_hashes
from lascl.data.votes import balanced_weights
from lascl.data.words import words_of_fold
from lascl.encoders_lascl import WHISPER_FRAMES_PER_S
from lascl.modeling_lascl import LaSCLModel, save_text_encoder
from lascl.training.lora import add_lora
from lascl.training.random_encoders import save_random_audio_encoder, save_random_text_encoder
from lascl.training.recipe import BALANCED, FIXED_BY_WEIGHTS, FULL_DATA, Recipe, recorded_recipe, with_absent


if TYPE_CHECKING:
    from peft import LoraModel

# Of a checkpoint that training starts from, what the recipe decides nevertheless.
LOSS_FIELDS = (
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "prediction_head", "freeze_feature_encoder", "freeze_audio_encoder", "pooled_dropout"),
    "target_smoothing",
)


class Weights(NamedTuple):
    """Where the weights of a run's folds lie.

    Args:
        audio: the audio encoder, a Hub name or a folder; with `init_from` the folder of the LaSCL checkpoint, or the
            run directory of the folds' checkpoints.
        text: the text encoder, a Hub name or a folder of this run; empty if `init_from` has it from the Hub.
    """

    audio: str
    text: str


class Start(NamedTuple):
    """A model before its first step, its feature extractor, and PEFT's handle of its adapters, if it has any."""

    model: LaSCLForAudioClassification
    extractor: object
    adapters: LoraModel | None


# ---------------------------------------------------------------------------------------------- before the first fold


def ready_weights(recipe: Recipe, run_dir: Path, corpus, folds: list[Fold]) -> Weights:
    """Makes sure that the weights are there and fit the recipe, before anything is computed.

    Raises:
        ValueError: an encoder or a checkpoint that cannot be loaded or does not fit; no weights are read to know it.
    """
    if recipe.init_from:
        return _ready_checkpoint(recipe, run_dir, corpus, folds)
    return _ready_encoders(recipe, run_dir)


def _ready_encoders(recipe: Recipe, run_dir: Path) -> Weights:
    """Names or folders of the two encoders; those with random weights are made under the run directory once.

    A text encoder from a folder is copied there too: every checkpoint of the run brings it along.

    Raises:
        ValueError: an encoder that cannot be loaded, or whose type LaSCL refuses; no weights are read to know it.
    """
    made = []
    for kind, spec, save in (
        ("audio", recipe.audio_encoder, save_random_audio_encoder),
        ("text", recipe.text_encoder, save_random_text_encoder),
    ):
        folder = run_dir / "encoders" / kind
        if isinstance(spec, dict) and not (folder / "model.safetensors").is_file():
            save(spec, folder, seed=recipe.training.get("seed", 42))
        made.append(str(folder) if isinstance(spec, dict) else spec)
        revision = getattr(recipe, f"{kind}_encoder_revision") or "main"
        try:
            config = AutoConfig.from_pretrained(made[-1], revision=revision)
            if kind == "text":
                AutoTokenizer.from_pretrained(made[-1], revision=revision)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: see `lascl.modeling_lascl.find_file`
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{kind}_encoder {made[-1]!r} cannot be loaded ({reason}) Give a Hub name or a folder with config.json."
            ) from None
        if kind == "audio":
            with torch.device("meta"):
                LaSCLModel(LaSCLConfig(audio_config=config, **recipe.model_config()))
    return Weights(made[0], keep_text_encoder(made[1], run_dir))


def _ready_checkpoint(recipe: Recipe, run_dir: Path, corpus, folds: list[Fold]) -> Weights:
    """The folder of the LaSCL checkpoint that training starts from, fetched if need be, or the run directory of the
    folds' checkpoints, and the folder of this run with its text encoder, empty if that is on the Hub.

    Raises:
        ValueError: no LaSCL checkpoint, a recipe that its weights do not fit, a Whisper window too short, or a run
            directory whose folds are not there or not these.
    """
    start = Path(recipe.init_from)
    if is_run(recipe.init_from):
        check_run(recipe, corpus, folds)
    elif not start.is_dir():
        if recipe.init_from.count("/") > 1 or start.is_absolute():
            raise ValueError(f"init_from: there is no folder {recipe.init_from}, and a name on the Hub is org/name.")
        start = Path(
            snapshot_download(recipe.init_from, revision=recipe.init_from_revision, ignore_patterns="figures/*")
        )
    folder = checkpoint_of_fold(str(start), next(iter(recipe.fold_numbers(folds)), 0))
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, LaSCLConfig):
        raise ValueError(
            f"init_from {recipe.init_from!r} is of the type {config.model_type!r}, not a LaSCL checkpoint. For a "
            "speech encoder, set audio_encoder."
        )
    # What an old file does not say is what the old code did, whatever a new configuration's default may be.
    told = with_absent(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    for name in FIXED_BY_WEIGHTS:
        found, wanted = told.get(name, getattr(config, name)), getattr(recipe, name)
        if found != wanted:
            raise ValueError(f"init_from has {name} {found!r}, the recipe {wanted!r}. Set {name} to {found!r}.")
    window_s = getattr(AutoFeatureExtractor.from_pretrained(folder), "chunk_length", math.inf)
    longest_s = min(max(corpus["duration_s"][:]), recipe.max_duration_s)
    if longest_s > window_s:
        raise ValueError(
            f"init_from hears {window_s:g} s at most, and this corpus has {longest_s:.1f} s. To cut longer utterances, "
            f"set max_duration_s to {window_s:g}."
        )
    # Its own, or the folder that the configuration of an older LaSCL names.
    own = folder / "text_encoder"
    text_encoder = str(own) if own.is_dir() else config.text_encoder or ""
    is_folder = text_encoder and Path(text_encoder).is_dir()
    return Weights(str(start), keep_text_encoder(text_encoder, run_dir) if is_folder else "")


def check_run(recipe: Recipe, corpus, folds: list[Fold]):
    """Refuses a run directory to start from whose folds are not all there, or were trained on other utterances."""
    told = json.loads((Path(recipe.init_from) / "protocol.json").read_text(encoding="utf-8"))["folds"]
    hashes, ids = {fold["fold"]: fold.get("train_ids_hash") for fold in told}, corpus["id"][:]
    chosen = recipe.fold_numbers(folds)
    here = dict(zip(chosen, train_hashes(ids, [folds[number - 1] for number in chosen])))
    numbers = [*chosen, *([0] if recipe.trains_on_everything else [])]
    for number in numbers:
        checkpoint = checkpoint_of_fold(recipe.init_from, number)
        if not (checkpoint / "config.json").is_file():
            raise ValueError(
                f"init_from {recipe.init_from!r} has no {checkpoint.parent.name}/checkpoint. Finish that run."
            )
        if number and hashes.get(number) != here[number]:
            split_seed = with_absent(recorded_recipe(recipe.init_from) or {})["split_seed"]
            raise ValueError(
                f"init_from {recipe.init_from!r} trained fold {number} on other utterances than this recipe would: it "
                "may have heard those that are tested here. Use its corpus, labels, protocol, validation and "
                f"split_seed ({split_seed})."
            )


def is_run(init_from: str) -> bool:
    """Whether this is a run directory rather than a checkpoint."""
    return (Path(init_from) / "protocol.json").is_file()


def checkpoint_of_fold(init_from: str, number: int) -> Path:
    """The checkpoint that a fold starts from: of a run directory, that of the same fold. Fold 0 is all data."""
    folder = Path(init_from)
    return folder / (f"fold-{number}" if number else FULL_DATA) / "checkpoint" if is_run(init_from) else folder


def keep_text_encoder(name: str, run_dir: Path) -> str:
    """A text encoder's name on the Hub; of one in a folder, the folder of the run that holds it, saved once."""
    folder = run_dir / "encoders" / "text"
    if not Path(name).is_dir() or Path(name) == folder:
        return name
    if not folder.is_dir():
        partial = folder.with_name(f".text.{os.getpid()}")
        save_text_encoder(name, str(partial))
        try:
            partial.rename(folder)
        except OSError:  # a process beside this one, of a study, was faster
            shutil.rmtree(partial)
    return str(folder)


# --------------------------------------------------------------------------------------------------------- of each fold


def start_model(recipe: Recipe, corpus, fold: Fold, weights: Weights, seed: int) -> Start:
    """The model that a fold's training starts from; `seed` draws the projections and the classifier, which are new."""
    audio_encoder, text_encoder = weights
    labels, window_s = words_of_fold(corpus, fold), window_of(recipe, corpus, fold, audio_encoder)
    set_seed(seed)
    if recipe.init_from:
        audio_encoder = str(checkpoint_of_fold(audio_encoder, fold.number))
        model = start_from(audio_encoder, labels, recipe)
    else:
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoder,
            text_encoder,
            labels,
            audio_encoder_revision=recipe.audio_encoder_revision,
            window_s=window_s,
            **recipe.model_config(),
        )
    model.config.class_weights = weights_of(recipe, corpus, fold, labels)
    model.lascl.takes_odd_audio = True  # every file was looked at, and a clip of a few samples trains
    adapters = add_lora(model, recipe.lora_rank) if recipe.lora_rank else None
    return Start(model, read_extractor(recipe, audio_encoder, window_s), adapters)


def weights_of(recipe: Recipe, corpus, fold: Fold, words: list[str]) -> dict[str, float] | None:
    """The `class_weights` of a fold's model, which learns these words: those of the recipe, or what balances what the
    fold trains on."""
    if recipe.class_weights != BALANCED:
        return checked_weights(recipe.class_weights)
    return balanced_weights(corpus, fold.train, words)


def start_from(checkpoint: str, labels: list[str], recipe: Recipe) -> LaSCLForAudioClassification:
    """A LaSCL checkpoint with the recipe's losses, to be trained on these labels."""
    settings = {name: value for name, value in recipe.model_config().items() if name in LOSS_FIELDS}
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32, **settings)
    config, phrasings = model.config, recipe.phrasings or {}
    config.label_temperatures = None  # fitted to what it was
    template, old = recipe.label_template or config.label_template, config.label_phrasings or {}
    if (labels, template, {**old, **phrasings}) != (config.labels, config.label_template, old):
        model.lascl.set_labels(labels, template, phrasings)
    if model.config.classifier_labels is not None:
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(labels))
        model._init_weights(model.classifier)
        model.config.classifier_labels = None
    return model


def window_of(recipe: Recipe, corpus, fold: Fold, audio_encoder: str) -> int:
    """Whisper's window, in whole seconds as its extractor counts. If it is heard whole (`audio_window` fixed), the
    longest clip that it is trained on. If an utterance costs no more than it lasts, the recipe's limit, or all that the
    encoder has: then nothing that is tested is cut by what was trained on, and all folds hear alike."""
    if recipe.audio_window == "fixed" or recipe.init_from:  # of a checkpoint, it is there already
        longest_s = max(corpus.select(fold.train)["duration_s"][:])
        return math.ceil(min(longest_s, recipe.max_duration_s))
    config = AutoConfig.from_pretrained(audio_encoder, revision=recipe.audio_encoder_revision or "main")
    own_s = getattr(config, "max_source_positions", math.inf) // WHISPER_FRAMES_PER_S
    longest_s = min(max(corpus["duration_s"][:]), recipe.max_duration_s)
    # What is longer than the encoder's own is refused where the window is cut, as of a fixed one.
    return math.ceil(max(longest_s, min(recipe.max_duration_s, own_s)))


def read_extractor(recipe: Recipe, audio_encoder: str, window_s: int):
    """The feature extractor that belongs to an encoder or a checkpoint; of Whisper's encoder, with this window."""
    extractor = AutoFeatureExtractor.from_pretrained(
        audio_encoder, revision=recipe.audio_encoder_revision or "main", return_attention_mask=True
    )
    if "input_features" in extractor.model_input_names and not recipe.init_from:  # that has its window already
        return type(extractor)(**{**extractor.to_dict(), "chunk_length": window_s})
    return extractor
