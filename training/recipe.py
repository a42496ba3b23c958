"""A recipe: everything that decides a run, from a YAML file and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from transformers.utils import is_peft_available

from lascl.configuration_lascl import LaSCLConfig, checked_phrasings, standardising
from lascl.data.corpora import check_entries
from lascl.data.folds import Fold
from lascl.data.votes import check_targets
from lascl.options import HUB_MAIN
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.options import unknown_field
from lascl.training.stock_fields import NOT_IN_RECIPES, REFUSED, refuse
from lascl.training.trackers import check_trackers


# One field for the three; each sets what `LaSCLConfig` has fields of its own for.
OBJECTIVES = {
    "lascl": {},
    "supcon": {"label_anchors": False, "divergence_weight": 0.0, "prediction_head": "classifier"},
    "ce": {
        "contrastive_weight": 0.0,
        "label_anchors": False,
        "divergence_weight": 0.0,
        "prediction_head": "classifier",
    },
}
BALANCED = "balanced"  # of class_weights: what each fold trains on decides them
SELECTIONS = ("last", "best_validation")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DEFAULT_RECIPE = "quickstart"
FULL_DATA = "full-data"  # in a run directory, beside the folds: what was trained on every utterance

# Training fields that a run directory always records, beside those a recipe sets.
RECORDED = (
    "augmentation",
    "augmentation_edition",
    "augmentation_period",
    "augmentation_seed",
    "bucket_by_length",
    "corpus_exponent",
    "encoder_learning_rate",
    "global_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "num_views",
    "seed",
    "utterances_per_class",
    "warmup_steps",
    "weight_decay",
)
# What a field means that an old `recipe.yaml` or `config.json` lacks: the value by which the code acted that wrote it.
# Every field that is new in `Recipe`, in RECORDED or in FIXED_BY_WEIGHTS gets a line here, and keeps it: so old runs go
# on, and old checkpoints are what they were. A function gets the old file's fields. Read by `with_absent` alone.
WHEN_ABSENT = {
    "split_seed": lambda old: old.get("seed", 42),
    "contrastive_reduction": "mean",
    "audio_window": "fixed",
    "audio_level": "recorded",
    "pooled_frames": "valid",
    "pooled_dropout": 0.0,
    "augmentation_seed": lambda old: old.get("seed", 42),
    "augmentation_edition": 1,
    "corpora": None,
    "corpus_exponent": 0.5,
    "final_model": False,
    "phrasings": None,
    "targets": "corpus",
    "ties": "drop",
    "target_smoothing": 0.0,
    "class_weights": None,
}
# How the value of a field is read that older code wrote otherwise.
READ_AS = {"standardise_audio": standardising}
# What decides the table.
CORPUS_FIELDS = (
    *("corpora", "corpus", "data_dir", "labels", "allow_partial", "on_bad_audio", "corpus_options"),
    *("targets", "ties"),
)
# What is told of one corpus, and of each of several in its entry.
ONE_CORPUS = ("corpus", "labels", "corpus_options")
# Fields of `LaSCLConfig` that a checkpoint's weights decide: `init_from` must find them in the recipe as they are.
FIXED_BY_WEIGHTS = (
    *("projection_dim", "audio_layers", "audio_pooling", "audio_window", "audio_level"),
    *("pooled_frames", "standardise_audio", "text_pooling"),
)
# Fields that cannot change what a fold learns (but for rounding and which random numbers are drawn, as the number of
# processes does): a run may be continued with other values.
NOT_IDENTITY = {
    *("gradient_checkpointing", "activation_checkpointing"),  # its name in newer versions of transformers
    *("contrastive_chunk_size", "contrastive_chunk_s"),
    "data_dir",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "disable_tqdm",
    "final_model",
    "folds",
    "log_level",
    "per_device_eval_batch_size",
    "report_to",
    "run_name",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "use_cpu",
}


@dataclass
class Publishing:
    """Where a run is published. This is no part of it: whoever trains from its `recipe.yaml` again must not publish
    there. The fields are as for `lascl.hub.publish.publish`, when a fold is finished."""

    push_to_hub: bool = HfArg(
        default=False, help="publish each fold as it is finished, beside the training of the next"
    )
    hub_model_id: str | None = HfArg(
        default=None, help="org/name: the repository on the Hub; each fold becomes a branch"
    )
    hub_private_repo: bool | None = HfArg(
        default=None, help="of a repository that is made now; by default as the organisation has it"
    )
    hub_main: str | None = HfArg(
        default=None,
        help="what main holds: best_validation (if there is any), first_fold, or full_data (trained on everything)",
    )
    publish_text_encoder: bool = HfArg(default=False, help="with the weights of the text encoder")


HUB = tuple(field.name for field in dataclasses.fields(Publishing))
WHERE_IS_KEPT = ("views_dir", "views_gb", "decoded_dir", "decoded_gb")


@dataclass
class Recipe(Publishing):
    """What is trained on what. How it is trained are the fields of `LaSCLTrainingArguments`, in `training`.

    Args:
        corpus, data_dir, labels, allow_partial, targets, ties: arguments of `lascl.data.load_corpus`; `labels` as a
            list, as words separated by commas or as a mapping (JSON, on the command line).
        on_bad_audio: `error`, or `skip` to go on without files that cannot be used, listed in `RUN/skipped.csv`.
        corpus_options: its further arguments, as a mapping (JSON, on the command line).
        corpora: several, instead of `corpus`, `labels` and `corpus_options`: the entries of `lascl.data.load_corpora`
            (JSON, on the command line), or names separated by commas, each `corpus` or `name=corpus`. An entry without
            a `data_dir` of its own is found in the folder `name` of `data_dir`. One entry is that corpus alone.
        protocol, num_folds, validation: of `lascl.data.make_folds`.
        split_seed: its `seed`. Runs that differ in `seed` alone have the same folds. Unless given, a run in
            `init_from` brings its own.
        selection: `last`, or `best_validation`: the epoch with the highest UA in validation, the earliest of equals.
            Nothing is ever selected by the test.
        objective: `lascl` (eq. 9), or a baseline on the same data, seeds and budget: `supcon` (eq. 4 over utterances
            alone, joined with cross entropy as Gunel et al., 2021, do; its classifier answers) or `ce` (encoder and
            classifier alone).
        folds: `all`, or some, separated by commas: their numbers, or, where each tests a corpus, its names; or `none`,
            to train the final model alone.
        final_model: train once more, on everything, when the folds are done: `RUN/full-data/checkpoint`.
        max_duration_s: longer utterances are cut to their first so many seconds (paper: 10).
        audio_encoder: Hub name or folder; or a mapping (JSON, on the command line) with `model_type` and other
            fields of an encoder's configuration, whose weights then start at random.
        audio_encoder_revision: on the Hub.
        text_encoder: likewise, for the label words.
        init_from, init_from_revision: a LaSCL checkpoint to start from, on the Hub or in a folder; or a run directory
            of the same corpus and folds, and then each fold starts from that fold's checkpoint. It brings both
            encoders (`audio_encoder` and `text_encoder` are then not used) and the fields of `FIXED_BY_WEIGHTS`. The
            labels are the corpus's; unless they are the checkpoint's own, its classifier starts anew.
        class_weights: as in `LaSCLConfig` (JSON, on the command line), or `balanced`: N / (K n_k), with n_k the
            utterances of word k (of votes, the sum of its shares) among the N that a fold trains on.
        label_template: as in `LaSCLConfig`; by default that of `init_from`, else "{label}".
        phrasings: `label_phrasings` of `LaSCLConfig`, as a mapping (JSON, on the command line); those of `init_from`
            stay for words that have no entry here.
        freeze_feature_encoder: as in `LaSCLConfig`; by default frozen unless the encoder starts at random.
        lora_rank: above 0, the audio encoder is fine-tuned through low-rank adapters, see `lascl.training.lora`.
        push_to_hub, hub_model_id, hub_private_repo, hub_main, publish_text_encoder: of `Publishing`; not kept in
            `recipe.yaml`.
        views_dir, views_gb: where what a frozen encoder made of each view is kept, by default in the Hugging Face
            cache, and how much of it at most, in GB; 0 keeps nothing on disk. Not kept in `recipe.yaml`.
        decoded_dir, decoded_gb: likewise of audio that was decoded and resampled to the encoder's rate; WAV files of
            that rate and of one channel need no copy.
        The others: fields of `LaSCLConfig`, with its defaults. `training` is filled by `parse_recipe`.
    """

    corpus: str | None = HfArg(
        default=None,
        help="csv (your own manifest), emobox, hf, iemocap, emodb, ravdess, ... (see the README); default: synthetic",
    )
    corpora: list[dict] | str | None = HfArg(
        default=None, help="several, such as emodb,ravdess,mine=csv, each in its folder of data_dir; or as JSON"
    )
    data_dir: str | None = HfArg(
        default=None, help="folder of the corpus, or the manifest of csv; of corpora, the folder that holds theirs"
    )
    # Of a union HfArgumentParser reads typed text as its second member: hence `str` there.
    labels: dict[str, str] | str | list[str] | None = HfArg(
        default=None, help="those to keep, or corpus label -> word to learn, as JSON; by default all"
    )
    targets: str = HfArg(
        default="corpus",
        help="learned is: corpus, its own label; majority, what most listeners chose; votes, the share of each word",
    )
    ties: str = HfArg(
        default="drop", help="where two words have most votes: drop leaves the utterance out, share learns both"
    )
    allow_partial: bool = HfArg(default=False, help="go on although utterances of a known corpus are missing")
    on_bad_audio: str = HfArg(default="error", help="error, or skip: leave such files out and list them in skipped.csv")
    corpus_options: dict | str | None = HfArg(default=None, help="further options of the corpus, as JSON")
    protocol: str | None = HfArg(
        default=None,
        help="leave_one_session_out, leave_one_speaker_out, speaker_folds, manifest, emobox; of corpora "
        "leave_one_corpus_out, within_each; default: the corpus's",
    )
    num_folds: int | None = HfArg(
        default=None, help="of speaker_folds and within_each, instead of the corpus's own folds"
    )
    validation: str = HfArg(
        default="none", help="none, or whole parts of the training side: session, speaker, manifest, corpus"
    )
    split_seed: int = HfArg(
        default=42, help="draws the folds and who validates, where the protocol draws; seed does not change them"
    )
    folds: str = HfArg(default="all", help="all, or some such as 1,3 or emodb,ravdess; or none")
    final_model: bool = HfArg(default=False, help="then train on everything: RUN/full-data/checkpoint")
    selection: str = HfArg(default="last", help="the last epoch, or best_validation (UA); never by the test")
    objective: str = HfArg(
        default="lascl",
        help="lascl; or supcon (eq. 4 without label embeddings, joined with cross entropy) or ce, to compare",
    )
    max_duration_s: float = HfArg(default=10.0, help="longer utterances are cut to their first so many seconds")
    audio_encoder: dict | str | None = HfArg(
        default="microsoft/wavlm-large", help="Hub name or folder; a JSON configuration starts from random weights"
    )
    audio_encoder_revision: str | None = HfArg(default=None, help="branch, tag or commit on the Hub")
    text_encoder: dict | str | None = HfArg(
        default="FacebookAI/roberta-large", help="Hub name or folder, for the label words; likewise"
    )
    text_encoder_revision: str | None = HfArg(default=None, help="branch, tag or commit on the Hub")
    init_from: str | None = HfArg(
        default=None,
        help="a LaSCL checkpoint (Hub name or folder) to start from, or a run: each fold from the same fold's",
    )
    init_from_revision: str | None = HfArg(default=None, help="branch, tag or commit on the Hub")
    label_template: str | None = HfArg(
        default=None, help="what the text encoder reads for a label; by default {label}, or as init_from has it"
    )
    phrasings: dict[str, list[str]] | str | None = HfArg(
        default=None, help="word -> phrases whose mean embedding stands for it, as JSON; others stand for themselves"
    )
    projection_dim: int = HfArg(default=256, help="width of the joint space")
    audio_layers: str = HfArg(
        default="last", help="last; weighted: a learned sum of all layers; or some, concatenated, such as 1,2,3"
    )
    audio_pooling: str = HfArg(default="mean", help="mean, max, or mean_std (side by side) over frames")
    audio_window: str = HfArg(
        default="fixed", help="what Whisper hears: fixed, its whole window, or utterance, no more than lasts"
    )
    audio_level: str = HfArg(
        default="recorded", help="how loud Whisper hears: recorded, or equal, all utterances equally loud"
    )
    pooled_frames: str = HfArg(
        default="valid", help="which frames of Whisper's are pooled: valid, or active, those with a voice"
    )
    standardise_audio: str = HfArg(
        default="none",
        help="centre and scale the pooled audio by the statistics of: none, training (utterances), or, of a frozen "
        "encoder, each corpus or speaker (whose own unlabelled audio is used)",
        metadata={"nargs": "?", "const": "training"},  # as it was when it was a boolean
    )
    pooled_dropout: float = HfArg(
        default=0.0, help="share of the pooled audio that projection and classifier go without in training"
    )
    text_pooling: str = HfArg(default="mean", help="mean over tokens, or first")
    freeze_feature_encoder: bool | None = HfArg(
        default=None, help="keep the convolutional front end; by default unless it starts at random"
    )
    freeze_audio_encoder: bool = HfArg(default=False, help="train projections and classifier alone")
    contrastive_temperature: float = HfArg(default=0.07, help="tau of eq. 4")
    contrastive_weight: float = HfArg(default=0.5, help="lambda_1 of eq. 9")
    divergence_weight: float = HfArg(default=0.1, help="lambda_2 of eq. 9")
    contrastive_reduction: str = HfArg(
        default="mean", help="mean, bracket (lambda_2 weighs what it does in eq. 9) or sum (eq. 4 as printed)"
    )
    target_smoothing: float = HfArg(
        default=0.0, help="share of each label, or of votes, that is spread over its corpus's words in training"
    )
    class_weights: dict[str, float] | str | None = HfArg(
        default=None, help="balanced (by how often a word is trained on), or word -> weight in both losses, as JSON"
    )
    label_anchors: bool = HfArg(default=True, help="label embeddings take part in eq. 4")
    prediction_head: str = HfArg(default="label", help="label, classifier, or both: their mean")
    lora_rank: int = HfArg(
        default=0, help="fine-tune the audio encoder by LoRA of this rank (needs peft); 0 trains all its weights"
    )
    views_dir: str | None = HfArg(
        default=None, help="where a frozen encoder's views are kept; by default in the Hugging Face cache"
    )
    views_gb: float = HfArg(default=20.0, help="of them at most so many GB are kept; 0: none; see lascl-views")
    decoded_dir: str | None = HfArg(
        default=None, help="where decoded and resampled audio is kept; by default in the Hugging Face cache"
    )
    decoded_gb: float = HfArg(default=20.0, help="of it at most about so many GB are kept; 0: none; see lascl-views")
    training: dict = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self):
        told_as_json = ("corpora", "corpus_options", "labels", "audio_encoder", "text_encoder", "phrasings")
        for name in (*told_as_json, "class_weights"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
                setattr(self, name, _json(name, value))
        if isinstance(self.labels, str):
            self.labels = [label.strip() for label in self.labels.split(",")]
        self._say_what_was_meant()
        self._read_corpora()
        check_targets(self.targets, self.ties)
        if self.on_bad_audio not in ("error", "skip"):
            raise ValueError(f"on_bad_audio must be error or skip; found {self.on_bad_audio!r}.")
        self.folds = str(self.folds).strip("[]")
        self.audio_layers = str(self.audio_layers).strip("[]").replace(" ", "")
        self.standardise_audio = standardising(self.standardise_audio)
        self.phrasings = checked_phrasings(self.phrasings, "phrasings")
        if isinstance(self.class_weights, str) and self.class_weights != BALANCED:
            raise ValueError(f"class_weights must be {BALANCED} or word -> weight; found {self.class_weights!r}.")
        if self.init_from:
            self.audio_encoder = self.audio_encoder_revision = self.text_encoder = self.text_encoder_revision = None
        elif self.label_template is None:
            self.label_template = "{label}"
        if self.freeze_feature_encoder is None:
            self.freeze_feature_encoder = not isinstance(self.audio_encoder, dict)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; found {self.objective!r}.")
        for name, value in OBJECTIVES[self.objective].items():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) not in (default, value):
                raise ValueError(f"objective {self.objective} sets {name} to {value}; found {getattr(self, name)!r}.")
            setattr(self, name, value)
        if self.selection not in SELECTIONS:
            raise ValueError(
                f"selection must be one of {', '.join(SELECTIONS)} (never by the test); found {self.selection!r}."
            )
        if self.selection == "best_validation" and self.validation == "none":
            raise ValueError("selection best_validation needs validation: session, speaker, manifest or corpus.")
        if self.folds == "none" and not self.trains_on_everything:
            raise ValueError("folds none trains nothing; for a model of everything, add final_model: true.")
        if not self.max_duration_s > 0:
            raise ValueError(f"max_duration_s must be above 0; found {self.max_duration_s:g}.")
        for name in ("views_gb", "decoded_gb"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0; found {getattr(self, name)}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be at least 0; found {self.lora_rank}.")
        if self.lora_rank and self.freeze_audio_encoder:
            raise ValueError("lora_rank trains adapters of the audio encoder; set freeze_audio_encoder to false.")
        if self.lora_rank and not is_peft_available():
            raise ValueError("lora_rank needs PEFT: pip install 'lascl[lora]'.")
        if self.push_to_hub:
            check_repo_id(self.hub_model_id)
        if self.hub_main not in (None, *HUB_MAIN):
            raise ValueError(f"hub_main must be {' or '.join(HUB_MAIN)}; found {self.hub_main!r}.")
        if self.hub_main == "best_validation" and self.validation == "none":
            raise ValueError("hub_main best_validation needs validation: session, speaker, manifest or corpus.")
        # Refuse impossible combinations now rather than after the corpus was read.
        LaSCLConfig(**self.model_config())

    def _say_what_was_meant(self):
        """Refuses what people try, with what there is for it."""
        if self.corpus is not None and "," in self.corpus:
            raise ValueError(
                f"corpus is one corpus; found {self.corpus!r}. Several are trained on together by --corpora "
                f"{self.corpus} --data_dir ROOT, which has a folder of each."
            )
        if self.protocol == "none":
            raise ValueError(
                "protocol says who is tested together, and none tests nobody: for a model of all utterances without "
                "any test, give --final_model true --folds none."
            )

    def _read_corpora(self):
        """`corpora` as entries by name, each with its folder; of one entry, the fields of one corpus instead: one
        corpus is one run, however it is told."""
        if self.corpora is None:
            self.corpus = "synthetic" if self.corpus is None else self.corpus
            return
        beside = [name for name in ONE_CORPUS if getattr(self, name) is not None]
        if beside:
            raise ValueError(
                f"{beside[0]} {getattr(self, beside[0])!r} stands beside corpora: give one or the other; labels and "
                "corpus_options belong to each entry of corpora."
            )
        told = self.corpora.split(",") if isinstance(self.corpora, str) else self.corpora
        if isinstance(told, list):
            told = [_typed_entry(entry) if isinstance(entry, str) else entry for entry in told]
        entries = check_entries(told)
        for entry in entries:
            is_elsewhere = "dataset_name" in (entry["corpus_options"] or {})  # on the Hub
            if entry["data_dir"] is not None:
                entry["data_dir"] = str(entry["data_dir"])
            elif self.data_dir is not None and not is_elsewhere:
                entry["data_dir"] = str(Path(self.data_dir) / entry["name"])
        if len(entries) > 1:
            self.corpora = entries
            return
        self.corpora, self.data_dir = None, entries[0]["data_dir"]
        for name in ONE_CORPUS:
            setattr(self, name, entries[0][name])

    @property
    def entries(self) -> list[dict]:
        """What `lascl.data.load_corpora` takes: an entry a corpus, by name."""
        if self.corpora is not None:
            return self.corpora
        told = {"data_dir": self.data_dir, "labels": self.labels, "corpus_options": self.corpus_options}
        return [{"name": self.corpus, "corpus": self.corpus, **told}]

    @property
    def corpus_title(self) -> str:
        """The corpora by name."""
        return ", ".join(entry["name"] for entry in self.entries)

    @property
    def trains_on_everything(self) -> bool:
        """Whether there is one more training, on all utterances."""
        return self.final_model or self.hub_main == "full_data"

    def model_config(self) -> dict:
        """Keyword arguments of `from_encoders`: the fields that are `LaSCLConfig`'s, less what `init_from` decides."""
        fields = set(LaSCLConfig.field_defaults()) - {"text_encoder"}
        told = {**vars(self), "label_phrasings": self.phrasings}
        if self.class_weights == BALANCED:  # known when it is known what is trained on
            told["class_weights"] = None
        return {name: value for name, value in told.items() if name in fields and value is not None}

    def fold_numbers(self, folds: Sequence[Fold]) -> list[int]:
        """The numbers of the chosen ones of these folds, ascending; empty for `none`.

        Raises:
            ValueError: not a list of numbers and names, or a fold that does not exist.
        """
        if self.folds in ("all", "none"):
            return [fold.number for fold in folds] if self.folds == "all" else []
        number_of = {fold.name: fold.number for fold in folds if fold.name}
        numbers = set()
        for told in (part.strip() for part in self.folds.split(",")):
            if told in number_of:
                numbers.add(number_of[told])
            elif not told.isdecimal():
                known = (
                    f"numbers such as 1,3, or names of {', '.join(number_of)}" if number_of else "numbers such as 1,3"
                )
                raise ValueError(f"folds must be 'all' or {known}; found {self.folds!r}.")
            elif not 1 <= int(told) <= len(folds):
                raise ValueError(f"There is no fold {told}: this corpus has the folds 1 to {len(folds)}.")
            else:
                numbers.add(int(told))
        return sorted(numbers)

    def training_arguments(self, output_dir: str | Path) -> LaSCLTrainingArguments:
        """The training arguments of one fold, which keeps its intermediate checkpoints in `output_dir`."""
        # Scores of every epoch are logged; only those of the validation can choose one.
        chosen = {"eval_strategy": "epoch"}
        if self.selection == "best_validation":
            chosen |= {"load_best_model_at_end": True, "metric_for_best_model": "validation_ua"}
            chosen["save_strategy"] = "epoch"
            clash = sorted(name for name, value in chosen.items() if self.training.get(name, value) != value)
            if clash:
                raise ValueError(f"selection best_validation sets {clash[0]} to {chosen[clash[0]]!r}.")
        args = LaSCLTrainingArguments(output_dir=str(output_dir), **{**chosen, **self.training})
        check_trackers(args.report_to)
        self.check_standardising(args)
        return args

    def check_standardising(self, args: LaSCLTrainingArguments):
        """Refuses statistics by corpus or speaker of audio that changes while the model is trained: they would be of
        something else then.

        Raises:
            ValueError: it does; the message names what must be set.
        """
        if self.standardise_audio in ("none", "training"):
            return
        repeats = args.views_an_utterance == 1 or args.augmentation_period is not None
        needed = {
            f"freeze_audio_encoder to true (found {str(self.freeze_audio_encoder).lower()})": self.freeze_audio_encoder,
            "audio_layers to last or to numbers (found weighted)": self.audio_layers != "weighted",
            "augmentation_period to a number (found none), or augmentation to none": repeats,
        }
        missing = [setting for setting, is_there in needed.items() if not is_there]
        if missing:
            raise ValueError(
                f"standardise_audio {self.standardise_audio} is for a frozen encoder that hears every view once: set "
                f"{'; '.join(missing)}."
            )

    def to_dict(self) -> dict:
        """The recipe as it would stand in a YAML file, with every default that decides a run written out; without the
        fields of publishing."""
        left_out = (*HUB, *WHERE_IS_KEPT)
        recipe = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        training = recipe.pop("training")
        recorded = {f.name: f.default for f in dataclasses.fields(LaSCLTrainingArguments) if f.name in RECORDED}
        whole = {**recipe, **recorded, **training}
        return {
            **whole,
            "augmentation_seed": whole["seed"] if whole["augmentation_seed"] is None else whole["augmentation_seed"],
        }


