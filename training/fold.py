"""One fold: its views, the statistics of its pooled audio, its training, and what is kept of it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from huggingface_hub import ModelCard
from torch.utils.data import DataLoader, Dataset
from transformers import AutoFeatureExtractor

from lascl.data import SAMPLING_RATE, Fold, SpeechCollator, SpeechDataset
from lascl.data.decoded import DecodedAudio
from lascl.data.words import corpus_of_rows, words_of_fold
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.checkpoints import MarkWholeCheckpoints, last_whole_checkpoint, remove_damaged_checkpoints
from lascl.training.pooled import PooledDataset, collate_pooled, embed_views, known_block, parts_of, statistics_of
from lascl.training.recipe import Recipe
from lascl.training.run_directory import link_or_copy, write_json
from lascl.training.start import Start
from lascl.training.trackers import tracked
from lascl.training.trainer import LaSCLTrainer
from lascl.training.views import GB, ViewStore, default_decoded_folder, default_folder


# What the clock says, and an estimate of stock's that is meant for tokens: not in `log_history.json`.
NOT_LOGGED = ("_runtime", "_per_second", "data_wait_share", "peak_memory_mib", "total_flos")


class FoldData(NamedTuple):
    """What a fold's training reads.

    Args:
        train: the views that are trained on.
        watched: by `validation` and `test`, the clean views whose scores are logged. Where a corpus is left out, its
            test is not among them; and an utterance of a word that is not learned is in neither.
        collate: makes batches of both.
        cost: `encoding_s`, where a frozen encoder heard the views before training.
    """

    train: Dataset
    watched: dict[str, Dataset]
    collate: Callable
    cost: dict[str, float]


# --------------------------------------------------------------------------------------------------------------- views


def fold_data(
    recipe: Recipe, corpus, fold: Fold, args: LaSCLTrainingArguments, start: Start, view_cache: dict[str, torch.Tensor]
) -> FoldData:
    """The fold's views as audio, or, of a frozen encoder whose views repeat, as the pooled audio of each, which is
    encoded once. The model gets the statistics of the training side if the recipe standardises, by whosesoever; one
    that starts from a LaSCL checkpoint only if they are of each corpus or speaker. By those of all training utterances
    it keeps the checkpoint's, which its heads are used to.

    Args:
        view_cache: pooled audio by `lascl.training.pooled.view_keys`: what is there is not encoded again.
    """
    model, extractor, _ = start
    limit_s = clip_limit_s(recipe, extractor)
    num_cut = sum(duration_s > limit_s for duration_s in corpus["duration_s"][:])
    if num_cut:
        PartialState().print(f"{num_cut} of {len(corpus)} utterances are longer than {limit_s:g} s and cut there.")
    collator, train = SpeechCollator(extractor), training_data(recipe, corpus, fold, args, extractor)
    words, watched = train.label_names, watched_rows(corpus, fold)
    by_group = recipe.standardise_audio in ("corpus", "speaker")
    takes_statistics = model.config.standardises and (by_group or not recipe.init_from)
    if is_encoded_once(recipe, train):
        everything = training_data(recipe, corpus, everything_of(corpus), args, extractor, words)
        began = time.monotonic()
        blocks = embed_views(model.to(args.device), everything, collator, view_cache, args, view_store(recipe))
        cost = {"encoding_s": time.monotonic() - began}
        if takes_statistics:
            model.lascl.set_pooled_statistics(parts_of(blocks[0, 0], fold.train))
        statistics = statistics_of(model.lascl, blocks[0, 0], fold, **groups_of(corpus))
        pooled = partial(PooledDataset, everything, blocks=blocks, statistics=statistics)
        train = pooled(fold.train, num_views=train.num_views)
        return FoldData(
            train, {name: pooled(rows, num_views=1) for name, rows in watched.items()}, collate_pooled, cost
        )
    audio = {"sampling_rate": extractor.sampling_rate, "max_duration_s": limit_s, "decoded": train.decoded}
    clean = partial(SpeechDataset, corpus, **audio, words=words)
    if takes_statistics:
        loader = DataLoader(clean(fold.train), args.eval_batch_size, collate_fn=collator)
        model.lascl.set_pooled_statistics(pool_utterances(model.to(args.device), loader))
    return FoldData(train, {name: clean(rows) for name, rows in watched.items()}, collator, {})


def watched_rows(corpus, fold: Fold) -> dict[str, list[int]]:
    """By `validation` and `test`, the rows whose scores are logged by epoch: those of words that the model learns, so
    none without a label. The test's are, since the field publishes them, and nothing reads them; but not of a corpus
    that is left out, of which nothing is known before the end."""
    learned, names, labels = set(words_of_fold(corpus, fold)), corpus.features["label"].names, corpus["label"][:]
    sides = {"validation": fold.validation, "test": fold.test if fold.name is None else ()}
    words = [None if label is None else names[label] for label in labels]
    watched = {side: [row for row in rows if words[row] in learned] for side, rows in sides.items()}
    return {side: rows for side, rows in watched.items() if rows}


def training_data(
    recipe: Recipe, corpus, fold: Fold, args: LaSCLTrainingArguments, extractor=None, words: list[str] | None = None
) -> SpeechDataset:
    """The fold's utterances and their views; without the extractor good for planning alone. Labels are numbers of
    `words`, by default those of the fold."""
    return SpeechDataset(
        corpus,
        fold.train,
        decoded=None if extractor is None else decoded_audio(recipe),
        sampling_rate=getattr(extractor, "sampling_rate", SAMPLING_RATE),
        max_duration_s=clip_limit_s(recipe, extractor),
        augmentation=args.augmentation,
        num_views=args.num_views,
        augmentation_edition=args.augmentation_edition,
        augmentation_period=args.augmentation_period,
        seed=args.seed if args.augmentation_seed is None else args.augmentation_seed,
        words=words_of_fold(corpus, fold) if words is None else words,
    )


def everything_of(corpus) -> Fold:
    """All utterances as a training side, and nothing held out: fold 0."""
    return Fold(0, list(range(len(corpus))), [])


def view_store(recipe: Recipe) -> ViewStore | None:
    """Where views are kept on disk, if they are."""
    return ViewStore(recipe.views_dir or default_folder(), recipe.views_gb * GB) if recipe.views_gb else None


def decoded_audio(recipe: Recipe) -> DecodedAudio | None:
    """Where decoded and resampled audio is kept, if it is."""
    folder = recipe.decoded_dir or default_decoded_folder()
    return DecodedAudio(folder, recipe.decoded_gb * GB) if recipe.decoded_gb else None


def groups_of(corpus) -> dict[str, list[str] | None]:
    """Whose recordings the rows of a table are, as `statistics_of` wants it."""
    return {"corpora": corpus_of_rows(corpus), "speakers": corpus["speaker"][:]}


def known_views(
    recipe: Recipe,
    corpus,
    fold: Fold,
    args: LaSCLTrainingArguments,
    view_cache: dict,
    model,
    extractor,
    rows: list[int],
) -> PooledDataset | None:
    """The clean views of these rows of a fold as pooled audio, if it is known what the frozen encoder of this model,
    which was loaded again, makes of them; else `None`: it has to hear them. Statistics by corpus or speaker need the
    views of others too, which are then encoded if they are not known."""
    speech = training_data(recipe, corpus, everything_of(corpus), args, extractor)
    if not is_encoded_once(recipe, speech):
        return None
    block = known_block(model.lascl, speech, extractor, view_cache)
    if block is None and recipe.standardise_audio in ("none", "training"):
        return None
    if block is None:
        block = _clean_block(recipe, speech, args, view_cache, model, extractor)
    return _standardised_views(speech, block, corpus, fold, model, rows)


def _clean_block(recipe: Recipe, speech: SpeechDataset, args: LaSCLTrainingArguments, view_cache, model, extractor):
    """(N, d_a): all clean views, found or encoded now."""
    speech.num_views = 1
    return embed_views(model, speech, SpeechCollator(extractor), view_cache, args, view_store(recipe))[0, 0]


def _standardised_views(speech: SpeechDataset, block, corpus, fold: Fold, model, rows: list[int]) -> PooledDataset:
    """The clean views of some rows as the heads of this fold are to have them."""
    statistics = statistics_of(model.lascl, block, fold, **groups_of(corpus))
    return PooledDataset(speech, rows, {(0, 0): block}, num_views=1, statistics=statistics)


def clean_views(
    recipe: Recipe, corpus, fold: Fold, args: LaSCLTrainingArguments, checkpoint: Path, view_cache: dict
) -> np.ndarray:
    """(N, d_a): the clean views of a fold's training and test as the frozen encoder of its checkpoint hears them,
    standardised as there; 0 in rows of neither.

    Raises:
        ValueError: an encoder that is trained, or whose views never repeat.
    """
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval().to(args.device)
    model.lascl.takes_odd_audio = True  # as training does: every file was looked at
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    speech = training_data(recipe, corpus, everything_of(corpus), args, extractor)
    if not is_encoded_once(recipe, speech):
        raise ValueError("Floors are of frozen encoders: set freeze_audio_encoder, and an augmentation_period.")
    block, rows = _clean_block(recipe, speech, args, view_cache, model, extractor), [*fold.train, *fold.test]
    views = _standardised_views(speech, block, corpus, fold, model, rows)
    found = np.zeros((len(corpus), model.config.pooled_size), dtype=np.float32)
    for number, row in enumerate(rows):
        found[row] = views[number]["pooled_audio"][0].numpy()
    return found


def clip_limit_s(recipe: Recipe, extractor) -> float:
    """Seconds that the model sees of an utterance at most: the recipe's limit, and Whisper's window."""
    return min(recipe.max_duration_s, getattr(extractor, "chunk_length", math.inf))


def is_encoded_once(recipe: Recipe, speech: SpeechDataset) -> bool:
    """Whether each view is one vector for good: nothing that makes it is trained, and no view is ever drawn again."""
    is_constant = recipe.freeze_audio_encoder and recipe.audio_layers != "weighted"
    return is_constant and speech.augmentation_period is not None


@torch.no_grad()
def pool_utterances(model: LaSCLForAudioClassification, loader: DataLoader) -> torch.Tensor:
    """(N, d_a): the pooled audio of all utterances of a loader, in evaluation mode."""
    model.eval()
    rows = []
    for batch in loader:
        for unheard in ("labels", "label_mask"):
            batch.pop(unheard, None)
        rows.append(model.lascl(**send_to_device(batch, model.device)).pooled_audio)
    return torch.cat(rows)


# ------------------------------------------------------------------------------------------------------------ training


def fit(start: Start, data: FoldData, args: LaSCLTrainingArguments, fold_dir: Path) -> LaSCLTrainer:
    """Trains, from the last intermediate checkpoint in `args.output_dir` if there is one."""
    with tracked(args, fold_dir):
        trainer = LaSCLTrainer(
            start.model,
            args,
            eval_dataset=data.watched,
            train_dataset=data.train,
            data_collator=data.collate,
            processing_class=start.extractor,
        )
        trainer.leaves_out_frozen = True  # they come from where they came from
        trainer.add_callback(MarkWholeCheckpoints())
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                remove_damaged_checkpoints(args.output_dir)
            interrupted = last_whole_checkpoint(args.output_dir)
        if interrupted:
            PartialState().print(f"Going on after step {interrupted.rpartition('-')[2]}.")
        trainer.train(resume_from_checkpoint=interrupted)
    return trainer


# ------------------------------------------------------------------------------------------------------- what is kept


def save_fold(trainer: LaSCLTrainer, start: Start, text_encoder: str, fold_dir: Path, card: Callable[..., ModelCard]):
    """Writes `log_history.json` and `checkpoint/`, and lets go of what training held.

    Args:
        text_encoder: its name or folder; a folder's goes with the checkpoint, since it is nowhere else.
        card: of a folder `checkpoint`, filled with what is known before the fold is tested.
    """
    if trainer.is_world_process_zero():
        fold_dir.mkdir(parents=True, exist_ok=True)
        write_json(fold_dir / "log_history.json", merge_log(trainer.state.log_history))
        if start.adapters:
            start.adapters.merge_and_unload()
        save_checkpoint(start, text_encoder, fold_dir / "checkpoint", card)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()


def merge_log(entries: list[dict]) -> list[dict]:
    """One entry a logged step, sorted by name: what comes out of an intermediate checkpoint is sorted too."""
    steps = {}
    for entry in entries:
        kept = {name.removeprefix("eval_"): value for name, value in entry.items() if not name.endswith(NOT_LOGGED)}
        steps[entry["step"]] = {**steps.get(entry["step"], {}), **kept}
    return [dict(sorted(steps[step].items())) for step in sorted(steps)]


def save_checkpoint(start: Start, text_encoder: str, folder: Path, card: Callable[..., ModelCard]):
    """A complete model repository: weights, config, code, feature extractor, card; whole or absent."""
    unfinished = folder.with_name(".checkpoint")
    for stale in (unfinished, folder):
        shutil.rmtree(stale, ignore_errors=True)
    start.model.save_pretrained(unfinished, save_text_encoder=False)
    start.extractor.save_pretrained(unfinished)
    if text_encoder and Path(text_encoder).is_dir():
        shutil.copytree(text_encoder, unfinished / "text_encoder", copy_function=link_or_copy)
    card(checkpoint=unfinished).save(unfinished / "README.md")
    unfinished.rename(folder)


def training_cost(trainer: LaSCLTrainer, data: FoldData) -> dict[str, float]:
    """`train_runtime_s`, earlier starts included, `encoding_s` before it where the encoder is frozen, and the rates of
    `StepClock` of this start."""
    runtime_s = trainer.state.log_history[-1]["train_runtime"]
    return {"train_runtime_s": runtime_s, **data.cost, **trainer.clock.since_start()}
