"""Before the first fold: the corpus, its folds, the run directory, the weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
from accelerate import PartialState

from lascl.data import Fold, load_corpus, make_folds
from lascl.data.folds import Column
from lascl.data.sampling import check_batches
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.fold import training_data
from lascl.training.protocol import describe, write_protocol
from lascl.training.recipe import Recipe
from lascl.training.run_directory import open_run, write_csv
from lascl.training.start import Weights, ready_weights


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


def divide(recipe: Recipe, corpus) -> list[Fold]:
    """The folds of a corpus, as the recipe has them."""
    return make_folds(
        corpus, recipe.num_folds, protocol=recipe.protocol, validation=recipe.validation, seed=recipe.split_seed
    )


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


def begin_run(run_dir: Path, recipe: Recipe, corpus, folds: list[Fold], skipped: list[dict[str, str]]) -> Weights:
    """Makes the run directory or goes on in it, writes there what is tested and what is left out (`protocol.json`,
    `skipped.csv`), and readies the weights. On several processes, the main one first.

    Raises:
        ValueError: as `open_run` and `ready_weights` do.
    """
    if PartialState().is_main_process:
        open_run(run_dir, recipe, corpus)
        write_protocol(run_dir, describe(recipe, corpus, folds, num_skipped=len(skipped)))
        if skipped:
            write_csv(run_dir / "skipped.csv", skipped)
    return ready_weights(recipe, run_dir, corpus, folds)