def parse_recipe(argv: list[str]) -> tuple[Recipe, Path]:
    """Reads `[RECIPE.yaml] [--field value ...]`.

    Fields are those of `Recipe` and of `LaSCLTrainingArguments`; the command line wins over the file. RECIPE is a path
    or the name of a recipe that comes with the package; none means `quickstart`.

    Returns:
        The recipe and the run directory (`output_dir`, by default `runs/<recipe>`).

    Raises:
        ValueError: a field that does not exist (with the nearest that does), a value of the wrong kind, or a recipe
            that cannot be read.
        SystemExit: `--help`, `--help-all`.
    """
    parser = HfArgumentParser(
        [Recipe, LaSCLTrainingArguments, Publishing],  # once more, since stock has three of the same names
        prog="train.py",
        allow_abbrev=False,
        exit_on_error=False,
        conflict_handler="resolve",  # the last of a name stays
    )
    parser.add_argument("recipe", nargs="?", default=DEFAULT_RECIPE, help="a YAML file, or a shipped recipe's name")
    if {"-h", "--help"} & set(argv):
        print_short_help()
        sys.exit()
    if "--help-all" in argv:
        print_help()
        sys.exit()
    parser.set_defaults(**dict.fromkeys(field_types()))  # so that what was typed is told apart: nothing typed is None
    try:
        namespace, unknown = parser.parse_known_args(argv)
    except Exception as error:  # argparse.ArgumentError, and what HfArgumentParser's types raise
        raise ValueError(f"{error}.") from None
    if unknown:
        raise ValueError(unknown_field(unknown[0].lstrip("-").split("=")[0].replace("-", "_")))
    typed = {name: value for name, value in vars(namespace).items() if value is not None}
    path = find_recipe(typed.pop("recipe"))
    fields = {**_without_other_corpora(_read_recipe(path), typed), **typed}
    output_dir = Path(fields.pop("output_dir", f"runs/{path.stem}"))
    fields = {**_fields_of_old_runs(path, output_dir, fields.get("init_from")), **fields}
    if "per_device_train_batch_size" in fields:
        raise ValueError("per_device_train_batch_size is derived; set global_batch_size.")
    if fields.get("hub_token"):
        raise ValueError("hub_token would be written to files; log in with `hf auth login`, or set HF_TOKEN.")
    refuse(fields, REFUSED | NOT_IN_RECIPES)
    own = {field.name for field in dataclasses.fields(Recipe) if field.init}
    training = {name: value for name, value in fields.items() if name not in own}
    recipe = Recipe(**{name: value for name, value in fields.items() if name in own})
    recipe.training = training
    return recipe, output_dir


