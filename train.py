"""Trains, cross-validates and scores LaSCL: `accelerate launch train.py [RECIPE.yaml] [--field value ...]`.

Reads like section 3.2 of the paper. Everything lands in the run directory (`output_dir`):

    recipe.yaml environment.json protocol.json results.json report.html report.md figures/
    fold-K/ checkpoint/ predictions.csv embeddings.npz metrics.json log_history.json logs/ (with `report_to`)
"""

from __future__ import annotations

import sys


if __name__ == "__main__":  # what is typed wrong is told before PyTorch is imported, which takes seconds
    from lascl.training.options import check_options

    check_options("train.py", sys.argv[1:])

import copy
import json
import shutil
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers.utils import logging

from lascl.console import say, unless_pipe_closes
from lascl.data import Fold
from lascl.data.words import own_words
from lascl.evaluation import read_predictions, results_table, summarise_run
from lascl.evaluation.predictions import labels_of, score_rows
from lascl.hub.card import fold_card
from lascl.hub.publish import BackgroundPublisher
from lascl.report import write_report
from lascl.training.exits import exits_in_a_sentence, what_is_refused, what_ran_out
from lascl.training.fold import (
    clip_limit_s,
    decoded_audio,
    everything_of,
    fit,
    fold_data,
    known_views,
    save_fold,
    training_cost,
)
from lascl.training.prediction import predict_fold
from lascl.training.prepare import begin_run, check_batches_of_folds, divide, parts_to_train, read_corpus
from lascl.training.protocol import announcement, note_begun
from lascl.training.recipe import FULL_DATA, Recipe, parse_recipe
from lascl.training.run_directory import claimed, environment, write_arrays, write_csv, write_json
from lascl.training.start import Weights, start_model


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Runs a recipe: all its folds, then the run's results. Called again, it goes on where it stopped.

    Exits with code 2 and one sentence when something is wrong with the recipe, the corpus or the encoders, or when the
    memory or the disk is full.
    """
    logging.disable_progress_bar()  # of loading weights; training keeps its own
    with exits_in_a_sentence("train.py", what_is_refused), ExitStack() as claims:
        recipe, run_dir = parse_recipe(sys.argv[1:] if argv is None else argv)
        args = recipe.training_arguments(run_dir)  # forms the process group, and refuses what cannot work
        process = PartialState()
        with process.main_process_first():
            corpus, skipped = read_corpus(recipe)
            folds = divide(recipe, corpus)
            check_batches_of_folds(recipe, corpus, folds, args)
            claims.enter_context(claimed(run_dir, parts_to_train(recipe, run_dir, folds)))
            weights = begin_run(run_dir, recipe, corpus, folds, skipped)
        publishes = recipe.push_to_hub and process.is_main_process
        publisher = BackgroundPublisher.of_recipe(recipe, run_dir) if publishes else None
        claims = claims.pop_all()
    explained = exits_in_a_sentence("train.py", partial(what_ran_out, folder=run_dir, args=args))
    with claims, explained, publisher or nullcontext():
        cross_validate(recipe, run_dir, corpus, folds, weights, publisher)
        if process.is_main_process and recipe.fold_numbers(folds):
            report(run_dir, labels=corpus.features["label"].names)
        process.wait_for_everyone()
        if recipe.trains_on_everything:
            train_on_everything(recipe, run_dir, corpus, weights)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # before the network is waited for, which others would time out on
    if publisher:
        publisher.finish()


def cross_validate(
    recipe: Recipe,
    run_dir: Path,
    corpus,
    folds: list[Fold],
    weights: Weights,
    publisher: BackgroundPublisher | None = None,
    view_cache: dict[str, torch.Tensor] | None = None,
):
    """Trains and tests the recipe's folds, each unless it is complete: then it has `metrics.json`. Each that is
    finished here is handed to the publisher, if there is one. `view_cache` holds what frozen encoders made of the
    audio, by `lascl.training.pooled.view_keys`, for whoever calls again."""
    view_cache = {} if view_cache is None else view_cache
    for fold in (folds[number - 1] for number in recipe.fold_numbers(folds)):
        fold_dir = run_dir / f"fold-{fold.number}"
        if (fold_dir / "metrics.json").is_file():
            PartialState().print(f"Fold {fold.number}: complete, kept.")
            continue
        PartialState().print(announcement(corpus, fold, len(folds)))
        if PartialState().is_main_process:
            note_begun(run_dir, corpus, fold)
        extractor, cost = train_fold(recipe, corpus, fold, fold_dir, weights, view_cache)
        evaluate_fold(recipe, corpus, fold, fold_dir, extractor, cost, view_cache)
        if publisher:
            publisher.add(fold.number)
        PartialState().wait_for_everyone()


def train_fold(
    recipe: Recipe, corpus, fold: Fold, fold_dir: Path, weights: Weights, view_cache: dict[str, torch.Tensor]
) -> tuple[object, dict[str, float]]:
    """Trains one fold, from its last intermediate checkpoint if there is one, and saves `fold_dir/checkpoint`.

    Returns:
        The feature extractor of the checkpoint, and what training cost (`training_cost`).
    """
    args = recipe.training_arguments(fold_dir / "trainer")
    start = start_model(recipe, corpus, fold, weights, args.seed)
    data = fold_data(recipe, corpus, fold, args, start, view_cache)
    trainer = fit(start, data, args, fold_dir)
    save_fold(trainer, start, weights.text, fold_dir, card=partial(fold_card, fold_dir.parent, fold.number or None))
    return start.extractor, training_cost(trainer, data)


def evaluate_fold(
    recipe: Recipe, corpus, fold: Fold, fold_dir: Path, extractor, cost: dict[str, float], view_cache: dict
):
    """Writes what the saved checkpoint says of the fold's test, and its scores."""
    args = recipe.training_arguments(fold_dir.parent)
    rows, geometry = predict_fold(
        fold_dir / "checkpoint",
        corpus,
        fold,
        max_duration_s=clip_limit_s(recipe, extractor),
        batch_size=args.per_device_eval_batch_size,
        decoded=decoded_audio(recipe),
        known=partial(known_views, recipe, corpus, fold, args, view_cache),
    )
    if PartialState().is_main_process:
        write_csv(fold_dir / "predictions.csv", rows)
        write_arrays(fold_dir / "embeddings.npz", geometry)
        tested, own = read_predictions(fold_dir / "predictions.csv"), own_words(corpus)
        labels = labels_of(tested, corpus.features["label"].names, own)
        scores = score_rows(tested, labels, recipe.prediction_head, own)
        run = {"fold": fold.number, "commit": environment()["commit"], **cost}
        write_json(fold_dir / "metrics.json", {**run, **scores})  # last: it marks the fold as complete
        shutil.rmtree(fold_dir / "trainer", ignore_errors=True)


