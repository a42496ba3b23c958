"""Floors: what a plain method makes of the folds, states and statistics that a study's runs have.

    STUDY/<floor>/seed-S/   the files of a run directory that its scores follow from; S is the first seed, which it has
                            no use for

Letters: n utterances, d_a width of the pooled audio.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from sklearn.linear_model import LogisticRegression

from lascl.data import Fold
from lascl.data.votes import told_votes
from lascl.data.words import corpus_of_rows, own_words
from lascl.evaluation import summarise_run
from lascl.evaluation.predictions import NO_REFERENCE
from lascl.studies.plan import PlannedRun, Study
from lascl.studies.tables import folder_name
from lascl.training.fold import clean_views
from lascl.training.recipe import CORPUS_FIELDS
from lascl.training.run_directory import environment, write_csv, write_json


# Of scikit-learn's logistic regression: as the floors of `shared/README.md` were measured.
C_OF_ONE_CORPUS, C_OF_SEVERAL = 0.05, 0.01
# Fields of a recipe that decide which utterances train, which are tested, and what is known of them.
FEATURE_FIELDS = (
    *CORPUS_FIELDS,
    *("num_folds", "protocol", "validation", "split_seed", "folds", "max_duration_s"),
    *("audio_encoder", "audio_encoder_revision", "init_from", "init_from_revision"),
    *("audio_layers", "audio_pooling", "audio_window", "audio_level", "pooled_frames", "standardise_audio"),
)


def floor_runs(study: Study, runs: list[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """By the name of each floor, the runs whose folds, states and statistics it has. Names tell the fields by which the
    floors differ; where they are of other corpora, one of a single variant is named after that."""
    alike = {}
    for run in runs:
        fields = {name: getattr(run.recipe, name) for name in FEATURE_FIELDS}
        alike.setdefault(json.dumps(fields, sort_keys=True), []).append(run)
    settings = [json.loads(fields) for fields in alike]
    differing = [name for name in FEATURE_FIELDS if len({json.dumps(fields[name]) for fields in settings}) > 1]
    named = {}
    for floor in study.floors:
        for fields, those in zip(settings, alike.values()):
            variants = list(dict.fromkeys(run.variant for run in those))
            told = ",".join(f"{name}={fields[name]}" for name in differing)
            own = variants[0] if "data_dir" in differing and len(variants) == 1 else told
            named[", ".join(filter(None, [floor.replace("_", " "), own]))] = those
    return named


def logistic_regression(x: np.ndarray, labels: np.ndarray, is_several: bool) -> LogisticRegression:
    """L2 logistic regression of standardised pooled audio (n, d_a); of several corpora each word counts alike."""
    c = C_OF_SEVERAL if is_several else C_OF_ONE_CORPUS
    return LogisticRegression(C=c, max_iter=5000, class_weight="balanced" if is_several else None).fit(x, labels)


def finished_floors(study: Study, folder: Path, runs: list[PlannedRun]) -> dict[str, list[str]]:
    """The floors that are there, and of each the variants that it is the floor of."""
    last = f"seed-{study.seeds[0]}/results.json"
    return {
        name: list(dict.fromkeys(run.variant for run in those))
        for name, those in floor_runs(study, runs).items()
        if (folder / folder_name(name) / last).is_file()
    }


def write_floors(study: Study, folder: Path, runs: list[PlannedRun]):
    """Writes the run directories of the floors whose run is complete, unless they are there. The views are those that
    the run's encoder made, which are on disk or encoded once more."""
    if not PartialState().is_main_process:
        return
    for name, those in floor_runs(study, runs).items():
        run, run_dir = those[0], folder / folder_name(name) / f"seed-{study.seeds[0]}"
        if run.is_complete and not (run_dir / "results.json").is_file():
            view_cache = {}
            for number in run.numbers:
                rows = floor_of_fold(run, run.folds[number - 1], view_cache)
                (run_dir / f"fold-{number}").mkdir(parents=True, exist_ok=True)
                write_csv(run_dir / f"fold-{number}" / "predictions.csv", rows)
            for file in ("protocol.json", "recipe.yaml"):
                shutil.copyfile(run.run_dir / file, run_dir / file)
            write_json(run_dir / "environment.json", environment())
            write_json(run_dir / "results.json", summarise_run(run_dir, run.corpus.features["label"].names))


def floor_of_fold(run: PlannedRun, fold: Fold, view_cache: dict[str, torch.Tensor]) -> list[dict]:
    """The rows of `predictions.csv`: the answers to the test of a fold, as of both heads. Of several corpora, the words
    that the tested corpus annotates and another one trains are learned, and all others count as wrong."""
    corpus, names = run.corpus, np.array(run.corpus.features["label"].names)
    checkpoint, args = run.run_dir / f"fold-{fold.number}" / "checkpoint", run.recipe.training_arguments(run.run_dir)
    x = clean_views(run.recipe, corpus, fold, args, checkpoint, view_cache)
    labels = np.array([NO_REFERENCE if label is None else names[label] for label in corpus["label"][:]])
    votes = told_votes(corpus)
    columns = {name: corpus[name][:] for name in ("id", "speaker")}
    of_rows, own = corpus_of_rows(corpus), own_words(corpus)
    answers = {}
    for tested in sorted({of_rows[row] for row in fold.test}) if own else [None]:
        words = names if own is None else own[tested]
        train = [row for row in fold.train if labels[row] in words]
        test = [row for row in fold.test if own is None or of_rows[row] == tested]
        regression = logistic_regression(x[train], labels[train], is_several=own is not None)
        answers |= dict(zip(test, regression.predict(x[test]).tolist()))
    return [
        {
            **{name: column[row] for name, column in columns.items()},
            **({"corpus": of_rows[row]} if of_rows else {}),
            "reference": str(labels[row]),
            "prediction": answers[row],
            "prediction_classifier": answers[row],
            **votes[row],
        }
        for row in fold.test
    ]
