"""Trains, cross-validates and scores LaSCL: `accelerate launch train.py [RECIPE.yaml] [--field value ...]`.

Reads like section 3.2 of the paper. Everything lands in the run directory (`output_dir`):

    recipe.yaml environment.json protocol.json results.json report.html report.md figures/
    fold-K/ checkpoint/ predictions.csv embeddings.npz metrics.json log_history.json logs/ (with `report_to`)
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from huggingface_hub import snapshot_download
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, set_seed
from transformers.utils import logging

from lascl import (
    LaSCLConfig,
    LaSCLForAudioClassification,
    LaSCLTrainer,
    LaSCLTrainingArguments,
    load_corpus,
    make_folds,
)
from lascl.console import unless_pipe_closes
from lascl.data import SAMPLING_RATE, Fold, SpeechCollator, SpeechDataset
from lascl.data.folds import Column, shared_speakers, train_hashes
from lascl.data.sampling import check_batches
from lascl.evaluation import read_predictions, results_table, summarise_run
from lascl.evaluation.results import score_rows
from lascl.hub.card import fold_card
from lascl.hub.publish import FULL_DATA, BackgroundPublisher
from lascl.modeling_lascl import LaSCLModel, save_text_encoder
from lascl.report import write_report
from lascl.training.checkpoints import MarkWholeCheckpoints, last_whole_checkpoint, remove_damaged_checkpoints
from lascl.training.lora import add_lora
from lascl.training.pooled import PooledDataset, collate_pooled, embed_views
from lascl.training.prediction import predict_fold
from lascl.training.random_encoders import save_random_audio_encoder, save_random_text_encoder
from lascl.training.recipe import FIXED_BY_WEIGHTS, Recipe, parse_recipe, recorded_recipe, with_absent
from lascl.training.run_directory import (
    environment,
    is_disk_full,
    link_or_copy,
    open_run,
    write_arrays,
    write_csv,
    write_json,
)
from lascl.training.trackers import tracked


# Of a checkpoint that training starts from, what the recipe decides nevertheless.
LOSS_FIELDS = (
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "prediction_head", "freeze_feature_encoder", "freeze_audio_encoder"),
)
# What the clock says, and an estimate of stock's that is meant for tokens: not in `log_history.json`.
NOT_LOGGED = ("_runtime", "_per_second", "data_wait_share", "peak_memory_mib", "total_flos")
# Bytes of ids that are hashed before training, over the training sides of all folds: a second of work. With more,
# a fold's are hashed when it is begun.
HASHED_AT_ONCE = 2**27


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Runs a recipe: all its folds, then the run's results. Called again, it goes on where it stopped.

    Exits with code 2 and one sentence when something is wrong with the recipe, the corpus or the encoders, or when the
    disk is full.
    """
    logging.disable_progress_bar()  # of loading weights; training keeps its own
    try:
        recipe, run_dir = parse_recipe(sys.argv[1:] if argv is None else argv)
        args = recipe.training_arguments(run_dir)  # forms the process group, and refuses what cannot work
        with PartialState().main_process_first():
            corpus, skipped = read_corpus(recipe)
            folds = make_folds(
                corpus,
                recipe.num_folds,
                protocol=recipe.protocol,
                validation=recipe.validation,
                seed=recipe.split_seed,
            )
            check_batches_of_folds(recipe, corpus, folds, args)
            if PartialState().is_main_process:
                open_run(run_dir, recipe, corpus)
                write_protocol(run_dir, describe(recipe, corpus, folds, num_skipped=len(skipped)), corpus, folds)
                if skipped:
                    write_csv(run_dir / "skipped.csv", skipped)
            encoders = (
                ready_start(recipe, run_dir, corpus, folds) if recipe.init_from else ready_encoders(recipe, run_dir)
            )
        publisher = None
        if recipe.push_to_hub and PartialState().is_main_process:
            publisher = BackgroundPublisher(
                run_dir,
                recipe.hub_model_id,
                private=recipe.hub_private_repo,
                hub_main=recipe.hub_main,
                publish_text_encoder=recipe.publish_text_encoder,
            )
    except (ValueError, OSError, ImportError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        cross_validate(recipe, run_dir, corpus, folds, encoders, publisher)
        if PartialState().is_main_process:
            report(run_dir, labels=corpus.features["label"].names)
        PartialState().wait_for_everyone()
        if recipe.hub_main == "full_data":
            train_on_everything(recipe, run_dir, corpus, encoders)
    except BaseException as error:
        if publisher:
            publisher.cancel()
        if should_reduce_batch_size(error):  # accelerate knows what an exhausted memory says, on every device
            print(f"train.py: {memory_advice(args)}", file=sys.stderr)
            sys.exit(2)
        if not is_disk_full(error):
            raise
        print(
            f"train.py: a file in {run_dir} could not be written: the disk is full ({str(error).splitlines()[0]}). "
            "Free some space and give the same command again: what is finished is kept.",
            file=sys.stderr,
        )
        sys.exit(2)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # before the network is waited for, which others would time out on
    if publisher:
        publisher.finish()


def memory_advice(args: LaSCLTrainingArguments) -> str:
    """One sentence: what did not fit, and what to add to the command."""
    at_once = min(args.contrastive_chunk_size or args.per_device_train_batch_size, args.per_device_train_batch_size)
    views = args.views_an_utterance
    found = f"out of memory with {at_once} utterances x {views} view{'s' if views > 1 else ''} at once."
    kept = "What is finished is kept."
    if at_once == 1:
        return f"{found} Add --gradient_checkpointing true, --bf16 true or a smaller --max_duration_s. {kept}"
    return f"{found} Add --contrastive_chunk_size {at_once // 2}: the gradients stay those of the whole batch. {kept}"


def read_corpus(recipe: Recipe) -> tuple[datasets.Dataset, list[dict[str, str]]]:
    """The recipe's corpus, and the id and fault of each utterance that is left out."""
    skipped = [] if recipe.on_bad_audio == "skip" else None
    corpus = load_corpus(
        recipe.corpus,
        recipe.data_dir,
        labels=recipe.labels,
        allow_partial=recipe.allow_partial,
        skipped=skipped,
        **(recipe.corpus_options or {}),
    )
    labels, occurring = corpus.features["label"].names, Counter(corpus["label"][:])
    counts = ", ".join(f"{label} {occurring[index]}" for index, label in enumerate(labels))
    PartialState().print(
        f"{recipe.corpus}: {len(corpus)} utterances, {len(set(corpus['speaker'][:]))} speakers; {counts}."
    )
    return corpus, [{"id": id, "reason": reason} for id, reason in skipped or []]


def cross_validate(
    recipe: Recipe,
    run_dir: Path,
    corpus,
    folds: list[Fold],
    encoders: tuple[str, str],
    publisher=None,
    encoded: dict | None = None,
):
    """Trains and predicts the recipe's folds, each unless it is complete: then it has `metrics.json`. Each that is
    finished here is handed to the publisher, if there is one. `encoded` holds what frozen encoders made of the audio,
    by `lascl.training.pooled.view_keys`, for whoever calls again."""
    process, labels, occurring = PartialState(), corpus.features["label"].names, Column(corpus["label"][:])
    encoded = {} if encoded is None else encoded
    chosen = recipe.fold_numbers(len(folds))
    for fold in (fold for fold in folds if fold.number in chosen):
        fold_dir = run_dir / f"fold-{fold.number}"
        if (fold_dir / "metrics.json").is_file():
            process.print(f"Fold {fold.number}: complete, kept.")
            continue
        process.print(
            f"Fold {fold.number} of {len(folds)}: {len(fold.train)} utterances to train on, {len(fold.test)} to test, "
            f"of the speakers {', '.join(sorted(set(corpus.select(fold.test)['speaker'][:])))}.",
            *gaps(occurring, labels, fold),
        )
        if process.is_main_process:
            protocol = json.loads((run_dir / "protocol.json").read_text(encoding="utf-8"))
            write_protocol(run_dir, protocol, corpus, folds, begun=fold.number)
        extractor, cost = train_fold(recipe, corpus, fold, fold_dir, *encoders, encoded)
        rows, geometry = predict_fold(
            fold_dir / "checkpoint",
            corpus,
            fold,
            max_duration_s=clip_limit_s(recipe, extractor),
            batch_size=recipe.training_arguments(run_dir).per_device_eval_batch_size,
        )
        if process.is_main_process:
            write_csv(fold_dir / "predictions.csv", rows)
            write_arrays(fold_dir / "embeddings.npz", geometry)
            scores = score_rows(read_predictions(fold_dir / "predictions.csv"), labels, recipe.prediction_head)
            run = {"fold": fold.number, "commit": environment()["commit"], **cost}
            write_json(fold_dir / "metrics.json", {**run, **scores})  # last: it marks the fold as complete
            shutil.rmtree(fold_dir / "trainer", ignore_errors=True)
        if publisher:
            publisher.add(fold.number)
        process.wait_for_everyone()


def train_on_everything(recipe: Recipe, run_dir: Path, corpus, encoders: tuple[str, str]):
    """One more training, on every utterance, as long as that of a fold: `full-data/checkpoint`, which has no held-out
    score. Nothing is left to select an epoch by, so it is the last."""
    folder = run_dir / FULL_DATA
    if (folder / "checkpoint").is_dir():
        PartialState().print("Training on everything: complete, kept.")
    else:
        PartialState().print(f"Training on everything: {len(corpus)} utterances.")
        recipe = copy.copy(recipe)
        recipe.selection = "last"
        train_fold(recipe, corpus, Fold(0, list(range(len(corpus))), []), folder, *encoders, {})
        if PartialState().is_main_process:
            shutil.rmtree(folder / "trainer", ignore_errors=True)
    PartialState().wait_for_everyone()


def describe(recipe: Recipe, corpus, folds: list[Fold], num_skipped: int) -> dict:
    """What a reader of the scores must know: `protocol.json`."""
    columns = {name: corpus[name][:] for name in corpus.column_names if name != "label"}
    caveat = " (speech by eSpeak NG: says nothing about human emotion)" if recipe.corpus == "synthetic" else ""
    selection = "the last epoch is tested" if recipe.selection == "last" else "the epoch best in validation is tested"
    validation = "no validation" if recipe.validation == "none" else f"validation by {recipe.validation}"
    speakers = Column(columns["speaker"])
    shared = shared_speakers(folds, speakers)
    sides = (
        "The official folds have speakers in training AND in test: these are no scores of unseen voices"
        if shared
        else "No speaker is on two sides of a fold"
    )
    notes = [
        f"Corpus: {recipe.corpus}{caveat}. {sides}; {selection}; {validation}. Scores are of the "
        f"{recipe.prediction_head} head unless marked."
    ]
    if recipe.init_from and is_run(recipe.init_from):
        notes.append(
            f"Each fold starts from the checkpoint of the same fold, of the same training side, in {recipe.init_from}."
        )
    elif recipe.init_from:
        notes.append(
            "Training started from another LaSCL checkpoint: if that one heard speakers of this corpus, these scores "
            "are too good."
        )
    if num_skipped:
        notes.append(f"{num_skipped} utterances whose audio cannot be used are left out, see skipped.csv.")
    labels, names = Column(corpus["label"][:]), corpus.features["label"].names
    notes += [sentence for fold in folds for sentence in gaps(labels, names, fold)]
    num_hashed = len(folds) * sum(len(id) + 1 for id in columns["id"])
    hashes = train_hashes(columns["id"], folds) if num_hashed <= HASHED_AT_ONCE else [None] * len(folds)
    description = {
        "corpus": recipe.corpus,
        "num_folds": len(folds),
        "split_seed": recipe.split_seed,
        "folds": [
            {
                "fold": fold.number,
                **{side: len(getattr(fold, side)) for side in ("train", "validation", "test")},
                "test_speakers": sorted(speakers.occurring(fold.test)),
                "validation_speakers": sorted(speakers.occurring(fold.validation)),
                **({"train_ids_hash": train_ids_hash} if train_ids_hash else {}),
            }
            for fold, train_ids_hash in zip(folds, hashes)
        ],
    }
    if "text_id" in columns:
        texts, has_text, known = Column(columns["text_id"]), [text is not None for text in columns["text_id"]], []
        for fold in folds:
            codes = texts.codes[[row for row in fold.test if has_text[row]]]
            known += texts.occurs(fold.train)[codes].tolist()
        if known:
            description["share_of_test_texts_in_training"] = sum(known) / len(known)
            scripted = "scripted test utterances" if "improvised" in columns else "test utterances"
            notes.append(f"The text of {sum(known) / len(known):.0%} of the {scripted} is also spoken in training.")
    if "improvised" in columns:
        description["improvised_ids"] = sorted(
            columns["id"][row] for fold in folds for row in fold.test if columns["improvised"][row]
        )
    return {**description, "notes": notes}


def write_protocol(run_dir: Path, description: dict, corpus, folds: list[Fold], begun: int | None = None):
    """Writes `protocol.json`. Where the folds are so many that `describe` did not hash their training sides, it has the
    hashes of those folds that were begun, and keeps them."""
    path = run_dir / "protocol.json"
    told = json.loads(path.read_text(encoding="utf-8"))["folds"] if path.is_file() else []
    known = {
        fold["fold"]: fold["train_ids_hash"]
        for fold in told
        if "train_ids_hash" in fold
        and (run_dir / f"fold-{fold['fold']}").is_dir()  # else of a run that came to nothing
    }
    for fold in description["folds"]:
        number = fold["fold"]
        if "train_ids_hash" not in fold and number == begun and number not in known:
            (known[number],) = train_hashes(corpus["id"][:], [folds[number - 1]])
        if "train_ids_hash" not in fold and number in known:
            fold["train_ids_hash"] = known[number]
    write_json(path, description)


def gaps(labels: Column, names: list[str], fold: Fold) -> list[str]:
    """A sentence for each side of a fold on which labels do not occur: they cannot be learned there, or not scored."""
    sentences = []
    sides = {"to train on": fold.train, "to test": fold.test, "to validate on": fold.validation}
    for side, rows in ((side, rows) for side, rows in sides.items() if rows):
        occurring = labels.occurring(rows)
        absent = [label for index, label in enumerate(names) if index not in occurring]
        if absent:
            sentences.append(f"Fold {fold.number} has no {', '.join(absent)} {side}.")
    return sentences


def check_batches_of_folds(recipe: Recipe, corpus, folds: list[Fold], args: LaSCLTrainingArguments):
    """Refuses, as `SpeechDataset` and `UtteranceBatchSampler` do, what one of the recipe's folds could not train on."""
    labels, chosen = Column(corpus["label"][:]), [folds[number - 1] for number in recipe.fold_numbers(len(folds))]
    training_data(recipe, corpus, chosen[0], args)
    for fold in chosen:
        check_batches(
            len(fold.train),
            int(labels.occurs(fold.train).sum()),
            global_batch_size=args.global_batch_size,
            utterances_per_class=args.utterances_per_class,
            num_processes=args.world_size,
            accumulation_steps=args.gradient_accumulation_steps,
        )


def train_fold(
    recipe: Recipe,
    corpus,
    fold,
    fold_dir: Path,
    audio_encoder: str,
    text_encoder: str,
    encoded: dict[str, torch.Tensor],
):
    """Trains one fold, from its last intermediate checkpoint if there is one, and saves `fold_dir/checkpoint`.

    A frozen encoder hears every view once where the views repeat; `encoded` keeps what came out for the next fold.

    Returns:
        The feature extractor of the checkpoint, and what training cost: `train_runtime_s`, earlier starts included,
        `encoding_s` before it where the encoder is frozen, and the rates of `StepClock` of this start.
    """
    args = recipe.training_arguments(fold_dir / "trainer")
    labels = corpus.features["label"].names
    window_s = window_of(recipe, corpus, fold)

    set_seed(args.seed)  # of the projections and the classifier, which are new
    if recipe.init_from:
        audio_encoder = str(start_of_fold(audio_encoder, fold.number))
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
    model.lascl.takes_odd_audio = True  # every file was looked at, and a clip of a few samples trains
    extractor = read_extractor(recipe, audio_encoder, window_s)
    adapters = add_lora(model, recipe.lora_rank) if recipe.lora_rank else None
    limit_s = clip_limit_s(recipe, extractor)
    cut = sum(duration_s > limit_s for duration_s in corpus["duration_s"][:])
    if cut:
        PartialState().print(f"{cut} of {len(corpus)} utterances are longer than {limit_s:g} s and cut there.")
    # The test's scores of every epoch are logged, since the field publishes them; nothing reads them.
    heard = {"sampling_rate": extractor.sampling_rate, "max_duration_s": limit_s}
    watched = {name: rows for name, rows in (("validation", fold.validation), ("test", fold.test)) if rows}
    train_set, collator = training_data(recipe, corpus, fold, args, extractor), SpeechCollator(extractor)
    encoding = {}
    fits = recipe.standardise_audio and not recipe.init_from
    if is_encoded_once(recipe, train_set):
        everything = training_data(recipe, corpus, Fold(0, list(range(len(corpus))), []), args, extractor)
        began = time.monotonic()
        blocks = embed_views(model.to(args.device), everything, collator, encoded, args)
        encoding = {"encoding_s": time.monotonic() - began}
        if fits:
            model.lascl.set_pooled_statistics(PooledDataset(everything, fold.train, blocks, num_views=1).pooled[0, 0])
        pool = partial(PooledDataset, everything, blocks=blocks, transform=model.lascl.standardise if fits else None)
        train_set, collator = pool(fold.train, num_views=train_set.num_views), collate_pooled
        watched = {name: pool(rows, num_views=1) for name, rows in watched.items()}
    else:
        if fits:
            loader = DataLoader(SpeechDataset(corpus, fold.train, **heard), args.eval_batch_size, collate_fn=collator)
            model.lascl.set_pooled_statistics(pooled_audio(model.to(args.device), loader))
        watched = {name: SpeechDataset(corpus, rows, **heard) for name, rows in watched.items()}
    with tracked(args, fold_dir):
        trainer = LaSCLTrainer(
            model,
            args,
            eval_dataset=watched,
            train_dataset=train_set,
            data_collator=collator,
            processing_class=extractor,
        )
        trainer.add_callback(MarkWholeCheckpoints())
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                remove_damaged_checkpoints(args.output_dir)
            interrupted = last_whole_checkpoint(args.output_dir)
        if interrupted:
            PartialState().print(f"Going on after step {interrupted.rpartition('-')[2]}.")
        trainer.train(resume_from_checkpoint=interrupted)
    if trainer.is_world_process_zero():
        fold_dir.mkdir(parents=True, exist_ok=True)
        write_json(fold_dir / "log_history.json", merge_log(trainer.state.log_history))
        if adapters:
            adapters.merge_and_unload()
        save_checkpoint(model, extractor, fold_dir / "checkpoint", recipe, text_encoder)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    runtime_s = trainer.state.log_history[-1]["train_runtime"]
    return extractor, {"train_runtime_s": runtime_s, **encoding, **trainer.clock.since_start()}


def window_of(recipe: Recipe, corpus, fold: Fold) -> int:
    """Whisper's window: the longest clip it will be trained on, in whole seconds as its extractor counts."""
    longest_s = max(corpus.select(fold.train)["duration_s"][:])
    return math.ceil(min(longest_s, recipe.max_duration_s))


def read_extractor(recipe: Recipe, audio_encoder: str, window_s: int):
    """The feature extractor that belongs to an encoder or a checkpoint; of Whisper's encoder, with this window."""
    extractor = AutoFeatureExtractor.from_pretrained(
        audio_encoder, revision=recipe.audio_encoder_revision or "main", return_attention_mask=True
    )
    if "input_features" in extractor.model_input_names and not recipe.init_from:  # that has its window already
        return type(extractor)(**{**extractor.to_dict(), "chunk_length": window_s})
    return extractor


def is_encoded_once(recipe: Recipe, speech: SpeechDataset) -> bool:
    """Whether each view is one vector for good: nothing that makes it is trained, and no view is ever drawn again."""
    is_constant = recipe.freeze_audio_encoder and recipe.audio_layers != "weighted"
    return is_constant and speech.augmentation_period is not None


@torch.no_grad()
def pooled_audio(model: LaSCLForAudioClassification, loader: DataLoader) -> torch.Tensor:
    """(N, d_a): the pooled audio of all utterances of a loader, in evaluation mode."""
    model.eval()
    rows = []
    for batch in loader:
        del batch["labels"]
        rows.append(model.lascl(**send_to_device(batch, model.device)).pooled_audio)
    return torch.cat(rows)


def merge_log(entries: list[dict]) -> list[dict]:
    """One entry a logged step, sorted by name: what comes out of an intermediate checkpoint is sorted too."""
    steps = {}
    for entry in entries:
        kept = {name.removeprefix("eval_"): value for name, value in entry.items() if not name.endswith(NOT_LOGGED)}
        steps[entry["step"]] = {**steps.get(entry["step"], {}), **kept}
    return [dict(sorted(steps[step].items())) for step in sorted(steps)]


def training_data(recipe: Recipe, corpus, fold: Fold, args: LaSCLTrainingArguments, extractor=None) -> SpeechDataset:
    """The fold's utterances and their views; without the extractor good for planning alone."""
    return SpeechDataset(
        corpus,
        fold.train,
        sampling_rate=getattr(extractor, "sampling_rate", SAMPLING_RATE),
        max_duration_s=clip_limit_s(recipe, extractor),
        augmentation=args.augmentation,
        num_views=args.num_views,
        augmentation_period=args.augmentation_period,
        seed=args.seed,
    )


def clip_limit_s(recipe: Recipe, extractor) -> float:
    """Seconds that the model sees of an utterance at most: the recipe's limit, and Whisper's window."""
    return min(recipe.max_duration_s, getattr(extractor, "chunk_length", math.inf))


def ready_encoders(recipe: Recipe, run_dir: Path) -> tuple[str, str]:
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
    return made[0], keep_text_encoder(made[1], run_dir)


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


def is_run(init_from: str) -> bool:
    """Whether this is a run directory rather than a checkpoint."""
    return (Path(init_from) / "protocol.json").is_file()


def start_of_fold(init_from: str, number: int) -> Path:
    """The checkpoint that a fold starts from: of a run directory, that of the same fold. Fold 0 is all data."""
    folder = Path(init_from)
    return folder / (f"fold-{number}" if number else FULL_DATA) / "checkpoint" if is_run(init_from) else folder


def check_run(recipe: Recipe, corpus, folds: list[Fold]):
    """Refuses a run directory to start from whose folds are not all there, or were trained on other utterances."""
    told = json.loads((Path(recipe.init_from) / "protocol.json").read_text(encoding="utf-8"))["folds"]
    hashes, ids = {fold["fold"]: fold.get("train_ids_hash") for fold in told}, corpus["id"][:]
    chosen = recipe.fold_numbers(len(folds))
    here = dict(zip(chosen, train_hashes(ids, [folds[number - 1] for number in chosen])))
    numbers = [*chosen, *([0] if recipe.hub_main == "full_data" else [])]
    for number in numbers:
        checkpoint = start_of_fold(recipe.init_from, number)
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


def ready_start(recipe: Recipe, run_dir: Path, corpus, folds: list[Fold]) -> tuple[str, str]:
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
        start = Path(
            snapshot_download(recipe.init_from, revision=recipe.init_from_revision, ignore_patterns="figures/*")
        )
    folder = start_of_fold(str(start), recipe.fold_numbers(len(folds))[0])
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
    return str(start), keep_text_encoder(text_encoder, run_dir) if text_encoder and Path(text_encoder).is_dir() else ""


def start_from(checkpoint: str, labels: list[str], recipe: Recipe) -> LaSCLForAudioClassification:
    """A LaSCL checkpoint with the recipe's losses, to be trained on these labels."""
    settings = {name: value for name, value in recipe.model_config().items() if name in LOSS_FIELDS}
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32, **settings)
    template = recipe.label_template or model.config.label_template
    if (labels, template) != (model.config.labels, model.config.label_template):
        model.lascl.set_labels(labels, template)
    if model.config.classifier_labels is not None:
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(labels))
        model._init_weights(model.classifier)
        model.config.classifier_labels = None
    return model