def train_on_everything(recipe: Recipe, run_dir: Path, corpus, weights: Weights):
    """One more training, on every utterance, as long as that of a fold: `full-data/checkpoint`, which has no held-out
    score. Nothing is left to select an epoch by, so it is the last."""
    folder = run_dir / FULL_DATA
    if (folder / "checkpoint").is_dir():
        PartialState().print("Training on everything: complete, kept.")
    else:
        PartialState().print(f"Training on everything: {len(corpus)} utterances.")
        recipe = copy.copy(recipe)
        recipe.selection = "last"
        train_fold(recipe, corpus, everything_of(corpus), folder, weights, {})
        if PartialState().is_main_process:
            shutil.rmtree(folder / "trainer", ignore_errors=True)
    PartialState().print(f"The model of everything: {folder / 'checkpoint'}")
    PartialState().wait_for_everyone()


def report(run_dir: Path, labels: list[str]):
    """Writes `results.json`, the report and its figures from the run's files, and prints the table."""
    results = summarise_run(run_dir, labels)
    write_json(run_dir / "results.json", results)
    write_report(run_dir, results)
    notes = json.loads((run_dir / "protocol.json").read_text(encoding="utf-8"))["notes"]
    done = f"{run_dir}: report.html, results.json, fold-*/checkpoint"
    say("", " ".join(notes), "", results_table(results), "", done)


if __name__ == "__main__":
    main()