# What most people set, and in few words what it is: a screen of `--help`.
MOST_SET = {
    "What is trained on what": {
        "corpus": "emodb, ravdess, csv (your manifest), ...: docs/corpora.md",
        "data_dir": "its folder, or your manifest",
        "corpora": "several, such as emodb,mine=csv, each in its folder of data_dir",
        "labels": "which of its words, or a mapping of them",
        "audio_encoder": "a folder or Hub name: WavLM, HuBERT, wav2vec 2.0, Whisper, ...",
        "text_encoder": "a folder or Hub name",
        "init_from": "a checkpoint to start from",
    },
    "How": {
        "output_dir": "the run directory (default: runs/RECIPE); the same command goes on there",
        "freeze_audio_encoder": "true leaves it as it is: for small corpora, and CPUs",
        "num_train_epochs": "passes over the training side",
        "global_batch_size": "utterances a step, whatever the number of processes",
        "learning_rate": "of what is new; encoder_learning_rate of the encoder",
        "num_views": "augmented copies of each utterance in a batch",
        "augmentation": "mixed, none, or one by its name",
        "contrastive_chunk_size": "less memory, the same gradients",
        "bf16": "half precision, on GPUs that know it",
        "seed": "of weights and batches; split_seed of the folds",
    },
    "Who is tested, and what remains": {
        "protocol": "who is left out in turn: docs/protocols.md",
        "folds": "all, none, or some, such as 1,3",
        "validation": "who is held back in training to choose by",
        "final_model": "true trains once more on everything",
        "push_to_hub": "true publishes each fold: docs/hub.md",
    },
}


