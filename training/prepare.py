"""Before the first fold: the corpus, its folds, the run directory, the weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
from accelerate import PartialState

from lascl.data import Fold, load_corpora, make_folds
from lascl.data.folds import Column
from lascl.data.sampling import check_batches
from lascl.data.votes import classes_of
from lascl.data.words import corpus_names, corpus_of_rows
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.fold import everything_of, training_data
from lascl.training.protocol import describe, write_protocol
from lascl.training.recipe import BALANCED, FULL_DATA, Recipe
from lascl.training.run_directory import forget_run, open_run, write_csv
from lascl.training.start import Weights, ready_weights


def read_corpus(recipe: Recipe) -> tuple[datasets.Dataset, list[dict[str, str]]]:
    """The table of the recipe's corpora, and the id and fault of each utterance that is left out."""
    skipped = [] if recipe.on_bad_audio == "skip" else None
    corpus = load_corpora(
        recipe.entries,
        allow_partial=recipe.allow_partial,
        skipped=skipped,
        targets=recipe.targets,
        ties=recipe.ties,
    )
    labels, speakers = corpus["label"][:], corpus["speaker"][:]
    of_rows = corpus_of_rows(corpus) or [recipe.corpus] * len(corpus)
    for name in sorted(set(of_rows)):
        occurring = Counter(label for label, of in zip(labels, of_rows) if of == name)
        heard = {speaker for speaker, of in zip(speakers, of_rows) if of == name}
        # With several, each says its own words alone.
        counts = ", ".join(
            f"{label} {occurring[index]}"
            for index, label in enumerate(corpus.features["label"].names)
            if occurring[index] or not corpus_names(corpus)
        )
        PartialState().print(f"{name}: {occurring.total()} utterances, {len(heard)} speakers; {counts}.")
    if corpus.info.description:
        PartialState().print(corpus.info.description)
    return corpus, [{"id": id, "reason": reason} for id, reason in skipped or []]


def divide(recipe: Recipe, corpus) -> list[Fold]:
    """The folds of a corpus, as the recipe has them."""
    return make_folds(
        corpus, recipe.num_folds, protocol=recipe.protocol, validation=recipe.validation, seed=recipe.split_seed
    )


def check_batches_of_folds(recipe: Recipe, corpus, folds: list[Fold], args: LaSCLTrainingArguments):
    """Refuses, as `SpeechDataset` and `UtteranceBatchSampler` do, what one of the recipe's trainings could not do."""
    labels, of_rows = Column(classes_of(corpus)), corpus_of_rows(corpus)
    chosen = [folds[number - 1] for number in recipe.fold_numbers(folds)]
    chosen += [everything_of(corpus)] if recipe.trains_on_everything else []
    training_data(recipe, corpus, chosen[0], args)
    names = corpus.features["label"].names
    unknown = sorted(set(recipe.class_weights or ()) - set(names)) if recipe.class_weights != BALANCED else []
    if unknown:
        raise ValueError(f"class_weights names {unknown[0]!r}, which is none of the words: {', '.join(names)}.")
    labelled = [label is not None for label in corpus["label"][:]]
    for fold in chosen:
        if fold.test and not any(labelled[row] for row in fold.test):
            raise ValueError(
                f"Fold {fold.number} would test no utterance with a word that most listeners chose: choose other "
                "folds, or targets: corpus."
            )
        check_batches(
            len(fold.train),
            int(labels.occurs(fold.train).sum()),
            global_batch_size=args.global_batch_size,
            utterances_per_class=args.utterances_per_class,
            num_processes=args.world_size,
            accumulation_steps=args.gradient_accumulation_steps,
            corpora=list(Counter(of_rows[row] for row in fold.train).values()) if of_rows else (),
            corpus_exponent=args.corpus_exponent,
            bucket_by_length=args.bucket_by_length,
        )


def parts_to_train(recipe: Recipe, run_dir: Path, folds: list[Fold]) -> list[str]:
    """The folders of the run that this recipe has still to train."""
    names = [f"fold-{number}" for number in recipe.fold_numbers(folds)]
    left = [name for name in names if not (run_dir / name / "metrics.json").is_file()]
    return [*left, *([FULL_DATA] if recipe.trains_on_everything else [])]


def begin_run(run_dir: Path, recipe: Recipe, corpus, folds: list[Fold], skipped: list[dict[str, str]]) -> Weights:
    """Makes the run directory or goes on in it, writes there what is tested and what is left out (`protocol.json`,
    `skipped.csv`), and readies the weights. On several processes, the main one first.

    Raises:
        ValueError: as `open_run` and `ready_weights` do.
    """
    is_new = False
    if PartialState().is_main_process:
        is_new = open_run(run_dir, recipe, corpus)
        write_protocol(run_dir, describe(recipe, corpus, folds, num_skipped=len(skipped)))
        if skipped:
            write_csv(run_dir / "skipped.csv", skipped)
    try:
        return ready_weights(recipe, run_dir, corpus, folds)
    except BaseException:  # an interrupted download too: nothing is computed yet
        if is_new:
            forget_run(run_dir)
        raise