def save_checkpoint(model, extractor, folder: Path, recipe: Recipe, text_encoder: str):
    """A complete model repository: weights, config, code, feature extractor, card; whole or absent."""
    partial = folder.with_name(".checkpoint")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    model.save_pretrained(partial, save_text_encoder=False)
    extractor.save_pretrained(partial)
    if text_encoder and Path(text_encoder).is_dir():  # of this run: it is nowhere else
        shutil.copytree(text_encoder, partial / "text_encoder", copy_function=link_or_copy)
    # Filled with what is known before the fold is predicted; the published card has the scores too.
    fold_dir = folder.parent
    number = None if fold_dir.name == FULL_DATA else int(fold_dir.name.removeprefix("fold-"))
    card = fold_card(fold_dir.parent, number, checkpoint=partial)
    card.save(partial / "README.md")
    partial.rename(folder)


def report(run_dir: Path, labels: list[str]):
    """Writes `results.json`, the report and its figures from the run's files, and prints the table."""
    results = summarise_run(run_dir, labels)
    write_json(run_dir / "results.json", results)
    write_report(run_dir)
    notes = json.loads((run_dir / "protocol.json").read_text(encoding="utf-8"))["notes"]
    print(f"\n{' '.join(notes)}\n\n{results_table(results)}\n\n{run_dir}: report.html, results.json, fold-*/checkpoint")


if __name__ == "__main__":
    main()