def print_short_help():
    """Prints a screen of what most people set."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [RECIPE] [--field value ...]",
        description=f"Trains, cross-validates and scores LaSCL. RECIPE: a YAML file, or {', '.join(shipped_recipes())} "
        f"(default: {DEFAULT_RECIPE}). A field that is typed wins over it; those that it does not set have defaults.",
        epilog="--help-all lists every field with its default, those of transformers' TrainingArguments among them.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=30, width=110),
        add_help=False,
    )
    for title, fields in MOST_SET.items():
        group = parser.add_argument_group(title)
        for name, words in fields.items():
            group.add_argument(f"--{name}", metavar="", help=words)
    parser.print_help()


def print_help():
    """Prints every field that a recipe may set: LaSCL's own first, then what of transformers' is used here."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [RECIPE] [--field value ...]",
        description="Trains, cross-validates and scores LaSCL. RECIPE is a YAML file of fields, or one that is "
        f"shipped: {', '.join(shipped_recipes())} (default: {DEFAULT_RECIPE}). A field that is typed wins over it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    own = [field for field in dataclasses.fields(Recipe) if field.init]
    training = [field for field in dataclasses.fields(LaSCLTrainingArguments) if field.init]
    ours = LaSCLTrainingArguments.__annotations__
    refused = {*REFUSED, *NOT_IN_RECIPES, *(field.name for field in own), "per_device_train_batch_size"}
    groups = {
        "What is trained on what": [field for field in own if field.name not in HUB],
        "How it is trained": [field for field in training if field.name in ours],
        "Where it is published": [field for field in own if field.name in HUB],
        "Of transformers' TrainingArguments": [field for field in training if field.name not in ours],
    }
    types = field_types()
    for title, fields in groups.items():
        group = parser.add_argument_group(title)
        for field in fields:
            if field in own or field.name not in refused:
                made = field.default_factory is not dataclasses.MISSING
                default = argparse.SUPPRESS if made else field.default
                kinds = {types[field.name], *get_args(types[field.name])}
                metavar = "true|false" if bool in kinds else "N" if kinds & {int, float} else "VALUE"
                words = field.metadata.get("help") or ("" if made else "(default: %(default)s)")
                group.add_argument(f"--{field.name}", metavar=metavar, default=default, help=words)
    parser.print_help()


def field_types() -> dict[str, object]:
    """The type of every field that a recipe may set, by its name."""
    return {
        field.name: hints[field.name]
        for kind in (Recipe, LaSCLTrainingArguments)
        for hints in [get_type_hints(kind)]
        for field in dataclasses.fields(kind)
        if field.init
    }


def check_repo_id(repo_id: str | None, option: str = "hub_model_id"):
    """Raises ValueError, which names the option, unless it is `org/name` as the Hub writes names."""
    if "/" not in (repo_id or ""):
        raise ValueError(f"{option} must be org/name, with the organisation or user; found {repo_id!r}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{option} must be a repository's name on the Hub: {error}") from None


def find_recipe(name: str) -> Path:
    """The file of a recipe: NAME itself, or the shipped one of that name. Raises ValueError if there is neither."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, shipped_recipes(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"There is no recipe {name!r}: neither a file nor one of {', '.join(shipped_recipes())}.{hint}")


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _read_recipe(path: Path) -> dict:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold `field: value` lines; found a {type(fields).__name__}.")
    if "study" in fields:
        raise ValueError(f"{path.stem} is a study's recipe, of several variants. Run it with: lascl-study {path.stem}.")
    types = field_types()
    for name, value in fields.items():
        if name not in types:
            raise ValueError(f"{path}: {unknown_field(name)}")
        allowed = {types[name], *get_args(types[name])}
        if isinstance(value, str) and str not in allowed and allowed & {int, float}:
            try:
                fields[name] = int(value) if int in allowed else float(value)  # YAML takes 1e-4 for text
            except ValueError:
                raise ValueError(f"{path}: {name} must be a number; found {value!r}.") from None
    return fields


def _json(name: str, text: str) -> dict | list:
    """What a field's JSON on the command line says."""
    try:
        return yaml.safe_load(text)  # JSON is YAML too
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{name} is no valid JSON ({reason}); found {text!r}.") from None


def _without_other_corpora(fields: dict, typed: dict) -> dict:
    """Fields of a recipe without what they say of corpora, where others are typed: one instead of several, or the other
    way round."""
    if "corpora" in typed:
        return {name: value for name, value in fields.items() if name != "corpus" or "corpus" in typed}
    return {name: value for name, value in fields.items() if name != "corpora" or "corpus" not in typed}


def _typed_entry(told: str) -> dict[str, str]:
    """An entry of `corpora` from `corpus` or `name=corpus`."""
    name, _, corpus = told.strip().partition("=")
    return {"name": name.strip(), "corpus": corpus.strip() or name.strip()}


def without_places(fields: dict) -> dict:
    """A recipe's fields without where its corpora lie, which is no part of a run's identity."""
    entries = fields.get("corpora")
    if not entries:
        return fields
    return {**fields, "corpora": [{**entry, "data_dir": None} for entry in entries]}


def with_absent(old: dict) -> dict:
    """All fields of a `recipe.yaml` or `config.json` as today's code reads them: what it lacks by `WHEN_ABSENT`, what
    it has by `READ_AS`."""
    read = {name: READ_AS[name](value) if name in READ_AS else value for name, value in old.items()}
    return {**{name: value(old) if callable(value) else value for name, value in WHEN_ABSENT.items()}, **read}


def recorded_recipe(run_dir: str | Path) -> dict | None:
    """The fields of a run's `recipe.yaml` as they stand there; `None` if there is no run."""
    path = Path(run_dir) / "recipe.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _fields_of_old_runs(path: Path, output_dir: Path, init_from: str | None) -> dict:
    """Fields that older runs decide, unless they are given: those that the run which is continued does not know yet, or
    the run whose `recipe.yaml` is trained again, and the folds of the run that training starts from."""
    fields = {}
    start = recorded_recipe(init_from) if init_from else None
    if start is not None:
        fields["split_seed"] = with_absent(start)["split_seed"]
    again = path.parent if path.name == "recipe.yaml" and path.with_name("environment.json").is_file() else None
    for run_dir in (again, output_dir):
        old = recorded_recipe(run_dir) if run_dir else None
        if old is not None:
            fields |= {name: value for name, value in with_absent(old).items() if name not in old}
            if old.get("init_from") and "split_seed" not in old:  # then not inherited yet
                fields["label_template"] = old["label_template"]
    return fields
